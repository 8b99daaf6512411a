"""The flags of `espalier routing`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.errors import BAD_USAGE, CommandError
from gateway.cli.options import (
    ConstraintFile,
    GatewayAddress,
    Lexer,
    PropertyOrder,
    Seed,
    Temperature,
    TimeoutS,
    Whitespace,
    WorkerAddress,
)


def routing(
    out: Annotated[Path, typer.Option(help="The picture: a file that ends in .html or .png.", metavar="FILE")],
    text: Annotated[
        str | None, typer.Option(help="Raw text, as `generate --prompt` takes it; `-` reads it from stdin.")
    ] = None,
    chat: Annotated[
        str | None, typer.Option(help="What a user says; the model's chat template is put around it.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="With --chat: what the system says first.")] = None,
    schema: Annotated[Path | None, typer.Option(help="File with a JSON Schema for what is written.")] = None,
    grammar: Annotated[str | None, typer.Option(help="File with a Lark grammar, or the name of one.")] = None,
    regex: Annotated[str | None, typer.Option(help="Regular expression that all that is written must match.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="A text that may be the answer; give it several times.")
    ] = None,
    constraint: ConstraintFile = None,
    whitespace: Whitespace = None,
    property_order: PropertyOrder = None,
    lexer: Lexer = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens to write; 0 shows the text alone.", min=0, max=2**32 - 1)
    ] = None,
    temperature: Temperature = None,
    seed: Seed = None,
    worker_address: WorkerAddress = "127.0.0.1:50061",
    gateway_address: GatewayAddress = "127.0.0.1:50060",
    timeout: TimeoutS = 300.0,
) -> None:
    """Draw which experts the tokens of a text go to, layer by layer, and those of what is written behind it.

    Asks a running gateway for the text, and the worker behind it for the experts.
    """
    from gateway.cli.generate import read_constraint, read_options, read_request  # noqa: PLC0415
    from gateway.cli.routing.run import Addresses, run  # noqa: PLC0415

    if (text is None) == (chat is None):
        raise CommandError("give exactly one of --text and --chat", BAD_USAGE)
    given = read_constraint(schema=schema, grammar=grammar, regex=regex, choices=tuple(choice or ()), file=constraint)
    writes = max_tokens != 0
    if given is not None and not writes:
        raise CommandError("--max-tokens 0 writes nothing, so it goes with no constraint", BAD_USAGE)
    request = read_request(
        prompt=text,
        chat=chat,
        system=system,
        constraint=given,
        options=read_options(whitespace=whitespace, property_order=property_order, lexer=lexer),
        sampling={"temperature": temperature, "seed": seed},
        num_top_logprobs=0,
        max_tokens=max_tokens,
    )
    addresses = Addresses(gateway_address, worker_address)
    run(request.generation, writes=writes, out=out, addresses=addresses, timeout_s=timeout)
