"""Masks over real schemas: `make bench-mask`.

Takes MaskBench's schemas with their instances (`maskbench-dev.jsonl.gz`, in the folder that ESPALIER_DATA names, else
in `../shared/data`; it may not be part of this repository) and the demo model's vocabulary. Every instance is cut by
the model's own tokenizer and walked token by token. Times are of one thread: from asking for a state's guidance to
having it, mask and witness included, with nothing of the grammar known at the start (cold), and once more (warm).
Forcing is off, so that any cut is open.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gateway.cli.model import default_path, fetch
from services.constraint.core.engine import Matcher, TokenTrie, compile_grammar, warm_up
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.model_worker.model.weights import GgufFile
from services.model_worker.tokenizer import gguf_tokenizer
from services.rpckit.status import ServiceError, TokenRejected
from services.vocabulary import Vocabulary

DATA = Path(os.environ.get("ESPALIER_DATA", "../shared/data")) / "maskbench-dev.jsonl.gz"


@dataclass
class Tally:
    """What came out, over all schemas."""

    statuses: Counter[str] = field(default_factory=Counter)
    num_right: int = 0
    invalid_accepted: list[str] = field(default_factory=list)
    valid_refused: list[str] = field(default_factory=list)
    build_ms: list[float] = field(default_factory=list)
    compile_ms: list[float] = field(default_factory=list)
    cold_us: list[float] = field(default_factory=list)
    warm_us: list[float] = field(default_factory=list)


def main() -> int:
    """Measure; returns 1 when an invalid instance was accepted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=4, help="take every n-th schema")
    parser.add_argument("--out", type=Path, default=Path("build/bench-mask.json"))
    arguments = parser.parse_args()
    if not DATA.is_file():
        print(f"{DATA} is not there: set ESPALIER_DATA to the folder that has it", file=sys.stderr)
        return 2
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        cases = [case for case in map(json.loads, lines) if case["tests"]][:: arguments.every]
    trie = TokenTrie(_vocabulary())
    warm_up(trie)
    tally = Tally()
    for case in track(cases, description="schemas"):
        measure(case, trie, tally)
    report = summary(tally, len(cases), trie)
    show(report)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2, ensure_ascii=False))
    return 1 if tally.invalid_accepted else 0


def _vocabulary() -> Vocabulary:
    path = default_path()
    fetch(path.parent)
    file = GgufFile(path)
    files = gguf_tokenizer(file)
    tokens = file.require("tokenizer.ggml.tokens")
    return Vocabulary(files.tokenizer_json, len(tokens), files.eos_token_ids)


def measure(case: dict[str, Any], trie: TokenTrie, tally: Tally) -> None:
    """Compile one schema and walk its instances, twice."""
    source = ConstraintSource("json_schema", json.dumps(case["schema"]))
    started = time.perf_counter()
    try:
        built = build(source, SourceOptions("bounded"))
        built_at = time.perf_counter()
        compiled = compile_grammar(built.grammar)
        compiled_at = time.perf_counter()
        matcher = Matcher(compiled, trie, forcing="off")
    except ServiceError as error:
        tally.statuses[error.reason] += 1
        return
    tally.statuses["ok"] += 1
    tally.build_ms.append((built_at - started) * 1e3)
    tally.compile_ms.append((compiled_at - built_at) * 1e3)
    is_right = True
    for times in (tally.cold_us, tally.warm_us):
        for test in case["tests"]:
            text = json.dumps(test["data"], ensure_ascii=False)
            is_accepted = walk(matcher, trie.vocabulary.encode(text), times)
            if is_accepted == test["valid"] or times is tally.warm_us:
                continue
            is_right = False
            (tally.invalid_accepted if is_accepted else tally.valid_refused).append(case["id"])
    tally.num_right += is_right


def walk(matcher: Matcher, token_ids: list[int], times_us: list[float]) -> bool:
    """Take the tokens one by one, asking for the guidance before each; tell whether the text is complete at the end."""
    state = matcher.start
    for token_id in token_ids:
        started = time.perf_counter()
        matcher.guidance(state)
        times_us.append((time.perf_counter() - started) * 1e6)
        try:
            state = matcher.accept(state, [token_id])
        except TokenRejected:
            return False
    return matcher.guidance(state).is_accepting


def summary(tally: Tally, num_schemas: int, trie: TokenTrie) -> dict[str, Any]:
    """Return all numbers, for a table and for JSON."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "vocab_size": trie.vocabulary.vocab_size,
        "num_schemas": num_schemas,
        "statuses": dict(tally.statuses.most_common()),
        "num_fully_right": tally.num_right,
        "invalid_accepted": sorted(set(tally.invalid_accepted)),
        "valid_refused": sorted(set(tally.valid_refused)),
        "build_ms": quantiles(tally.build_ms),
        "compile_ms": quantiles(tally.compile_ms),
        "cold_us": quantiles(tally.cold_us),
        "warm_us": quantiles(tally.warm_us),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Return the number of values, their quantiles, greatest and mean."""
    array = np.array(values)
    names = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    found = {name: round(float(np.percentile(array, percent)), 2) for name, percent in names.items()}
    return {"count": len(values), **found, "mean": round(float(array.mean()), 2)}


def show(report: dict[str, Any]) -> None:
    """Print the numbers as a table."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{report['machine']}; vocabulary of {report['vocab_size']}")
    console.print(f"{report['num_schemas']} schemas: {report['statuses']}; fully right: {report['num_fully_right']}")
    console.print(f"invalid instances accepted: {len(report['invalid_accepted'])} {report['invalid_accepted']}")
    console.print(f"valid instances refused: {len(report['valid_refused'])} {report['valid_refused']}")
    table = Table("", "count", "p50", "p90", "p99", "max", "mean")
    for name in ("build_ms", "compile_ms", "cold_us", "warm_us"):
        table.add_row(name, *(str(report[name][column]) for column in ("count", "p50", "p90", "p99", "max", "mean")))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
