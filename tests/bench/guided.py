"""Time per token, guided against unguided, and the share outside of the forward pass: `make bench`.

The whole stack runs as `espalier up` starts it, on unix sockets, one request at a time. Every case is run once to warm
up (it compiles the constraint), then several times, the cases in turn, so that a slow minute of the machine hits all
alike. All numbers are the gateway's own, as every reply carries them. Decoding is greedy: each run writes the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.cli.client import GatewayClient, make_constraint, make_generation
from gateway.cli.demo import tasks
from gateway.cli.logs import LogPrinter
from gateway.cli.model import fetch_dense
from gateway.cli.stack import Stack, StackOptions
from gateway.cli.up import private_directory

QUESTION = "Write a long letter to a friend about a journey through the mountains."


@dataclass(frozen=True)
class Case:
    """What is written."""

    name: str
    question: str
    constraint: Any
    max_tokens: int


@dataclass(frozen=True)
class Run:
    """One reply's numbers."""

    num_prompt_tokens: int
    num_tokens: int
    num_forced: int
    num_steps: int
    ttft_ms: float
    ms_per_token: float
    ms_per_step: float
    mask_us_per_token: float
    mask_wait_ms: float
    validate_ms: float
    outside_forward_percent: float
    """Share of the whole request, from arrival to the validated answer, in which no forward pass of it ran."""


def cases(num_tokens: int) -> list[Case]:
    """Make the cases: free text, the same length under constraints from loose to tight, and the demo's records."""
    # Any characters at all, and so many that the limit ends the text: all that differs from free text is the machinery.
    anything = make_constraint("regex", r"[\s\S]{1,100000}")
    letters = make_constraint("regex", r"[A-Z][a-zA-Z ,.'\n]{1,100000}")
    demo = [Case(f"JSON: {task.title}", task.question, task.constraint, task.max_tokens) for task in tasks()[:2]]
    return [
        Case("unguided", QUESTION, None, num_tokens),
        Case("guided, any text", QUESTION, anything, num_tokens),
        Case("guided, words only", QUESTION, letters, num_tokens),
        *demo,
    ]


def measure(client: GatewayClient, case: Case) -> Run:
    """Write one text and read its numbers."""
    generation = make_generation(
        chat=[("user", case.question)],
        constraint=case.constraint,
        max_tokens=case.max_tokens,
        options=None if case.constraint is None else {"whitespace": "spaced"},
    )
    result: Any = None
    for piece in client.stream(generation):
        if piece.HasField("result"):
            result = piece.result
    usage, timing = result.usage, result.timing
    num_later = max(1, usage.num_completion_tokens - 1)
    num_steps = max(1, usage.num_steps - 1)
    decode_us = timing.tpot_us * num_later
    return Run(
        num_prompt_tokens=usage.num_prompt_tokens,
        num_tokens=usage.num_completion_tokens,
        num_forced=usage.num_forced_tokens,
        num_steps=usage.num_steps,
        ttft_ms=timing.ttft_us / 1e3,
        ms_per_token=timing.tpot_us / 1e3,
        ms_per_step=decode_us / 1e3 / num_steps,
        mask_us_per_token=timing.mask_us / max(1, usage.num_completion_tokens),
        mask_wait_ms=timing.mask_wait_us / 1e3,
        validate_ms=timing.validate_us / 1e3,
        outside_forward_percent=100 * (1 - timing.forward_us / timing.total_us),
    )


async def bench(model: str, *, num_runs: int, num_tokens: int, console: Console) -> dict[str, Any]:
    """Run all cases; returns what is written to the file."""
    chosen = cases(num_tokens)
    runs: dict[str, list[Run]] = {case.name: [] for case in chosen}
    with private_directory() as name:
        directory = Path(name)
        options = StackOptions(
            model=model,
            directory=directory,
            worker_address=f"unix:{directory}/worker.sock",
            constraint_address=f"unix:{directory}/constraint.sock",
            gateway_address=f"unix:{directory}/gateway.sock",
            restarts=False,
        )
        async with Stack(options, LogPrinter("text", is_quiet=True)):
            with GatewayClient(options.gateway_address, timeout_s=600) as client, console.status("") as status:
                info = await asyncio.to_thread(client.model_info)
                for index in range(num_runs + 1):
                    for case in chosen:
                        status.update(f"run {index} of {num_runs}: {case.name}")
                        run = await asyncio.to_thread(measure, client, case)
                        if index > 0:  # the first warms up
                            runs[case.name].append(run)
    return {
        "model": info.name,
        "num_parameters": info.num_parameters,
        "vocab_size": info.vocab_size,
        "machine": machine(),
        "num_runs": num_runs,
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cases": {name: [asdict(run) for run in done] for name, done in runs.items()},
        "medians": {name: median(done) for name, done in runs.items()},
    }


def median(runs: list[Run]) -> dict[str, float]:
    """Take the median of each number."""
    return {name: statistics.median(getattr(run, name) for run in runs) for name in asdict(runs[0])}


def machine() -> dict[str, Any]:
    """Describe this machine, and how busy it is with other things."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "num_cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print the medians."""
    where = report["machine"]
    load = where["load_average"][0]
    table = Table(
        "case",
        title=f"{report['model']}, batch size 1, greedy, medians of {report['num_runs']} runs\n"
        f"{where['num_cores']} cores of {where['processor']}, load average {load:.1f} at the end",
    )
    headings = {
        "prompt": ("num_prompt_tokens", ".0f"),
        "tokens": ("num_tokens", ".0f"),
        "forced": ("num_forced", ".0f"),
        "steps": ("num_steps", ".0f"),
        "TTFT ms": ("ttft_ms", ".0f"),
        "ms/token": ("ms_per_token", ".2f"),
        "ms/step": ("ms_per_step", ".2f"),
        "mask us/token": ("mask_us_per_token", ".0f"),
        "mask wait ms": ("mask_wait_ms", ".2f"),
        "validate ms": ("validate_ms", ".1f"),
        "outside forward": ("outside_forward_percent", ".1f"),
    }
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, medians in report["medians"].items():
        table.add_row(name, *(format(medians[key], spec) for key, spec in headings.values()))
    console.print(table)
    plain, guided = (report["medians"][name]["ms_per_token"] for name in ("unguided", "guided, any text"))
    console.print(f"guided, any text, against unguided: {guided / plain:.3f} times the time per token")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model file, or `toy`; default: SmolLM2-135M-Instruct")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each case")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of the texts that only the limit ends")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    arguments = parser.parse_args()
    model = arguments.model or str(fetch_dense())
    console = Console(width=max(150, Console().width), highlight=False)
    report = asyncio.run(bench(model, num_runs=arguments.runs, num_tokens=arguments.tokens, console=console))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1, ensure_ascii=False))
    show(report, console)
    print(f"all runs are in {arguments.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
