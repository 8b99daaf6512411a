"""Compiled grammars shared by replicas: a keyed store whose every failure is a miss."""

from __future__ import annotations

import contextlib
import time
from typing import Final, Protocol

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.constraint import metrics
from services.constraint.stored_grammar import FORMAT_VERSION, StoredGrammar

# After a failure Redis is left alone for this long, so that a dead one costs one time-out, not one a request.
_PAUSE_AFTER_FAILURE_S: Final = 1.0

_log = structlog.get_logger()


class GrammarStore(Protocol):
    """Where compiled grammars are kept outside of this process.

    No method fails: a failure is a miss, logged and counted.
    """

    async def get(self, digest: str) -> StoredGrammar | None:
        """Find a grammar."""

    async def put(self, digest: str, grammar: StoredGrammar) -> None:
        """Keep a grammar."""

    async def discard(self, digest: str) -> None:
        """Drop an entry that turned out to be unusable."""

    async def close(self) -> None:
        """Let go of connections."""


class NoStore:
    """Keeps nothing."""

    async def get(self, digest: str) -> StoredGrammar | None:
        """Find nothing."""
        return None

    async def put(self, digest: str, grammar: StoredGrammar) -> None:
        """Keep nothing."""

    async def discard(self, digest: str) -> None:
        """Drop nothing."""

    async def close(self) -> None:
        """Close nothing."""


class RedisStore:
    """Keeps grammars in Redis (or Valkey) under `espalier:<format version>:<digest>`, for a time, up to a size."""

    def __init__(self, url: str, *, timeout_s: float, ttl_s: int, max_value_bytes: int) -> None:
        """Connect when first used.

        Raises:
            ValueError: not a Redis URL.
        """
        self._redis = redis.asyncio.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )
        self._ttl_s = ttl_s
        self._max_value_bytes = max_value_bytes
        self._paused_until = 0.0
        self._is_down = False

    async def get(self, digest: str) -> StoredGrammar | None:
        """Find a grammar; an entry that cannot be read is dropped."""
        if self._is_paused():
            return None
        try:
            value = await self._redis.get(_key(digest))
        except (RedisError, OSError, TimeoutError) as error:
            self._failed("get", error)
            return None
        self._worked()
        if value is None:
            return None
        try:
            return StoredGrammar.from_bytes(value if isinstance(value, bytes) else value.encode())
        except (ValueError, TypeError, KeyError) as error:
            _log.warning("a cached grammar cannot be read and is dropped", digest=digest, error=str(error))
            metrics.STORE_FAILURES.labels("decode").inc()
            await self.discard(digest)
            return None

    async def put(self, digest: str, grammar: StoredGrammar) -> None:
        """Keep a grammar unless it is too large."""
        value = grammar.to_bytes()
        if len(value) > self._max_value_bytes or self._is_paused():
            return
        try:
            await self._redis.set(_key(digest), value, ex=self._ttl_s)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed("put", error)
        else:
            self._worked()

    async def discard(self, digest: str) -> None:
        """Drop an entry."""
        if self._is_paused():
            return
        try:
            await self._redis.delete(_key(digest))
        except (RedisError, OSError, TimeoutError) as error:
            self._failed("discard", error)

    async def close(self) -> None:
        """Close the connections."""
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._redis.aclose()

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _failed(self, operation: str, error: Exception) -> None:
        metrics.STORE_FAILURES.labels(operation).inc()
        self._paused_until = time.monotonic() + _PAUSE_AFTER_FAILURE_S
        if not self._is_down:
            _log.warning("Redis does not answer; grammars are compiled here", operation=operation, error=str(error))
        self._is_down = True

    def _worked(self) -> None:
        if self._is_down:
            _log.info("Redis answers again")
        self._is_down = False


def _key(digest: str) -> str:
    return f"espalier:{FORMAT_VERSION}:{digest}"
