"""`espalier demo`: the main job, on real documents, from nothing to validated records."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.client import GatewayClient, finish_reason, make_constraint, make_generation
from gateway.cli.errors import show
from gateway.cli.logs import LogPrinter
from gateway.cli.stack import Stack, StackError, StackOptions
from gateway.cli.up import private_directory
from gateway.extraction.prompt import prompt_of
from gateway.extraction.request import Extraction
from services.rpckit.status import ServiceError

_TIMEOUT_S = 300.0
_TABLE_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Task:
    """Something to write: what the user asks, and the constraint on the answer."""

    title: str
    about: str
    """What is shown: the document, or the whole question."""
    question: str
    constraint: Any
    constraint_name: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task."""

    task: Task
    text: str
    result: Any


async def run(model_path: str, *, is_verbose: bool) -> int:
    """Start the stack, do the tasks, stop it; returns 0 only when every result was validated."""
    console = Console(highlight=False, soft_wrap=True)
    printer = LogPrinter(is_quiet=not is_verbose)
    with private_directory() as name:
        directory = Path(name)
        # Unix sockets: they cannot be taken by anybody else, as ports can.
        options = StackOptions(
            model=model_path,
            directory=directory,
            worker_address=f"unix:{directory}/worker.sock",
            constraint_address=f"unix:{directory}/constraint.sock",
            gateway_address=f"unix:{directory}/gateway.sock",
            restarts=False,
        )
        console.print("starting worker, constraint service, gateway and cache (the very first start compiles kernels)")
        started = time.monotonic()
        try:
            async with Stack(options, printer) as stack:
                processes = ", ".join(f"{name} {service.child.pid}" for name, service in stack.services.items())
                console.print(f"ready after {time.monotonic() - started:.1f} s; processes: {processes}\n")
                outcomes = await asyncio.to_thread(_do_all, options.gateway_address, console)
        except StackError as error:
            console.print(Text(f"error: {error}", style="bold red"))
            return 1
        except ServiceError as error:
            show(error)
            return 1
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(_table(outcomes))
    num_validated = sum(outcome.result.is_validated for outcome in outcomes)
    console.print(f"{num_validated} of {len(outcomes)} results validated; everything is stopped")
    return 0 if num_validated == len(outcomes) else 1


def tasks() -> list[Task]:
    """Make the tasks from the files in `demo_data`."""
    documents = {"changelog": "a Debian changelog entry", "email": "an e-mail", "korean": "a text in Korean"}
    made = []
    for name, title in documents.items():
        document, schema = _data(f"{name}.txt"), _data(f"{name}.schema.json")
        # As `Extract` asks; that has no tokens to show while it runs.
        (message,) = prompt_of(Extraction(schema), document).messages
        constraint = make_constraint("json_schema", schema)
        made.append(Task(title, document, message.content, constraint, f"{name}.schema.json", 200))
    question = "Name three fruits and the colour of each."
    made.append(
        Task("a question", question, question, make_constraint("lark", _data("answer.lark")), "answer.lark", 100)
    )
    return made


def _data(name: str) -> str:
    return (resources.files("gateway.cli") / "demo_data" / name).read_text(encoding="utf-8")


def _do_all(address: str, console: Console) -> list[Outcome]:
    with GatewayClient(address, timeout_s=_TIMEOUT_S) as client:
        info = client.model_info()
        console.print(
            f"model: {info.name}, {info.num_parameters / 1e6:.0f} M parameters, vocabulary of {info.vocab_size}\n"
        )
        return [_do(task, client, console) for task in tasks()]


def _do(task: Task, client: GatewayClient, console: Console) -> Outcome:
    """Write one text, showing tokens as they come: those that the constraint forced are dim and underlined."""
    console.rule(f"{task.title}, under {task.constraint_name}", align="left")
    console.print(Text(task.about.rstrip(), style="italic dim"))
    console.print()
    generation = make_generation(
        chat=[("user", task.question)],
        constraint=task.constraint,
        options={"whitespace": "spaced"},
        max_tokens=task.max_tokens,
    )
    text = ""
    result: Any = None
    for piece in client.stream(generation):
        text += piece.delta
        is_forced = piece.num_tokens > 0 and piece.num_forced_tokens == piece.num_tokens
        console.print(Text(piece.delta, style="dim underline" if is_forced else "bold"), end="")
        sys.stdout.flush()
        if piece.HasField("result"):
            result = piece.result
    console.print("\n")
    if result.is_validated:
        console.print("validated", style="green", end=": ")
        console.print(Text(_shown(text)))
    else:
        console.print("NOT validated", style="bold red")
    console.print()
    return Outcome(task, text, result)


def _shown(text: str) -> str:
    """Read JSON back and write it in one line, so that what is shown is what a program would read."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(
        "result", "ended by", "validated", title="forced tokens are written without a forward pass of their own"
    )
    for heading in ("prompt", "tokens", "forced", "steps", "TTFT ms", "TPOT ms", "masks ms"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        result = outcome.result
        usage, timing = result.usage, result.timing
        table.add_row(
            outcome.task.title,
            finish_reason(result),
            "yes" if result.is_validated else "NO",
            str(usage.num_prompt_tokens),
            str(usage.num_completion_tokens),
            str(usage.num_forced_tokens),
            str(usage.num_steps),
            f"{timing.ttft_us / 1e3:.0f}",
            f"{timing.tpot_us / 1e3:.1f}",
            f"{timing.mask_us / 1e3:.1f}",
        )
    return table
