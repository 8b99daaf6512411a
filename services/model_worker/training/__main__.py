"""`python -m services.model_worker.training`: trains experts beside a dense model, and makes one model of both."""

from __future__ import annotations

import os

# Before torch is loaded, as in the worker: threads that spin beside a busy neighbour cost far more than they gain.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from services.model_worker.model.checkpoint import CheckpointError
from services.model_worker.model.device import device_of
from services.model_worker.model.export import ExportError
from services.model_worker.model.gguf_file import GgufFile, gguf_config, load_gguf
from services.model_worker.routing import Routing
from services.model_worker.tokenizer import gguf_tokenizer
from services.model_worker.training.compose import SHIPPED_EXPERTS, compose
from services.model_worker.training.examples import ExamplesError, read_examples
from services.model_worker.training.experts_file import Experts
from services.model_worker.training.hidden import hidden_states
from services.model_worker.training.mixture import GatingOptions, MixtureShape
from services.model_worker.training.network import Network
from services.model_worker.training.report import Report
from services.model_worker.training.trainer import STATE, LossWeights, ResumeError, Trainer, TrainingOptions

EXPERTS: Final = "experts.safetensors"
RESULT: Final = "result.json"


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (CheckpointError, ExamplesError, ExportError, ResumeError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.model_worker.training", description=__doc__)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train experts", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    train.set_defaults(run=_train)
    train.add_argument("--base", type=Path, required=True, help="GGUF file of the dense model")
    train.add_argument("--data", type=Path, required=True, help="directory with train.jsonl and validation.jsonl")
    train.add_argument("--out", type=Path, required=True, help="directory for experts, tables and what --resume needs")
    train.add_argument("--hidden", type=Path, help="directory for what the lower layers give; by default in --out")
    train.add_argument("--resume", action="store_true", help="go on where a run into the same directory was")
    train.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the processor")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    train.add_argument("--first-layer", type=int, default=TrainingOptions.first_layer, help="experts from here on")
    train.add_argument("--layers", type=int, default=TrainingOptions.num_layers, help="most layers with experts")
    train.add_argument("--experts", type=int, default=MixtureShape.num_experts, help="1: a dense block, no router")
    train.add_argument("--per-token", type=int, default=MixtureShape.num_experts_per_tok, help="experts of a token")
    train.add_argument("--width", type=int, default=MixtureShape.expert_width, help="width inside an expert")
    train.add_argument("--noise", type=float, default=0.3, help="scale of noisy top-k; 0: none")
    train.add_argument("--capacity", type=float, help="room of an expert in fair shares; not given: room for all")
    for name, default in asdict(LossWeights()).items():
        train.add_argument(f"--{name}", type=float, default=default, help=f"weight of the {name} loss")
    train.add_argument("--epochs", type=float, default=TrainingOptions.epochs, help="1.5: half of the texts twice")
    train.add_argument("--steps", type=int, help="end after so many")
    train.add_argument("--batch-tokens", type=int, default=TrainingOptions.batch_tokens, help="most tokens of a pass")
    train.add_argument("--accumulation", type=int, default=TrainingOptions.accumulation, help="passes of a step")
    train.add_argument("--learning-rate", type=float, default=TrainingOptions.learning_rate)
    train.add_argument("--seed", type=int, default=TrainingOptions.seed)
    train.add_argument("--save-every", type=int, default=50, help="steps after which a run can be gone on with")
    train.add_argument("--collapse", type=float, default=0.5, help="as the worker's setting routing_collapse")
    join = commands.add_parser("compose", help="make one Hugging Face directory of base and experts")
    join.set_defaults(run=lambda parsed: compose(parsed.base, parsed.experts, parsed.out))
    join.add_argument("--base", type=Path, required=True, help="GGUF file of the dense model")
    join.add_argument("--experts", type=Path, default=SHIPPED_EXPERTS, help="what `train` wrote; default: what ships")
    join.add_argument("--out", type=Path, required=True, help="the directory")
    return parser


def _options(parsed: argparse.Namespace) -> TrainingOptions:
    return TrainingOptions(
        first_layer=parsed.first_layer,
        num_layers=parsed.layers,
        shape=MixtureShape(
            num_experts=parsed.experts,
            num_experts_per_tok=parsed.per_token,
            expert_width=parsed.width,
            norm_topk_prob=parsed.per_token > 1,
        ),
        gating=GatingOptions(noise_scale=parsed.noise, capacity_factor=parsed.capacity),
        weights=LossWeights(**{name: getattr(parsed, name) for name in asdict(LossWeights())}),
        epochs=parsed.epochs,
        max_steps=parsed.steps,
        batch_tokens=parsed.batch_tokens,
        accumulation=parsed.accumulation,
        learning_rate=parsed.learning_rate,
        seed=parsed.seed,
    )


def _train(parsed: argparse.Namespace) -> None:
    started = time.monotonic()
    options, out = _options(parsed), parsed.out
    torch.set_num_threads(parsed.threads)
    if (out / STATE).exists() and not parsed.resume:
        raise ResumeError(f"{out} has a run: go on with it by --resume, or name another directory")
    file = GgufFile(parsed.base)
    base = load_gguf(file, gguf_config(file), torch.float32, device_of(parsed.device))
    tokenizer = Tokenizer.from_str(gguf_tokenizer(file).tokenizer_json.decode())
    examples = read_examples(parsed.data / "train.jsonl", tokenizer)
    validation = read_examples(parsed.data / "validation.jsonl", tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    # Drawn on the CPU, so that a seed means the same experts everywhere.
    generator = torch.Generator().manual_seed(options.seed)
    network = Network(base, options.first_layer, options.num_layers, options.shape, options.gating, generator)
    console = Console(stderr=True)
    num_tokens = sum(len(one.token_ids) for one in (*examples, *validation))
    if not console.is_terminal:
        console.print(f"lower layers of {num_tokens} tokens first")
    with _progress(console) as progress:
        task = progress.add_task("lower layers", total=num_tokens, said="")
        hidden, hidden_validation = (
            hidden_states(
                network,
                _digest(parsed.base),
                texts,
                parsed.hidden or out / "hidden",
                lambda num_done: progress.advance(task, num_done),
            )
            for texts in (examples, validation)
        )
    trainer = Trainer(network, examples, hidden, options)
    before, _ = trainer.evaluate(validation, hidden_validation)  # of the base: new experts change nothing
    if parsed.resume and (out / STATE).exists():
        trainer.load(out)
    console.print(f"validation loss before: {before:.4f}, {time.monotonic() - started:.0f} s")
    first_step = trainer.num_done
    with Report(out, options.first_layer, first_step, parsed.collapse) as report, _progress(console) as progress:
        task = progress.add_task("training", total=trainer.num_steps, completed=first_step, said="")
        for values in trainer.run(report):
            said = f"loss {values['loss']:.3f}" + (f", balance {values['balance']:.3f}" if "balance" in values else "")
            progress.update(task, advance=1, said=said)
            number = int(values["step"]) + 1
            if number % parsed.save_every == 0 or number == trainer.num_steps:
                trainer.save(out)
                if not console.is_terminal:
                    console.print(f"step {number} of {trainer.num_steps}: {said}, {time.monotonic() - started:.0f} s")
    after, seen = trainer.evaluate(validation, hidden_validation)
    result = {
        "options": asdict(options),
        "num_train_examples": len(examples),
        "num_train_tokens": sum(len(one.token_ids) for one in examples),
        "num_steps": trainer.num_steps,
        "seconds": round(time.monotonic() - started),
        "validation_loss_before": round(before, 4),
        "validation_loss": round(after, 4),
        **({} if seen is None else _spread(seen.routing)),
    }
    about = {"base": parsed.base.name, "seed": str(options.seed)}
    Experts.of(options.first_layer, options.shape, network.layers).save(out / EXPERTS, torch.float16, about)
    (out / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"validation loss after: {after:.4f}; the experts are in {out / EXPERTS}", soft_wrap=True)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _spread(routing: Routing) -> dict[str, Any]:
    """Say how far the experts are from an even load; shares in fair ones."""
    shares = (
        routing.tokens_per_expert
        / routing.tokens_per_expert.sum(axis=1, keepdims=True)
        * routing.tokens_per_expert.shape[1]
    )
    return {
        "validation_balance": [round(value, 4) for value in routing.balance.tolist()],
        "validation_smallest_share": round(float(shares.min()), 3),
        "validation_largest_share": round(float(shares.max()), 3),
    }


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)


if __name__ == "__main__":
    sys.exit(main())
