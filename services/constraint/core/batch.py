"""Many sequences at once: each takes one token and gets the mask behind it, on as many threads as are given.

Sequences of one grammar stay together on one thread, because its memos have one lock. The work itself is one call of a
kernel per thread, which goes on without the GIL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import Final

import numpy as np
import numpy.typing as npt

from services.constraint.core import masks
from services.constraint.core.matcher import Matcher
from services.constraint.core.tables import DEAD, TERMINATED
from services.rpckit.status import LeaseExpired, TokenRejected

REJECTED: Final = DEAD


def advance_batch(
    matchers: Sequence[Matcher],
    states: npt.NDArray[np.int64],
    token_ids: npt.NDArray[np.int64],
    out: npt.NDArray[np.int32],
    *,
    executor: Executor | None = None,
    num_threads: int = 1,
) -> None:
    """Take token_ids[i] in states[i] of matchers[i], and write the mask behind it to out[i], for all i.

    `states` (B,) is updated in place; it is REJECTED where the token is outside its mask, and the row is then all zero,
    as it is behind an end token. `out` is (B, words). With an executor, `num_threads - 1` parts of the work are given
    to it; the caller's thread does the other.

    Raises:
        LeaseExpired: a state is unknown; nothing is done.
        OutOfFuel: a grammar is beyond its limits; other rows may have been done.
    """
    for matcher, state in zip(matchers, states.tolist(), strict=True):
        if not matcher.has_state(state):
            raise LeaseExpired(f"no state {state} of this grammar is known here", state=state)
    parts = list(_parts(matchers, num_threads if executor is not None else 1))
    waiting = (
        [executor.submit(_advance, matchers, part, states, token_ids, out) for part in parts[1:]] if executor else []
    )
    _advance(matchers, parts[0], states, token_ids, out)
    for future in waiting:
        future.result()


def _parts(matchers: Sequence[Matcher], num_parts: int) -> Iterator[npt.NDArray[np.int64]]:
    """Deal the items out in parts of about the same size, those of one matcher together."""
    items: dict[int, list[int]] = {}
    for item, matcher in enumerate(matchers):
        items.setdefault(id(matcher), []).append(item)
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    for group in items.values():
        min(parts, key=len).extend(group)
    return (np.array(part, np.int64) for part in parts)


def _advance(
    matchers: Sequence[Matcher],
    items: npt.NDArray[np.int64],
    states: npt.NDArray[np.int64],
    token_ids: npt.NDArray[np.int64],
    out: npt.NDArray[np.int32],
) -> None:
    by_kernel = [item for item in items.tolist() if matchers[item].forcing == "off"]
    for item in set(items.tolist()).difference(by_kernel):
        _advance_one(matchers[item], item, states, token_ids, out)
    mine = {id(matchers[item]): matchers[item] for item in by_kernel}
    memories = np.zeros(len(states), np.int64)
    with ExitStack() as held:
        # Always in the same order, so that two batches cannot wait for each other.
        for _, matcher in sorted(mine.items()):
            held.enter_context(matcher.lock)
        for item in by_kernel:
            memories[item] = matchers[item].configurations.memory
        chosen = np.array(by_kernel, np.int64)
        done = 0
        while True:
            done, code = masks.advance_all(memories, states, token_ids, out, chosen, done)
            if code == 0:
                return
            matchers[by_kernel[done]].configurations.resolve(code)


def _advance_one(
    matcher: Matcher,
    item: int,
    states: npt.NDArray[np.int64],
    token_ids: npt.NDArray[np.int64],
    out: npt.NDArray[np.int32],
) -> None:
    try:
        states[item] = matcher.accept(int(states[item]), (int(token_ids[item]),))
        matcher.fill_bitmask(int(states[item]), out[item])
    except TokenRejected:
        states[item] = REJECTED
        out[item] = 0


__all__ = ["REJECTED", "TERMINATED", "advance_batch"]
