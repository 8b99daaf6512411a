"""The decode loop: one generation from prompt to finished text. docs/decoding.md has the reasoning."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from gateway.decode.draws import Draw, observe
from gateway.decode.guided import Guide
from gateway.decode.interfaces import Guidance, Logits, MatcherState
from gateway.decode.limits import Account, FinishReason, Limits, check_rollbacks, no_text, refuse_small_budget
from gateway.decode.output import Delta, Output
from gateway.decode.sampler import Sampler
from gateway.decode.sequence import ModelSequence
from services.rpckit.status import ServiceError
from services.vocabulary import Vocabulary, bitmask_of, has_token, pack_bool_mask, unpack_bitmask
from services.vocabulary.bitmask import BoolMask

# A wait for forced tokens pays while one look in so many finds some.
_LOOKS_PER_FORCED_RUN: Final = 30


@dataclass(slots=True)
class _Point:
    """A state in which a token is chosen, behind the first `num_tokens` of the text.

    `refused` are allowed tokens that lead to no text: to a dead end, or to none that fits into `max_tokens`.
    """

    guidance: Guidance
    num_tokens: int
    refused: set[int] = field(default_factory=set)
    num_too_long: int = 0
    is_bound_by_budget: bool = False
    """Whether a larger `max_tokens` might have led on from here."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A token settled on, what follows it unless it ends the text, and whether the worker has it already."""

    token_id: int
    guidance: Guidance | None
    is_sent: bool
    draw: Draw | None = None


