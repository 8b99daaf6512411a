"""Beam search: the texts that the model finds most probable, free or under a constraint.

As in `transformers` (its `_beam_search`), so that the same weights and settings give the same texts: at each step the
best continuations of all hypotheses are ranked by the sum of raw log-probabilities; those among the first `width` that
end are finished, the best `width` that do not end go on. A finished text's score is that sum divided by its length, end
token included, to the power of `length_penalty`. Under a constraint the continuations are those of its masks, and a
text ends with an end token, or where it is complete when the budget is spent.

A fork is a reference to the worker's keys and values and two integers at the constraint service.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from gateway.decode.guided import Guide
from gateway.decode.interfaces import Guidance, Logits
from gateway.decode.limits import Account, FinishReason, Limits, check_rollbacks, no_text, refuse_small_budget
from gateway.decode.logits import log_softmax
from gateway.decode.sampler import Sampler
from gateway.decode.sequence import ModelSequence
from services.rpckit.status import ServiceError
from services.vocabulary import Vocabulary, bitmask_of, pack_bool_mask, unpack_bitmask
from services.vocabulary.bitmask import Bitmask, BoolMask


@dataclass(frozen=True, slots=True)
class BeamSettings:
    """How the search goes; fields as in the contract's `Beam`."""

    width: int
    length_penalty: float = 1.0
    early_stopping: Literal["estimated", "first", "never"] = "estimated"


@dataclass(frozen=True, slots=True)
class BeamText:
    """A finished text, what it is ranked by, and what it took on its own way through the search."""

    token_ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason
    num_forced_tokens: int
    forward_us: int
    mask_us: int
    masks: tuple[Bitmask, ...]
    """What was allowed in the place of each token, where that is kept."""


