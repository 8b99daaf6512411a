"""The three services as processes on unix sockets, with the toy model, for integration tests of the gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.serving import wait_until_serving

ROOT = Path(__file__).parents[2]


@dataclass
class Process:
    """One service."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_serving(self) -> None:
        wait_until_serving(self.process, self.address, self.log)

    def metrics_url(self) -> str:
        """Return the endpoint that the log names."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return str(next(line["url"] for line in lines if line.get("event") == "metrics"))

    def metric(self, name: str) -> float:
        """Read one metric."""
        with urllib.request.urlopen(self.metrics_url(), timeout=5) as response:
            for line in response.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class TestStack:
    """Processes by name; all of them end with the stack."""

    __test__ = False

    directory: Path
    processes: dict[str, Process] = field(default_factory=dict)

    def start(self, name: str, module: str, *flags: str, address: str | None = None, **environment: str) -> Process:
        # Unix sockets have short paths.
        address = address or f"unix:{self.directory / name}.sock"
        log = self.directory / f"{name}.log"
        arguments = [sys.executable, "-m", module, "--address", address, "--metrics-port", "0", *flags]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "gen")])
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ESPALIER_")}
        with log.open("wb") as output:
            process = subprocess.Popen(
                arguments,
                stdout=output,
                stderr=output,
                env=kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
            )
        self.processes[name] = Process(address, process, log)
        return self.processes[name]

    def start_worker(self) -> Process:
        return self.start(
            "worker", "services.model_worker", "--num-threads", "1", "--drain-s", "1", ESPALIER_MODEL="toy:7"
        )

    def start_constraint(self) -> Process:
        return self.start(
            "constraint", "services.constraint", "--worker-address", self.processes["worker"].address, "--drain-s", "1"
        )

    def start_gateway(self, name: str, *flags: str) -> Process:
        peers = [f"--{peer}-address={self.processes[peer].address}" for peer in ("worker", "constraint")]
        return self.start(name, "gateway", "--drain-s", "1", *peers, *flags)

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            process.stop()


@contextmanager
def running_stack(directory: Path) -> Iterator[TestStack]:
    """Start a worker and a constraint service; gateways are the test's to start."""
    stack = TestStack(directory)
    try:
        stack.start_worker()
        stack.start_constraint()
        yield stack
    finally:
        stack.stop()
