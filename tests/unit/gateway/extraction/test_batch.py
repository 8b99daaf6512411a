"""Batches: room for so many documents, results as they come, an end when the service drains."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.extraction.batch import extract_all
from gateway.extraction.extractor import ExtractionResult
from gateway.extraction.request import Document
from services.rpckit.status import GrammarSyntax, NotReady


def result_of(document: Document) -> ExtractionResult:
    return ExtractionResult(document.id, "valid", seed=0, total_s=0.0)


class Stream:
    """A client: documents that are read, results that are written."""

    def __init__(self, num_documents: int) -> None:
        self.num_documents = num_documents
        self.num_read = 0
        self.written: list[str] = []
        self.may_write = asyncio.Event()
        self.may_write.set()

    async def read(self) -> Document | None:
        await asyncio.sleep(0)
        if self.num_read == self.num_documents:
            return None
        self.num_read += 1
        return Document(str(self.num_read), "text")

    async def write(self, result: ExtractionResult) -> None:
        await self.may_write.wait()
        self.written.append(result.document_id)


async def run(
    stream: Stream, extract: Callable[[Document], Awaitable[ExtractionResult]], draining: asyncio.Event | None = None
) -> None:
    await extract_all(stream.read, extract, stream.write, max_concurrent=4, draining=draining or asyncio.Event())


async def test_results_come_as_they_are_ready_and_never_too_many_are_at_work() -> None:
    at_work = most = 0

    async def extract(document: Document) -> ExtractionResult:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.05 if document.id == "1" else 0.001)
        at_work -= 1
        return result_of(document)

    stream = Stream(40)
    await run(stream, extract)
    assert sorted(stream.written, key=int) == [str(number) for number in range(1, 41)]
    assert stream.written[0] != "1"
    assert most == 4


async def test_a_client_that_reads_no_results_is_not_read_from() -> None:
    async def extract(document: Document) -> ExtractionResult:
        return result_of(document)

    stream = Stream(40)
    stream.may_write.clear()
    running = asyncio.ensure_future(run(stream, extract))
    await asyncio.sleep(0.05)
    assert stream.num_read == 4
    stream.may_write.set()
    await running
    assert len(stream.written) == 40


async def test_draining_finishes_what_is_at_work_and_says_so() -> None:
    draining = asyncio.Event()

    async def extract(document: Document) -> ExtractionResult:
        draining.set()
        await asyncio.sleep(0.01)
        return result_of(document)

    stream = Stream(40)
    with pytest.raises(NotReady, match="send the documents that have no result again"):
        await run(stream, extract, draining)
    assert len(stream.written) == stream.num_read < 40


async def test_an_error_of_the_extraction_ends_the_batch() -> None:
    async def extract(document: Document) -> ExtractionResult:
        await asyncio.sleep(0.001)
        raise GrammarSyntax("no JSON")

    with pytest.raises(GrammarSyntax):
        await run(Stream(40), extract)
    assert len(asyncio.all_tasks()) == 1
