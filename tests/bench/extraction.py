"""Measures extraction from real documents with known records: `python -m tests.bench.extraction`.

The documents are what this machine carries (changelogs, copyright files, the list of installed packages, Python's test
e-mails), chosen by a digest of their text; the records are read out of them by parsers. With --documents-from they come
from a file of JSON lines with `schema`, `text` and `record` instead, such as the held-out part of the training data.
Prints how many results are valid, each failure with its reason, and how many fields are right, by type. A field is
right when it equals the known one as JSON does, or both have none; a record when all its fields are.

Ways, each on the same documents:
  guided       `Extract`, greedy
  beam         `Extract` with a beam of 4
  naive        what people do without a gateway: the same prompt, free text, the first JSON value in it judged by
               `jsonschema`, up to 10 attempts, the first greedy, the others at temperature 0.7
  unguided     the same with the first attempt alone

Starts `espalier up` unless --gateway-address names a gateway.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc
import jsonschema
from espalier.v1 import gateway_pb2, gateway_pb2_grpc

from gateway.cli.client import make_generation
from gateway.extraction.prompt import prompt_of
from gateway.extraction.request import Extraction
from gateway.samples import Sample, collect, schema_text
from services.rpckit.rich_status import from_item_status
from tests.support.real_model import MODEL_PATH
from tests.support.up import Up

# What a mean machine carries of each, in these proportions.
_SHARES: Final = {"changelog": 36, "package": 32, "copyright": 28, "email": 4}
_FILLING: Final = "changelog"
_MAX_TOKENS: Final = 200
_MAX_ATTEMPTS: Final = 10
_MAX_SHOWN: Final = 20
_TIMEOUT_S: Final = 600.0


@dataclass
class Tally:
    """What came of the documents of one way."""

    num_documents: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    num_right: Counter[str] = field(default_factory=Counter)
    num_fields: Counter[str] = field(default_factory=Counter)
    num_exact: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    seconds: float = 0.0

    @property
    def num_valid(self) -> int:
        """Records that satisfy their schema."""
        return self.statuses["valid"] + self.statuses["budget_closed"]


@dataclass(frozen=True)
class Document:
    """A document of some kind, and what its record must satisfy."""

    kind: str
    schema: str
    sample: Sample


@dataclass(frozen=True)
class Answer:
    """What a way made of one document."""

    status: str
    record: Mapping[str, Any] | None
    num_tokens: int
    num_prompt_tokens: int
    reason: str = ""


def real_documents(count: int) -> list[Document]:
    """Choose documents, kinds mixed: as many of each as its share says, or as there are; changelogs fill up."""
    shares = {kind: round(count * share / sum(_SHARES.values())) for kind, share in _SHARES.items()}
    found = {kind: collect(kind, limit=share) for kind, share in shares.items() if kind != _FILLING}
    found[_FILLING] = collect(_FILLING, limit=count - sum(map(len, found.values())))
    chosen = [
        (index / max(1, len(samples)), kind, sample)
        for kind, samples in found.items()
        for index, sample in enumerate(samples)
    ]
    ordered = sorted(chosen, key=lambda one: one[:2])
    return [Document(kind, schema_text(kind), sample) for _, kind, sample in ordered]


def read_documents(file: Path, count: int | None) -> list[Document]:
    """Read documents of a file, the first so many."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines()[:count])
    return [
        Document(line["family"], line["schema"], Sample(line["id"], line["text"], line["record"])) for line in lines
    ]


