"""What replicas learn about a grammar while they use it, exchanged through the store in the background.

A replica that finds a grammar takes in what others have learned; one that has learned much since it last told reads
once more what there is, takes that in too, and writes both. No request waits for either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from services.constraint import metrics
from services.constraint.cache.store import EntryName, Store
from services.constraint.core.engine import CorruptGrammarError, HotStates, Matcher, adopt, hot_states, num_known
from services.vocabulary import bitmask_words

# What others know is taken in so long after a grammar was found: the first answer goes first.
_DELAY_S: Final = 0.05
# A replica tells when it knows so much more, by share and by number, than when it last did.
_GROWTH: Final = 1.25
_MIN_GROWTH: Final = 8

_T = TypeVar("_T")
_log = structlog.get_logger()


@dataclass(slots=True)
class Warmth:
    """A matcher, the digest of its grammar, and how much it knew when it was last exchanged.

    `tables_digest` is of the compiled bytes: states of other tables, should a compile ever come out differently, would
    mean something else.
    """

    digest: str
    matcher: Matcher
    tables_digest: bytes
    num_exchanged: int = 0

    @property
    def has_grown(self) -> bool:
        """Whether it is time to tell."""
        return num_known(self.matcher) >= max(_GROWTH * self.num_exchanged, self.num_exchanged + _MIN_GROWTH)


class WarmExchange:
    """Takes in and tells, one grammar at a time."""

    def __init__(self, store: Store, threads: Executor, *, interval_s: float, max_mask_bytes: int) -> None:
        """Look for what has grown every `interval_s`; tell at most `max_mask_bytes` of masks a grammar."""
        self._store = store
        self._threads = threads
        self._interval_s = interval_s
        self._max_mask_bytes = max_mask_bytes
        self._background: set[asyncio.Task[None]] = set()

    def take_in(self, warmth: Warmth) -> None:
        """Take in what others know, in the background."""
        if self._max_mask_bytes and self._store.can_read:
            self._start(self._exchange_later(warmth))

    async def run(self, warmths: Callable[[], Iterable[Warmth]]) -> None:
        """Tell what was learned, until cancelled."""
        while self._max_mask_bytes:
            await asyncio.sleep(self._interval_s)
            for warmth in list(warmths()):
                if self._store.can_read and self._store.can_write and warmth.has_grown:
                    await self._exchange(warmth, tells=True)

    async def close(self) -> None:
        """End what is running."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _exchange_later(self, warmth: Warmth) -> None:
        await asyncio.sleep(_DELAY_S)
        await self._exchange(warmth, tells=False)

    async def _exchange(self, warmth: Warmth, *, tells: bool) -> None:
        name = EntryName("warm", warmth.digest)
        try:
            (payload,) = await self._store.get(name, is_awaited=False)
            if payload is not None and payload.startswith(warmth.tables_digest):
                try:
                    num_masks = await self._in_thread(lambda: _take_in(warmth, payload))
                    metrics.WARM_MASKS.labels("taken").inc(num_masks)
                except CorruptGrammarError as error:
                    await self._store.discard(name, str(error))
            if tells:
                told, num_masks = await self._in_thread(lambda: _told(warmth, self._max_mask_bytes))
                if await self._store.put(name, told):
                    metrics.WARM_MASKS.labels("given").inc(num_masks)
            warmth.num_exchanged = num_known(warmth.matcher)
        except Exception as error:  # nobody waits for this, so nobody else would say it
            _log.error("unexpected error while warm masks were exchanged", grammar_id=warmth.digest, exc_info=error)

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _take_in(warmth: Warmth, payload: bytes) -> int:
    num_words = bitmask_words(warmth.matcher.trie.vocabulary.vocab_size)
    return adopt(warmth.matcher, HotStates.from_bytes(payload[len(warmth.tables_digest) :], num_words=num_words))


def _told(warmth: Warmth, max_mask_bytes: int) -> tuple[bytes, int]:
    hot = hot_states(warmth.matcher, max_mask_bytes=max_mask_bytes)
    return warmth.tables_digest + hot.to_bytes(), len(hot.masks)
