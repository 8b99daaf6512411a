"""`espalier check --tokenizer`: what the engine makes of a constraint, with nothing else running."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli.check import explained
from gateway.cli.errors import BAD_USAGE, REFUSED, TIMED_OUT, CommandError
from gateway.cli.generate import read_text
from services.constraint.checking import Case, CaseTest, Describe, Prepare, Report, TokenizerChoice
from services.constraint.contract import source_of
from services.constraint.job_processes import JobCrashedError, JobTimedOutError
from services.constraint.prepared_process import PreparedProcess
from services.constraint.settings import ConstraintSettings
from services.constraint.sources import SourceOptions
from services.rpckit.status import InvalidRequest

_TARGET: Final = "services.constraint.checking:answer"
# Characters of the shortest text that are printed.
_SHOWN_WITNESS: Final = 500


@dataclass(frozen=True, slots=True)
class Engine:
    """How the engine is run: whose tokens, how forced bytes are cut, and what a case may take."""

    tokenizer: TokenizerChoice
    forcing: Any = "off"
    limit_s: float = 20.0

    def process(self) -> PreparedProcess:
        """Make a process, bounded in memory as the service's compiles are."""
        max_memory_bytes: int = ConstraintSettings.model_fields["max_compile_memory_bytes"].default
        return PreparedProcess(_TARGET, self.tokenizer, Prepare(), max_memory_bytes=max_memory_bytes)


async def prepare(processes: Sequence[PreparedProcess]) -> tuple[int, tuple[int, ...]]:
    """Have all processes read the tokenizer; return the vocabulary's size and end tokens.

    Raises:
        CommandError: the tokenizer cannot be used.
    """
    try:
        # One first: where kernels have to be compiled, the others find them on disk.
        vocab_size, eos_token_ids = await processes[0].prepare()
        await asyncio.gather(*(process.prepare() for process in processes[1:]))
    except InvalidRequest as error:
        raise CommandError(error.message, BAD_USAGE) from None
    except (JobCrashedError, JobTimedOutError) as error:
        raise CommandError(f"the process that checks did not start: {error}") from None
    return vocab_size, eos_token_ids


def run(engine: Engine, constraint: Any, options: Mapping[str, Any], *, text: Path | None) -> None:
    """Print the report; then say whether the masks let `text` pass, where one is given.

    Raises:
        ServiceError: the constraint or its options are refused.
        CommandError: it takes too long or too much memory, or the text does not satisfy it.
    """
    tests = [] if text is None else [CaseTest(True, read_text(text))]
    case = Case(None, source_of(constraint), SourceOptions(**options), tests=tuple(tests))
    report = asyncio.run(_describe(engine, case))
    show(report, Console(highlight=False, soft_wrap=True))
    if text is None:
        return
    if report.failed_at_byte is not None:
        raise CommandError(f"{text} does not satisfy the constraint: {_where(tests[0].text, report)}", REFUSED)
    print(f"{text} satisfies the constraint")


async def _describe(engine: Engine, case: Case) -> Report:
    process = engine.process()
    try:
        await prepare([process])
        report: Report = await process.run(Describe(case, engine.forcing), timeout_s=engine.limit_s)
    except JobTimedOutError:
        raise CommandError(f"not done within {engine.limit_s:g} s: allow more by --limit-s", TIMED_OUT) from None
    except JobCrashedError as error:
        raise CommandError(f"the check failed: {error}") from None
    finally:
        await process.stop()
    return report


def show(report: Report, console: Console) -> None:
    """Print a report."""
    if report.keywords:
        table = Table("keyword at", "is enforced by", "note")
        for keyword in report.keywords:
            table.add_row(escape(keyword.pointer), explained(keyword.enforcement), escape(keyword.note))
        console.print(table)
    console.print(
        f"compiled in {report.compile_us / 1e3:.1f} ms, first mask in {report.first_mask_us:.0f} µs; "
        f"{report.num_allowed} tokens may come first"
    )
    witness = report.witness.decode(errors="replace")
    shown = witness if len(witness) <= _SHOWN_WITNESS else f"{witness[:_SHOWN_WITNESS]} [...]"
    console.print(
        f"no text is shorter than {report.min_bytes} bytes; a short one, of {report.witness_num_tokens} tokens:"
    )
    console.print(shown, markup=False)


def _where(text: str, report: Report) -> str:
    """Say where a text leaves the constraint."""
    read = text.encode()[: report.failed_at_byte].decode(errors="replace")
    at = f"byte {report.failed_at_byte}" + (f", behind {read[-30:]!r}" if read else "")
    is_end = report.failed_at_byte == len(text.encode())
    return f"it may not end at {at}" if is_end else f"the token that starts at {at} is not allowed"
