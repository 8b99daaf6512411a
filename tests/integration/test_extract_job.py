"""`espalier extract` against a stack whose services die, and what the command says and leaves."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support import extract_kills
from tests.support.up import ROOT, SERVICES, Up, environment, espalier

SCHEMA = extract_kills.SCHEMA


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("x"))
    yield up.wait_until_ready()
    assert up.stop() == 0


def write_input(directory: Path, num_documents: int) -> list[str]:
    lines = [json.dumps({"id": f"d{n}", "text": f"Document {n} 한국어"}) for n in range(num_documents)]
    (directory / "in.jsonl").write_text("\n".join(lines) + "\n")
    (directory / "schema.json").write_text(json.dumps(SCHEMA))
    return ["extract", "--schema", str(directory / "schema.json"), "--input", str(directory / "in.jsonl")]


def read_results(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def at(up: Up) -> list[str]:
    return ["--gateway-address", up.addresses["gateway"], "--max-tokens", "60"]


def test_records_with_all_that_is_known_of_them(tmp_path: Path, at: list[str]) -> None:
    job = write_input(tmp_path, 12)
    done = espalier(*job, "--output", str(tmp_path / "out.jsonl"), "--exact-scores", *at)
    assert done.returncode == 0, done.stderr
    assert "12 documents" in done.stderr
    results = read_results(tmp_path / "out.jsonl")
    assert [result["id"] for result in results] == [f"d{n}" for n in range(12)]
    for result in results:
        jsonschema.validate(result["record"], SCHEMA)
        assert result["fields"]["/kind"]["mean_logprob"] < 0
        low, high = result["removed_mass"]
        assert 0 < low == high < 1
        assert result["num_tokens"] > 0


def test_an_output_is_the_same_however_many_are_at_work(tmp_path: Path, at: list[str]) -> None:
    job = write_input(tmp_path, 12)
    records = []
    for concurrency in ("1", "8"):
        file = tmp_path / f"out{concurrency}.jsonl"
        espalier(*job, "--output", str(file), "--concurrency", concurrency, *at)
        records.append([(result["id"], result["status"], result["record"]) for result in read_results(file)])
    assert records[0] == records[1]


def test_a_table_in_a_table_out(tmp_path: Path, at: list[str]) -> None:
    job = write_input(tmp_path, 0)
    (tmp_path / "in.csv").write_text("id,text\na,one\nb,\nc,three\n")
    done = espalier(*job[:3], "--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv"), *at)
    assert done.returncode == 3  # one of them is empty
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert rows[1]["status"] == "failed"
    assert rows[1]["error"].startswith("INVALID_REQUEST: the document is empty")
    assert rows[0]["kind"] in SCHEMA["properties"]["kind"]["enum"]


def test_shards_together_are_the_whole(tmp_path: Path, at: list[str]) -> None:
    job = write_input(tmp_path, 10)
    for index in range(3):
        done = espalier(*job, "--output", str(tmp_path / "out.jsonl"), "--shard", f"{index}/3", "--resume", *at)
        assert done.returncode == 0, done.stderr
    found = [result["id"] for n in range(3) for result in read_results(tmp_path / f"out.{n}-of-3.jsonl")]
    assert sorted(found) == sorted(f"d{n}" for n in range(10))
    assert not (tmp_path / "out.jsonl").exists()


def test_standard_input_and_output(up: Up, tmp_path: Path, at: list[str]) -> None:
    job = write_input(tmp_path, 0)
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", *job[:3], "--input", "-", *at],
        input=b'"one"\n{"id": "two", "text": "2"}\n',
        capture_output=True,
        timeout=60,
        env=environment(),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["0", "two"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_resume_goes_on(up: Up, tmp_path: Path, at: list[str], number: int) -> None:
    job = [*write_input(tmp_path, 400), "--output", str(tmp_path / "out.jsonl"), *at]
    running = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", *job],
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=ROOT,
        text=True,
    )
    while not (tmp_path / "out.jsonl").exists() or len(read_results(tmp_path / "out.jsonl")) < 3:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "--resume goes on" in said
    num_before = len(read_results(tmp_path / "out.jsonl"))
    assert 3 <= num_before < 400
    (tmp_path / "in.jsonl").write_text("".join((tmp_path / "in.jsonl").read_text().splitlines(True)[: num_before + 5]))
    done = espalier(*job, "--resume")
    assert done.returncode == 0, done.stderr
    assert [result["id"] for result in read_results(tmp_path / "out.jsonl")] == [f"d{n}" for n in range(num_before + 5)]


def test_what_is_wrong_with_the_job_is_said_before_any_document(tmp_path: Path, up: Up, at: list[str]) -> None:
    job = write_input(tmp_path, 5)
    (tmp_path / "bad.json").write_text('{"type": "strange"}')
    output = ["--output", str(tmp_path / "out.jsonl")]
    cases = {
        ("--schema", str(tmp_path / "bad.json")): (3, "pointer: /type"),
        ("--max-tokens", "2"): (3, "BUDGET_TOO_SMALL"),
        ("--top-p", "7"): (3, "extraction.sampling.top_p"),
        ("--input", str(tmp_path / "nobody")): (2, "No such file"),
        ("--shard", "3/3"): (2, "--shard is INDEX/COUNT"),
        ("--resume",): (2, "--resume does not go with --overwrite"),
    }
    for flags, (code, said) in cases.items():
        done = espalier(*job, *output, "--overwrite", *at, *flags)
        assert done.returncode == code, (flags, done.stderr)
        assert said in done.stderr
    done = espalier(*job, *output, *at, "--gateway-address", "unix:/nobody", "--patience", "1", "--overwrite")
    assert done.returncode == 4
    assert "is `espalier up` running" in done.stderr


def test_resume_refuses_another_job(tmp_path: Path, at: list[str]) -> None:
    job = [*write_input(tmp_path, 3), "--output", str(tmp_path / "out.jsonl"), *at]
    assert espalier(*job).returncode == 0
    assert "--resume goes on with it" in espalier(*job).stderr
    assert "another instructions" in espalier(*job, "--resume", "--instructions", "Be quick.").stderr
    (tmp_path / "in.jsonl").write_text('"another"\n' * 3)
    assert "is it the same input?" in espalier(*job, "--resume").stderr


@pytest.mark.slow
def test_kills_of_everything_lose_and_double_nothing(up: Up, tmp_path: Path) -> None:
    report = extract_kills.run(up, tmp_path, num_documents=120, num_kills=5, seed=3)
    assert report.problems == []
    assert set(report.kills) == {"command", *SERVICES}
    assert report.statuses.total() == 120
    assert report.statuses["failed"] == 0
