"""A job: documents in, results out, in order, each exactly once, through whatever the services go through meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import grpc

from gateway.cli.errors import UNAVAILABLE, CommandError
from gateway.cli.extract.documents import Document
from gateway.cli.extract.results import Result
from services.rpckit.status import OutOfCapacity, ServiceError

MAX_ATTEMPTS: Final = 5
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_PROBE_HOLDS_S: Final = 0.5
"""So long the answer to a probe is taken for all documents that failed before it."""
_PASSING: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)
"""What a call may end with that was no document's fault nor the job's: it is worth another attempt."""


class Job:
    """Runs `extract` over documents, `concurrency` at a time.

    A call that fails for no fault of the document is made again as soon as the services answer a probe; when they have
    not for `patience_s`, the job ends. A document that fails MAX_ATTEMPTS times where they do gets a failed result.
    """

    def __init__(
        self,
        extract: Callable[[Document], Awaitable[Result]],
        probe: Callable[[], Awaitable[None]],
        write: Callable[[Result], None],
        *,
        concurrency: int,
        patience_s: float,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`probe` raises unless the services work; `write` takes results in order, `say` what a user should know."""
        self._extract = extract
        self._probe = probe
        self._write = write
        self._say = say
        self._turns = asyncio.Semaphore(concurrency)
        # Results wait for those before them, and documents for results that are written: so many are in memory.
        self._max_ahead = 8 * concurrency
        self._patience_s = patience_s
        self._stopping = asyncio.Event()
        self._waiting = asyncio.Lock()
        self._up_at = -math.inf
        self._away_since: float | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether no document is begun any more."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begin no document any more; finish those under way."""
        self._stopping.set()

    async def run(self, documents: Iterator[Document]) -> bool:
        """Return whether all documents have a result: not so where the job was stopped.

        Raises:
            ServiceError: the services refuse the extraction itself.
            CommandError: they have not answered for too long.
        """
        ahead: deque[asyncio.Task[Result | None]] = deque()
        try:
            while (document := await self._next(documents)) is not None:
                ahead.append(asyncio.create_task(self._work(document)))
                while ahead and (len(ahead) >= self._max_ahead or ahead[0].done()):
                    if not await self._finish(ahead):
                        return False
            while ahead:
                if not await self._finish(ahead):
                    return False
            return not self._stopping.is_set()
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _next(self, documents: Iterator[Document]) -> Document | None:
        """Read a document; None at the end, and when the job is stopped while none comes."""
        loop = asyncio.get_running_loop()
        read: asyncio.Future[Document | None] = loop.create_future()

        def work() -> None:
            try:
                document = next(documents, None)
            except Exception as error:
                loop.call_soon_threadsafe(read.set_exception, error)
            else:
                loop.call_soon_threadsafe(read.set_result, document)

        # A thread that nobody waits for: standard input may be silent for ever.
        threading.Thread(target=work, daemon=True).start()
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            either: set[asyncio.Future[Any]] = {read, stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return read.result() if read.done() and not self._stopping.is_set() else None
        finally:
            stopped.cancel()

    async def _finish(self, ahead: deque[asyncio.Task[Result | None]]) -> bool:
        """Write the result of the first document; False where it has none because the job was stopped."""
        result = await ahead[0]
        if result is None:
            return False
        self._write(result)
        ahead.popleft()
        return True

    async def _work(self, document: Document) -> Result | None:
        if document.problem is not None:
            return Result(document.id, "failed", reason="INVALID_INPUT", message=document.problem)
        num_failed, may_be_an_outage = 0, True
        while True:
            async with self._turns:
                if self._stopping.is_set():
                    return None
                try:
                    return await self._extract(document)
                except ServiceError as error:
                    if error.code not in _PASSING:
                        raise
                    failure = error
            num_failed += _is_own(failure, may_be_an_outage=may_be_an_outage)
            if num_failed >= MAX_ATTEMPTS:
                message = f"{MAX_ATTEMPTS} attempts: {failure.message}"
                return Result(document.id, "failed", reason=failure.reason, message=message)
            await self._pause(failure.retry_after_s or _FIRST_PAUSE_S)
            await self._until_up()
            may_be_an_outage = False

    async def _until_up(self) -> None:
        """Wait until the services answer again, or the job is stopped; documents that failed together wait together.

        Raises:
            CommandError: they have not answered for too long.
        """
        async with self._waiting:
            pause_s = _FIRST_PAUSE_S
            while not self._stopping.is_set() and time.monotonic() - self._up_at > _PROBE_HOLDS_S:
                try:
                    await self._probe()
                except ServiceError as error:
                    if error.code not in _PASSING:
                        raise
                    self._note_away(error)
                    await self._pause(max(pause_s, error.retry_after_s or 0))
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                else:
                    self._note_up()

    def _note_away(self, error: ServiceError) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            self._say(f"waiting: {error.message}")
        if now - self._away_since > self._patience_s:
            raise CommandError(
                f"nothing was answered for {self._patience_s:g} s; go on by --resume when the services are back "
                f"({error.message})",
                UNAVAILABLE,
            )

    def _note_up(self) -> None:
        self._up_at = time.monotonic()
        if self._away_since is not None:
            self._away_since = None
            self._say("the services answer again")

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the job is stopped meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def _is_own(failure: ServiceError, *, may_be_an_outage: bool) -> bool:
    """Tell whether a document brings its own trouble: it fails where all else works."""
    if isinstance(failure, OutOfCapacity):
        return False  # others are there, too
    return failure.code is grpc.StatusCode.INTERNAL or not may_be_an_outage
