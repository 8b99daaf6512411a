"""How costs grow with a grammar's size: `make bench-growth`, with flags in `ARGS`.

For each series of schemas that are alike but for one number: the time to compile, the time of masks that are asked for
first (`cold`, over several positions of a text and several fresh matchers) and again (`warm`), as one thread sees them
in its own buffer. Prints a table with the slope of each on logarithmic scales (0: does not grow; 1: in proportion) and
writes build/growth.svg and build/bench-growth.json. A cost that grows by more than the logarithm of the number does is
marked by `!`.

The vocabulary is the demo model's, or the one of `--tokenizer FILE` (see `tests/bench/masks.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.constraint.checking import no_collection, spell
from services.constraint.core.engine import Matcher, TokenTrie, compile_grammar, warm_up
from services.constraint.job_processes import JobCrashedError, JobTimedOutError
from services.constraint.prepared_process import PreparedProcess
from services.constraint.sources import ConstraintSource, SourceOptions, build, common_grammar
from services.rpckit.status import ServiceError
from services.vocabulary import bitmask_words, count_tokens
from services.vocabulary.files import read_vocabulary
from tests.bench import growth_plot
from tests.bench.masks import demo_tokenizer

_MEMORY_BYTES: Final = 4 << 30
_NUM_MATCHERS: Final = 5
_NUM_POSITIONS: Final = 12
# A time is said to grow more than a logarithm where it does by so much more, which noise does not.
_TOLERANCE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Series:
    """Schemas of one kind by a number, and for each a text that satisfies it."""

    name: str
    numbers: tuple[int, ...]
    schema: Callable[[int], Any]
    text: Callable[[int], str]


def _keys(number: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"key{i}": {"type": "integer"} for i in range(number)}}


def _nested_text(depth: int) -> str:
    return '{"a": ' * depth + '{"b": 1}' + "}" * depth


_WORDS: Final = "the quick brown fox jumps over the lazy dog "

SERIES: Final = {
    series.name: series
    for series in (
        Series("keys", (10, 100, 1000, 10_000), _keys, lambda n: f'{{"key{n // 2}": 1, "key{n - 1}": 22}}'),
        Series(
            "keys, closed",
            (10, 100, 1000, 10_000),
            lambda n: _keys(n) | {"additionalProperties": False},
            lambda n: f'{{"key{n // 2}": 1, "key{n - 1}": 22}}',
        ),
        Series(
            "nesting",
            (1, 10, 100, 1000),
            lambda _: {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"type": "integer"}}},
            _nested_text,
        ),
        Series(
            "enum",
            (10, 100, 1000, 10_000, 100_000),
            lambda n: {"enum": [f"value {i}" for i in range(n)]},
            lambda n: f'"value {n // 2}"',
        ),
        Series(
            "maxLength",
            (10, 100, 1000, 10_000, 100_000, 1_000_000),
            lambda n: {"type": "string", "maxLength": n},
            lambda n: '"' + (_WORDS * 50)[: min(n, 2000) - 1] + '"',
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Point:
    """One schema of a series."""

    series: str
    number: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Times in microseconds. `worst_us` is the slowest position's; `num_allowed` the tokens of the median mask."""

    series: str
    number: int
    num_states: int
    compile_us: float
    cold_us: float
    worst_us: float
    warm_us: float
    num_allowed: int


# Of each cost: its field, what it is called, and the unit it is shown in.
COSTS: Final = (
    ("compile_us", "compile", 1e3),
    ("cold_us", "cold mask", 1.0),
    ("worst_us", "slowest position", 1.0),
    ("warm_us", "warm mask", 1.0),
)


def main() -> int:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or a directory; default: the demo model's")
    parser.add_argument("--series", default=",".join(SERIES), help=f"of {', '.join(SERIES)}; by comma")
    parser.add_argument("--limit-s", type=float, default=60.0, help="seconds that one number may take")
    parser.add_argument("--out", type=Path, default=Path("build/bench-growth.json"))
    parser.add_argument("--plot", type=Path, default=Path("build/growth.svg"))
    arguments = parser.parse_args()
    # A series' name may hold a comma, so names are looked for, not cut out.
    names = [name for name in SERIES if name in arguments.series]
    points = [Point(name, number) for name in names for number in SERIES[name].numbers]
    measured = asyncio.run(run(points, arguments.tokenizer or demo_tokenizer(), arguments.limit_s))
    report: dict[str, Any] = {
        "points": [asdict(found) for found in measured],
        "growth": {name: growth([found for found in measured if found.series == name]) for name in names},
    }
    show(report, points)
    for path in (arguments.out, arguments.plot):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2))
    arguments.plot.write_text(growth_plot.svg(report["points"], COSTS))
    print(f"{arguments.plot} and {arguments.out} written")
    return 0


async def run(points: list[Point], tokenizer: Path, limit_s: float) -> list[Measured]:
    """Measure one point after another, in a process that is killed where it takes too long."""
    process = PreparedProcess("tests.bench.growth:answer", tokenizer, None, max_memory_bytes=_MEMORY_BYTES)
    measured: list[Measured] = []
    try:
        await process.prepare()
        for point in track(points, description="schemas", console=Console(stderr=True)):
            try:
                measured.append(await process.run(point, timeout_s=limit_s))
            except JobTimedOutError:
                print(f"{point.series} {point.number}: more than {limit_s} s", file=sys.stderr)
            except (JobCrashedError, ServiceError) as error:
                print(f"{point.series} {point.number}: {error}", file=sys.stderr)
    finally:
        await process.stop()
    return measured


