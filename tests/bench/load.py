"""Checks that load is spread: `python -m tests.bench.load` (`make load-check`).

Two workers with the toy model, two constraint services and two gateways, each a process with a loopback address of its
own. Guided requests are sent by one client, `--in-flight` at a time, after a few that warm all up: first through
HAProxy with `deploy/balancer/haproxy.cfg`, then without it, by gRPC's own `round_robin` over the gateways' addresses.
Prints how many requests each replica got, by its own metrics. Exits with 1 where a request failed or where a replica is
further than `--max-spread` from its share, with 2 where HAProxy is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc.aio
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import gateway_pb2_grpc, types_pb2

from tests.support.replicas import ReplicatedStack, free_port
from tests.support.stack import ROOT, TestStack

_TIMEOUT_S: Final = 120.0
_ROUND_ROBIN: Final = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
_CONFIGURATION: Final = ROOT / "deploy/balancer/haproxy.cfg"


@contextmanager
def balancer(program: str, gateways: list[str]) -> Iterator[str]:
    """Run HAProxy before two gateways; returns its address."""
    bind = f"127.0.0.1:{free_port(['127.0.0.1'])}"
    names = {"BIND": bind, "GATEWAY_1": gateways[0], "GATEWAY_2": gateways[1]}
    process = subprocess.Popen([program, "-db", "-f", str(_CONFIGURATION)], env=os.environ | names)
    try:
        yield bind
    finally:
        process.terminate()
        process.wait(10)


async def ask(target: str, num_requests: int, num_in_flight: int) -> Counter[str]:
    """Send guided requests, and count how they ended."""
    outcomes: Counter[str] = Counter()
    turns = asyncio.Semaphore(num_in_flight)
    options = [("grpc.service_config", _ROUND_ROBIN), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)

        async def one(seed: int) -> None:
            generation = pb.Generation(
                prompt=f"Write number {seed}.",
                constraint=types_pb2.Constraint(regex="(ab|c){3,9}[0-9]?"),
                max_tokens=40,
                sampling=pb.Sampling(temperature=1, seed=seed),
            )
            async with turns:
                try:
                    reply = await stub.Generate(
                        pb.GenerateRequest(generation=generation), timeout=_TIMEOUT_S, wait_for_ready=True
                    )
                    outcomes["valid" if reply.result.is_validated else "not validated"] += 1
                except grpc.aio.AioRpcError as error:
                    outcomes[f"{error.code().name}: {error.details()}"] += 1

        await asyncio.gather(*(one(seed) for seed in range(num_requests)))
    return outcomes


def check(stack: ReplicatedStack, way: str, target: str, arguments: argparse.Namespace) -> list[str]:
    """Send requests one way, print who got how many; returns what is wrong."""
    before = {service: stack.counts(service) for service in stack.ports}
    started = time.monotonic()
    outcomes = asyncio.run(ask(target, arguments.requests, arguments.in_flight))
    print(f"{way}: {dict(outcomes)} in {time.monotonic() - started:.1f} s")
    problems = [f"{way}: {num} requests: {outcome}" for outcome, num in outcomes.items() if outcome != "valid"]
    time.sleep(0.5)  # streams of the last requests are closed behind their replies
    for service, earlier in before.items():
        counts = [now - then for now, then in zip(stack.counts(service), earlier, strict=True)]
        share = sum(counts) / len(counts)
        spread = max(abs(count - share) for count in counts) / share if share else 1.0
        print(f"  {service:<11}{counts}  {spread:.1%} from an even share")
        if sum(counts) < arguments.requests:
            problems.append(f"{way}: the {service} replicas count {sum(counts)} of {arguments.requests} requests")
        if spread > arguments.max_spread:
            problems.append(f"{way}: {service}: {counts} is {spread:.1%} from an even share")
    return problems


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400, help="requests each way")
    parser.add_argument("--in-flight", type=int, default=16, help="requests at a time")
    parser.add_argument("--max-spread", type=float, default=0.2, help="largest distance from an even share")
    arguments = parser.parse_args()
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        print("HAProxy is missing; install it, on Debian: apt-get install haproxy", file=sys.stderr)
        raise SystemExit(2)
    with TemporaryDirectory(prefix="esp") as directory:
        stack = ReplicatedStack(TestStack(Path(directory)))
        try:
            stack.start_all()
            gateways = stack.addresses("gateway")
            with balancer(program, gateways) as address:
                # A replica that has not compiled the grammar yet is slow at first, and rightly gets less.
                asyncio.run(ask(address, arguments.in_flight * 2, arguments.in_flight))
                problems = check(stack, "through HAProxy", address, arguments)
            problems += check(stack, "by round_robin", f"ipv4:{','.join(gateways)}", arguments)
        finally:
            stack.stack.stop()
    print("\n".join(problems) or "all right")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