class DecodeLoop:
    """Draws tokens until the text is finished.

    `sequence` has the prompt's step in flight already. With a `guide`, which is started, the text satisfies its
    constraint and ends complete within the limits.
    """

    def __init__(
        self,
        *,
        sequence: ModelSequence,
        guide: Guide | None,
        vocabulary: Vocabulary,
        plain_mask: BoolMask,
        sampler: Sampler,
        stops: tuple[str, ...],
        stop_token_ids: tuple[int, ...] = (),
        limits: Limits,
        emit: Callable[[Delta], Awaitable[None]],
        prefix: bytes = b"",
        interjection: Callable[[int], Sequence[int]] = lambda num_tokens: (),
        keeps_masks: bool = False,
    ) -> None:
        """`plain_mask` `(V,)` has the tokens that free text may use: those with bytes, and the end tokens.

        Free text begins with `prefix`. Constrained text goes on with the tokens that `interjection` names for so many
        tokens of it, where the constraint and the budget allow that.
        """
        self._sequence = sequence
        self._guide = guide
        self._vocabulary = vocabulary
        self._plain_mask = plain_mask
        self._eos_token_ids = frozenset(vocabulary.eos_token_ids)
        self._end_token_ids = self._eos_token_ids | frozenset(stop_token_ids)
        self._sampler = sampler
        self._limits = limits
        self._emit = emit
        self._prefix = prefix
        self._interjection = interjection
        self._keeps_masks = keeps_masks
        self._is_bound_by_budget = False
        self._points: list[_Point] = []
        """From the last state that is settled to the one that is reached."""
        self._dead: dict[MatcherState, float] = {}
        """States that lead nowhere, and the number of tokens with which they do not: whatever text comes before."""
        self._num_prompt_tokens = sequence.num_tokens
        self._num_sent = 0
        """How many tokens of the text the worker has; behind them it may have others, drawn in vain."""
        self._num_looks = 0
        self._num_forced_runs = 0
        self.output = Output(stops, is_strict=guide is not None)
        self.account = Account()

    async def run(self) -> FinishReason:
        """Write the text; `output` and `account` have it then.

        Raises:
            BudgetTooSmall, ContextExceeded: a complete text does not fit, or none was found that does.
            UnsatisfiableGrammar: the constraint's checks refuse all texts.
            DeadEnd: they refused more ways on than the limits allow to try.
            ServiceError: as the other services answered.
        """
        if self._guide is None:
            reason = await self._run_free()
        else:
            reason = await self._run_guided(self._guide)
        try:
            rest = self.output.finish()
        except UnicodeDecodeError as error:
            raise _not_utf8() from error
        if rest is not None:
            await self._emit(rest)
        return reason

    async def _run_free(self) -> FinishReason:
        may_end, may_go_on = self._plain_mask.copy(), self._plain_mask.copy()
        may_end[list(self._end_token_ids)], may_go_on[list(self._end_token_ids)] = True, False
        while self._num_left > 0:
            logits = await self._sequence.logits()
            bool_mask = may_go_on if self._is_too_early else may_end
            if self._prefix:
                bool_mask = self._spells_prefix()
            token_id = self._sampler.draw(logits, bool_mask, self.account.token_ids)
            assert token_id is not None, "a vocabulary has tokens"
            if token_id in self._end_token_ids:
                return "stop"
            if self._keeps_masks:
                self.account.masks.append(pack_bool_mask(bool_mask))
            self._write(token_id)
            self._prefix = self._prefix[len(self._vocabulary.spelling(token_id)) :]
            if self.output.is_stopped:
                return "stop"
            if self._num_left > 0:
                self._sequence.append([token_id])
            await self._flush()
        return "length"

    async def _run_guided(self, guide: Guide) -> FinishReason:
        assert guide.compiled is not None, "started first"
        start = guide.compiled.start
        refuse_small_budget(self._limits, start.num_needed)
        self._write_guided(start.forced_token_ids, start)
        while not self._is_at_end(guide.guidance):
            if guide.guidance.witness_num_tokens < self._num_left:
                self._send()  # the model has a say in what comes next
            await self._flush()
            if await self._interject(guide):
                continue
            taken = await self._choose(guide)
            if taken is None:
                self._go_back(guide)
                continue
            if taken.guidance is None:
                break
            self._num_sent += taken.is_sent
            guide.take(taken.token_id, taken.guidance)
            self._write_guided([taken.token_id, *taken.guidance.forced_token_ids], taken.guidance, taken.draw)
        self._is_bound_by_budget |= self._num_left == 0 and not self._may_only_end(guide.guidance)
        return "budget_closed" if self._is_bound_by_budget else "stop"

    def _spells_prefix(self) -> BoolMask:
        """Return the `(V,)` tokens that the rest of the prefix begins with, or that begin with it."""
        rest = self._prefix
        tokens = (token or b"" for token in self._vocabulary.token_bytes)
        return np.array([len(token) > 0 and (token.startswith(rest) or rest.startswith(token)) for token in tokens])

    async def _interject(self, guide: Guide) -> bool:
        """Write what has to follow now, if anything and if it can; tell whether it is written."""
        num_tokens = len(self.account.token_ids)
        for token_id in self._interjection(num_tokens):
            if not has_token(guide.guidance.bitmask, token_id):
                break
            following = await guide.look(token_id)
            if following.is_dead_end or following.num_needed > self._num_left - 1:
                break
            guide.take(token_id, following)
            self._write_guided([token_id, *following.forced_token_ids], following)
        return len(self.account.token_ids) > num_tokens

    async def _choose(self, guide: Guide) -> _Taken | None:
        """Find a token behind which the text can still end within the budget; None where all were refused."""
        point, num_left, logits = self._points[-1], self._num_left, None
        guidance = point.guidance
        bool_mask = unpack_bitmask(guidance.bitmask, self._vocabulary.vocab_size)
        is_tight = guidance.witness_num_tokens == num_left
        self._is_bound_by_budget |= is_tight
        while guidance.num_allowed > len(point.refused):
            token_id: int | None = None
            if is_tight or point.num_too_long >= self._limits.max_budget_draws:
                # Nothing else fits, or nearly nothing, and the witness is known without the model.
                token_id = self._shortest_way_on(guidance)
            if token_id is None or token_id in point.refused:
                if point.num_too_long >= self._limits.max_budget_draws:
                    break
                logits = await self._logits() if logits is None else logits
                excluded = point.refused | self._ends_too_early(point)
                token_id = self._sampler.draw(logits, bool_mask, self.account.token_ids, excluded=excluded)
                assert token_id is not None, "the mask has as many tokens as the guidance says"
            if token_id in self._eos_token_ids:
                return _Taken(token_id, None, is_sent=False)
            following, is_sent = await self._look(guide, token_id, may_send=logits is not None)
            in_vain_with = self._dead.get(following.after_forced, -math.inf)
            if following.is_dead_end or in_vain_with >= num_left - 1 - len(following.forced_token_ids):
                point.is_bound_by_budget |= math.isfinite(in_vain_with)
                self._count_dead_end()
            elif following.num_needed > num_left - 1:
                self._is_bound_by_budget = point.is_bound_by_budget = True
                self.account.num_budget_rollbacks += 1
                point.num_too_long += 1
            else:
                # While the worker is at its next step.
                draw = None if logits is None else observe(logits, bool_mask, token_id)
                return _Taken(token_id, following, is_sent, draw)
            point.refused.add(token_id)
        return None

    def _ends_too_early(self, point: _Point) -> frozenset[int]:
        """Return the end tokens where the text is too short to end and something else is left to try."""
        is_end_all = point.guidance.num_allowed - len(point.refused) <= len(self._eos_token_ids)
        is_too_early = self._is_too_early and point.guidance.is_accepting and not is_end_all
        return self._eos_token_ids if is_too_early else frozenset()

    def _shortest_way_on(self, guidance: Guidance) -> int | None:
        """Return the first token of the witness, an end token where the text is complete."""
        return self._vocabulary.eos_token_ids[0] if guidance.is_accepting else guidance.witness_token_id

    def _go_back(self, guide: Guide) -> None:
        """Take back the token that led here, and what it forced: it counts as masked where it was chosen."""
        dead = self._points.pop()
        if not self._points:
            assert guide.compiled is not None
            is_start = dead.num_tokens == len(guide.compiled.start.forced_token_ids)
            raise no_text(self._limits, dead.num_tokens, is_start=is_start, is_bound_by_budget=self._is_bound_by_budget)
        point, account = self._points[-1], self.account
        point.is_bound_by_budget |= dead.is_bound_by_budget
        # Written with less left, the state is as dead; with more, unless the budget had a say.
        self._dead[dead.guidance.after_forced] = self._num_left if dead.is_bound_by_budget else math.inf
        num_taken_back = dead.num_tokens - point.num_tokens
        point.refused.add(account.token_ids[point.num_tokens])
        self._count_dead_end(num_taken_back)
        guide.back_to(point.num_tokens, point.guidance)
        self.output.take_back(num_taken_back)
        del account.token_ids[point.num_tokens :]
        del account.written_at[point.num_tokens :]
        del account.masks[point.num_tokens :]
        del account.draws[point.num_tokens :]
        account.num_forced_tokens -= num_taken_back - 1
        self._num_sent = min(self._num_sent, point.num_tokens)

    def _count_dead_end(self, num_taken_back: int = 0) -> None:
        self.account.num_dead_ends += 1
        self.account.num_rolled_back_tokens += num_taken_back
        check_rollbacks(self._limits, self.account, is_bound_by_budget=self._is_bound_by_budget)

    async def _look(self, guide: Guide, token_id: int, *, may_send: bool) -> tuple[Guidance, bool]:
        """Ask what follows a token, and send it to the worker meanwhile, unless the answer is there within the grace.

        `may_send` only where the worker has all of the text. Returns the answer, and whether the token was sent.
        """
        asked = guide.look(token_id)
        started, is_sent = time.perf_counter(), False
        try:
            if may_send and self._is_worth_waiting:
                await asyncio.wait({asked}, timeout=self._limits.forced_grace_s)
                self.account.mask_wait_s += time.perf_counter() - started
            if may_send and not asked.done() and self._num_left > 1:
                self._sequence.append([token_id], keep=self._num_prompt_tokens + self._num_sent)
                is_sent = True
            following = await asked
        finally:
            asked.cancel()
        self._num_looks += 1
        self._num_forced_runs += bool(following.forced_token_ids)
        if is_sent and (replied_at := self._sequence.replied_at) is not None:
            self.account.mask_wait_s += max(0.0, time.perf_counter() - replied_at)
        return following, is_sent

    @property
    def _is_worth_waiting(self) -> bool:
        """Whether tokens are forced here often enough: a wait costs about a thirtieth of the step that it may save."""
        is_likely = self._num_looks < _LOOKS_PER_FORCED_RUN * (1 + self._num_forced_runs)
        return self._limits.forced_grace_s > 0 and is_likely

    def _send(self) -> None:
        """Send the worker what it lacks of the text, in place of tokens drawn in vain."""
        lacking = self.account.token_ids[self._num_sent :]
        if lacking:
            self._sequence.append(lacking, keep=self._num_prompt_tokens + self._num_sent)
            self._num_sent += len(lacking)

    async def _logits(self) -> Logits:
        """Return the `(V,)` logits behind the text."""
        self._send()
        self._sequence.back_to(self._num_prompt_tokens + self._num_sent)
        return await self._sequence.logits()

    def _is_at_end(self, guidance: Guidance) -> bool:
        return self._may_only_end(guidance) or (guidance.is_accepting and self._num_left == 0)

    def _may_only_end(self, guidance: Guidance) -> bool:
        return guidance.after_forced.is_terminated or (
            guidance.is_accepting and guidance.num_allowed <= len(self._eos_token_ids)
        )

    @property
    def _is_too_early(self) -> bool:
        return len(self.account.token_ids) < self._limits.min_tokens

    @property
    def _num_left(self) -> int:
        return self._limits.max_tokens - len(self.account.token_ids)

    def _write_guided(self, token_ids: Sequence[int], guidance: Guidance, draw: Draw | None = None) -> None:
        """Write a chosen token, if any, and what it forced; `guidance` speaks of what follows."""
        if self._keeps_masks:
            chosen = [self._points[-1].guidance.bitmask] if len(token_ids) > len(guidance.forced_token_ids) else []
            forced = [bitmask_of([token_id], self._vocabulary.vocab_size) for token_id in guidance.forced_token_ids]
            self.account.masks += [*chosen, *forced]
        if guidance.is_settled:
            self._points.clear()
        num_chosen = len(token_ids) - len(guidance.forced_token_ids)
        try:
            if guidance.is_settled:
                self.output.settle()
            for index, token_id in enumerate(token_ids):
                self._write(token_id, is_forced=index >= num_chosen, is_settled=guidance.is_settled)
                self.account.draws.append(draw if index < num_chosen else None)
        except UnicodeDecodeError as error:
            raise _not_utf8() from error
        self._points.append(_Point(guidance, len(self.account.token_ids)))

    def _write(self, token_id: int, *, is_forced: bool = False, is_settled: bool = True) -> None:
        account = self.account
        account.token_ids.append(token_id)
        account.written_at.append(time.perf_counter())
        account.num_forced_tokens += is_forced
        token = self._vocabulary.spelling(token_id)
        if is_settled:
            self.output.push(token, is_forced=is_forced)
        else:
            self.output.hold(token, is_forced=is_forced)

    async def _flush(self) -> None:
        if (delta := self.output.take()) is not None:
            await self._emit(delta)


def _not_utf8() -> ServiceError:
    return ServiceError("a mask let bytes through that are no UTF-8; a bug of the constraint service")


def plain_mask(vocabulary: Vocabulary) -> BoolMask:
    """Return the `(V,)` mask of free text: tokens that stand for text, and end tokens.

    Padding of the logits beyond the tokenizer and other special tokens (`<|im_start|>`) stay out: they have no text.
    """
    mask = np.array([token is not None for token in vocabulary.token_bytes])
    mask[list(vocabulary.eos_token_ids)] = True
    return mask
