"""`espalier check`: how a running constraint service enforces a constraint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.cli.client import ConstraintClient, GatewayClient, enforcement, make_options
from gateway.cli.errors import BAD_USAGE, REFUSED, CommandError


def run(
    *,
    constraint: Any,
    options: dict[str, Any] | None = None,
    text: Path | None,
    constraint_address: str,
    gateway_address: str,
    timeout_s: float,
) -> None:
    """Compile the constraint and print the report; then validate `text` where one is given.

    Raises:
        ServiceError: the constraint is refused, or a service is away.
        CommandError: the text does not satisfy it.
    """
    compile_options = make_options(options or {})
    with GatewayClient(gateway_address, timeout_s=timeout_s) as gateway:
        vocabulary_digest = gateway.model_info().vocabulary_digest
    console = Console(highlight=False, soft_wrap=True)
    with ConstraintClient(constraint_address, timeout_s=timeout_s) as client:
        compiled = client.compile(constraint, compile_options, vocabulary_digest)
        if compiled.keywords:
            table = Table("keyword at", "is enforced by", "note")
            for keyword in compiled.keywords:
                table.add_row(keyword.pointer, explained(enforcement(keyword)), keyword.note)
            console.print(table)
        console.print(
            f"compiled in {compiled.compile_us / 1e3:.1f} ms; the shortest text has {compiled.min_bytes} bytes; "
            f"{compiled.start.num_allowed} tokens may come first"
        )
        if text is None:
            return
        try:
            judged = client.validate(constraint, compile_options, text.read_bytes())
        except OSError as error:
            raise CommandError(f"cannot read {text}: {error.strerror}", BAD_USAGE) from None
    if not judged.is_valid:
        reasons = "\n".join(
            f"  {item.instance_pointer or '(whole text)'}: {item.message}" for item in judged.violations
        )
        raise CommandError(f"{text} does not satisfy the constraint:\n{reasons}", REFUSED)
    console.print(f"{text} satisfies the constraint")


def explained(enforcement_name: str) -> str:
    """Say what an enforcement means."""
    return {
        "masked": "the mask",
        "checked": "a check",
        "annotation": "nothing: it is an annotation",
    }.get(enforcement_name, enforcement_name)
