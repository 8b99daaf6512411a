"""Flags that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

GatewayAddress = Annotated[
    str, typer.Option(help="The gateway.", envvar="ESPALIER_GATEWAY_ADDRESS", metavar="HOST:PORT|unix:PATH")
]
ConstraintAddress = Annotated[
    str,
    typer.Option(help="The constraint service.", envvar="ESPALIER_CONSTRAINT_ADDRESS", metavar="HOST:PORT|unix:PATH"),
]
WorkerAddress = Annotated[
    str, typer.Option(help="The model worker.", envvar="ESPALIER_WORKER_ADDRESS", metavar="HOST:PORT|unix:PATH")
]
Whitespace = Annotated[
    Literal["bounded", "compact", "spaced", "pretty", "pattern"] | None,
    typer.Option(help="White space in JSON. Default: bounded."),
]
WhitespacePattern = Annotated[
    str | None, typer.Option(help="With --whitespace pattern: a regular expression of what may stand there.")
]
PropertyOrder = Annotated[
    Literal["schema", "any"] | None, typer.Option(help="Order of an object's properties. Default: schema.")
]
Lexer = Annotated[
    Literal["dynamic_complete", "contextual"] | None,
    typer.Option(help="Lark's lexer, of Earley or of LALR, that says what a grammar means. Default: dynamic_complete."),
]
ConstraintFile = Annotated[
    Path | None, typer.Option(help="JSON file with a constraint of any kind, those made of parts too.")
]
FormatMode = Annotated[
    Literal["assert", "annotation"] | None, typer.Option("--format", help="Whether `format` counts. Default: assert.")
]
UnknownFormats = Annotated[
    Literal["annotation", "error"] | None, typer.Option(help="What an unknown `format` is. Default: annotation.")
]
Integers = Annotated[
    Literal["any", "plain"] | None, typer.Option(help="Whether 1.0 and 1e2 are integers, too. Default: any.")
]
Escapes = Annotated[
    Literal["any", "plain"] | None,
    typer.Option(help="Whether strings may have escapes they do not need. Default: any."),
]
DefaultDraft = Annotated[
    Literal["4", "6", "7", "2019", "2020"] | None,
    typer.Option(help="Draft of schemas without $schema. Default: 2020."),
]
Documents = Annotated[
    list[str] | None,
    typer.Option("--document", help="Another schema that $ref may name; several times.", metavar="URI=FILE"),
]
TimeoutS = Annotated[float, typer.Option("--timeout", help="Seconds that the call may take.", min=0.001)]
Preset = Annotated[
    Literal["balanced", "creative", "safe", "deterministic"] | None,
    typer.Option(help="Temperature, top-k and top-p that go together."),
]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy, the default.")]
TopK = Annotated[int | None, typer.Option(help="Keep the k most likely tokens.", min=0, max=2**32 - 1)]
TopP = Annotated[float | None, typer.Option(help="Keep the fewest tokens that reach this probability.")]
MinP = Annotated[float | None, typer.Option(help="Keep tokens with this part of the best probability.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text.", min=0, max=2**64 - 1)]
BeamWidth = Annotated[int | None, typer.Option("--beam", help="Search by a beam of this width.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to write.", min=1, max=2**32 - 1)]
