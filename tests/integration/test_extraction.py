"""`Extract` and `ExtractBatch` over the network: a real worker (toy model), the real constraint service, gRPC."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import jsonschema
import pytest
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import gateway_pb2_grpc, types_pb2

from services.rpckit.rich_status import from_item_status, from_rpc_error
from tests.integration.test_gateway import MODEL_CONTEXT, no_open_sequences, refused
from tests.support.stack import TestStack, running_stack

SCHEMA = {
    "type": "object",
    "properties": {
        "이름": {"type": "string", "minLength": 1, "maxLength": 6},
        "kind": {"enum": ["kimchi", "soup"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["이름", "kind", "sizes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def stack() -> Iterator[TestStack]:
    with TemporaryDirectory(prefix="esp") as directory, running_stack(Path(directory)) as running:
        running.start_gateway("gateway", "--max-running", "4", "--max-queued", "0", "--max-batch-concurrent", "6")
        for process in running.processes.values():
            process.wait_until_serving()
        yield running


@pytest.fixture
async def stub(stack: TestStack) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(stack.processes["gateway"].address) as channel:
        yield gateway_pb2_grpc.GatewayServiceStub(channel)
    assert await no_open_sequences(stack.processes["worker"])


def extraction(**fields: Any) -> pb.Extraction:
    return pb.Extraction(**({"json_schema": json.dumps(SCHEMA, ensure_ascii=False), "max_tokens": 60} | fields))


async def extract(stub: Any, text: str = "김치찌개 kimchi 12", **fields: Any) -> pb.ExtractionResult:
    request = pb.ExtractRequest(extraction=extraction(**fields), document=pb.Document(id="d", text=text))
    response: pb.ExtractResponse = await stub.Extract(request, timeout=60)
    return response.result


async def test_a_record_is_valid_and_told_of_field_by_field(stub: Any) -> None:
    result = await extract(stub)
    record = json.loads(result.record)
    jsonschema.validate(record, SCHEMA)
    assert "\n" not in result.record
    assert result.document_id == "d"
    assert result.status in (pb.EXTRACTION_STATUS_VALID, pb.EXTRACTION_STATUS_BUDGET_CLOSED)
    pointers = ["/이름", "/kind", *(f"/sizes/{index}" for index in range(len(record["sizes"])))]
    assert [field.pointer for field in result.fields] == pointers
    assert result.usage.num_completion_tokens > 0
    assert result.timing.total_us > 0


async def test_what_is_known_by_the_way_lies_around_what_another_pass_tells(stub: Any) -> None:
    by_the_way, exact = await extract(stub), await extract(stub, exact_scores=True)
    assert by_the_way.record == exact.record
    assert exact.removed_mass.low == pytest.approx(exact.removed_mass.high, abs=1e-9)
    assert by_the_way.removed_mass.low <= exact.removed_mass.low + 1e-5
    assert by_the_way.removed_mass.high >= exact.removed_mass.high - 1e-5
    assert by_the_way.removed_mass.low < by_the_way.removed_mass.high  # some tokens were forced
    assert all(field.HasField("mean_logprob") for field in exact.fields)
    assert by_the_way.fields[0].HasField("mean_logprob")


async def test_the_same_document_gives_the_same_record(stub: Any) -> None:
    drawn = [await extract(stub, sampling=pb.Sampling(temperature=1)) for _ in range(2)]
    other = await extract(stub, sampling=pb.Sampling(temperature=1, seed=5))
    assert drawn[0].record == drawn[1].record != other.record
    assert (drawn[0].seed, other.seed) == (0, 5)


async def test_a_beam_finds_a_record_and_scores_it(stub: Any) -> None:
    result = await extract(stub, beam=pb.Beam(width=3))
    jsonschema.validate(json.loads(result.record), SCHEMA)
    assert all(field.HasField("mean_logprob") for field in result.fields)
    assert result.removed_mass.low == pytest.approx(result.removed_mass.high, abs=1e-9)


async def test_examples_and_instructions_reach_the_model(stub: Any) -> None:
    plain = await extract(stub)
    shown = await extract(
        stub,
        instructions="한국어",
        examples=[pb.ExtractionExample(text="a", record='{"이름": "a", "kind": "soup", "sizes": []}')],
    )
    assert shown.usage.num_prompt_tokens > plain.usage.num_prompt_tokens


@pytest.mark.parametrize(
    ("text", "fields", "reason"),
    [
        (" \n", {}, "INVALID_REQUEST"),
        ("word " * MODEL_CONTEXT, {}, "CONTEXT_EXCEEDED"),
        ("fine", {"timeout_ms": 1}, "DEADLINE"),
    ],
)
async def test_what_is_wrong_with_a_document_is_its_result(
    stub: Any, text: str, fields: dict[str, Any], reason: str
) -> None:
    result = await extract(stub, text, **fields)
    assert result.status == pb.EXTRACTION_STATUS_FAILED
    assert result.record == ""
    assert from_item_status(result.error).reason == reason


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"json_schema": ""}, "INVALID_REQUEST", "extraction.json_schema"),
        ({"json_schema": "{"}, "GRAMMAR_SYNTAX", None),
        ({"json_schema": '{"type": "integer", "minimum": 2, "maximum": 1}'}, "UNSATISFIABLE_GRAMMAR", None),
        ({"max_tokens": 3}, "BUDGET_TOO_SMALL", "extraction.max_tokens"),
        ({"sampling": pb.Sampling(top_p=7)}, "INVALID_REQUEST", "extraction.sampling.top_p"),
        ({"beam": pb.Beam(width=99)}, "INVALID_REQUEST", "extraction.beam.width"),
        ({"examples": [pb.ExtractionExample(text="a")]}, "INVALID_REQUEST", "extraction.examples[0].record"),
        ({"compile_options": types_pb2.CompileOptions(whitespace=77)}, "INVALID_REQUEST", None),
    ],
)
async def test_what_is_wrong_with_the_extraction_is_the_calls_status(
    stub: Any, fields: dict[str, Any], reason: str, field: str | None
) -> None:
    error = await refused(extract(stub, **fields))
    assert error.reason == reason
    assert field is None or error.field == field


async def requests(num: int, **fields: Any) -> AsyncIterator[pb.ExtractBatchRequest]:
    yield pb.ExtractBatchRequest(extraction=extraction(**fields), max_concurrent=fields.pop("max_concurrent", None))
    for number in range(num):
        text = "word " * MODEL_CONTEXT if number == 5 else f"document {number}"
        yield pb.ExtractBatchRequest(document=pb.Document(id=str(number), text=text))


async def test_a_batch_has_one_result_for_each_document(stub: Any) -> None:
    # Six at a time where four may run and none may wait: a stream's documents wait for their turn all the same.
    results = {}

    async def with_six() -> AsyncIterator[pb.ExtractBatchRequest]:
        yield pb.ExtractBatchRequest(extraction=extraction(), max_concurrent=6)
        async for request in requests(30):
            if request.HasField("document"):
                yield request

    async for response in stub.ExtractBatch(with_six(), timeout=120):
        assert response.result.document_id not in results
        results[response.result.document_id] = response.result
    assert set(results) == {str(number) for number in range(30)}
    failed = [id for id, result in results.items() if result.status == pb.EXTRACTION_STATUS_FAILED]
    assert failed == ["5"]
    alone = await extract(stub, "document 7")
    assert results["7"].record == alone.record


async def test_a_batch_reads_no_more_than_it_works_on(stub: Any) -> None:
    num_sent = 0

    async def counted() -> AsyncIterator[pb.ExtractBatchRequest]:
        nonlocal num_sent
        yield pb.ExtractBatchRequest(extraction=extraction(), max_concurrent=2)
        for number in range(2000):
            num_sent += 1
            # Larger than what buffers hold altogether, many times over.
            yield pb.ExtractBatchRequest(document=pb.Document(id=str(number), text="x " * 500 + "y" * 100_000))

    call = stub.ExtractBatch(counted(), timeout=120)
    await call.read()
    await asyncio.sleep(1)
    assert num_sent < 500
    call.cancel()


async def test_an_empty_batch_ends(stub: Any) -> None:
    assert [response async for response in stub.ExtractBatch(requests(0), timeout=60)] == []


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([pb.ExtractBatchRequest(document=pb.Document(text="x"))], "json_schema"),
        ([pb.ExtractBatchRequest(extraction=extraction(), max_concurrent=99)], "max_concurrent"),
        ([pb.ExtractBatchRequest(extraction=extraction())] * 2, "each message but the first has a document"),
    ],
)
async def test_messages_out_of_place(stub: Any, messages: list[pb.ExtractBatchRequest], message: str) -> None:
    async def all_of_them() -> AsyncIterator[pb.ExtractBatchRequest]:
        for request in messages:
            yield request

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [response async for response in stub.ExtractBatch(all_of_them(), timeout=60)]
    error = from_rpc_error(caught.value)
    assert error.reason == "INVALID_REQUEST"
    assert message in f"{error.field} {error.message}"


async def test_a_gateway_that_is_told_to_stop_answers_what_it_has_and_says_so(stack: TestStack) -> None:
    gateway = stack.start_gateway("stopping")
    gateway.wait_until_serving()
    asked = asyncio.Event()

    async def idle_behind_three() -> AsyncIterator[pb.ExtractBatchRequest]:
        async for request in requests(3):
            yield request
        asked.set()
        await asyncio.sleep(60)

    async with grpc.aio.insecure_channel(gateway.address) as channel:
        call = gateway_pb2_grpc.GatewayServiceStub(channel).ExtractBatch(idle_behind_three(), timeout=60)
        first = await call.read()
        await asked.wait()
        gateway.process.send_signal(signal.SIGTERM)
        found = {first.result.document_id}

        async def read_the_rest() -> None:
            while (response := await call.read()) is not grpc.aio.EOF:
                found.add(response.result.document_id)
            raise AssertionError("the stream ended as if all were done")

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_the_rest()
    assert found == {"0", "1", "2"}
    assert from_rpc_error(caught.value).reason == "NOT_READY"
    assert await asyncio.to_thread(gateway.process.wait, 20) == 0
