"""Masks of grammars, beside other engines, and what the way of writing a grammar costs: `make bench-grammar`.

Each language is written in several ways (`data/writings`): lists by left recursion, by right recursion or by `*`, more
levels of precedence than it needs, or one ambiguous level. They take the same texts. Ours are run with both of Lark's
lexers. llguidance gets the same text, which it reads as a Lark of its own: its lexer takes the longest match.
xgrammar gets the same rules in its EBNF, with white space where Lark ignores it.

Texts are written by hand, drawn by code that knows no grammar, or instances of MaskBench (`grammar_texts.py`; the file
is looked for as `make bench-mask` does). Each text is a case of its own, from compiling on: `cold` has nothing of the
grammar known when the text begins, `warm` is the same text once more. Times are those of `make bench-mask`. Broken
texts show whether engines and writings take the same ones; their times are not counted.

The vocabulary is the demo model's, or the one of `--tokenizer FILE`; `make bench-mask` tells where Llama 3.1's is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.constraint.checking import Case, CaseOutcome, CaseTest, Prepare, RunCase, TokenizerChoice
from services.constraint.prepared_process import PreparedProcess
from services.constraint.sources import ConstraintSource, SourceOptions
from services.constraint.sources.source import LarkLexer
from tests.bench import peers
from tests.bench.grammar_texts import broken, texts
from tests.bench.masks import DATA, MEMORY_BYTES, OURS, demo_tokenizer, machine, quantiles, run_case, short

WRITINGS: Final = Path(__file__).parent / "data" / "writings"
LANGUAGES: Final = ("arithmetic", "json", "sql")
WAYS: Final = ("left", "right", "star", "nested", "flat")


@dataclass(frozen=True, slots=True)
class Engine:
    """Who answers: ours with a lexer, or a peer, which reads grammars from files that end in `suffix`."""

    name: str
    suffix: str
    options: SourceOptions = field(default_factory=SourceOptions)

    def grammar(self, language: str, way: str) -> str:
        """Return the text of a writing."""
        directory = WRITINGS / language
        return (directory / f"{way}{self.suffix}").read_text() + (directory / f"common{self.suffix}").read_text()


@dataclass(frozen=True, slots=True)
class Run:
    """One engine on one writing: what became of each valid and of each broken text."""

    engine: str
    language: str
    way: str
    valid: list[CaseOutcome]
    broken: list[CaseOutcome]

    @property
    def accepted(self) -> list[bool]:
        """Tell of each text whether it was accepted, as far as it was run."""
        return [bool(outcome.tests) and outcome.tests[0].is_accepted for outcome in (*self.valid, *self.broken)]


def main() -> int:
    """Measure; returns 1 when a valid text was refused by ours, or when our writings disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or a directory; default: the demo model's")
    parser.add_argument("--languages", default=",".join(LANGUAGES), help="by comma")
    parser.add_argument("--ways", default=",".join(WAYS), help="of writing them, by comma")
    parser.add_argument("--lexers", default=",".join(get_args(LarkLexer)), help="of ours, by comma")
    parser.add_argument("--texts", type=int, default=40, help="valid texts of each language, and as many broken ones")
    parser.add_argument("--peers", default=",".join(peers.installed()), help="engines beside ours, by comma")
    parser.add_argument("--xgrammar-texts", type=int, default=4, help="valid texts for xgrammar, and broken ones")
    parser.add_argument("--limit-s", type=float, default=60.0, help="seconds that a text may take")
    parser.add_argument("--out", type=Path, default=Path("build/bench-grammar.json"))
    arguments = parser.parse_args()
    if not DATA.is_file():
        print(f"{DATA} is not there: set ESPALIER_DATA to the folder that has it", file=sys.stderr)
        return 2
    names = _listed(arguments.peers)
    missing = sorted(set(names) - set(peers.installed()))
    if missing:
        print(f"not installed: {', '.join(missing)}; there are: {', '.join(peers.installed())}", file=sys.stderr)
        return 2
    tokenizer = TokenizerChoice(arguments.tokenizer or demo_tokenizer())
    ours = [Engine(f"{OURS} {lexer}", ".lark", SourceOptions(lexer=lexer)) for lexer in _listed(arguments.lexers)]
    engines = [*ours, *(Engine(name, ".ebnf" if name == "xgrammar" else ".lark") for name in names)]
    jobs = [
        (engine, language, way)
        for language in _listed(arguments.languages)
        for way in _listed(arguments.ways)
        for engine in engines
    ]
    counts = {"xgrammar": arguments.xgrammar_texts}
    runs = asyncio.run(measure(jobs, tokenizer, arguments.texts, counts, arguments.limit_s))
    report = {**machine(), "rows": [row(run) for run in runs], "ratios": list(ratios(runs))}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2, ensure_ascii=False))
    show(report)
    refused = [run for run in runs if run.engine.startswith(OURS) and not all(run.accepted[: len(run.valid)])]
    return 1 if refused or any(ratio["disagree"] for ratio in report["ratios"] if OURS in ratio["engine"]) else 0


def _listed(names: str) -> list[Any]:
    return [name for name in names.split(",") if name]


