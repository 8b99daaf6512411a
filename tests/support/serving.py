"""Waits until a service that a test has started takes calls."""

import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# The first start compiles the mask kernels.
_START_TIMEOUT_S = 200


def wait_until_serving(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Ask health, in plain text; fails with the log when the process ends, or takes too long."""
    until = time.monotonic() + _START_TIMEOUT_S
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            try:
                if stub.Check(health_pb2.HealthCheckRequest(), timeout=1).status == 1:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.1)


def free_ports(number: int) -> list[int]:
    """Find ports of this machine that nobody has, all at once, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [int(one.getsockname()[1]) for one in sockets]
