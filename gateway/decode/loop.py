"""The decode loop: one generation from prompt to finished text. docs/decoding.md has the reasoning."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from gateway.decode.guided import Guide
from gateway.decode.interfaces import Guidance
from gateway.decode.output import Delta, Output
from gateway.decode.sampler import Sampling, draw
from gateway.decode.sequence import ModelSequence
from services.rpckit.status import BudgetTooSmall, ContextExceeded, ServiceError
from services.vocabulary import Vocabulary, unpack_bitmask
from services.vocabulary.bitmask import BoolMask

# A wait for forced tokens pays while one look in so many finds some.
_LOOKS_PER_FORCED_RUN: Final = 30

FinishReason = Literal["stop", "length", "budget_closed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds one generation and how it waits."""

    max_tokens: int
    """Most tokens to write."""
    is_context_bound: bool
    """Whether `max_tokens` is what the context leaves, rather than what was asked for."""
    forced_grace_s: float
    """How long a drawn token may wait for the mask behind it, so that the tokens forced there share its step."""
    max_budget_draws: int
    """Tokens drawn in vain because their shortest completion does not fit, before the witness is taken."""


@dataclass(slots=True)
class Account:
    """What a generation did, filled as it goes."""

    token_ids: list[int] = field(default_factory=list)
    num_forced_tokens: int = 0
    num_budget_rollbacks: int = 0
    first_token_at: float | None = None
    last_token_at: float = 0.0
    token_gaps_s: list[float] = field(default_factory=list)
    mask_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Taken:
    """A token settled on, what follows it unless it ends the text, and whether the worker has it already."""

    token_id: int
    guidance: Guidance | None
    is_sent: bool


