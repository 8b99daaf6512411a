"""A job against services that fail in every way, on a clock that runs as fast as it can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from gateway.cli.errors import CommandError
from gateway.cli.extract import job as module
from gateway.cli.extract.documents import Document
from gateway.cli.extract.job import MAX_ATTEMPTS, Job
from gateway.cli.extract.results import Result
from services.rpckit.status import GrammarSyntax, NotReady, OutOfCapacity, ServiceError


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.005)
    monkeypatch.setattr(module, "_PROBE_HOLDS_S", 0.001)


def documents(count: int) -> Iterator[Document]:
    return (Document(str(number), "text") for number in range(count))


class Service:
    """Answers, unless `fails` says for a document how."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.at_work = 0
        self.most = 0

    def fails(self, document: Document) -> ServiceError | None:
        return None

    async def probe(self) -> None:
        pass

    async def work(self, document: Document) -> None:
        await asyncio.sleep(0.001)

    async def extract(self, document: Document) -> Result:
        self.calls.append(document.id)
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            await self.work(document)
        finally:
            self.at_work -= 1
        if (error := self.fails(document)) is not None:
            raise error
        return Result(document.id, "valid", "{}")


async def run(service: Service, count: int, *, concurrency: int = 4, patience_s: float = 60) -> list[Result]:
    written: list[Result] = []
    job = Job(service.extract, service.probe, written.append, concurrency=concurrency, patience_s=patience_s)
    assert await job.run(documents(count))
    return written


async def test_results_come_in_order_with_so_many_at_work() -> None:
    class Uneven(Service):
        """The first four wait for one another, and the very first until twenty others have begun."""

        async def work(self, document: Document) -> None:
            while document.id in ("0", "1", "2", "3") and self.most < 4:
                await asyncio.sleep(0.001)
            while document.id == "0" and len(self.calls) < 25:
                await asyncio.sleep(0.001)

    service = Uneven()
    written = await asyncio.wait_for(run(service, 100), 60)
    assert [result.document_id for result in written] == [str(number) for number in range(100)]
    assert service.most == 4


async def test_a_job_reads_no_further_than_its_memory_allows() -> None:
    num_read = 0

    def endless() -> Iterator[Document]:
        nonlocal num_read
        while True:
            num_read += 1
            yield Document(str(num_read), "text")

    async def extract(document: Document) -> Result:
        if document.id == "1":
            await asyncio.sleep(3600)
        return Result(document.id, "valid", "{}")

    job = Job(extract, Service().probe, lambda result: None, concurrency=4, patience_s=60)
    running = asyncio.ensure_future(job.run(endless()))
    await asyncio.sleep(0.3)
    assert num_read == 8 * 4
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(asyncio.all_tasks()) == 1


async def test_outages_cost_no_document() -> None:
    class Flaky(Service):
        """Is away every other moment."""

        @property
        def is_away(self) -> bool:
            return time.monotonic() % 0.1 > 0.05

        async def probe(self) -> None:
            if self.is_away:
                raise NotReady("away")

        def fails(self, document: Document) -> ServiceError | None:
            return NotReady("away") if self.is_away else None

    assert {result.status for result in await run(Flaky(), 200, concurrency=8)} == {"valid"}


async def test_a_document_that_always_fails_while_others_do_not_is_given_up() -> None:
    class Poisoned(Service):
        def fails(self, document: Document) -> ServiceError | None:
            return NotReady("the worker died") if document.id == "3" else None

    service = Poisoned()
    written = await run(service, 200)
    assert [result.document_id for result in written if result.status == "failed"] == ["3"]
    assert (written[3].reason, written[3].message) == ("NOT_READY", f"{MAX_ATTEMPTS} attempts: the worker died")
    assert len(written) == 200


async def test_an_unexpected_error_is_tried_again_and_then_told() -> None:
    class Broken(Service):
        def fails(self, document: Document) -> ServiceError | None:
            return ServiceError("a bug")

    service = Broken()
    (result,) = await run(service, 1)
    assert (result.status, result.reason, len(service.calls)) == ("failed", "INTERNAL", MAX_ATTEMPTS)


async def test_services_that_stay_away_end_the_job() -> None:
    class Away(Service):
        async def probe(self) -> None:
            raise NotReady("no answer")

        def fails(self, document: Document) -> ServiceError | None:
            return NotReady("no answer")

    started = time.monotonic()
    with pytest.raises(CommandError, match="go on by --resume") as caught:
        await run(Away(), 10, patience_s=0.1)
    assert caught.value.exit_code == 4
    assert time.monotonic() - started < 1  # all wait for the same


async def test_a_gateway_that_is_full_costs_no_document() -> None:
    class Full(Service):
        def fails(self, document: Document) -> ServiceError | None:
            is_full = self.calls.count(document.id) <= 3 * MAX_ATTEMPTS
            return OutOfCapacity("too many wait", retry_after_s=0.001) if is_full else None

    assert {result.status for result in await run(Full(), 5)} == {"valid"}


async def test_a_refused_extraction_ends_the_job_at_once() -> None:
    class Refusing(Service):
        def fails(self, document: Document) -> ServiceError | None:
            return GrammarSyntax("no JSON")

    service = Refusing()
    with pytest.raises(GrammarSyntax):
        await run(service, 1000)
    assert len(service.calls) < 50


async def test_what_could_not_be_read_fails_without_a_call() -> None:
    written: list[Result] = []
    service = Service()
    job = Job(service.extract, service.probe, written.append, concurrency=1, patience_s=60)
    assert await job.run(iter([Document("a", problem="no text")]))
    assert (written[0].status, written[0].reason, service.calls) == ("failed", "INVALID_INPUT", [])


async def test_a_stopped_job_finishes_what_it_has_begun() -> None:
    written: list[Result] = []
    service = Service()
    job = Job(service.extract, service.probe, written.append, concurrency=4, patience_s=60)
    running = asyncio.ensure_future(job.run(documents(100_000)))
    await asyncio.sleep(0.05)
    job.stop()
    assert not await running
    assert [result.document_id for result in written] == [str(number) for number in range(len(written))]
    assert 0 < len(service.calls) == len(written) < 100_000


async def test_a_silent_input_does_not_keep_a_job_from_stopping() -> None:
    def silent() -> Iterator[Document]:
        yield Document("a", "text")
        time.sleep(3600)

    written: list[Result] = []
    job = Job(Service().extract, Service().probe, written.append, concurrency=1, patience_s=60)
    running = asyncio.ensure_future(job.run(silent()))
    await asyncio.sleep(0.05)
    job.stop()
    assert not await asyncio.wait_for(running, 5)
