"""Dead ends and rollbacks over real schemas: `make bench-dead-ends`, with flags in `ARGS`.

Takes MaskBench's schemas (found as by `tests/bench/masks.py`) of whose keywords some are checked beside the mask, and
has a random model write texts: the gateway's own decode loop in one process with the engine, without servers. What is
counted is the loop's: a dead end is a token drawn in vain, a rollback of tokens takes back some that were written. The
limits on both are as good as none, so that the numbers say what limits should be; `--limit-s` ends what takes too long.
Every text is judged by the service's independent validator.

A random model is the worst case: it draws keys and values that no model would, and knows nothing of the schema.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, get_args

from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.constraint.checking import TokenizerChoice, parse_case
from services.constraint.job_processes import JobCrashedError, JobTimedOutError
from services.constraint.prepared_process import PreparedProcess
from tests.bench.masks import DATA, demo_tokenizer, quantiles
from tests.bench.random_texts import TARGET, GenerateTexts, Generation, PropertyOrder, SchemaRun

ORDERS: Final[tuple[PropertyOrder, ...]] = get_args(PropertyOrder)
# Of the texts, what a budget of dead ends must let end.
SHARE: Final = 0.999
# The reason of an error that is right: no text satisfies the schema, and the search has shown it.
_UNSATISFIABLE: Final = "UNSATISFIABLE_GRAMMAR"
_MEMORY_BYTES: Final = 4 << 30


def main() -> int:
    """Measure; returns 1 when an invalid text was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or a directory; default: the demo model's")
    parser.add_argument("--every", type=int, default=4, help="take every n-th schema")
    parser.add_argument("--limit", type=int, help="take at most so many schemas")
    parser.add_argument("--orders", default=",".join(ORDERS), help="property orders, by comma")
    parser.add_argument("--seeds", type=int, default=4, help="texts of each schema")
    parser.add_argument("--max-tokens", type=int, default=1000)
    parser.add_argument("--limit-s", type=float, default=20.0, help="seconds that a text may take")
    parser.add_argument("--out", type=Path, default=Path("build/bench-dead-ends.json"))
    arguments = parser.parse_args()
    if not DATA.is_file():
        print(f"{DATA} is not there: set ESPALIER_DATA to the folder that has it", file=sys.stderr)
        return 2
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        cases = [case for case in map(parse_case, lines) if case.tests][:: arguments.every][: arguments.limit]
    tokenizer = TokenizerChoice(arguments.tokenizer or demo_tokenizer())
    tasks = [
        GenerateTexts(case, order, arguments.seeds, arguments.max_tokens, arguments.limit_s)
        for order in ORDERS
        if order in arguments.orders.split(",")
        for case in cases
    ]
    runs = asyncio.run(run(tasks, tokenizer))
    report = summary(runs, len(cases))
    show(report)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2, ensure_ascii=False))
    return 1 if any(row["invalid"] for row in report["rows"]) else 0


async def run(tasks: list[GenerateTexts], tokenizer: TokenizerChoice) -> list[SchemaRun]:
    """Do the tasks one after another, in one process, which is killed where a text cannot be stopped."""
    process = PreparedProcess(TARGET, tokenizer, None, max_memory_bytes=_MEMORY_BYTES)
    runs: list[SchemaRun] = []
    try:
        await process.prepare()
        for task in track(tasks, description="schemas", console=Console(stderr=True)):
            try:
                runs.append(await process.run(task, timeout_s=2 * task.limit_s * task.num_seeds))
            except (JobTimedOutError, JobCrashedError) as error:
                runs.append(SchemaRun(task.case.case_id, task.order, error=type(error).__name__))
    finally:
        await process.stop()
    return runs


def _machine() -> dict[str, Any]:
    return {"machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"}


def summary(runs: list[SchemaRun], num_schemas: int) -> dict[str, Any]:
    """Return all numbers, for tables and for JSON: by property order, over all schemas and by checked keyword."""
    rows = []
    for order in dict.fromkeys(run.order for run in runs):
        chosen = [run for run in runs if run.order == order and (run.generations or run.error)]
        rows.append(_row(order, "all", chosen))
        counts = Counter(keyword for run in chosen for keyword in run.keywords)
        rows += [_row(order, name, [run for run in chosen if name in run.keywords]) for name, _ in counts.most_common()]
    return _machine() | {"num_schemas": num_schemas, "rows": rows, "worst": _worst(runs)}