def answer(tokenizer: Path, point: Point | None) -> Measured | None:
    """Measure a point in its process; without one, make what comes from the vocabulary alone."""
    trie = _trie(tokenizer)
    return None if point is None else measure(point, trie)


@lru_cache(maxsize=1)
def _trie(tokenizer: Path) -> TokenTrie:
    trie = TokenTrie(read_vocabulary(tokenizer))
    warm_up(trie, common_grammar())
    for series in SERIES.values():  # loads what is loaded when first used
        measure(Point(series.name, series.numbers[0]), trie)
    return trie


def measure(point: Point, trie: TokenTrie) -> Measured:
    """Compile and walk the text with fresh matchers."""
    series = SERIES[point.series]
    source = ConstraintSource("json_schema", json.dumps(series.schema(point.number)))
    token_ids = spell(trie.vocabulary, series.text(point.number))
    assert token_ids is not None
    row = np.zeros(bitmask_words(trie.vocabulary.vocab_size), np.int32)
    compile_us: list[float] = []
    cold: list[list[float]] = []
    warm: list[list[float]] = []
    allowed: list[int] = []
    with no_collection():
        for _ in range(_NUM_MATCHERS):
            started = perf_counter_ns()
            compiled = compile_grammar(build(source, SourceOptions()).grammar)
            matcher = Matcher(compiled, trie, forcing="off")
            compile_us.append((perf_counter_ns() - started) / 1e3)
            states = positions(matcher, token_ids)
            cold.append([_timed(matcher, state, row) for state in states])
            warm.append([_timed(matcher, state, row) for state in states])
            if sum(compile_us) > 10e6:
                break  # what takes seconds is not noise
        for state in states:
            matcher.fill_bitmask(state, row)
            allowed.append(count_tokens(row))
    by_position = [median(times) for times in zip(*cold, strict=True)]
    return Measured(
        series=point.series,
        number=point.number,
        num_states=len(compiled.tables.is_accepting),
        compile_us=round(median(compile_us), 1),
        cold_us=round(median(by_position), 2),
        worst_us=round(max(by_position), 2),
        warm_us=round(median(time for times in warm for time in times), 2),
        num_allowed=int(median(allowed)),
    )


def positions(matcher: Matcher, token_ids: list[int]) -> list[int]:
    """Return states spread evenly over a text, with its start and the middle, where it is nested deepest."""
    chosen = set(np.linspace(0, len(token_ids) - 1, _NUM_POSITIONS).astype(int).tolist())
    chosen.update(range(max(0, len(token_ids) // 2 - 2), min(len(token_ids), len(token_ids) // 2 + 2)))
    states = []
    state = matcher.start
    for index, token_id in enumerate(token_ids):
        if index in chosen:
            states.append(state)
        state = matcher.accept(state, (token_id,))
    return states


def _timed(matcher: Matcher, state: int, row: Any) -> float:
    started = perf_counter_ns()
    matcher.fill_bitmask(state, row)
    return (perf_counter_ns() - started) / 1e3


def growth(measured: list[Measured]) -> dict[str, dict[str, float | bool]]:
    """Return for each cost the slope on logarithmic scales, and whether it grows more than a logarithm."""
    found: dict[str, dict[str, float | bool]] = {}
    for field, _, _ in COSTS:
        pairs = [(row.number, max(getattr(row, field), 1e-3)) for row in measured]
        if len(pairs) > 1:
            found[field] = {"slope": round(slope(pairs), 3), "is_worse_than_logarithmic": is_steep(pairs)}
    return found


def slope(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the slope of the line that fits best on logarithmic scales."""
    logs = np.log(list(pairs))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def is_steep(pairs: list[tuple[int, float]]) -> bool:
    """Tell whether the last value is above the first by more than the logarithms are, with tolerance."""
    (first, least), (last, most) = pairs[0], pairs[-1]
    return most / least > _TOLERANCE * math.log(1 + last) / math.log(1 + first)


def show(report: dict[str, Any], points: list[Point]) -> None:
    """Print the table."""
    by_point = {(row["series"], row["number"]): row for row in report["points"]}
    table = Table("series", "n", "states", *(f"{title}\n{'ms' if unit > 1 else 'us'}" for _, title, unit in COSTS))
    table.add_column("allowed")
    for index, point in enumerate(points):
        row = by_point.get((point.series, point.number))
        if row is None:
            table.add_row(point.series, f"{point.number:,}", "", "none")
        else:
            costs = (f"{row[field] / unit:.{2 if row[field] / unit < 100 else 0}f}" for field, _, unit in COSTS)
            table.add_row(
                point.series, f"{point.number:,}", f"{row['num_states']:,}", *costs, f"{row['num_allowed']:,}"
            )
        if index + 1 == len(points) or points[index + 1].series != point.series:
            table.add_row("", "slope", "", *_slopes(report["growth"][point.series]), end_section=True)
    Console(highlight=False, soft_wrap=True, width=max(110, Console().width)).print(table)


def _slopes(grown: dict[str, dict[str, Any]]) -> list[str]:
    cells = (grown.get(field) for field, _, _ in COSTS)
    return [
        "" if cell is None else f"{cell['slope']:+.2f}{' !' if cell['is_worse_than_logarithmic'] else ''}"
        for cell in cells
    ]


if __name__ == "__main__":
    # Run under its real name, so that what is pickled here has a class that the process knows.
    sys.exit(importlib.import_module("tests.bench.growth").main())
