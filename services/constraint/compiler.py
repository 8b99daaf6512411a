"""Finds compiled grammars or compiles them: memory, then Redis, then a process that can be killed."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import chain
from typing import Final, Literal, TypeVar

import structlog

from services.constraint import metrics
from services.constraint.cache import FleetCache, Store, WarmExchange, Warmth, digest_of, engine_version
from services.constraint.checks import TokenClasses, checked
from services.constraint.compiling import CompileLimits, put_in_force
from services.constraint.composite_matcher import AnyMatcher, CompositeMatcher, PartMatcher
from services.constraint.core.engine import (
    CompiledGrammar,
    Forcing,
    Matcher,
    MatcherLimits,
    TokenTrie,
)
from services.constraint.job_processes import JobCrashedError, JobProcesses, JobTimedOutError
from services.constraint.leases import GrammarTable, Lease
from services.constraint.settings import ConstraintSettings
from services.constraint.sources import ConstraintSource, SourceOptions, read_schema
from services.constraint.special_token import SpecialToken
from services.constraint.stored_grammar import GrammarReport, StoredGrammar
from services.rpckit.status import GrammarTooLarge, OutOfCapacity

CacheLevel = Literal["memory", "redis", "compiled"]
# When a caller that found all processes busy should try again.
_RETRY_AFTER_S: Final = 1.0
_T = TypeVar("_T")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Found:
    """A grammar, and where it was found."""

    lease: Lease
    level: CacheLevel


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A grammar as it is stored, and as it is used."""

    stored: StoredGrammar
    grammar: CompiledGrammar

    @property
    def report(self) -> GrammarReport:
        return self.stored.report

    @classmethod
    def from_bytes(cls, data: bytes) -> _Compiled:
        return cls.of(StoredGrammar.from_bytes(data))

    @classmethod
    def of(cls, stored: StoredGrammar) -> _Compiled:
        return cls(stored, CompiledGrammar.from_bytes(stored.compiled))


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
        self._running: dict[str, asyncio.Task[Found]] = {}
        self._shared = FleetCache(
            store,
            decode=lambda payload: _run_in(builders, lambda: _Compiled.from_bytes(payload)),
            encode=lambda compiled: compiled.stored.to_bytes(),
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
        self.check_size(source, options)
        grammar_id = await _run_in(
            self._threads,
            lambda: digest_of(
                source,
                options,
                forcing,
                vocabulary_digest=self.vocabulary_digest,
                version=engine_version(),
            ),
        )
        lease = self.table.find(grammar_id)
        if lease is not None:
            metrics.LOOKUPS.labels("memory").inc()
            return Found(lease, "memory")
        task = self._running.get(grammar_id)
        if task is None:
            task = asyncio.create_task(self._make(grammar_id, source, options, forcing))
            self._running[grammar_id] = task
            task.add_done_callback(lambda done: self._forget(grammar_id, done))
        return await asyncio.shield(task)

    def check_size(self, source: ConstraintSource, options: SourceOptions) -> None:
        """Refuse a source that, with the documents beside it, is too large to be looked at.

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

    async def close(self) -> None:
        """End what is running."""
        tasks = [*self._running.values(), self._telling]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._warm.close()
        await self._shared.close()

    def _forget(self, grammar_id: str, task: asyncio.Task[Found]) -> None:
        self._running.pop(grammar_id, None)
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would complain where every caller has gone

    async def _make(self, grammar_id: str, source: ConstraintSource, options: SourceOptions, forcing: Forcing) -> Found:
        compiled, is_found = await self._shared.find_or_make(grammar_id, lambda: self._compiled(source, options))
        level: CacheLevel = "redis" if is_found else "compiled"
        if is_found:
            metrics.COMPILE_SAVED_SECONDS.inc(max(0.0, compiled.report.compile_seconds))
        else:
            _log.info(
                "compiled",
                grammar_id=grammar_id,
                kind=source.kind,
                ms=round(compiled.report.compile_seconds * 1e3, 1),
            )
        parts = await asyncio.gather(*(self._part(hole, options, forcing) for hole in compiled.report.holes))
        lease = await _run_in(
            self._builders, lambda: self._lease(grammar_id, compiled, source, options, forcing, parts)
        )
        self.table.add(lease)
        if is_found and lease.warmth is not None:
            self._warm.take_in(lease.warmth)
        metrics.LOOKUPS.labels(level).inc()
        return Found(lease, level)

    async def _compiled(self, source: ConstraintSource, options: SourceOptions) -> _Compiled:
        started = time.perf_counter()
        stored = await self._compile(source, options)
        compiled = await _run_in(self._builders, lambda: _Compiled.of(stored))
        metrics.COMPILE_SECONDS.observe(time.perf_counter() - started)
        return compiled

    def _lease(
        self,
        grammar_id: str,
        compiled: _Compiled,
        source: ConstraintSource,
        options: SourceOptions,
        forcing: Forcing,
        parts: Sequence[PartMatcher],
    ) -> Lease:
        report = compiled.report
        inner = Matcher(
            compiled.grammar, self._trie, forcing=forcing, limits=self._matcher_limits, has_holes=bool(report.holes)
        )
        matcher: AnyMatcher = inner
        if report.holes:
            matcher = CompositeMatcher(inner, parts, min_bytes=report.min_bytes or 0, limits=self._matcher_limits)
        elif report.inexact is not None:
            put_in_force(self._limits)  # as in the process that compiled it
            matcher = checked(inner, read_schema(source, options), report.inexact, self._classes)
        warmth = Warmth(grammar_id, inner, hashlib.sha256(compiled.stored.compiled).digest())
        return Lease(grammar_id, matcher, report.keywords, warmth)

    async def _part(self, hole: ConstraintSource, options: SourceOptions, forcing: Forcing) -> PartMatcher:
        """Find or compile what stands in a hole: a grammar like any other, with a place in memory and in Redis."""
        if hole.kind == "special_token":
            return SpecialToken(hole.text or "", self._trie.vocabulary)
        return (await self.find(hole, options, forcing)).lease.matcher

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
