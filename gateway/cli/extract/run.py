"""`espalier extract`: a job from the command line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from espalier.v1 import gateway_pb2
from rich.console import Console

from gateway.cli import errors
from gateway.cli.client import make_options
from gateway.cli.errors import BAD_USAGE, CommandError
from gateway.cli.extract.client import ExtractionClient
from gateway.cli.extract.documents import Document, Documents
from gateway.cli.extract.job import Job
from gateway.cli.extract.progress import JobProgress, summary
from gateway.cli.extract.results import JsonLines, Result, ResultFile, Table
from gateway.cli.extract.schema import columns_of
from gateway.cli.generate import read_text
from services.rpckit.enums import with_words

_DEFAULT_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th document, from the one with number `index`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `INDEX/COUNT`.

        Raises:
            CommandError: it is something else.
        """
        index, _, count = text.partition("/")
        if index.isdigit() and count.isdigit() and int(index) < int(count):
            return cls(int(index), int(count))
        raise CommandError(f"--shard is INDEX/COUNT, from 0/COUNT, not {text!r}", BAD_USAGE)

    def path(self, path: Path) -> Path:
        """Return this shard's own file: `out.0-of-4.jsonl` for `out.jsonl`."""
        return path.with_name(f"{path.stem}.{self.index}-of-{self.count}{path.suffix}")


def make_extraction(
    *,
    schema: str,
    options: dict[str, Any],
    instructions: str | None,
    examples: Path | None,
    shows_schema: bool,
    sampling: dict[str, Any],
    beam: dict[str, Any] | None,
    timeout_s: float | None,
    **fields: Any,
) -> gateway_pb2.Extraction:
    """Make the message of what the flags ask for; `fields` are those that flags have by the same name.

    Raises:
        CommandError: a file cannot be read, or is not what it should be.
    """
    extraction = gateway_pb2.Extraction(
        json_schema=schema,
        compile_options=make_options(options),
        instructions=instructions or "",
        examples=[] if examples is None else list(_examples(examples)),
        shows_schema=shows_schema,
        timeout_ms=None if timeout_s is None else max(1, round(timeout_s * 1e3)),
        **fields,
    )
    for message, given in ((gateway_pb2.Sampling, sampling), (gateway_pb2.Beam, beam or {})):
        values = {name: value for name, value in given.items() if value is not None}
        if values:
            getattr(extraction, message.DESCRIPTOR.name.lower()).CopyFrom(with_words(message, **values))
    return extraction


def _examples(file: Path) -> Iterator[gateway_pb2.ExtractionExample]:
    for number, line in enumerate(read_text(file).splitlines(), 1):
        try:
            value = json.loads(line)
            text, record = value["text"], value["record"]
        except (ValueError, KeyError, TypeError):
            raise CommandError(
                f"{file}, line {number}: an example is an object with `text` and `record`", BAD_USAGE
            ) from None
        if not isinstance(record, str):
            record = json.dumps(record, ensure_ascii=False)
        yield gateway_pb2.ExtractionExample(text=str(text), record=record)


def run(
    schema: str,
    extraction: gateway_pb2.Extraction,
    documents: Documents,
    *,
    output: str,
    address: str,
    concurrency: int,
    shard: Shard,
    resumes: bool,
    overwrites: bool,
    patience_s: float,
    input_fields: dict[str, str],
) -> int:
    """Run a job; returns the exit code: 0 when every document has a record that satisfies the schema.

    Raises:
        ServiceError: the gateway refuses the extraction.
        CommandError: a file is not as it should be, or the services are away.
    """
    path = None if output == "-" else Path(output)
    if resumes and (overwrites or path is None):
        other = "--overwrite" if overwrites else "standard output, which begins anew each time"
        raise CommandError(f"--resume does not go with {other}", BAD_USAGE)
    if path is not None and shard.count > 1:
        path = shard.path(path)
    is_table = path is not None and path.suffix.lower() == ".csv"
    results = ResultFile(
        path,
        Table(columns_of(schema)) if is_table else JsonLines(),
        _digests(extraction) | input_fields | {"shard": f"{shard.index}/{shard.count}"},
        resumes=resumes,
        overwrites=overwrites,
    )
    try:
        own = islice(iter(documents), shard.index, None, shard.count)
        _skip(own, results)
        is_whole = asyncio.run(_run(extraction, own, documents, results, address, concurrency, patience_s))
    finally:
        results.close()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(summary(results.counts))
    if not is_whole:
        console.print("stopped; --resume goes on")
        return errors.INTERRUPTED
    return errors.REFUSED if results.counts["failed"] else 0


async def _run(
    extraction: gateway_pb2.Extraction,
    own: Iterator[Document],
    documents: Documents,
    results: ResultFile,
    address: str,
    concurrency: int,
    patience_s: float,
) -> bool:
    timeout_s = extraction.timeout_ms / 1e3 if extraction.HasField("timeout_ms") else _DEFAULT_TIMEOUT_S
    client = ExtractionClient(address, extraction, timeout_s=timeout_s)
    with JobProgress(documents, results.counts) as progress:

        def write(result: Result) -> None:
            results.append(result)
            progress.advance()

        job = Job(client.extract, client.probe, write, say=progress.say, concurrency=concurrency, patience_s=patience_s)
        running = asyncio.ensure_future(job.run(own))
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if job.is_stopping:
                running.cancel()
                return
            progress.say("finishing the documents under way; once more to leave them")
            job.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            return await running
        except asyncio.CancelledError:
            return False
        finally:
            await client.close()


def _skip(documents: Iterator[Document], results: ResultFile) -> None:
    """Read past the documents that have a result.

    Raises:
        CommandError: the last of them is another one than the input has there.
    """
    if results.num_results == 0:
        return
    last = next(islice(documents, results.num_results - 1, None), None)
    if last is None or last.id != results.last_id:
        raise CommandError(
            f"the output has {results.num_results} results, the last of document {results.last_id!r}, but the input "
            f"has {'fewer documents' if last is None else f'{last.id!r} there'}: is it the same input?",
            BAD_USAGE,
        )


def _digests(extraction: gateway_pb2.Extraction) -> dict[str, str]:
    """Return a digest of each thing that is said of an extraction, so that a change can be named."""
    digests = {}
    for field, _ in extraction.ListFields():
        alone = gateway_pb2.Extraction()
        alone.CopyFrom(extraction)
        for other, _ in extraction.ListFields():
            if other.name != field.name:
                alone.ClearField(other.name)  # type: ignore[arg-type]
        digests[field.name] = hashlib.sha256(alone.SerializeToString(deterministic=True)).hexdigest()
    return digests
