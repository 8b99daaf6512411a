"""`espalier check --cases`: many constraints with texts, a line of results for each."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import sys
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

import numpy as np
from rich.console import Console
from rich.progress import Progress

from gateway.cli.check_offline import Engine, prepare
from gateway.cli.errors import BAD_USAGE, REFUSED, CommandError
from services.constraint.checking import BadCaseError, Case, CaseOutcome, RunCase, parse_case
from services.constraint.job_processes import JobCrashedError, JobTimedOutError
from services.constraint.prepared_process import PreparedProcess

# Cases that are read ahead for each process: results are written in the order of the lines, so a slow case holds up
# what was done behind it.
_AHEAD: Final = 32


@dataclass(slots=True)
class Tally:
    """What came out over all cases."""

    statuses: Counter[str] = field(default_factory=Counter)
    num_right: int = 0
    num_invalid_accepted: int = 0
    num_valid_refused: int = 0
    num_bad_lines: int = 0
    mask_us: array[float] = field(default_factory=lambda: array("d"))
    warm_mask_us: array[float] = field(default_factory=lambda: array("d"))

    def add(self, outcome: CaseOutcome) -> None:
        """Count a case."""
        self.statuses[outcome.status] += 1
        self.num_invalid_accepted += sum(test.is_accepted and not test.is_valid for test in outcome.tests)
        self.num_valid_refused += sum(test.is_valid and not test.is_accepted for test in outcome.tests)
        if outcome.status == "ok":
            self.num_right += all(test.is_valid == test.is_accepted for test in outcome.tests)
        self.mask_us.extend(outcome.mask_us)
        self.warm_mask_us.extend(outcome.warm_mask_us)

    def lines(self) -> Iterator[str]:
        """Say it in a few lines."""
        counts = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common())
        yield f"{self.statuses.total()} cases: {counts or 'none'}"
        yield (
            f"{self.num_right} of them right about all their texts; "
            f"{self.num_invalid_accepted} invalid texts accepted, {self.num_valid_refused} valid ones refused"
        )
        for name, times in (("masks", self.mask_us), ("masks again", self.warm_mask_us)):
            if times:
                p50, p90, p99, most = np.percentile(np.frombuffer(times), (50, 90, 99, 100))
                yield (
                    f"{name}, µs: p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f}, max {most:.1f}, "
                    f"mean {np.mean(times):.1f} of {len(times)}"
                )


def run(engine: Engine, cases: Path, out: Path | None, *, num_workers: int, num_passes: int, is_strict: bool) -> None:
    """Run all cases; results go to `out`, or to stdout, and a summary to stderr.

    Raises:
        CommandError: a file cannot be read or written, a line is no case, or, with `is_strict`, a case did not come
        out as it should.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        lines = stack.enter_context(_opened(cases, console))
        results = stack.enter_context(_writable(out)) if out else sys.stdout
        tally = asyncio.run(_run(engine, lines, results, console, f"{cases}", num_workers, num_passes))
    for line in tally.lines():
        console.print(line, markup=False)
    if tally.num_bad_lines:
        raise CommandError(
            f"{cases} has {tally.num_bad_lines} lines that are no cases; they are named above", BAD_USAGE
        )
    if is_strict and tally.num_right < tally.statuses.total():
        raise CommandError(
            f"{tally.statuses.total() - tally.num_right} cases are not right about all their texts", REFUSED
        )


async def _run(
    engine: Engine,
    lines: Iterator[str],
    results: TextIO,
    console: Console,
    name: str,
    num_workers: int,
    num_passes: int,
) -> Tally:
    tally = Tally()
    processes = [engine.process() for _ in range(num_workers)]
    idle: asyncio.Queue[PreparedProcess] = asyncio.Queue()
    running: deque[asyncio.Task[CaseOutcome]] = deque()

    async def write_next() -> None:
        outcome = await running.popleft()
        tally.add(outcome)
        results.write(outcome.to_json() + "\n")
        results.flush()

    try:
        await prepare(processes)
        for process in processes:
            idle.put_nowait(process)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                case = parse_case(line)
            except BadCaseError as error:
                tally.num_bad_lines += 1
                console.print(f"{name}:{number}: {error}", style="yellow", markup=False)
                running.append(asyncio.create_task(_bad(line, number, error)))
            else:
                running.append(asyncio.create_task(_run_case(engine, idle, case, num_passes)))
            await asyncio.sleep(0)
            while running and (running[0].done() or len(running) >= num_workers * _AHEAD):
                await write_next()
        while running:
            await write_next()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for process in processes:
            await process.stop()
    return tally


async def _run_case(engine: Engine, idle: asyncio.Queue[PreparedProcess], case: Case, num_passes: int) -> CaseOutcome:
    process = await idle.get()
    try:
        outcome: CaseOutcome = await process.run(RunCase(case, engine.forcing, num_passes), timeout_s=engine.limit_s)
    except JobTimedOutError:
        message = f"not done within {engine.limit_s:g} s"
        return CaseOutcome(case.case_id, "timeout", "LIMIT_S", message=message)
    except JobCrashedError as error:
        return CaseOutcome(case.case_id, "error", "CRASHED", message=str(error))
    finally:
        idle.put_nowait(process)
    return outcome


async def _bad(line: str, number: int, error: BadCaseError) -> CaseOutcome:
    return CaseOutcome(_id_of(line), "error", "BAD_CASE", message=f"line {number}: {error}")


def _id_of(line: str) -> Any:
    """Return the id of a line that is no case, as far as it has one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row.get("id") if isinstance(row, dict) else None


@contextmanager
def _opened(path: Path, console: Console) -> Iterator[Iterator[str]]:
    """Open a file of lines, packed or not; on a terminal, a bar shows how far it was read."""
    with ExitStack() as stack:
        try:
            file: BinaryIO = stack.enter_context(path.open("rb"))
            size = path.stat().st_size
        except OSError as error:
            raise CommandError(f"cannot read {path}: {error.strerror}", BAD_USAGE) from None
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        content: Any = stack.enter_context(gzip.open(file)) if is_packed else file
        bar = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        task = bar.add_task("cases", total=size)

        def lines() -> Iterator[str]:
            try:
                for line in io.TextIOWrapper(content, encoding="utf-8"):
                    bar.update(task, completed=file.tell())
                    yield line
            except UnicodeDecodeError as error:
                raise CommandError(f"{path} is not UTF-8: {error.reason}", BAD_USAGE) from None
            except (OSError, EOFError) as error:
                raise CommandError(f"cannot read {path}: {error}", BAD_USAGE) from None

        yield lines()


@contextmanager
def _writable(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from None
