"""Random schemas of the supported set, end to end on the toy model: every text is valid, by `jsonschema`."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc.aio
import jsonschema
import pytest
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import gateway_pb2_grpc, types_pb2

from tests.support.schemas import random_schema
from tests.support.stack import TestStack, running_stack

NUM_SCHEMAS = 200
CONCURRENCY = 8
MAX_TOKENS = 200


def exact(text: str) -> int | Decimal:
    """Read a number that may be beyond what binary floating point holds."""
    number = Decimal(text)
    return int(number) if number == number.to_integral_value() else number


@pytest.fixture(scope="module")
def stack() -> Iterator[TestStack]:
    with TemporaryDirectory(prefix="esp") as directory, running_stack(Path(directory)) as running:
        running.start_gateway("gateway", f"--max-running={CONCURRENCY}")
        for process in running.processes.values():
            process.wait_until_serving()
        yield running


@pytest.mark.slow
async def test_200_generations_with_random_schemas_are_all_valid(stack: TestStack) -> None:
    rng = random.Random(20)
    schemas = [random_schema(rng) for _ in range(NUM_SCHEMAS)]
    turns = asyncio.Semaphore(CONCURRENCY)
    problems: list[str] = []
    reasons: list[int] = []

    async with grpc.aio.insecure_channel(stack.processes["gateway"].address) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)

        async def one(number: int, schema: object) -> None:
            source = json.dumps(schema, ensure_ascii=False)
            generation = pb.Generation(
                prompt=f"record {number}",
                constraint=types_pb2.Constraint(json_schema=source),
                sampling=pb.Sampling(temperature=1.0, top_k=(0, 20)[number % 2], seed=number),
                max_tokens=MAX_TOKENS,
            )
            async with turns:
                try:
                    reply = await stub.Generate(pb.GenerateRequest(generation=generation), timeout=120)
                except grpc.aio.AioRpcError as error:
                    problems.append(f"{number}: {error.code().name} {error.details()}: {source}")
                    return
            reasons.append(reply.result.finish_reason)
            value = json.loads(reply.text, parse_float=exact)
            errors = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(value)]
            if errors or not (reply.result.is_validated and reply.result.is_complete):
                problems.append(f"{number}: {reply.text!r} {errors}: {source}")

        await asyncio.gather(*(one(number, schema) for number, schema in enumerate(schemas)))

    assert problems == []
    # The toy writes noise, so both ways to end must have been taken.
    assert {pb.FINISH_REASON_STOP, pb.FINISH_REASON_BUDGET_CLOSED} == set(reasons)
    assert stack.processes["gateway"].metric("espalier_gateway_validation_failures_total") == 0