def _row(order: PropertyOrder, keyword: str, runs: list[SchemaRun]) -> dict[str, Any]:
    generations = [generation for run in runs for generation in run.generations]
    possible = [generation for generation in generations if generation.error != _UNSATISFIABLE]
    ended = [generation for generation in generations if generation.error is None]
    return {
        "order": order,
        "keyword": keyword,
        "schemas": len(runs),
        "refused": dict(Counter(run.error for run in runs if run.error)),
        "generations": len(generations),
        "unsatisfiable": len(generations) - len(possible),
        "failed": dict(Counter(generation.error for generation in possible if generation.error)),
        "invalid": sorted({str(run.case_id) for run in runs if not all(text.is_valid for text in run.generations)}),
        "with_dead_end": _share(possible, lambda generation: generation.num_dead_ends > 0),
        "with_rollback": _share(possible, lambda generation: generation.num_rolled_back_tokens > 1),
        "tokens": quantiles(generation.num_tokens for generation in ended),
        "dead_ends": quantiles(generation.num_dead_ends for generation in ended),
        "rolled_back_tokens": quantiles(generation.num_rolled_back_tokens for generation in ended),
        "max_rollbacks": _budget(possible, lambda generation: generation.num_dead_ends),
        "max_rollback_tokens": _budget(possible, lambda generation: generation.num_rolled_back_tokens),
    }


def _share(generations: list[Generation], has: Callable[[Generation], bool]) -> float | None:
    return round(sum(map(has, generations)) / len(generations), 5) if generations else None


def _budget(generations: list[Generation], count: Callable[[Generation], int]) -> int | None:
    """Return the least limit within which `SHARE` of the generations end, None where too many failed for any."""
    counts = sorted(count(generation) for generation in generations if generation.error is None)
    num_to_end = math.ceil(SHARE * len(generations))
    return counts[num_to_end - 1] if 0 < num_to_end <= len(counts) else None


def _worst(runs: list[SchemaRun]) -> list[dict[str, Any]]:
    """Return the generations that failed, and those with the most dead ends."""
    found = [(run, generation) for run in runs for generation in run.generations if generation.num_dead_ends]
    found.sort(key=lambda pair: (pair[1].error in (None, _UNSATISFIABLE), -pair[1].num_dead_ends))
    return [
        {"id": run.case_id, "order": run.order, "keywords": run.keywords} | asdict(generation)
        for run, generation in found[:100]
    ]


def show(report: dict[str, Any]) -> None:
    """Print the numbers as a table."""
    console = Console(highlight=False, soft_wrap=True, width=max(160, Console().width))
    console.print(f"{report['machine']}; {report['num_schemas']} schemas")
    table = Table(
        "order", "keyword", "schemas", "texts", "no text\nexists", "failed", "dead\nend", "rollback\n> 1 token"
    )
    for name in _QUANTILES:
        table.add_column(f"dead ends\n{name}", justify="right")
    for name in ("p50", "max"):
        table.add_column(f"tokens\n{name}", justify="right")
    table.add_column("max_\nrollbacks", justify="right")
    table.add_column("max_roll-\nback_tokens", justify="right")
    for row in report["rows"]:
        table.add_row(
            row["order"],
            row["keyword"],
            f"{row['schemas']}",
            f"{row['generations']}",
            f"{row['unsatisfiable']}",
            " ".join(f"{number} {reason}" for reason, number in (row["failed"] | row["refused"]).items()),
            _percent(row["with_dead_end"]),
            _percent(row["with_rollback"]),
            *(_whole(row["dead_ends"].get(name)) for name in _QUANTILES),
            *(_whole(row["tokens"].get(name)) for name in ("p50", "max")),
            _whole(row["max_rollbacks"]),
            _whole(row["max_rollback_tokens"]),
        )
    console.print(table)
    for row in report["rows"]:
        if row["invalid"]:
            console.print(f"invalid texts, {row['order']}, {row['keyword']}: {row['invalid']}")


_QUANTILES: Final = ("p50", "p90", "p99", "p99.9", "max")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _whole(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}"


if __name__ == "__main__":
    sys.exit(main())
