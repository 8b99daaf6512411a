"""Many documents at work at the same time, no more than a number, each read when there is room for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.extraction.extractor import ExtractionResult
from gateway.extraction.request import Document
from services.rpckit.status import NotReady


async def extract_all(
    read: Callable[[], Awaitable[Document | None]],
    extract: Callable[[Document], Awaitable[ExtractionResult]],
    write: Callable[[ExtractionResult], Awaitable[None]],
    *,
    max_concurrent: int,
    draining: asyncio.Event,
) -> None:
    """Read documents until there is none, and write the result of each as soon as it is there.

    A document has its place until its result is written: whoever does not read results is not read from. When
    `draining` is set nothing more is read, and what is at work is finished.

    Raises:
        NotReady: the service drained before all was read.
        ServiceError: the first one that `extract` raises; the other documents at work are given up.
    """
    places = asyncio.Semaphore(max_concurrent)
    writing = asyncio.Lock()

    async def work(document: Document) -> None:
        result = await extract(document)
        async with writing:
            await write(result)
        places.release()

    try:
        async with asyncio.TaskGroup() as group:
            while True:
                await places.acquire()
                document = await _unless(draining, read)
                if document is None:
                    break
                group.create_task(work(document))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if draining.is_set():
        raise NotReady("the gateway is stopping: send the documents that have no result again")


async def _unless(event: asyncio.Event, read_next: Callable[[], Awaitable[Document | None]]) -> Document | None:
    """Wait for a document, or for the event: None."""
    if event.is_set():
        return None
    read, stopped = asyncio.ensure_future(read_next()), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({read, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return read.result() if read.done() else None
    finally:
        for task in (read, stopped):
            task.cancel()
        await asyncio.gather(read, stopped, return_exceptions=True)
