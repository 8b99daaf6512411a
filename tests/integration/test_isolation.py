"""A pathological request costs only itself: others compile and get masks meanwhile, from a real service process."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from espalier.v1 import constraint_pb2 as pb
from espalier.v1 import constraint_pb2_grpc, model_worker_pb2, model_worker_pb2_grpc, types_pb2

from services.rpckit.rich_status import from_rpc_error
from services.rpckit.status import ServiceError
from tests.support.stack import TestStack

MAX_COMPILE_S = 8
# Seconds that others may wait at most: below MAX_COMPILE_S, and above what it takes to start a process in the place of
# one that was killed, which is done when the next compile needs it.
PATIENCE_S = 6.0
USUAL_S = 1.0
C = types_pb2.Constraint


def chain(count: int) -> Any:
    """Lark takes half a minute to load it."""
    return C(lark="start: r0\n" + "".join(f'r{i}: r{i + 1} "x"\n' for i in range(count)) + f'r{count}: "y"')


HOSTILE = {
    "a compile without end": chain(5000),
    "a memory hog": C(choices=types_pb2.Choices(values=[f"{i:x}" * 60 for i in range(2**20, 2**20 + 2500)])),
    "a long way to the end": C(json_schema='{"type": "array", "items": {"type": "integer"}, "minItems": 100000}'),
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    stack = TestStack(tmp_path_factory.mktemp("i"))
    try:
        stack.start_worker().wait_until_serving()
        flags = ("--max-compile-s", str(MAX_COMPILE_S), "--num-compile-processes", "2", "--num-mask-threads", "2")
        process = stack.start(
            "constraint",
            "services.constraint",
            "--worker-address",
            stack.processes["worker"].address,
            "--drain-s",
            "1",
            *flags,
        )
        process.wait_until_serving()
        yield process.address
    finally:
        stack.stop()


class Client:
    def __init__(self, stub: Any, digest: str) -> None:
        self._stub = stub
        self._digest = digest

    async def compile(self, constraint: Any) -> pb.CompileResponse | ServiceError:
        try:
            return await self._stub.Compile(pb.CompileRequest(constraint=constraint, vocabulary_digest=self._digest))
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)

    async def advance(self, grammar_id: str) -> pb.AdvanceResult:
        answer = await self._stub.Advance(pb.AdvanceRequest(items=[pb.AdvanceItem(grammar_id=grammar_id)]))
        return answer.results[0]


@pytest.mark.parametrize("name", HOSTILE)
async def test_others_compile_and_get_masks_meanwhile(name: str, address: str) -> None:
    worker = f"unix:{Path(address.removeprefix('unix:')).parent / 'worker'}.sock"
    async with grpc.aio.insecure_channel(worker) as channel:
        model = await model_worker_pb2_grpc.ModelWorkerServiceStub(channel).GetModel(model_worker_pb2.GetModelRequest())
    async with grpc.aio.insecure_channel(address) as channel:
        client = Client(constraint_pb2_grpc.ConstraintServiceStub(channel), model.vocabulary_digest)
        held = await client.compile(C(regex="held [a-z]{1,9}"))
        assert isinstance(held, pb.CompileResponse)
        hostile = asyncio.create_task(client.compile(HOSTILE[name]))
        times: dict[str, list[float]] = {"compile": [], "mask": []}
        number = 0
        until = time.monotonic() + MAX_COMPILE_S + 1
        while time.monotonic() < until and not (hostile.done() and number > 10):
            started = time.monotonic()
            fresh = await client.compile(C(regex=f"{name} {number} [0-9]{{1,{number + 1}}}"))
            times["compile"].append(time.monotonic() - started)
            assert isinstance(fresh, pb.CompileResponse)
            started = time.monotonic()
            result = await client.advance(held.grammar_id)
            times["mask"].append(time.monotonic() - started)
            assert result.guidance.num_allowed > 0 or result.guidance.forced_token_ids
            number += 1
            await asyncio.sleep(0.05)
        assert number > 10
        assert max(times["compile"]) < PATIENCE_S
        assert max(times["mask"]) < USUAL_S
        assert sorted(times["compile"])[-2] < USUAL_S
        outcome = await hostile
        if isinstance(outcome, ServiceError):
            assert outcome.reason in ("GRAMMAR_TOO_LARGE", "FUEL")
            assert "limit" in outcome.metadata
