"""The services as a restricted pod runs them: another user, no capability, nothing writable but /tmp.

Namespaces do it, so no container engine is needed; `make image-check` does it with the images themselves.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from espalier.v1 import gateway_pb2, gateway_pb2_grpc, types_pb2

from tests.support.serving import free_ports, wait_until_serving

ROOT = Path(__file__).parents[2]
USER = "65532"

# What may be on other disks is bound onto itself read-only, the root is made so and /tmp is fresh, but for what of ours
# is below it; then all that root could do is given up.
_SCRIPT = """
set -e
number=3
for directory in "$@"; do
  mount --bind "$directory" "$directory"
  mount -o remount,bind,ro "$directory"
  eval "exec $number<\\"\\$directory\\""
  number=$((number + 1))
done
mount -o remount,bind,ro /
mount -t tmpfs -o size=256m tmpfs /tmp
number=3
for directory in "$@"; do
  case "$directory" in /tmp/*)
    mkdir -p "$directory"
    mount --no-canonicalize --bind "/proc/self/fd/$number" "$directory"
    mount -o remount,bind,ro "$directory" ;;
  esac
  eval "exec $number<&-"
  number=$((number + 1))
done
cd /
exec unshare --user --map-user=$TEST_USER --map-group=$TEST_USER -- $TEST_COMMAND
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's"),
]


class Confined:
    """A process with nothing to write to."""

    def __init__(self, log: Path, *command: str, **environment: str) -> None:
        self.log = log
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ESPALIER_", "NUMBA_"))}
        directories = dict.fromkeys(map(str, (ROOT, sys.prefix, sys.base_prefix)))
        # Whoever is not root becomes it in a namespace of users first.
        outer = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*outer, "sh", "-c", _SCRIPT, "sh", *directories],
                stdout=output,
                stderr=output,
                env=kept
                | {
                    "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "OMP_NUM_THREADS": "1",
                    "TMPDIR": "/tmp",
                    "TEST_USER": USER,
                    "TEST_COMMAND": " ".join([sys.executable, *command]),
                }
                | environment,
            )


def test_nothing_can_be_written_and_nobody_has_power(tmp_path: Path) -> None:
    """The walls are there: otherwise the test below would show nothing."""
    program = tmp_path / "try.py"
    program.write_text(
        f"""
import os
print(os.getuid(), os.getgid(), open("/proc/self/status").read().split("CapEff:")[1].split()[0])
for directory in ({str(ROOT)!r}, {sys.prefix!r}, "/var", "/etc"):
    try:
        open(os.path.join(directory, "written-by-test"), "w")
    except OSError as error:
        print(error.errno)
print(open("/tmp/written", "w").write("x"))
"""
    )
    # /tmp is another one in there.
    inside = ROOT / "build" / f"try-{os.getpid()}.py"
    inside.parent.mkdir(exist_ok=True)
    shutil.move(program, inside)
    try:
        confined = Confined(tmp_path / "log", str(inside))
        assert confined.process.wait(30) == 0, confined.log.read_text()
    finally:
        inside.unlink()
    assert confined.log.read_text().splitlines() == [f"{USER} {USER} 0000000000000000", *["30"] * 4, "1"]


def test_they_start_serve_and_drain(tmp_path: Path) -> None:
    ports = free_ports(3)
    address = {name: f"127.0.0.1:{port}" for name, port in zip(("worker", "constraint", "gateway"), ports, strict=True)}
    peers = {f"ESPALIER_{name.upper()}_ADDRESS": value for name, value in address.items()}
    services = {
        name: Confined(tmp_path / f"{name}.log", "-m", module, ESPALIER_DRAIN_S="100", **environment)
        for name, module, environment in (
            ("worker", "services.model_worker", peers | {"ESPALIER_MODEL": "toy:7"}),
            ("constraint", "services.constraint", peers),
            ("gateway", "gateway", peers),
        )
    }
    try:
        for name, service in services.items():
            wait_until_serving(service.process, address[name], service.log)
        with grpc.insecure_channel(address["gateway"]) as channel:
            _serve_and_drain(services, gateway_pb2_grpc.GatewayServiceStub(channel))
    finally:
        for service in services.values():
            service.process.kill()
            service.process.wait()


def _serve_and_drain(services: dict[str, Confined], stub: Any) -> None:
    constraint = types_pb2.Constraint(choices=types_pb2.Choices(values=["red", "green"]))
    generation = gateway_pb2.Generation(prompt="Red or green?", constraint=constraint)
    answer = stub.Generate(gateway_pb2.GenerateRequest(generation=generation), timeout=60)
    assert answer.result.is_validated
    assert answer.text in ("red", "green")

    # The gateway is told to end while a text is written; it is finished first.
    constraint = types_pb2.Constraint(regex="[a-z ]{1000}")
    generation = gateway_pb2.Generation(prompt="a", constraint=constraint, max_tokens=1500)
    pieces: list[Any] = []
    has_begun = threading.Event()

    def read() -> None:
        for piece in stub.GenerateStream(gateway_pb2.GenerateStreamRequest(generation=generation), timeout=120):
            pieces.append(piece)
            has_begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert has_begun.wait(60)
    services["gateway"].process.send_signal(signal.SIGTERM)
    num_before = len(pieces)
    reader.join(120)
    assert len(pieces) > num_before
    assert pieces[-1].result.is_validated
    for name in ("gateway", "constraint", "worker"):
        services[name].process.send_signal(signal.SIGTERM)
        assert services[name].process.wait(30) == 0, services[name].log.read_text()
