"""`espalier generate`: one request against a running gateway."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gateway.cli.client import GatewayClient, enforcement, finish_reason, make_constraint, make_generation, print_json
from gateway.cli.errors import BAD_USAGE, CommandError
from services.rpckit.status import InvalidRequest


@dataclass(frozen=True, slots=True)
class Request:
    """A generation as the gateway takes it."""

    generation: Any


def read_text(path: Path) -> str:
    """Read a file as UTF-8.

    Raises:
        CommandError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}", BAD_USAGE) from None
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", BAD_USAGE) from None


def read_constraint(
    *,
    schema: Path | None,
    grammar: str | None,
    regex: str | None,
    choices: tuple[str, ...] = (),
    file: Path | None = None,
) -> Any:
    """Make the constraint that the flags name, None without any.

    Raises:
        CommandError: more than one, or a file that cannot be read.
    """
    if sum((schema is not None, grammar is not None, regex is not None, bool(choices), file is not None)) > 1:
        raise CommandError("give at most one of --schema, --grammar, --regex, --choice and --constraint", BAD_USAGE)
    if file is not None:
        from services.constraint.contract import from_json  # noqa: PLC0415

        try:
            return from_json(json.loads(read_text(file)))
        except (ValueError, RecursionError, InvalidRequest) as error:
            raise CommandError(f"{file}: {error}", BAD_USAGE) from None
    if schema is not None:
        return make_constraint("json_schema", read_text(schema))
    if grammar is not None:
        # A name has no dot and no slash; what has one, or exists, is a file.
        is_file = Path(grammar).is_file() or "/" in grammar or "." in grammar
        return (
            make_constraint("lark", read_text(Path(grammar))) if is_file else make_constraint("grammar_name", grammar)
        )
    if regex is not None:
        return make_constraint("regex", regex)
    return make_constraint(None, choices=choices)


def read_options(
    *, documents: tuple[str, ...] = (), default_draft: str | None = None, **words: str | None
) -> dict[str, Any]:
    """Return the options that the flags name, as plain values by the names of the contract's `CompileOptions`.

    Raises:
        CommandError: a document that is not URI=FILE, or cannot be read.
    """
    options: dict[str, Any] = {name: word for name, word in words.items() if word is not None}
    if default_draft is not None:
        options["default_draft"] = int(default_draft)
    if documents:
        options["documents"] = tuple(map(_document, documents))
    return options


def _document(flag: str) -> tuple[str, str]:
    # The last: a URI may have one in its query, where a file's name seldom has one.
    uri, separator, file = flag.rpartition("=")
    if not separator or not uri or not file:
        raise CommandError(f"--document is URI=FILE, not {flag!r}", BAD_USAGE)
    return uri, read_text(Path(file))


def read_beam(*, width: int | None, length_penalty: float | None, early_stopping: str | None) -> dict[str, Any] | None:
    """Return the beam that the flags ask for, None without one.

    Raises:
        CommandError: flags of a beam without its width.
    """
    if width is None and (length_penalty is not None or early_stopping is not None):
        raise CommandError("--length-penalty and --early-stopping go with --beam", BAD_USAGE)
    if width is None:
        return None
    return {"width": width, "length_penalty": length_penalty, "early_stopping": early_stopping}


def read_request(
    *,
    prompt: str | None,
    chat: str | None,
    system: str | None,
    constraint: Any,
    options: dict[str, Any],
    sampling: dict[str, Any],
    beam: dict[str, Any] | None = None,
    reasoning_end: str | None = None,
    num_top_logprobs: int | None = None,
    **fields: Any,
) -> Request:
    """Make a request from the flags; `fields` are those of `Generation` that flags have by the same name.

    Raises:
        CommandError: they contradict each other.
    """
    if (prompt is None) == (chat is None):
        raise CommandError("give exactly one of --prompt and --chat", BAD_USAGE)
    if system is not None and chat is None:
        raise CommandError("--system goes with --chat", BAD_USAGE)
    try:
        messages = None
        if chat is not None:
            messages = [("system", system)] if system is not None else []
            messages.append(("user", sys.stdin.read() if chat == "-" else chat))
        generation = make_generation(
            prompt=sys.stdin.read() if prompt == "-" else prompt,
            chat=messages,
            constraint=constraint,
            options=options,
            sampling=sampling,
            beam=beam,
            reasoning=None if reasoning_end is None else {"end": reasoning_end},
            logprobs=None if num_top_logprobs is None else {"num_top": num_top_logprobs},
            **fields,
        )
    except UnicodeError:  # stdin, or an argument that came through a locale without UTF-8
        raise CommandError(
            "a text is not UTF-8: convert it, and see that the locale is a UTF-8 one", BAD_USAGE
        ) from None
    return Request(generation)


def run(request: Request, *, address: str, timeout_s: float, streams: bool, prints_json: bool) -> None:
    """Send it; the text goes to stdout, a line of numbers to stderr.

    Raises:
        ServiceError: as the gateway answers.
    """
    with GatewayClient(address, timeout_s=timeout_s) as client:
        if streams:
            result = None
            for piece in client.stream(request.generation):
                if prints_json:
                    print_json(piece)
                elif piece.choice == 0:  # texts side by side would be a jumble: the others are in the JSON
                    sys.stdout.write(piece.reasoning_delta or piece.delta)
                    sys.stdout.flush()
                if piece.HasField("result") and piece.choice == 0:
                    result = piece.result
            if prints_json:
                return
            sys.stdout.write("\n")
        else:
            response = client.generate(request.generation)
            result = response.result
            if prints_json:
                print_json(response)
                return
            print("\n---\n".join([response.text, *(choice.text for choice in response.others)]))
    if result is not None:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        for warning in warnings(result):
            console.print(f"warning: {warning}", style="yellow", markup=False)
        console.print(summary(result), style="dim")


def warnings(result: Any) -> list[str]:
    """Say which keywords of the schema were not enforced because JSON Schema does not know them."""
    return [
        f"{keyword.pointer} is not enforced: {keyword.note}"
        for keyword in result.keywords
        if enforcement(keyword) == "annotation" and keyword.note.startswith("unknown keyword")
    ]


def summary(result: Any) -> str:
    """Say in a line how a text came about."""
    usage, timing = result.usage, result.timing
    validated = "validated" if result.is_validated else "not validated (no constraint)"
    return (
        f"{finish_reason(result)}, {validated}; {usage.num_prompt_tokens} + {usage.num_completion_tokens} tokens "
        f"({usage.num_forced_tokens} forced) in {usage.num_steps} steps; first after {timing.ttft_us / 1e3:.0f} ms, "
        f"then {timing.tpot_us / 1e3:.1f} ms a token; masks {timing.mask_us / 1e3:.1f} ms in all; seed {result.seed}"
    )
