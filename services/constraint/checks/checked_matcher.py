"""A matcher whose masks leave out what the checks refuse.

A state is a number that stands for a state of the grammar's matcher and a `Progress` of the checks, by value: whatever
led there, equal ones have the same number for as long as it is remembered.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Final, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from services.constraint.checks.progress import JsonChecks, Progress
from services.constraint.checks.refusals import Refusals
from services.constraint.checks.token_classes import TokenClasses
from services.constraint.core.engine import TERMINATED, Forcing, Guidance, Matcher, unknown_state
from services.constraint.core.tables import FIRST_CONFIGURATION
from services.constraint.sources.json_schema.obligations import Obligations
from services.rpckit.status import OutOfFuel, TokenRejected
from services.vocabulary import allowed_token_ids, count_tokens, has_token
from services.vocabulary.bitmask import Bitmask

_P = ParamSpec("_P")
_T = TypeVar("_T")

# About what a state takes, and a value in its container.
_STATE_BYTES: Final = 1000
_VALUE_BYTES: Final = 50


def _within_depth(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a text that is nested too deep for Python an error of its own."""

    @wraps(method)
    def call(*arguments: _P.args, **named: _P.kwargs) -> _T:
        try:
            return method(*arguments, **named)
        except RecursionError:
            limit = sys.getrecursionlimit()
            raise OutOfFuel(
                f"the text is nested deeper than its checks follow (limit max_check_depth, about {limit} levels)",
                limit="max_check_depth",
                value=limit,
            ) from None

    return call


