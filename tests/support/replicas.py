"""Several replicas of each service as processes: one port for a service, a loopback address for a replica."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.stack import Process, TestStack

HOSTS = ("127.0.0.1", "127.0.0.2")


def free_port(hosts: Sequence[str] = HOSTS) -> int:
    """Return a port that is free on all of the hosts."""
    while True:
        with socket.socket() as first:
            first.bind((hosts[0], 0))
            port: int = first.getsockname()[1]
            try:
                for host in hosts[1:]:
                    with socket.socket() as other:
                        other.bind((host, port))
            except OSError:
                continue
            return port


@dataclass
class ReplicatedStack:
    """A stack whose services have a replica on each of `HOSTS`."""

    stack: TestStack
    ports: dict[str, int] = field(default_factory=lambda: {n: free_port() for n in ("worker", "constraint", "gateway")})

    def addresses(self, service: str) -> list[str]:
        """Return where the replicas of a service are."""
        return [f"{host}:{self.ports[service]}" for host in HOSTS]

    def start(self, service: str, number: int) -> Process:
        """Start a replica; `number` is 0 or 1."""
        address = self.addresses(service)[number]
        workers = ("--worker-address", ",".join(self.addresses("worker")))
        constraints = ("--constraint-address", ",".join(self.addresses("constraint")))
        module, flags = {
            "worker": ("services.model_worker", ("--num-threads", "1", "--model", "toy:7")),
            "constraint": ("services.constraint", workers),
            "gateway": ("gateway", (*workers, *constraints, "--resolve-interval-s", "0.5")),
        }[service]
        return self.stack.start(f"{service}-{number}", module, "--drain-s", "1", *flags, address=address)

    def start_all(self) -> None:
        """Start two of each, and wait until they serve."""
        for service in self.ports:
            for number in range(len(HOSTS)):
                self.start(service, number)
        for process in self.stack.processes.values():
            process.wait_until_serving()

    def counts(self, service: str) -> list[int]:
        """Return how many requests each replica has had: each is one call of this method, however that ended."""
        method = {"worker": "StreamStepLogits", "constraint": "Compile", "gateway": "Generate"}[service]
        return [round(sum(calls(self.stack.processes[f"{service}-{number}"], method))) for number in range(len(HOSTS))]


def calls(process: Process, method: str) -> list[float]:
    """Return how many calls of a method have ended, for each code."""
    with urllib.request.urlopen(process.metrics_url(), timeout=5) as response:
        lines = response.read().decode().splitlines()
    wanted = [line for line in lines if line.startswith("espalier_rpc_seconds_count{") and f'{method}"' in line]
    return [float(line.rpartition(" ")[2]) for line in wanted]
