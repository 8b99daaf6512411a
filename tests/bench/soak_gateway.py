"""Asks for many texts at once and leaves some: `python -m tests.bench.soak_gateway` (`make soak-gateway`).

A worker with the toy model in deterministic mode, a constraint service and a gateway, each a process. Texts of all
kinds (drawn, searched by a beam, several at once; free, or under each kind of constraint) are asked for alone first.
Then `--requests` of them, `--in-flight` at a time: a third is cancelled at a random moment, some have a deadline of
milliseconds; whatever is answered must be what was answered alone, bit for bit. Afterwards no service may have an open
sequence, call or task left. At last each service is restarted, and the answers must be the same again. Prints what
happened; exits with 1 where a check failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc.aio
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import gateway_pb2_grpc, types_pb2

from tests.support.stack import Process, TestStack

_TIMEOUT_S: Final = 300.0
_QUIET_S: Final = 15.0
SCHEMA: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["한국", "soup", "😀"]}, "maxItems": 3, "uniqueItems": True},
        "size": {"type": "integer", "minimum": 3, "maximum": 900},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
CONSTRAINTS: Final = (
    None,
    types_pb2.Constraint(json_schema=json.dumps(SCHEMA)),
    types_pb2.Constraint(regex="(ab|c){3,9}[0-9]?"),
    types_pb2.Constraint(choices=types_pb2.Choices(values=["red", "green", "dark blue"])),
    types_pb2.Constraint(grammar_name="arithmetic"),
)


@dataclass
class Report:
    """What happened, and what went wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def generations(rng: random.Random) -> list[pb.Generation]:
    """Make one of each strategy for each kind of constraint."""
    strategies: list[dict[str, Any]] = [
        {},
        {"sampling": pb.Sampling(preset=pb.PRESET_CREATIVE, seed=rng.getrandbits(32))},
        {"sampling": pb.Sampling(temperature=1, min_p=0.05, repetition_penalty=1.2, seed=rng.getrandbits(32))},
        {"sampling": pb.Sampling(temperature=1, seed=rng.getrandbits(32)), "n": 2, "logprobs": pb.Logprobs(num_top=2)},
        {"beam": pb.Beam(width=3), "n": 2},
    ]
    return [
        pb.Generation(
            prompt=f"Write number {rng.randint(0, 99)}.",
            constraint=constraint,
            max_tokens=rng.randint(40, 60) if constraint else rng.randint(5, 20),
            **strategy,
        )
        for constraint in CONSTRAINTS
        for strategy in strategies
    ]


def texts(reply: pb.GenerateResponse) -> list[tuple[str, tuple[int, ...]]]:
    """Return what must be the same again."""
    every = [(reply.text, reply.result), *((choice.text, choice.result) for choice in reply.others)]
    return [(text, tuple(result.token_ids)) for text, result in every]


async def soak(stack: TestStack, *, num_requests: int, num_in_flight: int, seed: int = 1) -> Report:
    """Do what the module says, on a stack that `start` made."""
    rng, report = random.Random(seed), Report()
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(stack.processes["gateway"].address, options=options) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        everything = generations(rng)
        alone = []
        for generation in everything:
            alone.append(texts(await stub.Generate(pb.GenerateRequest(generation=generation), timeout=_TIMEOUT_S)))
        idle = {name: process.metric("espalier_tasks") for name, process in stack.processes.items()}
        turns = asyncio.Semaphore(num_in_flight)

        async def one(number: int, kind: str, seconds: float) -> None:
            async with turns:
                call = stub.Generate(
                    pb.GenerateRequest(generation=everything[number]),
                    timeout=seconds if kind == "deadline" else _TIMEOUT_S,
                )
                if kind == "cancelled":
                    await asyncio.sleep(seconds)
                    call.cancel()
                try:
                    reply = await call
                except asyncio.CancelledError:
                    report.outcomes["cancelled"] += 1
                    return
                except grpc.aio.AioRpcError as error:
                    report.outcomes[error.code().name] += 1
                    if not (kind == "deadline" and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED):
                        report.problems.append(f"{error.code().name}: {error.details()}")
                    return
                report.outcomes["answered"] += 1
                if texts(reply) != alone[number]:
                    report.problems.append(f"another text beside others: {everything[number]}")

        started = time.monotonic()
        calls = []
        for _ in range(num_requests):
            kind = rng.choices(["answered", "cancelled", "deadline"], [0.56, 0.33, 0.11])[0]
            calls.append(
                one(rng.randrange(len(everything)), kind, rng.uniform(0.001, 1.0 if kind == "cancelled" else 0.1))
            )
        await asyncio.gather(*calls)
        report.seconds = time.monotonic() - started
        report.problems += await _left_over(stack, idle)
        for name, restart in (
            ("constraint", stack.start_constraint),
            ("worker", lambda: start_worker(stack)),
            ("gateway", lambda: stack.start_gateway("gateway")),
        ):
            stack.processes[name].stop()
            restart().wait_until_serving()
            for number in rng.sample(range(len(everything)), 8):
                if await _again(stub, everything[number]) != alone[number]:
                    report.problems.append(f"another text after a restart of {name}: {everything[number]}")
    return report


