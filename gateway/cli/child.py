"""One process that `espalier up` runs: started, listened to, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_LAUNCHER: Final = Path(__file__).with_name("launch.py")
_NUM_LAST_LINES: Final = 12
_MAX_LINE_BYTES: Final = 1 << 20


class Child:
    """A process in a session of its own, so that Ctrl-C reaches only us; it dies when we do, however that happens."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        on_line: Callable[[str, str], None],
    ) -> None:
        """`on_line` gets the name and each line that the process writes to stdout or stderr."""
        self.name: Final = name
        self.last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        self._argv = list(argv)
        self._environment = dict(environment)
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Of the running or last process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, again after it has ended."""
        self.last_lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(_LAUNCHER),
            str(os.getpid()),
            *self._argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | self._environment,
            start_new_session=True,
            limit=_MAX_LINE_BYTES,
        )
        self._reader = asyncio.create_task(self._read(self._process))

    async def wait(self) -> int:
        """Wait until it has ended and all it wrote is read; returns its exit code, negative for a signal."""
        assert self._process is not None
        code = await self._process.wait()
        if self._reader is not None:
            # A grandchild may hold the pipe open; what it writes is not the process's last words.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._reader), 1.0)
        return code

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, and make it after `grace_s` seconds; then end what is left of its session."""
        if self._process is None:
            return
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), grace_s)
            except TimeoutError:
                self._on_line(self.name, f"did not end within {grace_s} s of SIGTERM and is killed")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self.wait()
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:  # a line longer than the limit; the stream goes on behind it
                continue
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip("\n")
            self.last_lines.append(line)
            self._on_line(self.name, line)


def ending(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"
