"""What traces cost a token: `make bench-tracing`.

Two stacks of the same model, one without a collector, one with (in this process; it keeps what it gets). Requests go to
them in turn, so that a slow minute of the machine hits all alike: without a collector, with one but not sampled, and
sampled, which is two spans a token. Decoding is greedy: each run writes the same. Besides time per token, the processor
time of each service is read from its own metrics. At the end, the look at a draw (its log-probability, the removed
mass), which every drawn token under a constraint pays for.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import types_pb2
from rich.console import Console
from rich.table import Table

from gateway.cli.model import fetch_dense
from gateway.decode.draws import observe
from gateway.decode.logits import log_sum_exp
from tests.bench.guided import machine
from tests.support.monitoring import metrics_urls, read_page
from tests.support.otlp import Collector, running_collector
from tests.support.up import Up, gateway_stub

MODES = {"off": None, "on, not sampled": "00", "on, sampled": "01"}
SERVICES = ("gateway", "worker", "constraint")


def cpu_seconds(urls: dict[str, str]) -> dict[str, float]:
    """Read what each service's process has used so far, in seconds."""
    found = {}
    for name, url in urls.items():
        line = next(line for line in read_page(url).splitlines() if line.startswith("process_cpu_seconds_total "))
        found[name] = float(line.split()[1])
    return found


def write(stub: Any, num_tokens: int, flags: str | None) -> Any:
    """Write one text and return its result."""
    generation = pb.Generation(
        prompt="Write a long letter to a friend.",
        constraint=types_pb2.Constraint(regex=r"[a-zA-Z ,.]{1,100000}"),
        max_tokens=num_tokens,
        min_tokens=num_tokens,
    )
    trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{flags}"
    metadata = () if flags is None else (("traceparent", trace),)
    return stub.Generate(pb.GenerateRequest(generation=generation), metadata=metadata).result


def measure(model: str, collector: Collector, *, num_runs: int, num_tokens: int, console: Console) -> None:
    """Run all modes and print a table."""
    ms: dict[str, list[float]] = defaultdict(list)
    cpu_s: dict[tuple[str, str], float] = defaultdict(float)
    ports = {f"ESPALIER_{name.upper()}_METRICS_PORT": "0" for name in SERVICES}
    sending = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
    with tempfile.TemporaryDirectory(prefix="esp") as off_name, tempfile.TemporaryDirectory(prefix="esp") as on_name:
        off = Up(Path(off_name), model=model, **ports)
        on = Up(Path(on_name), model=model, **ports, **sending)
        try:
            urls = {up: metrics_urls(up.wait_until_ready()) for up in (off, on)}
            with (
                grpc.insecure_channel(off.addresses["gateway"]) as off_channel,
                grpc.insecure_channel(on.addresses["gateway"]) as on_channel,
            ):
                stubs = {off: gateway_stub(off_channel), on: gateway_stub(on_channel)}
                for index in range(num_runs + 1):
                    for mode, flags in MODES.items():
                        up = off if flags is None else on
                        before = cpu_seconds(urls[up])
                        result = write(stubs[up], num_tokens, flags)
                        after = cpu_seconds(urls[up])
                        if index == 0:
                            continue  # warms up
                        ms[mode].append(result.timing.tpot_us / 1e3)
                        for name in SERVICES:  # added up, because the kernel counts in hundredths of a second
                            cpu_s[mode, name] += after[name] - before[name]
        finally:
            off.stop()
            on.stop()
    table = Table(
        "traces", *(f"{name}, CPU µs/token" for name in SERVICES), "ms/token", "least ms/token", title=Path(model).name
    )
    for mode in MODES:
        used = [f"{cpu_s[mode, name] * 1e6 / (num_runs * num_tokens):.0f}" for name in SERVICES]
        table.add_row(mode, *used, f"{statistics.median(ms[mode]):.3f}", f"{min(ms[mode]):.3f}")
    console.print(table)
    console.print(f"{num_tokens} tokens, {num_runs} runs of each; medians; processor time of all runs together")


def show_draws(console: Console) -> None:
    """Print what it costs to look at one drawn token, beside the exact way."""
    table = Table("vocabulary", "a look at a draw µs", "two log-sum-exps µs", "largest allowed logit µs")
    for vocab_size in (49_152, 128_256):
        generator = np.random.default_rng(0)
        logits = generator.normal(scale=4, size=vocab_size).astype(np.float32)
        mask = generator.random(vocab_size) < 0.3
        calls = {
            "mass": lambda logits=logits, mask=mask: observe(logits, mask, 0),
            "exact": lambda logits=logits, mask=mask: (log_sum_exp(logits), log_sum_exp(logits[mask])),
            "largest": lambda logits=logits, mask=mask: np.where(mask, logits, np.float32(-np.inf)).argmax(),
        }
        table.add_row(f"{vocab_size:,}", *(f"{_best_us(call):.0f}" for call in calls.values()))
    console.print(table)


def _best_us(call: Any) -> float:
    times = []
    for _ in range(300):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model file, or `toy`; default: both SmolLM2-135M-Instruct and `toy`")
    parser.add_argument("--runs", type=int, default=10, help="timed runs of each mode")
    parser.add_argument("--tokens", type=int, default=100)
    arguments = parser.parse_args()
    console = Console(width=max(140, Console().width), highlight=False)
    models = [arguments.model] if arguments.model else ["toy", str(fetch_dense())]
    for model in models:
        with running_collector() as collector:
            measure(model, collector, num_runs=arguments.runs, num_tokens=arguments.tokens, console=console)
            console.print(f"{len(collector.spans())} spans arrived")
    show_draws(console)
    where = machine()
    console.print(f"{where['num_cores']} cores of {where['processor']}, load average {where['load_average'][0]:.1f}")


if __name__ == "__main__":
    main()
