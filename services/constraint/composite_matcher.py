"""A matcher of a grammar with holes: the grammar's own matcher, and one for what stands in each hole.

A state is a set of *readings* of the text, each either in the grammar or inside a hole, and then with the state of the
grammar behind the hole as well. Where what is in the hole may end, the reading behind the hole stands beside the one
inside. A token is allowed where some reading allows it; a reading that does not allow the token taken is dropped. So a
hole begins and ends where tokens do, and everything else is as exact as the matchers are.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, ParamSpec, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from services.constraint.checks import CheckedMatcher
from services.constraint.core.engine import TERMINATED, Forcing, Guidance, Matcher, MatcherLimits, unknown_state
from services.constraint.core.holes import stand_in
from services.constraint.core.tables import FIRST_CONFIGURATION
from services.rpckit.status import LeaseExpired, OutOfFuel, TokenRejected
from services.vocabulary import bitmask_of, count_tokens, has_token
from services.vocabulary.bitmask import Bitmask

_P = ParamSpec("_P")
_T = TypeVar("_T")

# About what a reading takes, and what a state does with the memos that name it.
_READING_BYTES: Final = 100
_STATE_BYTES: Final = 500
_MAX_FORCED_TOKENS: Final = 1024


class PartMatcher(Protocol):
    """What stands in a hole: the methods of `Matcher` that are needed."""

    @property
    def start(self) -> int:
        """The state before the first token."""
        ...

    @property
    def num_bytes(self) -> int:
        """About how many bytes it holds now."""
        ...

    def accept(self, state: int, token_ids: Sequence[int]) -> int:
        """Return the state behind tokens."""
        ...

    def fill_bitmask(self, state: int, out: npt.NDArray[np.int32]) -> None:
        """Write the mask of a state."""
        ...

    def is_accepting(self, state: int) -> bool:
        """Tell whether the text is complete."""
        ...

    def guidance(self, state: int) -> Guidance:
        """Return what may follow."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class _Reading:
    """The state of the grammar, inside of a hole the one behind it; and then the state of the hole's matcher."""

    outer: int
    hole: int = -1
    inner: int = 0

    @property
    def is_inside(self) -> bool:
        return self.hole >= 0


_Readings: TypeAlias = tuple[_Reading, ...]


@dataclass(frozen=True, slots=True)
class _Witness:
    """The number of tokens of a short completion and the first of them, None without one.

    `is_settled` tells that no check is pending in the hole.
    """

    num_tokens: int
    first: int | None
    is_settled: bool = True


