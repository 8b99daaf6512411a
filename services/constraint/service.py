"""What the constraint service does, in plain types: compile, advance, validate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import grpc.aio
import structlog

from services.constraint import metrics
from services.constraint.cache import NoStore, RedisStore, Store, engine_version
from services.constraint.checks import TokenClasses
from services.constraint.compiler import Found, GrammarCompiler
from services.constraint.core.engine import TERMINATED, Forcing, Guidance, TokenTrie, warm_up
from services.constraint.job_processes import JobProcesses
from services.constraint.leases import Lease
from services.constraint.settings import ConstraintSettings
from services.constraint.sources import ConstraintSource, SourceOptions, common_grammar
from services.constraint.validation import ValidatorPool, Violation
from services.rpckit.status import (
    InvalidRequest,
    LeaseExpired,
    NotReady,
    ServiceError,
    VocabularyMismatch,
)
from services.vocabulary import Vocabulary

# How often a worker that is away is asked again, and how often a mismatch may make us ask.
_RETRY_S: Final = 1.0

_T = TypeVar("_T")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Move:
    """Tokens to take. `state` absent: from the start; else it is `epoch`'s, with TERMINATED behind an end token."""

    grammar_id: str
    token_ids: Sequence[int]
    epoch: int | None = None
    state: int | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """What may follow, in the numbers of `epoch`, and the time it took to find out."""

    epoch: int
    guidance: Guidance
    microseconds: int


class ConstraintService:
    """Compiled grammars of the worker's vocabulary.

    The vocabulary is fetched when the service starts, and again when a caller names another one: the worker may have
    been restarted with another model. A new vocabulary is a new set of grammars; the old states are LEASE_EXPIRED.
    """

    def __init__(
        self, settings: ConstraintSettings, fetch_vocabulary: Callable[[str | None], Awaitable[Vocabulary]]
    ) -> None:
        """Take settings, and a way to ask a worker, which may raise anything while the worker is away.

        The way takes the digest that is wanted, None for any: there may be workers with different vocabularies.

        Raises:
            ValueError: the URL of Redis is none.
        """
        self._settings = settings
        self._fetch_vocabulary = fetch_vocabulary
        self._threads = ThreadPoolExecutor(settings.num_mask_threads, thread_name_prefix="mask")
        # Apart from the masks: the first look at a large grammar takes seconds, and no mask should wait for it.
        self._builders = ThreadPoolExecutor(settings.num_compile_processes, thread_name_prefix="build")
        self._store: Store = NoStore()
        options = settings.redis_options()
        if options is not None:
            self._store = RedisStore(options)
        self._processes = JobProcesses(
            "services.constraint.compiling:compile_source",
            num_processes=settings.num_compile_processes,
            max_memory_bytes=settings.max_compile_memory_bytes,
        )
        self._validators = ValidatorPool(settings.num_validate_processes)
        self._compiler: GrammarCompiler | None = None
        self._fetching = asyncio.Lock()
        self._fetched_at = 0.0

    async def start(self) -> None:
        """Start processes, wait for the worker, and make its vocabulary's trie."""
        await asyncio.gather(
            self._processes.start(), self._validators.start(), self._store.start(), self._wait_for_vocabulary()
        )

    async def report_health(self, report: Callable[[str, bool], Awaitable[None]]) -> None:
        """Report on the shared cache, now and whenever it fails or comes back; requests go on without it."""
        if isinstance(self._store, RedisStore):
            async for is_available in self._store.states():
                await report("cache", is_available)

    async def stop(self) -> None:
        """Let go of everything."""
        if self._compiler is not None:
            await self._compiler.close()
        await self._processes.stop()
        await self._validators.close()
        await self._store.close()
        for threads in (self._threads, self._builders):
            threads.shutdown(wait=False, cancel_futures=True)

    async def compile(
        self, source: ConstraintSource, options: SourceOptions, forcing: Forcing, vocabulary_digest: str
    ) -> tuple[Found, Moved]:
        """Find or compile a grammar, and say what may come first.

        Raises:
            ServiceError: as the source deserves; VocabularyMismatch; GrammarTooLarge.
        """
        compiler = await self._compiler_of(vocabulary_digest)
        found = await compiler.find(source, options, forcing)
        return found, Moved(found.epoch, found.start, round(found.mask_seconds * 1e6))

    async def advance(self, moves: Sequence[Move]) -> list[Moved | ServiceError]:
        """Make a batch of moves; one that fails leaves the others alone.

        Raises:
            InvalidRequest: more moves than one batch may have.
        """
        if len(moves) > self._settings.max_batch_items:
            limit = self._settings.max_batch_items
            raise InvalidRequest(f"a batch has at most {limit} items, not {len(moves)}", field="items", limit=limit)
        compiler = self._ready_compiler()
        leases: list[Lease | ServiceError] = []
        for move in moves:
            try:
                leases.append(await compiler.lease(move.grammar_id))
            except LeaseExpired as error:
                leases.append(error)
        results: list[Moved | ServiceError] = await self._in_thread(_advance_all, leases, moves)
        for lease in {id(lease): lease for lease in leases if isinstance(lease, Lease)}.values():
            compiler.table.measure(lease)
        return results

    async def validate(self, source: ConstraintSource, options: SourceOptions, text: bytes) -> list[Violation]:
        """Judge a text by the independent validator; no violations mean that it satisfies the constraint.

        Raises:
            ServiceError: as the source deserves.
            InvalidRequest: the text is too large.
            DeadlineExceeded: the validator takes too long.
        """
        self._ready_compiler().check_size(source, options)
        limit = self._settings.max_text_bytes
        if len(text) > limit:
            raise InvalidRequest(
                f"the text has {len(text)} bytes; at most {limit} are taken", field="text", limit=limit
            )
        try:
            violations = await self._validators.validate(source, options, text, timeout_s=self._settings.max_validate_s)
        except ServiceError as error:
            metrics.VALIDATIONS.labels(error.reason).inc()
            raise
        metrics.VALIDATIONS.labels("INVALID" if violations else "VALID").inc()
        return violations

    def _ready_compiler(self) -> GrammarCompiler:
        if self._compiler is None:
            raise NotReady("the vocabulary is not known yet: the model worker has not answered", service="constraint")
        return self._compiler

    async def _compiler_of(self, vocabulary_digest: str) -> GrammarCompiler:
        compiler = self._ready_compiler()
        if vocabulary_digest == compiler.vocabulary_digest:
            return compiler
        if not vocabulary_digest:
            raise InvalidRequest("name the vocabulary, as the worker's GetModel does", field="vocabulary_digest")
        await self._refetch(compiler, vocabulary_digest)
        compiler = self._ready_compiler()
        if vocabulary_digest != compiler.vocabulary_digest:
            raise VocabularyMismatch(
                "the caller's vocabulary is not that of the worker this service asks; both must use the same model",
                expected=compiler.vocabulary_digest,
                actual=vocabulary_digest,
            )
        return compiler

    async def _refetch(self, known: GrammarCompiler, wanted_digest: str) -> None:
        """Ask the worker for its vocabulary, unless that has just been done."""
        async with self._fetching:
            if self._compiler is not known or time.monotonic() - self._fetched_at < _RETRY_S:
                return
            try:
                await self._fetch(wanted_digest)
            except (ServiceError, grpc.RpcError) as error:
                _log.warning("the vocabulary could not be fetched again", error=_reason(error))

    async def _wait_for_vocabulary(self) -> None:
        last_logged = float("-inf")
        while True:
            try:
                async with self._fetching:
                    await self._fetch(None)
                return
            except (NotReady, grpc.RpcError) as error:
                if time.monotonic() - last_logged > 5:
                    last_logged = time.monotonic()
                    _log.info(
                        "waiting for the model worker", address=self._settings.worker_address, error=_reason(error)
                    )
                await asyncio.sleep(_RETRY_S / 4)

    async def _fetch(self, wanted_digest: str | None) -> None:
        vocabulary = await self._fetch_vocabulary(wanted_digest)
        self._fetched_at = time.monotonic()
        if self._compiler is not None and self._compiler.vocabulary_digest == vocabulary.digest:
            return
        started = time.perf_counter()
        trie, classes = await self._in_thread(derive, vocabulary)
        old, self._compiler = (
            self._compiler,
            GrammarCompiler(
                self._settings,
                trie=trie,
                classes=classes,
                vocabulary_digest=vocabulary.digest,
                store=self._store,
                processes=self._processes,
                threads=self._threads,
                builders=self._builders,
            ),
        )
        if old is not None:
            old.table.clear()
            await old.close()
        _log.info(
            "vocabulary",
            digest=vocabulary.digest,
            vocab_size=vocabulary.vocab_size,
            ms=round((time.perf_counter() - started) * 1e3, 1),
        )

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        context = copy_context()  # the call's names, for the log
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, function, *arguments)


