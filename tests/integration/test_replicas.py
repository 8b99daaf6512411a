"""Two workers and two constraint services as processes: one dies, no later request fails, it is used again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import pytest
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import gateway_pb2_grpc, types_pb2

from tests.support.replicas import ReplicatedStack
from tests.support.stack import TestStack

pytestmark = pytest.mark.slow

LONG = "[a-z]{800}"


@pytest.fixture(scope="module")
def stack() -> Iterator[ReplicatedStack]:
    with TemporaryDirectory(prefix="esp") as directory:
        replicated = ReplicatedStack(TestStack(Path(directory)))
        try:
            replicated.start_all()
            yield replicated
        finally:
            replicated.stack.stop()


def _generation(regex: str = "(ab|c){3,9}[0-9]?", seed: int = 1) -> Any:
    return pb.Generation(
        prompt="Write.",
        constraint=types_pb2.Constraint(regex=regex),
        max_tokens=900,
        sampling=pb.Sampling(temperature=1, seed=seed),
    )


async def _ask(stack: ReplicatedStack, num_requests: int = 16) -> None:
    async with grpc.aio.insecure_channel(stack.addresses("gateway")[0]) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        requests = [pb.GenerateRequest(generation=_generation(seed=seed)) for seed in range(num_requests)]
        for reply in await asyncio.gather(*(stub.Generate(request, timeout=60) for request in requests)):
            assert reply.result.is_validated


async def _until_both_are_used(stack: ReplicatedStack, service: str) -> None:
    until = time.monotonic() + 30
    while True:
        before = stack.counts(service)
        await _ask(stack, 8)
        await asyncio.sleep(0.3)
        if all(now > then for now, then in zip(stack.counts(service), before, strict=True)):
            return
        assert time.monotonic() < until


@pytest.mark.parametrize("service", ["worker", "constraint"])
async def test_one_dies_and_comes_back(stack: ReplicatedStack, service: str) -> None:
    await _until_both_are_used(stack, service)
    process = stack.stack.processes[f"{service}-1"].process
    process.kill()
    process.wait()
    for _ in range(3):
        await _ask(stack)
    stack.start(service, 1).wait_until_serving()
    await _until_both_are_used(stack, service)


async def test_a_text_goes_on_when_its_constraint_service_dies(stack: ReplicatedStack) -> None:
    """Its states are made again by the other replica; the text is what it would have been."""
    await _until_both_are_used(stack, "constraint")
    async with grpc.aio.insecure_channel(stack.addresses("gateway")[0]) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        request = pb.GenerateStreamRequest(generation=_generation(LONG))
        texts = []
        for is_killed in (False, True):
            # Two at once, so that each replica has one of them.
            calls = [stub.GenerateStream(request, timeout=120) for _ in range(2)]

            async def read(call: Any, kills: bool) -> str:
                text = ""
                async for piece in call:
                    text += piece.delta
                    if kills and len(text) > 5:
                        stack.stack.processes["constraint-1"].process.kill()
                        kills = False
                return text

            texts += await asyncio.gather(read(calls[0], is_killed), read(calls[1], False))
    stack.stack.processes["constraint-1"].process.wait()
    stack.start("constraint", 1).wait_until_serving()
    assert len(texts[0]) == 800
    assert len(set(texts)) == 1


def _kill_worker(stack: ReplicatedStack) -> None:
    process = stack.stack.processes["worker-1"].process
    process.kill()
    process.wait()


async def test_a_reply_begins_again_when_its_worker_dies(stack: ReplicatedStack) -> None:
    await _until_both_are_used(stack, "worker")
    async with grpc.aio.insecure_channel(stack.addresses("gateway")[0]) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        # Two, so that each worker has one of them.
        replies = [stub.Generate(pb.GenerateRequest(generation=_generation(LONG)), timeout=120) for _ in range(2)]
        await asyncio.sleep(0.5)
        _kill_worker(stack)
        texts = [(await reply).text for reply in replies]
    stack.start("worker", 1).wait_until_serving()
    assert len(texts[0]) == 800
    assert len(set(texts)) == 1


async def test_a_stream_whose_worker_dies_says_so_and_others_go_on(stack: ReplicatedStack) -> None:
    await _until_both_are_used(stack, "worker")
    async with grpc.aio.insecure_channel(stack.addresses("gateway")[0]) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        streams = [stub.GenerateStream(pb.GenerateStreamRequest(generation=_generation(LONG))) for _ in range(2)]
        for stream in streams:
            await stream.read()
        _kill_worker(stack)

        async def outcome(stream: Any) -> str:
            try:
                while await stream.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
            return "OK"

        outcomes = sorted([await outcome(stream) for stream in streams])
    stack.start("worker", 1).wait_until_serving()
    assert outcomes[0] == "OK"
    assert outcomes[1].startswith(f"UNAVAILABLE: the worker service at {stack.addresses('worker')[1]}")
