"""What experts cost and how they are used: `python -m tests.bench.mixtures MODEL MODEL…`, the first is the base.

Of each model, in this process, as the worker runs it: perplexity of general English (the language reference that comes
with Python, in windows of 512 tokens), milliseconds a token at batch 1 (the models in turn, so that a slow minute hits
all alike), and, where there are routers, how even the load of the experts is on held-out documents.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pydoc_data.topics
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from services.model_worker.kv_cache import KvCache, num_blocks_for
from services.model_worker.loading import load_model
from services.model_worker.model.kernels import FAST
from services.model_worker.model.transformer import Transformer
from services.model_worker.routing import Routing
from services.model_worker.runner import ModelRunner, RunnerInput, RunnerOutput

_WINDOW: Final = 512
_PROMPT_TOKENS: Final = 128
_MIN_TOPIC_CHARACTERS: Final = 1000


@dataclass
class Measured:
    """A model, and what was found of it."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    perplexity: float = 0.0
    token_ms: float = 0.0
    routing: Routing | None = None


def run_all(model: Transformer, token_ids: list[int], *, num_logit_rows: int) -> RunnerOutput:
    """Run a text through an empty cache."""
    num_blocks = num_blocks_for(len(token_ids))
    runner = ModelRunner(model, KvCache(model.config, num_blocks, model.dtype))
    (out,) = runner.forward([RunnerInput(token_ids, 0, range(num_blocks), num_logit_rows, wants_routing=True)])
    return out


def perplexity(measured: Measured, num_windows: int) -> float:
    """Return e to the mean loss of all tokens but each window's first."""
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items()) if len(text) > _MIN_TOPIC_CHARACTERS]
    token_ids = measured.tokenizer.encode("\n\n".join(topics), add_special_tokens=False).ids
    losses = []
    for start in range(0, num_windows * _WINDOW, _WINDOW):
        window = token_ids[start : start + _WINDOW]
        logits = torch.from_numpy(run_all(measured.model, window, num_logit_rows=len(window)).logits)
        losses.append(float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(window[1:]))))
    return math.exp(statistics.mean(losses))


def decode_ms(model: Transformer, token_ids: list[int], num_tokens: int) -> float:
    """Return the median time of a step of one token."""
    num_blocks = num_blocks_for(len(token_ids) + num_tokens)
    runner = ModelRunner(model, KvCache(model.config, num_blocks, model.dtype))
    runner.forward([RunnerInput(token_ids, 0, range(num_blocks), 1)])
    times = []
    for number in range(num_tokens):
        started = time.perf_counter()
        runner.forward([RunnerInput([token_ids[number]], len(token_ids) + number, range(num_blocks), 1)])
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def load(measured: Measured, held_out: Path, count: int) -> Routing | None:
    """Sum up the routing of held-out prompts and their completions."""
    seen: Routing | None = None
    with held_out.open(encoding="utf-8") as lines:
        for line in map(json.loads, islice(lines, count)):
            text = line["prompt"] + line["completion"]
            token_ids = measured.tokenizer.encode(text, add_special_tokens=False).ids
            routing = run_all(measured.model, token_ids, num_logit_rows=0).routing
            if routing is not None:
                seen = routing if seen is None else seen + routing
    return seen


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="as the worker takes them")
    parser.add_argument("--held-out", type=Path, default=Path("build/training/held_out.jsonl"))
    parser.add_argument("--documents", type=int, default=320)
    parser.add_argument("--windows", type=int, default=40, help="of 512 tokens")
    parser.add_argument("--tokens", type=int, default=60, help="steps of a run")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    models = []
    for name in arguments.models:
        loaded = load_model(name, torch.float32)
        loaded.model.prepare(FAST)
        models.append(Measured(name, loaded.model, Tokenizer.from_buffer(loaded.tokenizer.tokenizer_json)))
    prompt = models[0].tokenizer.encode(pydoc_data.topics.topics["lambda"] * 3, add_special_tokens=False).ids
    times: dict[str, list[float]] = {measured.name: [] for measured in models}
    for _ in range(arguments.runs):
        for measured in models:
            times[measured.name].append(decode_ms(measured.model, prompt[:_PROMPT_TOKENS], arguments.tokens))
    for measured in models:
        measured.token_ms = statistics.median(times[measured.name])
        measured.perplexity = perplexity(measured, arguments.windows)
        if measured.model.routed_layers:
            measured.routing = load(measured, arguments.held_out, arguments.documents)
    show(models)
    return 0


def show(models: list[Measured]) -> None:
    """Print a table, and the load of each layer's experts."""
    console, base = Console(width=110), models[0]
    table = Table("model", "perplexity", "of the base", "ms a token", "of the base")
    for measured in models:
        table.add_row(
            measured.name,
            f"{measured.perplexity:.2f}",
            f"{measured.perplexity / base.perplexity:.3f}",
            f"{measured.token_ms:.2f}",
            f"{measured.token_ms / base.token_ms:.3f}",
        )
    console.print(table)
    for measured in models:
        if (routing := measured.routing) is None:
            continue
        counts = routing.tokens_per_expert
        shares = counts / counts.sum(axis=1, keepdims=True) * counts.shape[1]
        loads = Table(
            "layer", "smallest share", "largest share", "balance", title=f"{measured.name}: fair shares are 1"
        )
        for row, layer in enumerate(measured.model.routed_layers):
            loads.add_row(
                str(layer), *(f"{x:.2f}" for x in (shares[row].min(), shares[row].max(), routing.balance[row]))
            )
        loads.add_row("all", f"{shares.min():.2f}", f"{shares.max():.2f}", f"{routing.balance.mean():.3f}")
        console.print(loads)


if __name__ == "__main__":
    sys.exit(main())
