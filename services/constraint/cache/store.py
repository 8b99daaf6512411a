"""Entries that all replicas share, in Redis or Valkey. Whatever fails there is a miss here.

Reads and writes are given up apart from each other: a server that is full, or a replica, still answers reads. What
failed is left alone, so that an outage costs the requests that met it one time-out and the others nothing; a task asks
again until it works.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import redis.asyncio
import structlog
from redis.asyncio.lock import Lock
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import LockError, RedisError, ResponseError

from services.constraint import metrics
from services.constraint.cache.entry import FORMAT_VERSION, BadEntryError, seal, unseal

Kind: TypeAlias = Literal["grammar", "warm", "refusal"]
Use: TypeAlias = Literal["read", "write"]
KINDS: Final[tuple[Kind, ...]] = ("grammar", "warm", "refusal")

_MAX_CONNECTIONS: Final = 32
# What nobody waits for may take so many times longer: large values are written there.
_PATIENCE: Final = 20
# Seconds until a server that failed is asked again, at first and at most.
_FIRST_PROBE_S: Final = 0.1
_PROBE_S: Final = 1.0
# Entries that cannot be read are logged at most so often; the metric counts all.
_BAD_ENTRY_LOG_S: Final = 60.0
# Values from this size on are unpacked in a thread.
_LARGE_BYTES: Final = 64 << 10

_FAILURES: Final = (RedisError, OSError, TimeoutError)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EntryName:
    """What an entry is called below the prefix."""

    kind: Kind
    digest: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.digest}"


class Store(Protocol):
    """Where entries are kept outside of this process. No method fails: a failure is a miss, logged and counted."""

    @property
    def can_read(self) -> bool:
        """Whether reading worked when it was last tried."""

    @property
    def can_write(self) -> bool:
        """Whether writing worked when it was last tried."""

    async def start(self) -> None:
        """See whether it works, and go on looking where it does not."""

    async def get(self, *names: EntryName, is_awaited: bool = True) -> list[bytes | None]:
        """Return payloads; those that cannot be read are dropped. `is_awaited`: a request waits for it."""

    async def put(self, name: EntryName, payload: bytes, *, ttl_s: float | None = None) -> bool:
        """Keep a payload; return whether it is kept."""

    async def discard(self, name: EntryName, reason: str) -> None:
        """Drop an entry that turned out to be unusable."""

    async def try_lock(self, digest: str, *, expiry_s: float) -> Lock | None:
        """Lock a digest against all other replicas, unless it is locked."""

    async def renew(self, lock: Lock) -> None:
        """Begin the lock's time anew; nothing where it has passed."""

    async def unlock(self, lock: Lock) -> None:
        """Let go of a lock, unless its time has passed and somebody else has it."""

    async def close(self) -> None:
        """Let go of connections."""


class NoStore:
    """Keeps nothing."""

    @property
    def can_read(self) -> bool:
        """Never."""
        return False

    @property
    def can_write(self) -> bool:
        """Never."""
        return False

    async def start(self) -> None:
        """Start nothing."""

    async def get(self, *names: EntryName, is_awaited: bool = True) -> list[bytes | None]:
        """Find nothing."""
        return [None] * len(names)

    async def put(self, name: EntryName, payload: bytes, *, ttl_s: float | None = None) -> bool:
        """Keep nothing."""
        return False

    async def discard(self, name: EntryName, reason: str) -> None:
        """Drop nothing."""

    async def try_lock(self, digest: str, *, expiry_s: float) -> Lock | None:
        """Lock nothing."""
        return None

    async def renew(self, lock: Lock) -> None:
        """Renew nothing."""

    async def unlock(self, lock: Lock) -> None:
        """Unlock nothing."""

    async def close(self) -> None:
        """Close nothing."""


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """How Redis is reached and used; fields as the settings `redis_*`."""

    url: str
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    prefix: str = "espalier"
    hmac_key: bytes | None = None
    timeout_s: float = 0.05
    ttl_s: float = 7 * 24 * 3600
    ttl_jitter: float = 0.1
    max_value_bytes: int = 16 << 20

    def connection_arguments(self) -> dict[str, Any]:
        """Return what a client takes beside the URL; what the URL says itself goes first."""
        files = {"ssl_ca_certs": self.ca_file, "ssl_certfile": self.cert_file, "ssl_keyfile": self.key_file}
        given = {"username": self.username, "password": self.password, **files}
        return {name: value for name, value in given.items() if value is not None}


