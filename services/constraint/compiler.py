"""Finds compiled grammars or compiles them: memory, then Redis, then a process that can be killed."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, Literal, TypeVar

import structlog

from services.constraint import metrics
from services.constraint.cache import FleetCache, Store, WarmExchange, Warmth, digest_of, engine_version
from services.constraint.checks import TokenClasses, checked
from services.constraint.compiling import CompileLimits, put_in_force
from services.constraint.composite_matcher import AnyMatcher, CompositeMatcher, PartMatcher
from services.constraint.core.engine import (
    CompiledGrammar,
    Forcing,
    Guidance,
    Matcher,
    MatcherLimits,
    TokenTrie,
)
from services.constraint.job_processes import JobCrashedError, JobProcesses, JobTimedOutError
from services.constraint.leases import GrammarTable, Lease
from services.constraint.settings import ConstraintSettings
from services.constraint.sources import ConstraintSource, KeywordReport, SourceOptions, read_schema
from services.constraint.special_token import SpecialToken
from services.constraint.stored_grammar import GrammarReport, Opening, StoredGrammar
from services.rpckit.status import GrammarTooLarge, OutOfCapacity

CacheLevel = Literal["memory", "redis", "compiled"]
# Sources are digested, and payloads unpacked, at once up to these sizes: to have a thread do it takes longer.
_SMALL_BYTES: Final = 8 << 10
_SMALL_PAYLOAD_BYTES: Final = 64 << 10
# What a stored grammar says of itself goes out before its tables are read, which would keep Python busy.
_ANSWER_S: Final = 0.001
# When a caller that found all processes busy should try again.
_RETRY_AFTER_S: Final = 1.0
_T = TypeVar("_T")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Found:
    """A grammar as whoever asks for it is told of it: where it was found, and what may come first.

    `start` is in the numbers of `epoch`; `mask_seconds` is the time that it took now.
    """

    grammar_id: str
    level: CacheLevel
    epoch: int
    start: Guidance
    min_bytes: int
    keywords: tuple[KeywordReport, ...]
    mask_seconds: float = 0.0

    @classmethod
    def of(cls, lease: Lease, level: CacheLevel) -> Found:
        """Tell of a grammar that is held."""
        seconds = 0.0 if level == "memory" else lease.start_seconds
        matcher = lease.matcher
        return cls(lease.grammar_id, level, matcher.epoch, lease.start, matcher.min_bytes, lease.keywords, seconds)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a grammar is asked for by."""

    grammar_id: str
    source: ConstraintSource
    options: SourceOptions
    forcing: Forcing


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A grammar as it is stored, and as it is used; no `lease` where the parts in its holes have to be found first."""

    stored: StoredGrammar
    grammar: CompiledGrammar
    lease: Lease | None

    @property
    def report(self) -> GrammarReport:
        return self.stored.report

    def to_bytes(self) -> bytes:
        opening = None if self.lease is None else Opening(self.lease.start, self.lease.matcher.min_bytes)
        return replace(self.stored, opening=opening).to_bytes()


@dataclass(eq=False, slots=True)
class _Search:
    """A grammar that is being found or compiled. `early` is what can be told before it is held."""

    early: asyncio.Future[Found]
    held: asyncio.Task[tuple[Lease, CacheLevel]]

    async def found(self) -> Found:
        either: set[asyncio.Future[Any]] = {self.early, self.held}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self.early.result() if self.early.done() else Found.of(*await asyncio.shield(self.held))


class GrammarCompiler:
    """Compiled grammars of one vocabulary.

    Requests for the same grammar at the same time share one compile, which goes on when one of them is cancelled.
    """

    def __init__(
        self,
        settings: ConstraintSettings,
        *,
        trie: TokenTrie,
        classes: TokenClasses,
        vocabulary_digest: str,
        store: Store,
        processes: JobProcesses,
        threads: Executor,
        builders: Executor,
    ) -> None:
        """Take threads for what is quick, and `builders` for what may take seconds where a grammar is large."""
        self.vocabulary_digest: Final = vocabulary_digest
        self.table: Final = GrammarTable(settings.max_grammar_memory_bytes)
        self._settings = settings
        self._trie = trie
        self._classes = classes
        self._processes = processes
        self._threads = threads
        self._builders = builders
        self._limits = CompileLimits.of(settings)
        self._matcher_limits = MatcherLimits(
            max_mask_fuel=settings.max_mask_fuel,
            max_grammar_bytes=settings.max_grammar_bytes,
            max_mask_bytes=settings.max_mask_bytes,
            max_witness_tokens=settings.max_witness_tokens,
            max_readings=settings.max_readings,
        )
        # As many as there are processes, so that waiting for one is not part of a compile's time.
        self._slots = asyncio.Semaphore(settings.num_compile_processes)
        self._searches: dict[str, _Search] = {}
        self._shared: FleetCache[_Compiled] = FleetCache(
            store,
            encode=_Compiled.to_bytes,
            limits=f"{self._limits} {settings.max_compile_s} {settings.max_compile_memory_bytes}",
            lock_s=settings.redis_lock_s,
            max_lock_wait_s=settings.redis_lock_wait_s,
            refusal_ttl_s=settings.refusal_ttl_s,
        )
        self._warm = WarmExchange(
            store, builders, interval_s=settings.warm_interval_s, max_mask_bytes=settings.warm_mask_bytes
        )
        self._telling = asyncio.create_task(self._warm.run(self.table.warmths))

    async def find(self, source: ConstraintSource, options: SourceOptions, forcing: Forcing) -> Found:
        """Find a grammar or compile it.

        Raises:
            ServiceError: as the source deserves; GrammarTooLarge where a limit on size, time or memory is passed;
            OutOfCapacity: other compiles kept all processes busy.
        """
        held = await self._look(source, options, forcing)
        return Found.of(held, "memory") if isinstance(held, Lease) else await held.found()

    async def lease(self, grammar_id: str) -> Lease:
        """Return a grammar that was found before, as soon as it is held.

        Raises:
            LeaseExpired: it is not held.
        """
        search = self._searches.get(grammar_id)
        if search is not None:
            await asyncio.wait({search.held})
        return self.table.get(grammar_id)

    async def _look(self, source: ConstraintSource, options: SourceOptions, forcing: Forcing) -> Lease | _Search:
        num_bytes = self.check_size(source, options)

        def digest() -> str:
            return digest_of(
                source, options, forcing, vocabulary_digest=self.vocabulary_digest, version=engine_version()
            )

        grammar_id = digest() if num_bytes <= _SMALL_BYTES else await _run_in(self._threads, digest)
        lease = self.table.find(grammar_id)
        if lease is not None:
            metrics.LOOKUPS.labels("memory").inc()
            return lease
        search = self._searches.get(grammar_id)
        if search is None:
            early: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
            held = asyncio.create_task(self._make(_Asked(grammar_id, source, options, forcing), early))
            search = self._searches[grammar_id] = _Search(early, held)
            held.add_done_callback(lambda done: self._forget(grammar_id, done))
        return search

    def check_size(self, source: ConstraintSource, options: SourceOptions) -> int:
        """Refuse a source that, with the documents beside it, is too large to be looked at; return its bytes.

        Raises:
            GrammarTooLarge: names the limit.
        """
        texts = (*_texts_of(source), *chain.from_iterable(options.documents))
        num_bytes = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        limit = self._settings.max_source_bytes
        if num_bytes > limit:
            raise GrammarTooLarge(
                f"the constraint has {num_bytes} bytes, documents included; at most {limit} are taken",
                limit="max_source_bytes",
                value=limit,
            )
        return num_bytes

    async def close(self) -> None:
        """End what is running."""
        tasks = [*(search.held for search in self._searches.values()), self._telling]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._warm.close()
        await self._shared.close()

    def _forget(self, grammar_id: str, task: asyncio.Task[Any]) -> None:
        self._searches.pop(grammar_id, None)
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would complain where every caller has gone

    async def _make(self, asked: _Asked, early: asyncio.Future[Found]) -> tuple[Lease, CacheLevel]:
        """Find or compile, and hold what that gives. `early` gets what a stored grammar says of itself."""

        async def decode(payload: bytes) -> _Compiled:
            stored = await self._unpacked(payload)
            epoch = secrets.randbits(64)
            if stored.opening is not None and not early.done():
                opening, keywords = stored.opening, stored.report.keywords
                early.set_result(Found(asked.grammar_id, "redis", epoch, opening.guidance, opening.min_bytes, keywords))
                await asyncio.sleep(_ANSWER_S)
            return await _run_in(self._builders, lambda: self._read(stored, asked, epoch))

        compiled, is_found = await self._shared.find_or_make(
            asked.grammar_id, decode=decode, make=lambda: self._compiled(asked)
        )
        level: CacheLevel = "redis" if is_found else "compiled"
        if is_found:
            metrics.COMPILE_SAVED_SECONDS.inc(max(0.0, compiled.report.compile_seconds))
        else:
            _log.info(
                "compiled",
                grammar_id=asked.grammar_id,
                kind=asked.source.kind,
                ms=round(compiled.report.compile_seconds * 1e3, 1),
            )
        lease = compiled.lease
        if lease is None:
            parts = await asyncio.gather(*(self._part(hole, asked) for hole in compiled.report.holes))
            lease = await _run_in(
                self._builders, lambda: self._lease(asked, compiled.stored, compiled.grammar, parts=parts)
            )
        self.table.add(lease)
        if is_found and lease.warmth is not None:
            self._warm.take_in(lease.warmth)
        metrics.LOOKUPS.labels(level).inc()
        return lease, level

    async def _unpacked(self, payload: bytes) -> StoredGrammar:
        """Unpack what is stored.

        Raises:
            ValueError: it was not written by a compiler, or for another vocabulary.
        """
        if len(payload) <= _SMALL_PAYLOAD_BYTES:
            stored = StoredGrammar.from_bytes(payload)
        else:
            stored = await _run_in(self._builders, lambda: StoredGrammar.from_bytes(payload))
        if stored.opening is not None:
            stored.opening.check(self._trie.vocabulary.vocab_size)
        return stored

    async def _compiled(self, asked: _Asked) -> _Compiled:
        started = time.perf_counter()
        stored = await self._compile(asked.source, asked.options)
        compiled = await _run_in(self._builders, lambda: self._read(stored, asked))
        metrics.COMPILE_SECONDS.observe(time.perf_counter() - started)
        return compiled

    def _read(self, stored: StoredGrammar, asked: _Asked, epoch: int | None = None) -> _Compiled:
        """Make all that needs no other grammar. `epoch` is one that somebody was told already.

        Raises:
            ValueError: `stored` was not written by a compiler, or its opening is of another grammar.
        """
        grammar = CompiledGrammar.from_bytes(stored.compiled)
        if stored.report.holes:
            return _Compiled(stored, grammar, None)
        lease = self._lease(asked, stored, grammar, epoch=epoch)
        if stored.opening is not None and not stored.opening.is_of(lease.start):
            raise ValueError("the opening is not the grammar's")
        return _Compiled(stored, grammar, lease)

    def _lease(
        self,
        asked: _Asked,
        stored: StoredGrammar,
        grammar: CompiledGrammar,
        *,
        epoch: int | None = None,
        parts: Sequence[PartMatcher] = (),
    ) -> Lease:
        report = stored.report
        inner = Matcher(
            grammar,
            self._trie,
            forcing=asked.forcing,
            limits=self._matcher_limits,
            has_holes=bool(report.holes),
            epoch=epoch,
        )
        matcher: AnyMatcher = inner
        if report.holes:
            matcher = CompositeMatcher(inner, parts, min_bytes=report.min_bytes or 0, limits=self._matcher_limits)
        elif report.inexact is not None:
            put_in_force(self._limits)  # as in the process that compiled it
            matcher = checked(inner, read_schema(asked.source, asked.options), report.inexact, self._classes)
        warmth = Warmth(asked.grammar_id, inner, hashlib.sha256(stored.compiled).digest())
        lease = Lease.of(asked.grammar_id, matcher, report.keywords, warmth)
        metrics.MASK_SECONDS.observe(lease.start_seconds)
        return lease

    async def _part(self, hole: ConstraintSource, asked: _Asked) -> PartMatcher:
        """Find or compile what stands in a hole: a grammar like any other, with a place in memory and in Redis."""
        if hole.kind == "special_token":
            return SpecialToken(hole.text or "", self._trie.vocabulary)
        held = await self._look(hole, asked.options, asked.forcing)
        lease = held if isinstance(held, Lease) else (await asyncio.shield(held.held))[0]
        return lease.matcher

    async def _compile(self, source: ConstraintSource, options: SourceOptions) -> StoredGrammar:
        wait_s, limit_s = self._settings.max_compile_wait_s, self._settings.max_compile_s
        try:
            async with asyncio.timeout(wait_s):
                await self._slots.acquire()
        except TimeoutError:
            raise OutOfCapacity(
                f"other compiles have kept all processes busy for {wait_s} s (limit max_compile_wait_s); try again",
                retry_after_s=_RETRY_AFTER_S,
                limit="max_compile_wait_s",
                value=wait_s,
            ) from None
        try:
            stored: StoredGrammar = await self._processes.run(source, options, self._limits, timeout_s=limit_s)
        except JobTimedOutError:
            raise GrammarTooLarge(
                f"compiling takes longer than {limit_s} s (limit max_compile_s); simplify the constraint",
                limit="max_compile_s",
                value=limit_s,
            ) from None
        except JobCrashedError as error:
            limit = self._settings.max_compile_memory_bytes
            raise GrammarTooLarge(
                f"the compile failed: {error} (limit max_compile_memory_bytes is {limit}); simplify the constraint",
                limit="max_compile_memory_bytes",
                value=limit,
            ) from None
        finally:
            self._slots.release()
        return stored


def _texts_of(source: ConstraintSource) -> Iterator[str]:
    yield source.text or ""
    yield from source.choices
    for part in source.parts:
        yield from _texts_of(part)


async def _run_in(threads: Executor, function: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(threads, function)
