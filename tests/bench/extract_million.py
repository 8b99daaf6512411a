"""Runs a job over a million lines: `python -m tests.bench.extract_million` (`make bench-extract-million`).

Twice: against `espalier up` with the toy model for `--seconds`, to see how soon the first result is there; then to the
end against a gateway that answers at once and has no model, to see that the command takes no more memory at the end
than at the beginning. Prints both; exits with 1 where the job began later than a second after its process, or grew by
more than a tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
from espalier.v1 import gateway_pb2, gateway_pb2_grpc

from tests.support.extract_kills import SCHEMA
from tests.support.up import ROOT, Up, environment


class Immediate(gateway_pb2_grpc.GatewayServiceServicer):
    """A gateway that has the same record for every document, and knows when the first came."""

    def __init__(self) -> None:
        self.first_at: float | None = None

    async def Extract(self, request: Any, context: Any) -> Any:
        """Answer at once."""
        self.first_at = self.first_at or time.monotonic()
        return gateway_pb2.ExtractResponse(
            result=gateway_pb2.ExtractionResult(
                document_id=request.document.id,
                status=gateway_pb2.EXTRACTION_STATUS_VALID,
                record='{"kind": "mail", "year": 2001, "tags": []}',
            )
        )


@contextmanager
def immediate(address: str) -> Iterator[Immediate]:
    """Serve one in a thread."""
    servicer, started, stop = Immediate(), threading.Event(), threading.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, server)
        server.add_insecure_port(address)
        await server.start()
        started.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield servicer
    finally:
        stop.set()
        thread.join()


def start(directory: Path, address: str, name: str) -> subprocess.Popen[bytes]:
    """Start the command on the million lines."""
    flags = ["--schema", "schema.json", "--input", "in.jsonl", "--output", name]
    paths = [str(directory / flag) if "." in flag else flag for flag in flags]
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "extract", *paths, "--gateway-address", address],
        env=environment(),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    """Return the memory that a process has now."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def num_lines(file: Path) -> int:
    """Return how many results are there."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def main() -> int:
    """Do both and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="esp") as name:
        directory = Path(name)
        (directory / "schema.json").write_text(json.dumps(SCHEMA))
        with (directory / "in.jsonl").open("w") as file:
            file.writelines(f'{{"id": "{n}", "text": "Document {n}"}}\n' for n in range(arguments.lines))
        up = Up(directory).wait_until_ready()
        try:
            started = time.monotonic()
            process = start(directory, up.addresses["gateway"], "toy.jsonl")
            while num_lines(directory / "toy.jsonl") == 0:
                time.sleep(0.005)
            first_result_s = time.monotonic() - started
            time.sleep(5)
            early = resident_mb(process)
            time.sleep(arguments.seconds)
            late = resident_mb(process)
            process.send_signal(signal.SIGINT)
            process.wait(60)
        finally:
            up.stop()
        print(
            f"toy model: first result {first_result_s:.2f} s after the start of the process, "
            f"{num_lines(directory / 'toy.jsonl')} results; memory {early:.0f} MB after 5 s, {late:.0f} MB at the end"
        )
        with immediate(f"unix:{directory}/now") as servicer:
            started = time.monotonic()
            process = start(directory, f"unix:{directory}/now", "all.jsonl")
            samples = []
            while process.poll() is None:
                time.sleep(1)
                if process.poll() is None:
                    samples.append(resident_mb(process))
            seconds = time.monotonic() - started
            first_s = (servicer.first_at or time.monotonic()) - started
        count = num_lines(directory / "all.jsonl")
        tenth = max(1, len(samples) // 10)
        begin, end = max(samples[:tenth]), max(samples[-tenth:])
        print(
            f"no model: first document sent {first_s:.2f} s after the start of the process; {count} results in "
            f"{seconds:.0f} s; memory {begin:.0f} MB in the first tenth, {end:.0f} MB in the last, "
            f"{max(samples):.0f} MB at most"
        )
        return 0 if first_s <= 1 and end <= 1.1 * begin and count == arguments.lines else 1


if __name__ == "__main__":
    sys.exit(main())
