"""Runs functions in processes that can be killed, because what they are given may be hostile."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import os
import pickle
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

import structlog

from services.rpckit.status import ServiceError

_LENGTH: Final = struct.Struct("<Q")
_log = structlog.get_logger()


class JobTimedOutError(Exception):
    """A job ran past its time; its process was killed."""


class JobCrashedError(Exception):
    """A job's process ended under it, or ran out of memory."""


class JobProcesses:
    """A few processes that run one function, a job at a time each.

    A process is started before it is needed, kept from job to job, and killed when its job takes too long or is
    cancelled. Arguments and results are pickled: both ends are ours, what is hostile is only inside the arguments.
    """

    def __init__(self, target: str, *, num_processes: int, max_memory_bytes: int) -> None:
        """`target` is `module:function`; the module is imported in the processes alone."""
        self._arguments = (target, str(max_memory_bytes))
        self._idle: list[asyncio.subprocess.Process] = []
        self._slots = asyncio.Semaphore(num_processes)
        self._num_processes = num_processes
        self._all: set[asyncio.subprocess.Process] = set()

    async def start(self) -> None:
        """Start the processes and wait until each has imported its module."""
        self._idle = list(await asyncio.gather(*(self._launch() for _ in range(self._num_processes))))

    async def run(self, *arguments: Any, timeout_s: float) -> Any:
        """Call the function. Waiting for a free process is part of the time.

        Raises:
            JobTimedOutError: it took longer than `timeout_s`.
            JobCrashedError: its process ended, or had too little memory.
            ServiceError: what the function raised.
        """
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                process = await self._take()
                try:
                    outcome = await self._ask(process, arguments)
                except BaseException:  # a time-out and a cancellation too: the process is busy with what nobody wants
                    await self._kill(process)
                    raise
                self._idle.append(process)
        except TimeoutError:
            raise JobTimedOutError(f"not done within {timeout_s} s") from None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def stop(self) -> None:
        """End all processes."""
        for process in list(self._all):
            await self._kill(process)
        self._idle.clear()

    async def _take(self) -> asyncio.subprocess.Process:
        """Take an idle process, or start one: idle ones may have died, killed for memory for example."""
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
            self._all.discard(process)
        return await self._launch()

    async def _launch(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C in a terminal is for the service, which ends these itself.
            start_new_session=True,
        )
        self._all.add(process)
        try:
            assert process.stdout is not None
            await process.stdout.readexactly(1)
        except asyncio.IncompleteReadError:
            raise JobCrashedError(f"its process did not start: {_ending(await process.wait())}") from None
        except BaseException:
            await self._kill(process)
            raise
        return process

    async def _ask(self, process: asyncio.subprocess.Process, arguments: tuple[Any, ...]) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        message = pickle.dumps(arguments)
        try:
            process.stdin.write(_LENGTH.pack(len(message)) + message)
            await process.stdin.drain()
            (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
            return pickle.loads(await process.stdout.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await process.wait()
            raise JobCrashedError(f"its process ended with {_ending(code)}") from None

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        self._all.discard(process)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        # Not `wait` alone: asyncio takes a process for ended when its pipes are, and does not look at one that is full.
        await process.communicate()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _serve(function: Callable[..., Any]) -> None:
    """Answer jobs from stdin until it ends, as it does when the service is gone."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not meet the answers
    answers.write(b"+")
    answers.flush()
    requests = sys.stdin.buffer
    while header := requests.read(_LENGTH.size):
        arguments = pickle.loads(requests.read(*_LENGTH.unpack(header)))
        outcome: Any
        try:
            outcome = function(*arguments)
        except ServiceError as error:
            outcome = error.with_traceback(None)
        except MemoryError:
            outcome = JobCrashedError("it needs more memory than it may have")
        except RecursionError:
            outcome = JobCrashedError("it is nested too deeply")
        except Exception as error:
            traceback.print_exc()
            outcome = JobCrashedError(
                f"an unexpected {type(error).__name__}, a bug of the service: its log has the details"
            )
        message = pickle.dumps(outcome)
        answers.write(_LENGTH.pack(len(message)) + message)
        answers.flush()


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when the service ends in whatever way, even in the middle of a job."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main(target: str, max_memory_bytes: str) -> None:
    """Import the function, bound this process's memory, and serve."""
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    # RLIMIT_DATA counts what is written to, unlike RLIMIT_AS, which a JIT compiler reaches with address space alone.
    resource.setrlimit(resource.RLIMIT_DATA, (int(max_memory_bytes), int(max_memory_bytes)))
    _end_with_parent()
    with contextlib.suppress(KeyboardInterrupt):
        _serve(function)


if __name__ == "__main__":
    # Run under its real name, so that exceptions pickled here are the classes the service knows.
    importlib.import_module("services.constraint.job_processes").main(*sys.argv[1:])