class CheckedMatcher:
    """As `Matcher`, whose methods it has. Thread-safe: one call at a time."""

    is_plain: Final = False

    def __init__(
        self, matcher: Matcher, obligations: Obligations, classes: TokenClasses, *, max_bytes: int = 64 << 20
    ) -> None:
        """Where the states take more than `max_bytes`, the older half of them is forgotten."""
        self._max_bytes = max_bytes
        self._num_state_bytes = 0
        self._matcher = matcher
        self._checks = JsonChecks(obligations)
        self._vocabulary = matcher.trie.vocabulary
        self._lock = threading.Lock()
        self._states: dict[int, tuple[int, Progress]] = {0: (matcher.start, self._checks.start)}
        self._next: dict[tuple[int, int], int] = {}  # (state, token) -> state
        self._number_of: dict[tuple[object, ...], int] = {}
        self._num_made = FIRST_CONFIGURATION  # numbers below it mean something else to batches
        self._refusals = Refusals(obligations, self._checks, classes, matcher.trie)
        self.start: Final = 0
        self.epoch: Final = matcher.epoch
        self.min_bytes: Final = matcher.min_bytes
        self.forcing: Final[Forcing] = matcher.forcing

    @property
    def num_bytes(self) -> int:
        """About how many bytes this matcher holds now."""
        return self._matcher.num_bytes + self._num_state_bytes

    @_within_depth
    def accept(self, state: int, token_ids: Sequence[int]) -> int:
        """Return the state behind `token_ids`.

        Raises:
            TokenRejected, LeaseExpired, OutOfFuel: as `Matcher.accept`.
        """
        with self._lock:
            for index, token_id in enumerate(token_ids):
                try:
                    state = self._accept_one(state, token_id)
                except TokenRejected:
                    raise TokenRejected(
                        f"token {token_id} at index {index} is outside the mask", index=index, token_id=token_id
                    ) from None
            self._get(state)
        return state

    @_within_depth
    def fill_bitmask(self, state: int, out: npt.NDArray[np.int32]) -> None:
        """Write the mask of `state` to `out` (words,), the caller's own.

        Raises:
            LeaseExpired, OutOfFuel: as `Matcher.fill_bitmask`.
        """
        with self._lock:
            inner, progress = self._get(state)
            self._matcher.fill_bitmask(inner, out)
            if inner != TERMINATED:
                self._refusals.refuse(progress, out)

    def is_accepting(self, state: int) -> bool:
        """Tell whether the text is complete in `state`.

        Raises:
            LeaseExpired: no such state.
        """
        inner, progress = self._get(state)
        return self._matcher.is_accepting(inner) and (inner == TERMINATED or self._checks.may_end(progress))

    def has_state(self, state: int) -> bool:
        """Tell whether a state was numbered here and is remembered."""
        return state == TERMINATED or state in self._states

    @_within_depth
    def guidance(self, state: int) -> Guidance:
        """Return what may follow `state`.

        Raises:
            LeaseExpired, OutOfFuel: as `Matcher.guidance`.
        """
        with self._lock:
            inner, progress = self._get(state)
            guidance = self._matcher.guidance(inner)
            if inner == TERMINATED:
                return replace(guidance, state=state, after_forced=state)
            behind, forced = state, []
            for token_id in guidance.forced_token_ids:
                try:
                    behind = self._accept_one(behind, token_id)
                except TokenRejected:
                    break  # a dead end, unless the grammar has more to offer here
                forced.append(token_id)
            inner, progress = self._get(behind)
            if len(forced) < len(guidance.forced_token_ids):
                guidance = self._matcher.guidance(inner)
                bitmask = np.zeros_like(guidance.bitmask)
                num_tokens, first = 0, None
            else:
                bitmask = np.array(guidance.bitmask)
                self._refusals.refuse(progress, bitmask)
                num_tokens, first = guidance.witness_num_tokens, guidance.witness_token_id
            bitmask.flags.writeable = False
            if first is not None and not has_token(bitmask, first):
                first = self._any_token(bitmask)
            is_accepting = self._matcher.is_accepting(inner) and self._checks.may_end(progress)
            num_allowed = count_tokens(bitmask)
            return Guidance(
                state,
                tuple(forced),
                behind,
                bitmask,
                num_allowed,
                is_accepting,
                num_tokens if num_allowed else 0,
                first,
                is_settled=self._checks.is_settled(progress),
            )

    def _any_token(self, bitmask: Bitmask) -> int | None:
        allowed = allowed_token_ids(bitmask, self._vocabulary.vocab_size)
        allowed = allowed[~np.isin(allowed, self._vocabulary.eos_token_ids)]
        return int(allowed[0]) if len(allowed) else None

    def _get(self, state: int) -> tuple[int, Progress]:
        if state == TERMINATED:
            return TERMINATED, self._checks.start
        found = self._states.get(state)
        if found is None:
            raise unknown_state(state)
        return found

    def _accept_one(self, state: int, token_id: int) -> int:
        known = self._next.get((state, token_id))
        if known is not None:
            return known
        inner, progress = self._get(state)
        behind = self._matcher.accept(inner, (token_id,))
        if behind == TERMINATED:
            if not self._checks.may_end(progress):
                raise TokenRejected("a check refuses the text")
            return TERMINATED
        text = self._vocabulary.token_bytes[token_id]
        assert text is not None
        further = self._checks.feed(progress, text)
        if further is None:
            raise TokenRejected("a check refuses the token")
        value = (behind, *self._checks.value_of(further))
        number = self._number_of.get(value)
        if number is None:
            number = self._number_of[value] = self._num_made
            self._num_made += 1
            self._states[number] = behind, further
            self._num_state_bytes += _bytes_of(further)
            if self._num_state_bytes > self._max_bytes:
                self._forget()
        self._next[state, token_id] = number
        return number

    def _forget(self) -> None:
        """Forget the older half of the states; who still needs one replays its tokens."""
        kept = list(self._states.items())[len(self._states) // 2 :]
        self._states = {0: self._states[0], **dict(kept)}
        self._num_state_bytes = sum(_bytes_of(progress) for _, progress in self._states.values())
        self._refusals.forget()
        self._checks.forget()
        self._next = {key: state for key, state in self._next.items() if state in self._states}
        self._number_of = {value: state for value, state in self._number_of.items() if state in self._states}


def _bytes_of(progress: Progress) -> int:
    """Return about how many bytes a state takes."""
    num_values = 0 if progress.frame is None else len(progress.frame.contents)
    return _STATE_BYTES + _VALUE_BYTES * num_values + len(progress.text)
