"""A matcher whose masks leave out what the checks refuse.

A state is a number that stands for a state of the grammar's matcher and a `Progress` of the checks. The same tokens
lead to the same number for as long as it is remembered.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from services.constraint.checks.progress import JsonChecks, Place, Progress
from services.constraint.checks.token_classes import Bitmask, Start, TokenClasses
from services.constraint.core.engine import TERMINATED, Forcing, Guidance, Matcher
from services.constraint.sources.json_schema.keys import key_bytes
from services.rpckit.status import LeaseExpired, TokenRejected
from services.vocabulary import allowed_token_ids

_START_OF: Final = {
    Place.IN_STRING: Start.IN_STRING,
    Place.IN_KEY: Start.IN_KEY,
    Place.IN_SCALAR: Start.IN_SCALAR,
}
# States of one grammar that are remembered; beyond it the older half is forgotten.
_MAX_STATES: Final = 200_000
# About what a state takes, in bytes.
_STATE_BYTES: Final = 600


class CheckedMatcher:
    """As `Matcher`, whose methods it has. Thread-safe: one call at a time."""

    is_plain: Final = False

    def __init__(self, matcher: Matcher, checks: JsonChecks, classes: TokenClasses) -> None:
        self._matcher = matcher
        self._checks = checks
        self._classes = classes
        self._vocabulary = matcher.trie.vocabulary
        self._lock = threading.Lock()
        self._states: dict[int, tuple[int, Progress]] = {0: (matcher.start, checks.start)}
        self._next: dict[tuple[int, int], int] = {}  # (state, token) -> state
        self._num_made = 1
        self._masks: dict[int, Bitmask] = {}
        self.start: Final = 0
        self.epoch: Final = matcher.epoch
        self.min_bytes: Final = matcher.min_bytes
        self.forcing: Final[Forcing] = matcher.forcing

    @property
    def num_bytes(self) -> int:
        """About how many bytes this matcher holds now."""
        masks = sum(mask.nbytes for mask in list(self._masks.values()))
        return self._matcher.num_bytes + _STATE_BYTES * len(self._states) + masks

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

    def fill_bitmask(self, state: int, out: npt.NDArray[np.int32]) -> None:
        """Write the mask of `state` to `out` (words,), the caller's own.

        Raises:
            LeaseExpired, OutOfFuel: as `Matcher.fill_bitmask`.
        """
        with self._lock:
            inner, progress = self._get(state)
            self._matcher.fill_bitmask(inner, out)
            if inner != TERMINATED:
                self._refuse(inner, progress, out)

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
                self._refuse(inner, progress, bitmask)
                num_tokens, first = guidance.witness_num_tokens, guidance.witness_token_id
            bitmask.flags.writeable = False
            if first is not None and not bitmask[first >> 5] >> (first & 31) & 1:
                first = self._any_token(bitmask)
            is_accepting = guidance.is_accepting and self._checks.may_end(progress)
            num_allowed = int(np.bitwise_count(bitmask.view(np.uint32)).sum())
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
            raise LeaseExpired(
                f"no state {state} of this grammar is known here; compile again and replay the tokens", state=state
            )
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
        if len(self._states) >= _MAX_STATES:
            self._forget()
        number = self._num_made
        self._num_made += 1
        self._states[number] = behind, further
        self._next[state, token_id] = number
        return number

    def _forget(self) -> None:
        """Forget the older half of the states; who still needs one replays its tokens."""
        kept = list(self._states.items())[len(self._states) // 2 :]
        self._states = {0: self._states[0], **dict(kept)}
        self._next = {key: state for key, state in self._next.items() if state in self._states}

    # Refusing

    def _refuse(self, inner: int, progress: Progress, row: Bitmask) -> None:
        """Take off a mask what the checks refuse."""
        if self._matcher.is_accepting(inner) and not self._checks.may_end(progress):
            for token_id in self._vocabulary.eos_token_ids:
                row[token_id >> 5] &= ~np.int32(np.uint32(1 << (token_id & 31)).astype(np.int32))
        frame = progress.frame
        start = _START_OF.get(progress.place, Start.ELSEWHERE)
        if frame is None and not progress.nodes:
            return
        classes = self._classes.of(start)
        if progress.place is Place.IN_KEY or progress.place is Place.KEY:
            self._refuse_keys(progress, row)
        checks, one_by_one = self._checks, classes.keys
        if progress.place is Place.IN_KEY:
            if frame is not None and (frame.container.is_checked or b"\\" in progress.text):
                one_by_one = one_by_one | classes.end
        elif progress.place in (Place.IN_STRING, Place.IN_SCALAR, Place.AFTER):
            if progress.place is not Place.AFTER:
                may_end = checks.may_end_value(progress)
                if may_end is False:
                    row &= ~classes.end
                elif may_end is None:
                    one_by_one = one_by_one | classes.end
            may_close = checks.may_close(progress)
            if may_close is False:
                row &= ~classes.close
            elif may_close is None:
                one_by_one = one_by_one | classes.close
            if not checks.may_go_on(progress):
                row &= ~classes.comma
        elif progress.place in (Place.KEY, Place.VALUE) and frame is not None and checks.may_close(progress) is False:
            row &= ~classes.close
        if frame is None or _may_refuse_more(progress):
            one_by_one = one_by_one | classes.more
        for token_id in allowed_token_ids(row & one_by_one, self._vocabulary.vocab_size).tolist():
            text = self._vocabulary.token_bytes[token_id]
            if text is not None and checks.feed(progress, text) is None:
                row[token_id >> 5] &= ~np.int32(np.uint32(1 << (token_id & 31)).astype(np.int32))

    def _refuse_keys(self, progress: Progress, row: Bitmask) -> None:
        """Take off the tokens that would end a key that is there already, and those that lead to nothing else."""
        frame = progress.frame
        assert frame is not None
        begun = progress.text if progress.place is Place.KEY else b'"' + progress.text
        trie = self._matcher.trie
        written = self._checks.key_texts(frame)
        left: list[bytes] = []
        if frame.container.only_names is not None:
            left = [
                text
                for text in map(key_bytes, frame.container.only_names - frame.members.keys())
                if text.startswith(begun)
            ]
        for text in written:
            if not text.startswith(begun):
                continue
            rest = text[len(begun) :]
            first = len(rest)
            if frame.container.only_names is not None:
                # What no key that is left begins with leads to this one alone.
                first = 1 + max((_num_common(rest, other[len(begun) :]) for other in left), default=0)
            if first <= trie.max_token_bytes:
                trie.clear_along(rest, first, row)


def _num_common(a: bytes, b: bytes) -> int:
    number = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        number += 1
    return number


def _may_refuse_more(progress: Progress) -> bool:
    """Tell whether what is around the container has checks too, or the container itself has."""
    frame = progress.frame
    while frame is not None:
        container = frame.container
        if container.is_checked or container.required or container.only_names is not None:
            return True
        frame = container.parent
    return bool(progress.nodes)
