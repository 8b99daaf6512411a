"""One compile for all replicas: who finds no entry locks the grammar, compiles and keeps it; the others wait for that.

A lock expires soon and is renewed while its compile runs, so that a replica that dies holds nobody up for long. Who has
waited for too long compiles without it. What goes wrong with the store costs a compile, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, TypeAlias, TypeVar

from redis.asyncio.lock import Lock

from services.constraint import metrics
from services.constraint.cache.refusal import RecentRefusals, Refusal
from services.constraint.cache.store import EntryName, Store
from services.rpckit.status import ServiceError

_FIRST_PAUSE_S: Final = 0.005
_PAUSE_S: Final = 0.1

T = TypeVar("T")
_Decode: TypeAlias = Callable[[bytes], Awaitable[T]]


class FleetCache(Generic[T]):
    """Finds what some replica has compiled, or compiles it."""

    def __init__(
        self,
        store: Store,
        *,
        encode: Callable[[T], bytes],
        limits: str,
        lock_s: float,
        max_lock_wait_s: float,
        refusal_ttl_s: float,
    ) -> None:
        """Take `encode`, which raises ValueError for what cannot be written.

        `limits` tells those apart under which a source is refused: another replica may have larger ones.
        """
        self._store = store
        self._encode = encode
        self._limits = limits
        self._lock_s = lock_s
        self._max_lock_wait_s = max_lock_wait_s
        self._refusal_ttl_s = refusal_ttl_s
        self._refusals = RecentRefusals(refusal_ttl_s)
        self._background: set[asyncio.Task[None]] = set()

    async def find_or_make(
        self, digest: str, *, decode: _Decode[T], make: Callable[[], Awaitable[T]]
    ) -> tuple[T, bool]:
        """Return a value, and whether it was found.

        Raises:
            ServiceError: as `make`, or as it did a short time ago; as `decode`, which raises ValueError for what cannot
                be read.
        """
        refusal = self._refusals.get(digest)
        if refusal is not None:
            metrics.REFUSALS_FOUND.labels("memory").inc()
            raise refusal.to_error()
        found, lock = await self._find_or_lock(digest, decode)
        if isinstance(found, Refusal):
            metrics.REFUSALS_FOUND.labels("redis").inc()
            self._refusals.add(digest, found)
            raise found.to_error()
        if found is not None:
            return found, True
        try:
            async with self._renewed(lock):
                made = await make()
        except ServiceError as error:
            refusal = Refusal.of(error)
            if refusal is not None:
                self._refusals.add(digest, refusal)
            self._in_background(self._keep_refusal(digest, refusal, lock))
            raise
        except BaseException:
            self._in_background(self._unlock(lock))
            raise
        # The answer does not wait for the store.
        self._in_background(self._keep(digest, made, lock))
        return made, False

    async def close(self) -> None:
        """End what is running, but let go of locks."""
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _find_or_lock(self, digest: str, decode: _Decode[T]) -> tuple[T | Refusal | None, Lock | None]:
        """Wait until there is an answer, or it is this replica's turn to make one, locked or not."""
        found = await self._find(digest, decode)
        lock = None if found is not None else await self._store.try_lock(digest, expiry_s=self._lock_s)
        if found is None and lock is None and self._store.can_read and self._store.can_write:
            found, lock = await self._wait(digest, decode)
        if lock is None:
            return found, None
        try:
            # Whoever had the lock may have kept its answer after this replica looked, and before it locked.
            found = await self._find(digest, decode)
        except BaseException:
            self._in_background(self._unlock(lock))
            raise
        if found is None:
            return None, lock
        self._in_background(self._unlock(lock))
        return found, None

    async def _wait(self, digest: str, decode: _Decode[T]) -> tuple[T | Refusal | None, Lock | None]:
        """Wait for another replica's answer, or for its lock; in the end for neither."""
        started, pause_s, outcome = time.monotonic(), _FIRST_PAUSE_S, "in vain"
        found: T | Refusal | None = None
        lock: Lock | None = None
        while self._store.can_read and self._store.can_write:
            if time.monotonic() - started > self._max_lock_wait_s:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _PAUSE_S)
            found = await self._find(digest, decode)
            if found is not None:
                outcome = "found"
                break
            lock = await self._store.try_lock(digest, expiry_s=self._lock_s)
            if lock is not None:
                outcome = "locked"
                break
        metrics.LOCK_WAITS.labels(outcome).inc()
        metrics.LOCK_WAIT_SECONDS.observe(time.monotonic() - started)
        return found, lock

    async def _find(self, digest: str, decode: _Decode[T]) -> T | Refusal | None:
        """Look for a value, then for a refusal."""
        name, refusal_name = EntryName("grammar", digest), self._refusal_name(digest)
        payload, refusal = await self._store.get(name, refusal_name)
        try:
            if payload is not None:
                return await decode(payload)
            name = refusal_name
            if refusal is not None:
                return Refusal.from_bytes(refusal)
        except ValueError as error:
            await self._store.discard(name, str(error))
        if self._store.can_read:
            metrics.CACHE_MISSES.inc()
        return None

    def _refusal_name(self, digest: str) -> EntryName:
        return EntryName("refusal", hashlib.sha256(f"{digest}\0{self._limits}".encode()).hexdigest())

    async def _keep(self, digest: str, value: T, lock: Lock | None) -> None:
        with contextlib.suppress(ValueError):  # text that is no UTF-8 is not kept
            await self._store.put(EntryName("grammar", digest), self._encode(value))
        await self._unlock(lock)

    async def _keep_refusal(self, digest: str, refusal: Refusal | None, lock: Lock | None) -> None:
        if refusal is not None:
            with contextlib.suppress(ValueError):
                payload = refusal.to_bytes()
                await self._store.put(self._refusal_name(digest), payload, ttl_s=self._refusal_ttl_s)
        await self._unlock(lock)

    async def _unlock(self, lock: Lock | None) -> None:
        if lock is not None:
            await self._store.unlock(lock)

    @contextlib.asynccontextmanager
    async def _renewed(self, lock: Lock | None) -> AsyncIterator[None]:
        """Keep a lock from expiring."""

        async def renew(lock: Lock) -> None:
            while True:
                await asyncio.sleep(self._lock_s / 3)
                await self._store.renew(lock)

        task = None if lock is None else asyncio.create_task(renew(lock))
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
