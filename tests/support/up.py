"""`espalier up --model toy` as a process of its own, for tests that kill what it runs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
from espalier.v1 import gateway_pb2, gateway_pb2_grpc, types_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).parents[2]
SERVICES = ("worker", "constraint", "gateway", "cache")


def environment(**more: str) -> dict[str, str]:
    """The environment without settings of whoever runs the tests."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ESPALIER_")}
    path = os.pathsep.join([*filter(None, [kept.get("PYTHONPATH")]), str(ROOT), str(ROOT / "gen")])
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | more


def espalier(*argv: str, timeout_s: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", *argv],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(**more),
        cwd=ROOT,
        check=False,
    )


class Up:
    """A running `espalier up` on unix sockets in `directory`."""

    def __init__(self, directory: Path, *argv: str, model: str = "toy", **more: str) -> None:
        self.addresses = {name: f"unix:{directory / name}" for name in ("worker", "constraint", "gateway")}
        flags = [flag for name, address in self.addresses.items() for flag in (f"--{name}-address", address)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli.main", "up", "--model", model, "--log-format", "json", *flags, *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**more),
            cwd=ROOT,
        )
        self.lines: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line) if line.startswith("{") else {"event": line, "service": "up"})

    def wait_for(self, event: str, *, service: str = "up", timeout_s: float = 120, since: int = 0) -> dict[str, Any]:
        """Wait for a log line whose event contains a text, behind the first `since` lines."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in list(self.lines)[since:]:
                if line.get("service") == service and event in str(line["event"]):
                    return line
            if self.process.poll() is not None:
                self._reader.join(5)
            time.sleep(0.02)
        raise AssertionError(f"no {event!r} of {service} in:\n" + "\n".join(map(str, self.lines)))

    def wait_until_ready(self) -> "Up":
        self.wait_for("ready; Ctrl-C")
        return self

    def pids(self) -> dict[str, int]:
        """The processes it runs now, by name, from the children of its own process."""
        found = {}
        for pid in _children(self.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            text = b" ".join(words).decode()
            for name, mark in {
                "worker": "-m services.model_worker",
                "constraint": "-m services.constraint",
                "gateway": "-m gateway",
                "cache": "cache.sock",
            }.items():
                if mark in text:
                    found[name] = pid
        return found

    def kill(self, name: str) -> None:
        os.kill(self.pids()[name], signal.SIGKILL)

    def wait_until_serving(self, name: str, timeout_s: float = 60) -> None:
        """Wait until a service says SERVING."""
        deadline = time.monotonic() + timeout_s
        with grpc.insecure_channel(self.addresses[name], options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < deadline:
                try:
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2, wait_for_ready=True)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.RpcError:
                    pass
                time.sleep(0.05)
        raise AssertionError(f"{name} does not serve:\n" + "\n".join(map(str, self.lines[-40:])))

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def generation(schema: Any = None, *, max_tokens: int = 200, seed: int = 1, prompt: str = "한국어 😀") -> Any:
    """A request: under a schema where one is given, else free."""
    constraint = None if schema is None else types_pb2.Constraint(json_schema=json.dumps(schema, ensure_ascii=False))
    return gateway_pb2.Generation(
        prompt=prompt,
        constraint=constraint,
        max_tokens=max_tokens,
        sampling=gateway_pb2.Sampling(temperature=1.0, seed=seed),
    )


def gateway_stub(channel: grpc.Channel) -> gateway_pb2_grpc.GatewayServiceStub:
    return gateway_pb2_grpc.GatewayServiceStub(channel)
