"""Jobs that do well, fail, hang, crash and eat memory, in real processes."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.constraint.job_processes import JobCrashedError, JobProcesses, JobTimedOutError
from services.rpckit.status import GrammarSyntax


@pytest.fixture
async def processes() -> AsyncIterator[JobProcesses]:
    jobs = JobProcesses("tests.support.jobs:job", num_processes=2, max_memory_bytes=512 << 20)
    await jobs.start()
    yield jobs
    await jobs.stop()


async def test_results_and_errors_come_back(processes: JobProcesses) -> None:
    large = b"x" * 3_000_000
    assert await processes.run("echo", large, timeout_s=20) == large
    with pytest.raises(GrammarSyntax) as caught:
        await processes.run("fail", timeout_s=20)
    assert (caught.value.message, caught.value.field, caught.value.metadata) == ("bad", "f", {"line": "3"})


async def test_a_hanging_job_is_killed_and_the_next_one_runs(processes: JobProcesses) -> None:
    started = time.monotonic()
    with pytest.raises(JobTimedOutError):
        await processes.run("hang", timeout_s=0.5)
    assert time.monotonic() - started < 5
    assert await processes.run("echo", 1, timeout_s=20) == 1


async def test_a_cancelled_job_is_killed(processes: JobProcesses) -> None:
    pids = {await processes.run("pid", timeout_s=20) for _ in range(4)}
    task = asyncio.create_task(processes.run("hang", timeout_s=60))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    dead = [pid for pid in pids if not _is_alive(pid)]
    assert len(dead) == 1


async def test_a_job_whose_answer_nobody_reads_is_killed(processes: JobProcesses) -> None:
    asked = asyncio.create_task(processes.run("echo", b"x" * 3_000_000, timeout_s=20))
    while not any(process.stdout._buffer for process in processes._all):  # type: ignore[union-attr]
        await asyncio.sleep(0)
    asked.cancel()  # in the middle of the answer
    time.sleep(0.2)  # noqa: ASYNC251 - which fills the pipe
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asked, 10)
    assert await processes.run("echo", 1, timeout_s=20) == 1


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("what", "says"), [("exit", "exit code 3"), ("eat", "memory"), ("recurse", "nested"), ("bug", "KeyError")]
)
async def test_crashes_are_told_apart_and_survived(processes: JobProcesses, what: str, says: str) -> None:
    with pytest.raises(JobCrashedError) as caught:
        await processes.run(what, timeout_s=20)
    assert says in str(caught.value)
    assert await processes.run("echo", 1, timeout_s=20) == 1


async def test_a_process_that_died_while_idle_costs_no_job(processes: JobProcesses) -> None:
    for pid in {await processes.run("pid", timeout_s=20) for _ in range(4)}:
        os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert await processes.run("echo", 1, timeout_s=20) == 1


async def test_jobs_run_side_by_side_and_wait_for_a_free_process(processes: JobProcesses) -> None:
    results = await asyncio.gather(*(processes.run("echo", i, timeout_s=20) for i in range(10)))
    assert results == list(range(10))


async def test_a_module_that_cannot_be_imported(tmp_path: Any) -> None:
    jobs = JobProcesses("no.such.module:job", num_processes=1, max_memory_bytes=512 << 20)
    with pytest.raises(JobCrashedError):
        await jobs.start()