class DecodeLoop:
    """Draws tokens until the text is finished.

    `sequence` has the prompt's step in flight already. With a `guide`, which is not started yet, the text satisfies
    its constraint and ends complete within the limits.
    """

    def __init__(
        self,
        *,
        sequence: ModelSequence,
        guide: Guide | None,
        vocabulary: Vocabulary,
        plain_mask: BoolMask,
        sampling: Sampling,
        stops: tuple[str, ...],
        limits: Limits,
        emit: Callable[[Delta], Awaitable[None]],
    ) -> None:
        """`plain_mask` `(V,)` has the tokens that free text may use: those with bytes, and the end tokens."""
        self._sequence = sequence
        self._guide = guide
        self._vocabulary = vocabulary
        self._plain_mask = plain_mask
        self._eos_token_ids = frozenset(vocabulary.eos_token_ids)
        self._sampling = sampling
        self._limits = limits
        self._emit = emit
        self._is_bound_by_budget = False
        self._num_looks = 0
        self._num_forced_runs = 0
        self.output = Output(stops, is_strict=guide is not None)
        self.account = Account()

    async def run(self) -> FinishReason:
        """Write the text; `output` and `account` have it then.

        Raises:
            BudgetTooSmall, ContextExceeded: a complete text does not fit.
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
        while self._num_left > 0:
            logits = await self._sequence.logits()
            token_id = draw(logits, self._plain_mask, self._sampling, position=len(self.account.token_ids))
            assert token_id is not None, "a vocabulary has tokens"
            if token_id in self._eos_token_ids:
                return "stop"
            self._write(token_id)
            if self.output.is_stopped:
                return "stop"
            if self._num_left > 0:
                self._sequence.append([token_id])
            await self._flush()
        return "length"

    async def _run_guided(self, guide: Guide) -> FinishReason:
        start = (await guide.start()).start
        self._refuse_small_budget(start)
        self._write_forced(start)
        if start.forced_token_ids and self._needs_logits(guide.guidance):
            self._sequence.append(start.forced_token_ids)
        while True:
            await self._flush()
            guidance = guide.guidance
            if self._may_only_end(guidance):
                break
            if guidance.witness_num_tokens == self._num_left:
                # Nothing else fits, and the witness is known without the model.
                self._is_bound_by_budget = True
                if self._num_left == 0:
                    break
                await self._take_witness(guide)
                continue
            num_kept = self._sequence.num_tokens
            taken = await self._choose(guide)
            if taken.token_id in self._eos_token_ids:
                break
            assert taken.guidance is not None
            self._write(taken.token_id)
            guide.take(taken.token_id, taken.guidance)
            self._write_forced(taken.guidance)
            if not self._needs_logits(taken.guidance):
                continue
            if not taken.is_sent:
                self._sequence.append([taken.token_id, *taken.guidance.forced_token_ids], keep=num_kept)
            elif taken.guidance.forced_token_ids:
                self._sequence.append(taken.guidance.forced_token_ids)
        return "budget_closed" if self._is_bound_by_budget else "stop"

    async def _choose(self, guide: Guide) -> _Taken:
        """Draw a token behind which the text can still end within the budget."""
        guidance = guide.guidance
        bool_mask = unpack_bitmask(guidance.bitmask, self._vocabulary.vocab_size)
        position, num_kept = len(self.account.token_ids), self._sequence.num_tokens
        logits = await self._sequence.logits()
        too_long: set[int] = set()
        while True:
            token_id = None
            if len(too_long) < self._limits.max_budget_draws:
                token_id = draw(logits, bool_mask, self._sampling, position=position, excluded=too_long)
            if token_id is None:
                token_id = _witness_of(guidance)
            if token_id in self._eos_token_ids:
                return _Taken(token_id, None, is_sent=False)
            following, is_sent = await self._look(guide, token_id, num_kept)
            if following.num_needed <= self._num_left - 1:
                return _Taken(token_id, following, is_sent)
            if token_id == guidance.witness_token_id:
                raise ServiceError(
                    f"the constraint service's witness grew from {guidance.witness_num_tokens} to "
                    f"{1 + following.num_needed} tokens along its own way",
                )
            self._is_bound_by_budget = True
            self.account.num_budget_rollbacks += 1
            too_long.add(token_id)

    async def _look(self, guide: Guide, token_id: int, num_kept: int) -> tuple[Guidance, bool]:
        """Ask what follows a token, and send it to the worker meanwhile, unless the answer is there within the grace.

        `num_kept` tokens of the sequence come before it. Returns the answer, and whether the token was sent.
        """
        asked = guide.look(token_id)
        started, is_sent = time.perf_counter(), False
        try:
            if self._is_worth_waiting:
                await asyncio.wait({asked}, timeout=self._limits.forced_grace_s)
                self.account.mask_wait_s += time.perf_counter() - started
            if not asked.done() and self._num_left > 1:
                self._sequence.append([token_id], keep=num_kept)
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

    async def _take_witness(self, guide: Guide) -> None:
        token_id = _witness_of(guide.guidance)
        following = await guide.look(token_id)
        if following.num_needed > self._num_left - 1:
            raise ServiceError("the constraint service's witness does not shrink along its own way")
        self._write(token_id)
        guide.take(token_id, following)
        self._write_forced(following)

    def _needs_logits(self, guidance: Guidance) -> bool:
        """Whether the model has a say in what comes next."""
        return not self._may_only_end(guidance) and guidance.witness_num_tokens < self._num_left

    def _may_only_end(self, guidance: Guidance) -> bool:
        return guidance.after_forced.is_terminated or (
            guidance.is_accepting and guidance.num_allowed <= len(self._eos_token_ids)
        )

    def _refuse_small_budget(self, start: Guidance) -> None:
        num_needed, max_tokens = start.num_needed, self._limits.max_tokens
        if num_needed <= max_tokens:
            return
        if self._limits.is_context_bound:
            raise ContextExceeded(
                f"a complete text takes at least {num_needed} tokens here and the prompt leaves {max_tokens} of the "
                "context: shorten the prompt",
                num_needed=num_needed,
                num_left=max_tokens,
            )
        raise BudgetTooSmall(
            f"max_tokens is {max_tokens}, but a complete text takes {num_needed} tokens here: allow at least that many",
            field="generation.max_tokens",
            max_tokens=max_tokens,
            num_needed=num_needed,
        )

    @property
    def _num_left(self) -> int:
        return self._limits.max_tokens - len(self.account.token_ids)

    def _write_forced(self, guidance: Guidance) -> None:
        for token_id in guidance.forced_token_ids:
            self._write(token_id, is_forced=True)

    def _write(self, token_id: int, *, is_forced: bool = False) -> None:
        account, now = self.account, time.perf_counter()
        if account.first_token_at is None:
            account.first_token_at = now
        else:
            account.token_gaps_s.append(now - account.last_token_at)
        account.last_token_at = now
        account.token_ids.append(token_id)
        account.num_forced_tokens += is_forced
        try:
            self.output.push(self._vocabulary.token_bytes[token_id] or b"", is_forced=is_forced)
        except UnicodeDecodeError as error:
            raise _not_utf8() from error

    async def _flush(self) -> None:
        if (delta := self.output.take()) is not None:
            await self._emit(delta)


def _not_utf8() -> ServiceError:
    return ServiceError("a mask let bytes through that are no UTF-8; a bug of the constraint service")


def _witness_of(guidance: Guidance) -> int:
    if guidance.witness_token_id is None:
        raise ServiceError("the constraint service allows no token and the text is not complete: a dead end, its bug")
    return guidance.witness_token_id


def plain_mask(vocabulary: Vocabulary) -> BoolMask:
    """Return the `(V,)` mask of free text: tokens that stand for text, and end tokens.

    Padding of the logits beyond the tokenizer and other special tokens (`<|im_start|>`) stay out: they have no text.
    """
    mask = np.array([token is not None for token in vocabulary.token_bytes])
    mask[list(vocabulary.eos_token_ids)] = True
    return mask