@dataclass(eq=False, slots=True)
class _Hypothesis:
    """A text that goes on. `forced` are tokens that must follow, behind which `guide` stands already.

    `unsent` are tokens that the worker does not have yet: the text's last one, and those forced behind it. `rows` are
    the logits behind the text and behind each of `forced`, once they were asked for.
    """

    token_ids: tuple[int, ...]
    logprob: float
    sequence: ModelSequence
    guide: Guide | None
    forced: tuple[int, ...] = ()
    unsent: tuple[int, ...] = ()
    rows: tuple[Logits, ...] = ()
    num_forced_tokens: int = 0
    is_bound_by_budget: bool = False
    masks: tuple[Bitmask, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One more token of the hypothesis number `parent`."""

    parent: int
    token_id: int
    logprob: float
    is_end: bool


class BeamSearch:
    """One search. `sequence` has the prompt's step in flight; `guide`, if any, is started."""

    def __init__(
        self,
        *,
        sequence: ModelSequence,
        fork: Callable[[ModelSequence], ModelSequence],
        drop: Callable[[ModelSequence], None],
        guide: Guide | None,
        vocabulary: Vocabulary,
        plain_mask: BoolMask,
        sampler: Sampler,
        stop_token_ids: tuple[int, ...] = (),
        limits: Limits,
        settings: BeamSettings,
        keeps_masks: bool = False,
    ) -> None:
        """`fork` makes a sequence that begins as another, `drop` is told of those that nobody needs any more.

        `plain_mask` `(V,)` is as for `DecodeLoop`. Of the sampler, bias and penalties count.
        """
        self._root = sequence
        self._fork = fork
        self._drop = drop
        self._guide = guide
        self._vocabulary = vocabulary
        self._end_token_ids: Final = sorted({*vocabulary.eos_token_ids, *stop_token_ids})
        may_end = plain_mask.copy()
        may_end[self._end_token_ids] = True
        self._plain_mask = pack_bool_mask(may_end)
        self._sampler = sampler
        self._limits = limits
        self._settings = settings
        self._keeps_masks = keeps_masks
        self._beams: list[_Hypothesis] = []
        self._finished: list[BeamText] = []
        self.num_steps = 1
        """Steps that were sent to the worker, the prompt's included."""
        self.num_dead_ends = 0

    async def run(self) -> list[BeamText]:
        """Return up to `width` finished texts, best first; at least one.

        Raises:
            BudgetTooSmall, ContextExceeded: a complete text does not fit, or the beam found none that does.
            DeadEnd: the constraint's checks refuse all that the beam has.
            ServiceError: as the other services answered.
        """
        width, max_tokens = self._settings.width, self._limits.max_tokens
        self._beams = [await self._start()]
        for length in range(1, max_tokens + 1):
            candidates, guidance_of = await self._continuations(length)
            for candidate in candidates[:width]:
                if candidate.is_end or length == max_tokens:
                    self._finish(candidate, guidance_of.get(_key(candidate)), length)
            going_on = [candidate for candidate in candidates if not candidate.is_end][:width]
            if length == max_tokens or not going_on or not self._may_improve(going_on[0].logprob, length):
                break
            self._go_on(going_on, guidance_of)
        if not self._finished:
            is_bound_by_budget = any(beam.is_bound_by_budget for beam in self._beams)
            raise no_text(
                self._limits, len(self._beams[0].token_ids), is_start=False, is_bound_by_budget=is_bound_by_budget
            )
        return self._finished

    async def _start(self) -> _Hypothesis:
        forced: tuple[int, ...] = ()
        if self._guide is not None:
            assert self._guide.compiled is not None, "started first"
            start = self._guide.compiled.start
            refuse_small_budget(self._limits, start.num_needed)
            forced = start.forced_token_ids
        first = await self._root.logits()
        return _Hypothesis((), 0.0, self._root, self._guide, forced, unsent=forced, rows=(first,))

    async def _continuations(self, length: int) -> tuple[list[_Candidate], dict[tuple[int, int], Guidance]]:
        """Rank what may be the `length`-th token of all hypotheses.

        Returns the best, of which `width` go on if there are so many, and what the constraint says behind those that
        go on, by hypothesis and token.
        """
        # The forks of a sequence come before it, so that they begin with what it has now.
        rows = await asyncio.gather(*map(self._row, self._beams))
        # Some milliseconds a hypothesis with a large vocabulary, and so is the ranking: not on the event loop.
        with_ends = await asyncio.to_thread(self._all_scores, rows)
        logprobs = with_ends.copy()
        if length <= self._limits.min_tokens:
            logprobs[:, self._end_token_ids] = -np.inf
        guidance_of: dict[tuple[int, int], Guidance] = {}
        num_too_long: Counter[int] = Counter()
        while True:
            # A text that is too short ends all the same where nothing else is left.
            for parent in np.flatnonzero(~np.isfinite(logprobs).any(axis=1)).tolist():
                logprobs[parent, self._end_token_ids] = with_ends[parent, self._end_token_ids]
            candidates = await asyncio.to_thread(self._ranked, logprobs)
            going_on = [candidate for candidate in candidates if not candidate.is_end][: self._settings.width]
            await self._look(going_on, guidance_of)
            behind = {key: guidance_of[key] for key in map(_key, going_on) if key in guidance_of}
            dead = [key for key, following in behind.items() if following.is_dead_end]
            too_long = [
                key
                for key, following in behind.items()
                if not following.is_dead_end and following.num_needed > self._limits.max_tokens - length
            ]
            if not dead and not too_long:
                return candidates, guidance_of
            for parent, token_id in (*dead, *too_long):  # counts as masked, and others come in its place
                logprobs[parent, token_id] = -np.inf
            self.num_dead_ends += len(dead)
            check_rollbacks(self._limits, Account(num_dead_ends=self.num_dead_ends), is_bound_by_budget=False)
            num_too_long.update(parent for parent, _ in too_long)
            for parent in num_too_long:
                self._beams[parent].is_bound_by_budget = True
                if num_too_long[parent] >= self._limits.max_budget_draws:
                    _keep_witness(logprobs[parent], self._beams[parent], self._end_token_ids)

    async def _row(self, beam: _Hypothesis) -> Logits:
        """Return the `(V,)` logits behind a text; what was forced is sent with it, for its own rows."""
        if beam.unsent:
            self.num_steps += 1
            unsent, beam.unsent = beam.unsent, ()
            beam.rows = (*beam.rows, *await beam.sequence.rows(unsent))
        return beam.rows[0]

    def _all_scores(self, rows: Sequence[Logits]) -> npt.NDArray[np.float64]:
        """Return `(K, V)`: `_scores` of all hypotheses by their rows."""
        return np.stack([self._scores(beam, row) for beam, row in zip(self._beams, rows, strict=True)])

    def _scores(self, beam: _Hypothesis, logits: Logits) -> npt.NDArray[np.float64]:
        """Return `(V,)`: the text's log-probability with each token more, `-inf` where that is masked."""
        bool_mask = unpack_bitmask(self._mask(beam), self._vocabulary.vocab_size)
        raw = log_softmax(logits)
        if not np.isfinite(raw).any():
            raise ServiceError("the model's logits are not finite numbers; its weights or its arithmetic are broken")
        return beam.logprob + self._sampler.processed(raw, bool_mask, beam.token_ids).astype(np.float64)

    def _mask(self, beam: _Hypothesis) -> Bitmask:
        """Return what may follow a text, `(words,)`."""
        if beam.forced:
            return bitmask_of(beam.forced[:1], self._vocabulary.vocab_size)
        return self._plain_mask if beam.guide is None else beam.guide.guidance.bitmask

    def _masks(self, beam: _Hypothesis) -> tuple[Bitmask, ...]:
        """Return what was allowed in the place of each token of a text, and of one more."""
        return (*beam.masks, self._mask(beam)) if self._keeps_masks else ()

    def _ranked(self, logprobs: npt.NDArray[np.float64]) -> list[_Candidate]:
        """Return the best tokens of all hypotheses, so many that `width` are left when all others end."""
        num_wanted = min(self._settings.width * max(2, 1 + len(self._end_token_ids)), logprobs.size)
        flat = logprobs.ravel()
        best = np.argpartition(-flat, num_wanted - 1)[:num_wanted]
        best = best[np.lexsort((best, -flat[best]))]
        ends = frozenset(self._end_token_ids)
        candidates = []
        for index in best[flat[best] > -np.inf].tolist():
            parent, token_id = divmod(index, logprobs.shape[1])
            candidates.append(_Candidate(parent, token_id, float(flat[index]), token_id in ends))
        return candidates

    async def _look(self, candidates: Sequence[_Candidate], guidance_of: dict[tuple[int, int], Guidance]) -> None:
        """Ask what the constraint says behind tokens that are not forced."""
        asked: dict[tuple[int, int], asyncio.Task[Guidance]] = {}
        for candidate in candidates:
            beam, key = self._beams[candidate.parent], _key(candidate)
            if beam.guide is not None and not beam.forced and key not in guidance_of:
                asked[key] = beam.guide.look(candidate.token_id)
        try:
            guidance_of |= dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
        finally:
            for task in asked.values():
                task.cancel()

    def _may_improve(self, best_logprob: float, length: int) -> bool:
        """Tell whether a hypothesis that goes on may still become one of the best."""
        settings = self._settings
        if len(self._finished) < settings.width:
            return True
        if settings.early_stopping == "first":
            return False
        is_longest_best = settings.early_stopping == "never" and settings.length_penalty > 0
        best_length = self._limits.max_tokens if is_longest_best else length
        return bool(best_logprob / float(best_length) ** settings.length_penalty > self._finished[-1].score)

    def _finish(self, candidate: _Candidate, following: Guidance | None, length: int) -> None:
        """Add a finished text, of which the best `width` stay; one text once, whichever end token is behind it."""
        parent = self._beams[candidate.parent]
        reason: FinishReason = "stop" if candidate.is_end else "length"
        if parent.guide is not None:
            reached = parent.guide.guidance if following is None else following
            is_cut = not candidate.is_end and reached.num_allowed > len(self._vocabulary.eos_token_ids)
            reason = "budget_closed" if parent.is_bound_by_budget or is_cut else "stop"
        token_ids = parent.token_ids if candidate.is_end else (*parent.token_ids, candidate.token_id)
        if any(text.token_ids == token_ids for text in self._finished):
            return  # by a more likely end token: candidates come best first
        self._finished.append(
            BeamText(
                token_ids=token_ids,
                score=candidate.logprob / float(length) ** self._settings.length_penalty,
                finish_reason=reason,
                num_forced_tokens=parent.num_forced_tokens + bool(parent.forced),
                forward_us=parent.sequence.forward_us,
                mask_us=0 if parent.guide is None else parent.guide.mask_us,
                masks=parent.masks if candidate.is_end else self._masks(parent),
            )
        )
        self._finished.sort(key=lambda text: -text.score)
        del self._finished[self._settings.width :]

    def _go_on(self, candidates: Sequence[_Candidate], guidance_of: dict[tuple[int, int], Guidance]) -> None:
        """Make the candidates the hypotheses.

        The last child of a hypothesis goes on in its parent's sequence, behind the forks of its siblings.
        """
        last_child = {candidate.parent: candidate for candidate in candidates}
        masks = [self._masks(beam) for beam in self._beams]
        beams = []
        for candidate in candidates:
            parent = self._beams[candidate.parent]
            is_last = last_child[candidate.parent] is candidate
            child = _Hypothesis(
                (*parent.token_ids, candidate.token_id),
                candidate.logprob,
                parent.sequence if is_last else self._fork(parent.sequence),
                parent.guide,
                num_forced_tokens=parent.num_forced_tokens + bool(parent.forced),
                is_bound_by_budget=parent.is_bound_by_budget,
                masks=masks[candidate.parent],
            )
            if parent.forced:  # it is there already, with the logits behind it
                child.forced, child.rows = parent.forced[1:], parent.rows[1:]
            else:
                following = guidance_of.get(_key(candidate))
                if parent.guide is not None and following is not None:
                    child.guide = parent.guide if is_last else parent.guide.fork()
                    child.guide.take(candidate.token_id, following)
                    child.forced = following.forced_token_ids
                child.unsent = (candidate.token_id, *child.forced)
            beams.append(child)
        for number, beam in enumerate(self._beams):
            if number not in last_child:
                self._drop(beam.sequence)
        self._beams = beams


def _key(candidate: _Candidate) -> tuple[int, int]:
    return candidate.parent, candidate.token_id


def _keep_witness(logprobs: npt.NDArray[np.float64], beam: _Hypothesis, ends: Sequence[int]) -> None:
    """Leave nothing of a `(V,)` row but the end tokens and the first token of the shortest way to the end."""
    assert beam.guide is not None, "only texts with a constraint are too long"
    guidance = beam.guide.guidance
    is_out = np.ones(len(logprobs), np.bool_)
    is_out[[*ends, *([] if guidance.witness_token_id is None else [guidance.witness_token_id])]] = False
    logprobs[is_out] = -np.inf
