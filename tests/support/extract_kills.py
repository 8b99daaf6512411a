"""An extraction job in which everything is killed at random points: the command, each service, the cache."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from gateway.samples import KINDS, collect
from tests.support.up import ROOT, SERVICES, Up, environment

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["mail", "package", "other"]},
        "year": {"type": "integer", "minimum": 1990, "maximum": 2099},
        "tags": {"type": "array", "items": {"enum": ["한국", "free", "old"]}, "maxItems": 2, "uniqueItems": True},
    },
    "required": ["kind", "year", "tags"],
    "additionalProperties": False,
}
_TIMEOUT_S = 900.0


@dataclass
class Report:
    """What was killed, and what is wrong with the results."""

    kills: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run(up: Up, directory: Path, *, num_documents: int, num_kills: int, seed: int) -> Report:
    """Extract from real documents; kill one thing after another, each when so many results are there; check all."""
    rng, report = random.Random(seed), Report()
    texts = [sample.text for kind in KINDS for sample in collect(kind)]
    documents = [{"id": f"{number}", "text": texts[number % len(texts)]} for number in range(num_documents)]
    source, schema, output = directory / "in.jsonl", directory / "schema.json", directory / "out.jsonl"
    source.write_text("".join(json.dumps(document) + "\n" for document in documents))
    schema.write_text(json.dumps(SCHEMA))
    targets = [("command", *SERVICES)[number % 5] for number in range(num_kills)]
    rng.shuffle(targets)
    points = sorted(rng.sample(range(num_documents), num_kills))
    started = time.monotonic()
    command = _start(up, source, schema, output)
    for point, target in zip(points, targets, strict=True):
        while _num_lines(output) < point and command.poll() is None:
            time.sleep(0.02)
        if command.poll() is not None:
            break
        time.sleep(rng.random() / 4)
        if target == "command":
            command.kill()
            command.wait()
            command = _start(up, source, schema, output)
        elif (pid := up.pids().get(target)) is not None:
            os.kill(pid, signal.SIGKILL)
        else:
            continue  # dead already, and not yet there again
        report.kills[target] += 1
    code = command.wait(_TIMEOUT_S)
    report.seconds = time.monotonic() - started
    _check(documents, output, report)
    if code != (3 if report.statuses["failed"] else 0):
        report.problems.append(f"the command ended with {code}")
    return report


def _start(up: Up, source: Path, schema: Path, output: Path) -> subprocess.Popen[bytes]:
    flags = ["--schema", schema, "--input", source, "--output", output, "--gateway-address", up.addresses["gateway"]]
    with (output.parent / "command.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gateway.cli.main", "extract", "--resume", "--max-tokens", "60", *map(str, flags)],
            env=environment(),
            cwd=ROOT,
            stderr=log,
        )


def _num_lines(output: Path) -> int:
    return output.read_bytes().count(b"\n") if output.exists() else 0


def _check(documents: list[dict[str, Any]], output: Path, report: Report) -> None:
    results = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    if [result["id"] for result in results] != [document["id"] for document in documents]:
        report.problems.append(f"{len(results)} results are not one for each of {len(documents)} documents, in order")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for result in results:
        report.statuses[result["status"]] += 1
        if result["status"] == "failed":
            report.reasons[result["error"]["reason"]] += 1
        elif not validator.is_valid(result["record"]):
            report.problems.append(f"{result['id']}: {result['record']} does not satisfy the schema")