class CompositeMatcher:
    """As `Matcher`, whose methods it has. Thread-safe: one call at a time."""

    is_plain: Final = False

    def __init__(
        self,
        outer: Matcher,
        parts: Sequence[PartMatcher],
        *,
        min_bytes: int,
        limits: MatcherLimits | None = None,
        max_bytes: int = 64 << 20,
    ) -> None:
        """Take the matcher of the grammar and those of its holes, by number.

        Where the states take more than `max_bytes`, all but the start are forgotten.

        Raises:
            OutOfFuel: the start alone is beyond the limits.
        """
        self._limits = limits or MatcherLimits()
        self._outer = outer
        self._parts = parts
        self._max_bytes = max_bytes
        self._vocabulary = outer.trie.vocabulary
        self._end_tokens = bitmask_of(self._vocabulary.eos_token_ids, self._vocabulary.vocab_size)
        self._row = np.zeros_like(self._end_tokens)
        self._lock = threading.Lock()
        self._num_made = FIRST_CONFIGURATION  # numbers below it mean something else to batches
        self._forget()
        self.start: Final = 0
        self.epoch: Final = secrets.randbits(64)
        self.min_bytes: Final = min_bytes
        self.forcing: Final[Forcing] = outer.forcing

    @property
    def num_bytes(self) -> int:
        """About how many bytes this matcher and those of its parts hold now."""
        return self._outer.num_bytes + self._num_state_bytes + sum(part.num_bytes for part in self._parts)

    def accept(self, state: int, token_ids: Sequence[int]) -> int:
        """Return the state behind `token_ids`.

        Raises:
            TokenRejected, LeaseExpired, OutOfFuel: as `Matcher.accept`.
        """
        with self._lock:
            self._get(state)
            for index, token_id in enumerate(token_ids):
                behind = self._accept_one(state, token_id)
                if behind is None:
                    raise TokenRejected(
                        f"token {token_id} at index {index} is outside the mask", index=index, token_id=token_id
                    )
                state = behind
        return state

    def fill_bitmask(self, state: int, out: npt.NDArray[np.int32]) -> None:
        """Write the mask of `state` to `out` (words,), the caller's own.

        Raises:
            LeaseExpired, OutOfFuel: as `Matcher.fill_bitmask`.
        """
        with self._lock:
            out[:] = self._mask(state)

    def is_accepting(self, state: int) -> bool:
        """Tell whether the text is complete in `state`.

        Raises:
            LeaseExpired: no such state.
        """
        with self._lock:
            return state == TERMINATED or self._is_accepting(self._get(state))

    def has_state(self, state: int) -> bool:
        """Tell whether a state was numbered here and is remembered."""
        return state == TERMINATED or state in self._states

    def guidance(self, state: int) -> Guidance:
        """Return what may follow `state`.

        Raises:
            LeaseExpired, OutOfFuel: as `Matcher.guidance`.
        """
        with self._lock:
            forced: list[int] = []
            behind = state
            bitmask = self._mask(behind)
            while self.forcing != "off" and len(forced) < _MAX_FORCED_TOKENS:
                only = _only_token(bitmask)
                if only is None or only in self._vocabulary.eos_token_ids:
                    break
                following = self._accept_one(behind, only)
                assert following is not None  # the mask has the token
                forced.append(only)
                behind, bitmask = following, self._mask(following)
            bitmask.flags.writeable = False
            if behind == TERMINATED:
                return Guidance(state, tuple(forced), behind, bitmask, 0, True, 0, None)
            readings = self._get(behind)
            num_allowed = count_tokens(bitmask)
            witness = self._witness(readings)
            return Guidance(
                state,
                tuple(forced),
                behind,
                bitmask,
                num_allowed,
                self._is_accepting(readings),
                witness.num_tokens if num_allowed else 0,
                witness.first,
                is_settled=any(self._witness_of(reading).is_settled for reading in readings),
            )

    def _get(self, state: int) -> _Readings:
        if state == TERMINATED:
            return ()
        found = self._states.get(state)
        if found is None:
            raise unknown_state(state)
        return found

    def _mask(self, state: int) -> Bitmask:
        """Return the mask (words,), the caller's own."""
        readings = self._get(state)
        mask = np.zeros_like(self._row)
        for reading in readings:
            if reading.is_inside:
                self._in_part(self._parts[reading.hole].fill_bitmask, reading.inner, self._row)
                mask |= self._row
            else:
                self._outer.fill_bitmask(reading.outer, self._row)
                mask |= self._row & ~self._outer.trie.tokens_of_stand_ins
        mask &= ~self._end_tokens
        if self._is_accepting(readings):
            mask |= self._end_tokens
        return mask

    def _is_accepting(self, readings: _Readings) -> bool:
        # Where a hole may end, the reading behind it is among the readings too.
        return any(not reading.is_inside and self._outer.is_accepting(reading.outer) for reading in readings)

    def _accept_one(self, state: int, token_id: int) -> int | None:
        """Return the state behind a token, None when it is outside the mask."""
        key = (state, token_id)
        if key not in self._next:
            readings = self._get(state)
            if token_id in self._vocabulary.eos_token_ids:
                return TERMINATED if self._is_accepting(readings) else None
            following = [behind for reading in readings if (behind := self._behind(reading, token_id)) is not None]
            if not following:
                return None
            self._next[key] = self._number(self._closed(following))
        return self._next[key]

    def _behind(self, reading: _Reading, token_id: int) -> _Reading | None:
        matcher: PartMatcher = self._parts[reading.hole] if reading.is_inside else self._outer
        if not reading.is_inside and has_token(self._outer.trie.tokens_of_stand_ins, token_id):
            return None
        state = reading.inner if reading.is_inside else reading.outer
        try:
            state = self._in_part(matcher.accept, state, (token_id,))
        except TokenRejected:
            return None
        return _Reading(reading.outer, reading.hole, state) if reading.is_inside else _Reading(state)

    def _closed(self, readings: Iterable[_Reading]) -> _Readings:
        """Add the readings that come about without a token: behind a hole that may end, and inside one that begins."""
        found: dict[_Reading, None] = {}
        todo = list(readings)
        while todo:
            reading = todo.pop()
            if reading in found:
                continue
            found[reading] = None
            if not reading.is_inside:
                todo += self._entered(reading.outer)
            elif self._in_part(self._parts[reading.hole].is_accepting, reading.inner):
                todo.append(_Reading(reading.outer))
            if len(found) > self._limits.max_readings:
                raise OutOfFuel(
                    f"the text can be read in more than {self._limits.max_readings} ways (limit max_readings): where a "
                    "checked schema may begin anywhere in free text, put a delimiter before it",
                    limit="max_readings",
                    value=self._limits.max_readings,
                )
        return tuple(sorted(found))

    def _entered(self, outer: int) -> _Readings:
        if outer not in self._entries:
            behind = [self._outer.walk(outer, stand_in(hole)) for hole in range(len(self._parts))]
            self._entries[outer] = tuple(
                _Reading(state, hole, self._parts[hole].start) for hole, state in enumerate(behind) if state is not None
            )
        return self._entries[outer]

    def _number(self, readings: _Readings) -> int:
        number = self._number_of.get(readings)
        if number is None:
            if self._num_state_bytes > self._max_bytes:
                self._forget()
            self._num_state_bytes += _STATE_BYTES + _READING_BYTES * len(readings)
            number = self._number_of[readings] = self._num_made
            self._num_made += 1
            self._states[number] = readings
        return number

    def _forget(self) -> None:
        """Forget all states but the start; who still needs one replays its tokens."""
        self._entries: dict[int, _Readings] = {}  # state of the grammar -> the holes that begin there
        self._next: dict[tuple[int, int], int] = {}  # (state, token) -> state
        self._witnesses: dict[_Reading, _Witness] = {}
        self._num_state_bytes = 0
        start = self._closed((_Reading(self._outer.start),))
        self._states: dict[int, _Readings] = {0: start}
        self._number_of: dict[_Readings, int] = {start: 0}

    def _witness(self, readings: _Readings) -> _Witness:
        """Return the witness of the reading that has the shortest."""
        return min(map(self._witness_of, readings), key=lambda witness: witness.num_tokens)

    def _witness_of(self, reading: _Reading) -> _Witness:
        """Return a witness: through a hole as its matcher says, elsewhere on a shortest way of the grammar."""
        chain: list[tuple[_Reading, _Witness]] = []
        at = reading
        while at not in self._witnesses:
            if not at.is_inside and self._outer.is_accepting(at.outer):
                self._witnesses[at] = _Witness(0, None)
                break
            way, following = self._through_hole(at) if at.is_inside else self._on_in_grammar(at)
            chain.append((at, way))
            limit = self._limits.max_witness_tokens
            if len(chain) > limit:
                raise OutOfFuel(
                    f"the shortest text takes more than {limit} tokens (limit max_witness_tokens)",
                    limit="max_witness_tokens",
                    value=limit,
                )
            at = following
        witness = self._witnesses[at]
        for at, way in reversed(chain):
            first = way.first if way.num_tokens else witness.first
            witness = self._witnesses[at] = _Witness(way.num_tokens + witness.num_tokens, first, way.is_settled)
        return witness

    def _through_hole(self, at: _Reading) -> tuple[_Witness, _Reading]:
        guidance = self._in_part(self._parts[at.hole].guidance, at.inner)
        if guidance.num_allowed == 0 and not guidance.is_accepting:  # a check refuses whatever could follow
            way = _Witness(self._limits.max_witness_tokens, None, guidance.is_settled)
        else:
            forced = guidance.forced_token_ids
            # Where a check refuses the end, the grammar's witness may have no token, and the text one at least.
            num_tokens = len(forced) + max(guidance.witness_num_tokens, not guidance.is_accepting)
            way = _Witness(num_tokens, forced[0] if forced else guidance.witness_token_id, guidance.is_settled)
        return way, _Reading(at.outer)

    def _on_in_grammar(self, at: _Reading) -> tuple[_Witness, _Reading]:
        text = self._outer.shortest_text(at.outer)
        for reading in self._entered(at.outer):
            if text.startswith(stand_in(reading.hole)):
                return _Witness(0, None), reading
        token_id = self._outer.forced_token(at.outer)
        if token_id is None:
            found = self._outer.trie.longest_prefix(np.frombuffer(text, np.uint8))
            assert found is not None  # each usable byte has a token of its own
            token_id = found[0]
        return _Witness(1, token_id), _Reading(self._outer.accept(at.outer, (token_id,)))

    def _in_part(self, method: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """Call a part, which may have forgotten its states."""
        try:
            return method(*arguments, **named)
        except LeaseExpired:
            self._forget()
            raise


def _only_token(bitmask: Bitmask) -> int | None:
    """Return the token of a mask (words,) that has but one."""
    words = np.flatnonzero(bitmask)
    if len(words) != 1:
        return None
    word = int(bitmask.view(np.uint32)[words[0]])
    return None if word & (word - 1) else int(words[0]) * 32 + word.bit_length() - 1


AnyMatcher: TypeAlias = Matcher | CheckedMatcher | CompositeMatcher
"""What the grammar of a request is run by."""