async def measure(
    jobs: list[tuple[Engine, str, str]],
    tokenizer: TokenizerChoice,
    num_texts: int,
    counts: dict[str, int],
    limit_s: float,
) -> list[Run]:
    """Run every job on its texts, one after another; `counts` has the number of texts of engines that get fewer."""
    processes: dict[str, PreparedProcess] = {}
    for engine, _, _ in jobs:
        name = _process(engine)
        if name not in processes:
            processes[name] = _made(name, tokenizer)
    runs = []
    try:
        for process in processes.values():
            await process.prepare()
        for engine, language, way in track(jobs, description="writings", console=Console(stderr=True)):
            valid = texts(language, num_texts, DATA)
            kinds = [(valid, True), (broken(valid, num_texts), False)]
            count = counts.get(engine.name, num_texts)
            found = [
                [
                    await _run_text(processes[_process(engine)], engine, language, way, text, is_valid, limit_s)
                    for text in chosen[:: max(1, num_texts // count)][:count]
                ]
                for chosen, is_valid in kinds
            ]
            runs.append(Run(engine.name, language, way, *found))
    finally:
        for process in processes.values():
            await process.stop()
    return runs


def _process(engine: Engine) -> str:
    return engine.name.split()[0]


def _made(name: str, tokenizer: TokenizerChoice) -> PreparedProcess:
    if name == OURS:
        target = "services.constraint.checking:answer"
        return PreparedProcess(target, tokenizer, Prepare(), max_memory_bytes=MEMORY_BYTES)
    choice = peers.PeerChoice(name, tokenizer)
    return PreparedProcess(peers.TARGET, choice, peers.PREPARE, max_memory_bytes=MEMORY_BYTES)


async def _run_text(
    process: PreparedProcess, engine: Engine, language: str, way: str, text: str, is_valid: bool, limit_s: float
) -> CaseOutcome:
    source = ConstraintSource("lark", engine.grammar(language, way))
    case = Case(f"{language} {way}", source, engine.options, tests=(CaseTest(is_valid, text),))
    return await run_case(process, RunCase(case) if engine.name.startswith(OURS) else case, case, limit_s)


def row(run: Run) -> dict[str, Any]:
    """Return the numbers of one run."""
    problems = [outcome for outcome in (*run.valid, *run.broken) if outcome.status != "ok"]
    return {
        "language": run.language,
        "way": run.way,
        "engine": run.engine,
        "valid": len(run.valid),
        "valid_accepted": sum(run.accepted[: len(run.valid)]),
        "broken_accepted": sum(run.accepted[len(run.valid) :]),
        "problems": sorted({f"{outcome.status}: {outcome.reason or outcome.message}"[:200] for outcome in problems}),
        "compile_ms": quantiles(outcome.compile_us / 1e3 for outcome in run.valid if outcome.compile_us is not None),
        "cold_us": quantiles(time for outcome in run.valid for time in outcome.mask_us),
        "warm_us": quantiles(time for outcome in run.valid for time in outcome.warm_mask_us),
    }


def ratios(runs: Iterable[Run]) -> Iterator[dict[str, Any]]:
    """Compare the writings of each language on each engine: the greatest mean by the smallest, and what they accept."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.language, run.engine), []).append(run)
    for (language, engine), group in groups.items():
        means = {kind: [row(run)[kind].get("mean") for run in group] for kind in ("cold_us", "warm_us")}
        answers = [run.accepted for run in group if all(o.status == "ok" for o in (*run.valid, *run.broken))]
        yield {
            "language": language,
            "engine": engine,
            **{kind: _ratio([mean for mean in found if mean is not None]) for kind, found in means.items()},
            "disagree": sum(len(set(texts)) > 1 for texts in zip(*answers, strict=True)) if answers else 0,
        }


def _ratio(means: list[float]) -> float | None:
    return round(max(means) / min(means), 2) if len(means) > 1 else None


def show(report: dict[str, Any]) -> None:
    """Print the numbers as tables."""
    console = Console(highlight=False, soft_wrap=True, width=max(150, Console().width))
    table = Table(
        "language", "written", "engine", "valid\naccepted", "broken\naccepted", "masks", title="µs, compile ms"
    )
    columns = [("cold_us", name) for name in ("mean", "p50", "p99", "max")] + [("warm_us", "mean"), ("warm_us", "p99")]
    columns += [("compile_ms", "p50")]
    for kind, name in columns:
        table.add_column(f"{kind.split('_')[0]}\n{name}", justify="right")
    for found in report["rows"]:
        table.add_row(
            found["language"],
            found["way"],
            found["engine"],
            f"{found['valid_accepted']}/{found['valid']}",
            f"{found['broken_accepted']}",
            f"{found['cold_us']['count']}",
            *(short(found[kind].get(name)) for kind, name in columns),
        )
    console.print(f"{report['machine']}")
    console.print(table)
    table = Table(
        "language", "engine", "cold mean, greatest / smallest", "warm mean", "texts on which writings disagree"
    )
    for found in report["ratios"]:
        table.add_row(
            found["language"],
            found["engine"],
            *(short(found[k]) for k in ("cold_us", "warm_us")),
            f"{found['disagree']}",
        )
    console.print(table)
    for found in report["rows"]:
        for problem in found["problems"]:
            console.print(f"{found['language']} {found['way']} {found['engine']}: {problem}")


if __name__ == "__main__":
    sys.exit(main())