class RedisStore:
    """Keeps entries as `<prefix>:<format version>:<kind>:<digest>`, for a time, up to a size."""

    def __init__(self, options: RedisOptions) -> None:
        """Connect when first used.

        Raises:
            ValueError: not a Redis URL, or TLS files for one without TLS.
        """
        self._options = options
        arguments = options.connection_arguments()
        if any(name.startswith("ssl_") for name in arguments) and not options.url.startswith("rediss://"):
            raise ValueError("files for TLS need a URL that begins with rediss://")
        self._redis = redis.asyncio.Redis.from_pool(
            redis.asyncio.BlockingConnectionPool.from_url(
                options.url,
                max_connections=_MAX_CONNECTIONS,
                timeout=options.timeout_s,
                socket_connect_timeout=options.timeout_s,
                socket_timeout=options.timeout_s * _PATIENCE,
                # Once more at once: a server that was restarted has closed the connections that are kept here.
                retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
                **arguments,
            )
        )
        self._prefix = f"{options.prefix}:{FORMAT_VERSION}:"
        self._failing: dict[Use, str] = {}
        self._changed = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._bad_entry_logged_at = float("-inf")
        self._show()

    @property
    def can_read(self) -> bool:
        """Whether reading worked when it was last tried."""
        return "read" not in self._failing

    @property
    def can_write(self) -> bool:
        """Whether writing worked when it was last tried."""
        return "write" not in self._failing

    async def start(self) -> None:
        """See whether it works, and go on looking where it does not."""
        await self._probe()
        self._watch = asyncio.create_task(self._keep_probing())

    async def get(self, *names: EntryName, is_awaited: bool = True) -> list[bytes | None]:
        """Return payloads; those that cannot be read are dropped."""
        values: Sequence[Any] = [None] * len(names)
        if self.can_read:
            async with self._guarded("get", "read", is_awaited=is_awaited):
                values = await self._redis.mget([self._key(name) for name in names])
        return [await self._unsealed(name, value) for name, value in zip(names, values, strict=True)]

    async def put(self, name: EntryName, payload: bytes, *, ttl_s: float | None = None) -> bool:
        """Keep a payload unless it is too large; return whether it is kept."""
        if not self.can_write:
            return False
        value = await _off_loop(len(payload), lambda: seal(str(name), payload, key=self._options.hmac_key))
        if len(value) > self._options.max_value_bytes:
            metrics.CACHE_SKIPPED.labels(name.kind).inc()
            return False
        jitter = 1 + self._options.ttl_jitter * random.uniform(-1, 1)
        lifetime_ms = max(1, round((ttl_s or self._options.ttl_s) * jitter * 1000))
        is_kept = False
        async with self._guarded("put", "write", is_awaited=False):
            await self._redis.set(self._key(name), value, px=lifetime_ms)
            is_kept = True
            metrics.CACHE_BYTES.labels("written").inc(len(value))
        return is_kept

    async def discard(self, name: EntryName, reason: str) -> None:
        """Drop an entry that turned out to be unusable."""
        metrics.STORE_FAILURES.labels("decode").inc()
        if time.monotonic() - self._bad_entry_logged_at > _BAD_ENTRY_LOG_S:
            self._bad_entry_logged_at = time.monotonic()
            _log.warning("a cached entry cannot be used and is dropped", entry=str(name), error=reason)
        if self.can_write:
            async with self._guarded("discard", "write", is_awaited=True):
                await self._redis.delete(self._key(name))

    async def try_lock(self, digest: str, *, expiry_s: float) -> Lock | None:
        """Lock a digest against all other replicas, unless it is locked."""
        if not self.can_write:
            return None
        lock = Lock(self._redis, f"{self._prefix}lock:{digest}", timeout=expiry_s, thread_local=False)
        is_mine = False
        async with self._guarded("lock", "write", is_awaited=True):
            is_mine = await lock.acquire(blocking=False)
        return lock if is_mine else None

    async def renew(self, lock: Lock) -> None:
        """Begin the lock's time anew; nothing where it has passed."""
        async with self._guarded("lock", "write", is_awaited=False):
            await lock.reacquire()

    async def unlock(self, lock: Lock) -> None:
        """Let go of a lock, unless its time has passed and somebody else has it."""
        async with self._guarded("lock", "write", is_awaited=False):
            await lock.release()

    async def close(self) -> None:
        """Close the connections."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        with contextlib.suppress(*_FAILURES):
            await self._redis.aclose()

    async def states(self) -> AsyncIterator[bool]:
        """Yield whether reads and writes both work, now and after each change; never ends."""
        while True:
            changed = self._changed
            yield not self._failing
            await changed.wait()

    def _key(self, name: EntryName) -> str:
        return f"{self._prefix}{name}"

    async def _unsealed(self, name: EntryName, value: bytes | None) -> bytes | None:
        if value is None:
            return None
        metrics.CACHE_BYTES.labels("read").inc(len(value))
        try:
            return await _off_loop(len(value), lambda: unseal(str(name), value, key=self._options.hmac_key))
        except BadEntryError as error:
            await self.discard(name, str(error))
            return None

    @contextlib.asynccontextmanager
    async def _guarded(self, operation: str, use: Use, *, is_awaited: bool) -> AsyncIterator[None]:
        """Bound what is done inside in time, and make its failures ours: they end here."""
        seconds = self._options.timeout_s * (1 if is_awaited else _PATIENCE)
        try:
            async with asyncio.timeout(seconds):
                yield
        except LockError:
            pass  # its time has passed
        except _FAILURES as error:
            metrics.STORE_FAILURES.labels(operation).inc()
            # What the server itself says to one command holds for its kind; no answer holds for all.
            is_one_use = isinstance(error, ResponseError) and not isinstance(error, RedisConnectionError)
            for failing in (use,) if is_one_use else ("read", "write"):
                self._set(failing, f"{operation}: {error or type(error).__name__}")
        else:
            self._set(use, None)

    def _set(self, use: Use, failure: str | None) -> None:
        """Note that one use fails, or that it works."""
        if (failure is None) == (use not in self._failing):
            return
        if failure is None:
            del self._failing[use]
            _log.info("Redis answers again", use=use)
        else:
            self._failing[use] = failure
            _log.warning("Redis fails; grammars are compiled here", use=use, error=failure)
        self._show()
        self._changed.set()
        self._changed = asyncio.Event()

    def _show(self) -> None:
        metrics.CACHE_AVAILABLE.labels("read").set(self.can_read)
        metrics.CACHE_AVAILABLE.labels("write").set(self.can_write)

    async def _keep_probing(self) -> None:
        pause_s = _FIRST_PROBE_S
        while True:
            if not self._failing:
                pause_s = _FIRST_PROBE_S
                await self._changed.wait()
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PROBE_S)
            await self._probe()

    async def _probe(self) -> None:
        key = f"{self._prefix}probe"
        async with self._guarded("probe", "read", is_awaited=True):
            await self._redis.get(key)
        if self.can_read:
            async with self._guarded("probe", "write", is_awaited=True):
                await self._redis.set(key, b"", px=1000)


async def _off_loop(num_bytes: int, function: Callable[[], bytes]) -> bytes:
    """Do what takes long with many bytes in a thread."""
    return function() if num_bytes < _LARGE_BYTES else await asyncio.to_thread(function)