def derive(vocabulary: Vocabulary) -> tuple[TokenTrie, TokenClasses]:
    """Make what comes from the vocabulary alone, so that no request waits for it."""
    trie = TokenTrie(vocabulary)
    warm_up(trie, common_grammar())
    classes = TokenClasses(trie)
    classes.warm_up()
    engine_version()
    return trie, classes


def _advance_all(leases: Sequence[Lease | ServiceError], moves: Sequence[Move]) -> list[Moved | ServiceError]:
    results: list[Moved | ServiceError] = []
    for lease, move in zip(leases, moves, strict=True):
        try:
            if isinstance(lease, ServiceError):
                raise lease
            results.append(_advance(lease, move))
            metrics.ADVANCES.labels("OK").inc()
        except ServiceError as error:
            metrics.ADVANCES.labels(error.reason).inc()
            results.append(error)
        except Exception as error:
            _log.error("unexpected error in a move", grammar_id=move.grammar_id, exc_info=error)
            metrics.ADVANCES.labels("INTERNAL").inc()
            results.append(
                ServiceError("an unexpected error, a bug of the constraint service: its log has the details")
            )
    return results


def _advance(lease: Lease, move: Move) -> Moved:
    matcher = lease.matcher
    started = time.perf_counter()
    if move.epoch is not None and move.epoch != matcher.epoch:
        raise LeaseExpired(
            "this state was numbered by another process or an earlier lease: replay the tokens from the start",
            grammar_id=move.grammar_id,
        )
    state = matcher.start if move.state is None else move.state
    guidance = matcher.guidance(matcher.accept(state, move.token_ids))
    seconds = time.perf_counter() - started
    metrics.MASK_SECONDS.observe(seconds)
    return Moved(matcher.epoch, guidance, round(seconds * 1e6))


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)


__all__ = ["TERMINATED", "ConstraintService", "Move", "Moved", "derive"]
