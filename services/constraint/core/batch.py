"""Many sequences at once: each takes one token and gets the mask behind it, on as many threads as are given.

Sequences of one grammar stay together on one thread, because its memos have one lock. The work itself is one call of a
kernel per thread, which goes on without the GIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import Final

import numpy as np
import numpy.typing as npt

from services.constraint.core import masks
from services.constraint.core.matcher import Matcher, unknown_state
from services.constraint.core.tables import DEAD, UNKNOWN_STATE
from services.rpckit.status import TokenRejected

REJECTED: Final = DEAD


class Batch:
    """The matchers of B sequences, in order; make a new one when sequences come or go."""

    def __init__(self, matchers: Sequence[Matcher], *, executor: Executor | None = None, num_threads: int = 1) -> None:
        """With an executor, `num_threads - 1` parts of the work are given to it; the caller's thread does the other."""
        self._executor = executor
        self._parts = [_Part(matchers, items) for items in _dealt(matchers, num_threads if executor else 1)]

    def advance(
        self, states: npt.NDArray[np.int64], token_ids: npt.NDArray[np.int64], out: npt.NDArray[np.int32]
    ) -> None:
        """Take token_ids[i] in states[i], and write the mask behind it to out[i], for all i.

        `states` (B,) is updated in place; it is REJECTED where the token is outside its mask, and the row is then all
        zero, as it is behind an end token. `out` is (B, words).

        Raises:
            LeaseExpired: a state is unknown; other rows may have been done.
            OutOfFuel: a grammar is beyond its limits; other rows may have been done.
        """
        first, *others = self._parts
        waiting = [self._executor.submit(part.advance, states, token_ids, out) for part in others if self._executor]
        first.advance(states, token_ids, out)
        for future in waiting:
            future.result()


def _dealt(matchers: Sequence[Matcher], num_parts: int) -> list[list[int]]:
    """Deal the sequences out in parts of about the same size, those of one matcher together."""
    items: dict[int, list[int]] = {}
    for item, matcher in enumerate(matchers):
        items.setdefault(id(matcher), []).append(item)
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    for group in items.values():
        min(parts, key=len).extend(group)
    return parts


class _Part:
    """What one thread does."""

    def __init__(self, matchers: Sequence[Matcher], items: list[int]) -> None:
        # A forced token is cut by the tokenizer, which no kernel can ask.
        self._by_kernel = [item for item in items if matchers[item].is_plain]
        self._others = [item for item in items if not matchers[item].is_plain]
        self._matchers = matchers
        # Locks are always taken in the same order, so that two batches cannot wait for each other.
        mine = {id(matchers[item]): matchers[item] for item in self._by_kernel}
        self._locks = [matcher.lock for _, matcher in sorted(mine.items())]
        self._items = np.array(self._by_kernel, np.int64)
        self._memories = np.zeros(len(matchers), np.int64)
        for item in self._by_kernel:
            self._memories[item] = matchers[item].configurations.memory

    def advance(
        self, states: npt.NDArray[np.int64], token_ids: npt.NDArray[np.int64], out: npt.NDArray[np.int32]
    ) -> None:
        """As `Batch.advance`, for the sequences of this part."""
        for item in self._others:
            self._advance_one(item, states, token_ids, out)
        with ExitStack() as held:
            for lock in self._locks:
                held.enter_context(lock)
            done = 0
            while True:
                done, code = masks.advance_all(self._memories, states, token_ids, out, self._items, done)
                if code == 0:
                    return
                item = self._by_kernel[done]
                if code == UNKNOWN_STATE:
                    raise unknown_state(int(states[item]))
                self._matchers[item].configurations.resolve(code)

    def _advance_one(
        self, item: int, states: npt.NDArray[np.int64], token_ids: npt.NDArray[np.int64], out: npt.NDArray[np.int32]
    ) -> None:
        matcher = self._matchers[item]
        try:
            states[item] = matcher.accept(int(states[item]), (int(token_ids[item]),))
            matcher.fill_bitmask(int(states[item]), out[item])
        except TokenRejected:
            states[item] = REJECTED
            out[item] = 0


__all__ = ["REJECTED", "Batch"]