class Ways:
    """The ways to make a record, over one gateway."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def guided(self, document: Document) -> Answer:
        """Greedy, under the schema."""
        return self._extract(document)

    def beam(self, document: Document) -> Answer:
        """The most probable of a beam of 4, under the schema."""
        return self._extract(document, beam=gateway_pb2.Beam(width=4))

    def unguided(self, document: Document) -> Answer:
        """Free text, once."""
        return self._write_freely(document, 1)

    def naive(self, document: Document) -> Answer:
        """Free text until some of it satisfies the schema."""
        return self._write_freely(document, _MAX_ATTEMPTS)

    def _write_freely(self, document: Document, max_attempts: int) -> Answer:
        schema = json.loads(document.schema)
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        messages = prompt_of(Extraction(document.schema), document.sample.text).messages
        num_tokens = num_prompt_tokens = 0
        record: Any = None
        for attempt in range(max_attempts):
            generation = make_generation(
                chat=[(message.role, message.content) for message in messages],
                max_tokens=_MAX_TOKENS,
                sampling={"temperature": 0.7 if attempt else 0.0, "seed": attempt},
            )
            response = self._stub.Generate(gateway_pb2.GenerateRequest(generation=generation), timeout=_TIMEOUT_S)
            num_tokens += response.result.usage.num_completion_tokens
            num_prompt_tokens += response.result.usage.num_prompt_tokens
            record = first_json(response.text)
            if record is not None and validator.is_valid(record):
                return Answer("valid", record, num_tokens, num_prompt_tokens)
        # What is no valid record may still have some fields right.
        found = record if isinstance(record, dict) else None
        return Answer("failed", found, num_tokens, num_prompt_tokens, f"no valid record in {max_attempts} attempts")

    def _extract(self, document: Document, **options: Any) -> Answer:
        extraction = gateway_pb2.Extraction(json_schema=document.schema, max_tokens=_MAX_TOKENS, **options)
        asked = gateway_pb2.Document(id=document.sample.id, text=document.sample.text)
        request = gateway_pb2.ExtractRequest(extraction=extraction, document=asked)
        result = self._stub.Extract(request, timeout=_TIMEOUT_S).result
        status = gateway_pb2.ExtractionStatus.Name(result.status).removeprefix("EXTRACTION_STATUS_").lower()
        if result.HasField("error"):
            error = from_item_status(result.error)
            return Answer(status, None, 0, 0, f"{error.reason}: {error.message}")
        usage = result.usage
        return Answer(status, json.loads(result.record), usage.num_completion_tokens, usage.num_prompt_tokens)


def first_json(text: str) -> Any:
    """Return the first JSON object of a text, whatever stands around it; None where there is none."""
    for start in (found.start() for found in re.finditer(r"\{", text)):
        try:
            return json.JSONDecoder().raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
    return None


def measure(
    way: Callable[[Document], Answer], chosen: list[Document], *, concurrency: int, shows: bool = False
) -> Tally:
    """Make a record of each document, so many at a time."""
    tally = Tally(num_documents=len(chosen))
    started = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        for document, answer in zip(chosen, pool.map(way, chosen), strict=True):
            _count(tally, document, answer)
            if shows:
                print(f"\r{tally.statuses.total()} of {len(chosen)}", end="", file=sys.stderr, flush=True)
    tally.seconds = time.perf_counter() - started
    if shows:
        print(file=sys.stderr)
    return tally


def _count(tally: Tally, document: Document, answer: Answer) -> None:
    sample = document.sample
    tally.statuses[answer.status] += 1
    tally.num_tokens += answer.num_tokens
    tally.num_prompt_tokens += answer.num_prompt_tokens
    if answer.reason:
        tally.failures.append(f"{document.kind} {sample.id}: {answer.reason}")
    found: Mapping[str, Any] = answer.record or {}
    properties = json.loads(document.schema)["properties"]
    is_exact = answer.status != "failed" and set(found) <= set(properties)
    for name, schema in properties.items():
        if name not in sample.record and name not in found:
            continue
        is_right = name in sample.record and name in found and found[name] == sample.record[name]
        tally.num_fields[type_of(schema)] += 1
        tally.num_right[type_of(schema)] += is_right
        is_exact &= is_right
    tally.num_exact += is_exact


def type_of(schema: Mapping[str, Any]) -> str:
    """Name the type of a field."""
    if "enum" in schema:
        return "choice"
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kind = next(kind for kind in kinds if kind != "null")
    if kind != "string":
        return str(kind)
    if schema.get("format") == "date":
        return "date"
    return "pattern" if "pattern" in schema or "format" in schema else "free text"


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the processor time that processes have used so far, by their names."""
    used = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def show(name: str, tally: Tally) -> None:
    """Print what came of a way."""
    print(f"\n{name}: {tally.num_documents} documents in {tally.seconds:.0f} s")
    for failure in tally.failures[:_MAX_SHOWN]:
        print(f"  failed: {failure}")
    if len(tally.failures) > _MAX_SHOWN:
        print(f"  and {len(tally.failures) - _MAX_SHOWN} more")
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(tally.statuses.items()))
    print(f"  valid: {tally.num_valid / tally.num_documents:.1%} ({statuses})")
    right, fields = tally.num_right, tally.num_fields
    shares = {kind: f"{right[kind]}/{fields[kind]} = {right[kind] / fields[kind]:.0%}" for kind in sorted(fields)}
    by_type = ", ".join(f"{kind} {share}" for kind, share in shares.items())
    print(f"  fields right: {right.total()}/{fields.total()} = {right.total() / fields.total():.1%} ({by_type})")
    print(f"  records exact: {tally.num_exact}")
    if tally.num_valid == 0:
        print(f"  no valid record, for {tally.num_tokens} tokens and {tally.num_prompt_tokens} of prompts")
        return
    valid = tally.num_valid
    print(
        f"  per valid record: {tally.num_tokens / valid:.0f} tokens, {tally.num_prompt_tokens / valid:.0f} of prompts, "
        f"{tally.seconds / valid:.2f} s"
    )


def main() -> int:
    """Measure what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL_PATH), help="what `espalier up` is to run")
    parser.add_argument("--gateway-address", help="a gateway that runs already")
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--documents-from", type=Path, help="a file of JSON lines to take them from")
    parser.add_argument("--ways", default="guided", help="of guided, beam, unguided and naive, with commas between")
    parser.add_argument("--concurrency", default="8", help="documents at a time; several with commas between")
    arguments = parser.parse_args()
    if arguments.documents_from is None:
        chosen = real_documents(arguments.documents)
    else:
        chosen = read_documents(arguments.documents_from, arguments.documents)
    print(f"{len(chosen)} documents: {dict(Counter(document.kind for document in chosen))}")
    with ExitStack() as closing:
        address = arguments.gateway_address
        pids: dict[str, int] = {}
        if address is None:
            directory = Path(closing.enter_context(TemporaryDirectory(prefix="esp")))
            up = Up(directory, model=arguments.model, OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="2").wait_until_ready()
            closing.callback(up.stop)
            address = up.addresses["gateway"]
            pids = up.pids()
        ways = Ways(gateway_pb2_grpc.GatewayServiceStub(closing.enter_context(grpc.insecure_channel(address))))
        rates = {}
        for name in arguments.ways.split(","):
            for concurrency in map(int, arguments.concurrency.split(",")):
                used_before = cpu_seconds(pids)
                tally = measure(getattr(ways, name), chosen, concurrency=concurrency, shows=sys.stderr.isatty())
                show(f"{name}, {concurrency} at a time", tally)
                for service, used in cpu_seconds(pids).items():
                    busy = used - used_before[service]
                    print(f"  {service}: {busy / tally.num_documents:.2f} s of a processor a document")
                rates[name, concurrency] = rate = tally.num_documents / tally.seconds
                first = next(rate for (other, _), rate in rates.items() if other == name)
                print(f"  {rate:.2f} documents a second, {rate / first:.2f} times the first")
    return 0


if __name__ == "__main__":
    sys.exit(main())