async def _again(stub: Any, generation: pb.Generation) -> list[tuple[str, tuple[int, ...]]]:
    """Ask as a client does that knows of restarts: once more while a service says that it is not ready."""
    until = time.monotonic() + 60
    while True:
        try:
            request = pb.GenerateRequest(generation=generation)
            return texts(await stub.Generate(request, timeout=_TIMEOUT_S, wait_for_ready=True))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
            await asyncio.sleep(0.2)


async def _left_over(stack: TestStack, idle: dict[str, float]) -> list[str]:
    """Wait until nothing is open; return what still is."""
    until = time.monotonic() + _QUIET_S
    while (left := _open(stack, idle)) and time.monotonic() < until:
        await asyncio.sleep(0.2)
    return left


def _open(stack: TestStack, idle: dict[str, float]) -> list[str]:
    worker, constraint, gateway = (stack.processes[name] for name in ("worker", "constraint", "gateway"))
    wanted: list[tuple[str, Process, str, float]] = [
        ("worker", worker, "espalier_worker_open_sequences", 0),
        ("worker", worker, 'espalier_rpcs_in_flight{method="/espalier.v1.ModelWorkerService/StreamStepLogits"}', 0),
        ("constraint", constraint, 'espalier_rpcs_in_flight{method="/espalier.v1.ConstraintService/StreamAdvance"}', 0),
        ("gateway", gateway, 'espalier_rpcs_in_flight{method="/espalier.v1.GatewayService/Generate"}', 0),
        ("gateway", gateway, "espalier_gateway_generations_running", 0),
        ("gateway", gateway, "espalier_gateway_generations_queued", 0),
        *((name, process, "espalier_tasks", idle[name]) for name, process in stack.processes.items()),
    ]
    found = [(name, metric, process.metric(metric), most) for name, process, metric, most in wanted]
    return [f"{name}: {metric} is {value:g}, not {most:g}" for name, metric, value, most in found if value > most]


def start_worker(stack: TestStack) -> Process:
    """Start the toy in deterministic mode."""
    flags = ("--num-threads", "1", "--drain-s", "1")
    return stack.start(
        "worker", "services.model_worker", *flags, ESPALIER_MODEL="toy:7", ESPALIER_WORKER_DETERMINISTIC="true"
    )


def start(directory: Path) -> TestStack:
    """Start the three services."""
    stack = TestStack(directory)
    start_worker(stack)
    stack.start_constraint()
    stack.start_gateway("gateway")
    for process in stack.processes.values():
        process.wait_until_serving()
    return stack


def main() -> int:
    """Run it and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="esp") as directory:
        stack = start(Path(directory))
        try:
            report = asyncio.run(
                soak(stack, num_requests=arguments.requests, num_in_flight=arguments.in_flight, seed=arguments.seed)
            )
        finally:
            with suppress(Exception):
                stack.stop()
    print(f"{dict(report.outcomes)} in {report.seconds:.0f} s; {len(report.problems)} problems")
    for problem in report.problems[:20]:
        print(problem)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
