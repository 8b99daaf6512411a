"""The output of a job: any place at which a kill may cut it, and what must not be mixed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.errors import CommandError
from gateway.cli.extract.results import JsonLines, Result, ResultFile, Table

SETTINGS = {"json_schema": "1", "shard": "0/1"}
RESULTS = [
    Result("a", "valid", '{"이름": "김치", "n": 1.50, "tags": ["x"]}', details={"seconds": 1.5}),
    Result("b\n2", "failed", reason="CONTEXT_EXCEEDED", message='too "long",\nby far'),
    Result("c", "budget_closed", '{"이름": "a\\nb", "n": 2}', details={"seconds": 0.5}),
    Result("a", "valid", "{}"),
]
FORMATS = {"jsonl": JsonLines(), "csv": Table(["이름", "n", "tags"])}


def opened(path: Path, name: str, *, resumes: bool = False, overwrites: bool = False, **settings: str) -> ResultFile:
    return ResultFile(path, FORMATS[name], SETTINGS | settings, resumes=resumes, overwrites=overwrites)


def write(path: Path, name: str, results: list[Result], **options: Any) -> None:
    file = opened(path, name, **options)
    for result in results:
        file.append(result)
    file.close()


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_anywhere_goes_on_and_ends_the_same(tmp_path: Path, name: str) -> None:
    whole = tmp_path / "whole"
    write(whole, name, RESULTS)
    content = whole.read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(content) + 1):
        write(cut, name, [], overwrites=True)
        cut.write_bytes(content[:length])
        file = opened(cut, name, resumes=True)
        num_there = file.num_results
        assert file.last_id == (RESULTS[num_there - 1].document_id if num_there else None)
        file.close()
        write(cut, name, RESULTS[num_there:], resumes=True)
        assert cut.read_bytes() == content, length


def test_json_lines_keep_the_record_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "out", "jsonl", RESULTS)
    lines = (tmp_path / "out").read_text("utf-8").splitlines()
    assert '"n": 1.50' in lines[0]
    first, failed, *_ = map(json.loads, lines)
    assert first == {
        "status": "valid",
        "id": "a",
        "record": {"이름": "김치", "n": 1.5, "tags": ["x"]},
        "seconds": 1.5,
    }
    assert failed["record"] is None
    assert failed["error"] == {"reason": "CONTEXT_EXCEEDED", "message": 'too "long",\nby far'}


def test_a_table_has_a_column_for_each_property(tmp_path: Path) -> None:
    write(tmp_path / "out", "csv", RESULTS)
    with (tmp_path / "out").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["이름"] for row in rows] == ["김치", "", "a\nb", ""]
    assert rows[0]["n"] == "1.50"
    assert rows[0]["tags"] == '["x"]'
    assert rows[1]["error"].startswith("CONTEXT_EXCEEDED: too")


def test_an_output_that_is_there_is_not_touched_by_accident(tmp_path: Path) -> None:
    write(tmp_path / "out", "jsonl", RESULTS)
    with pytest.raises(CommandError, match="--resume goes on with it"):
        opened(tmp_path / "out", "jsonl")
    with pytest.raises(CommandError, match="another json_schema"):
        opened(tmp_path / "out", "jsonl", resumes=True, json_schema="2")
    write(tmp_path / "out", "jsonl", RESULTS[:1], overwrites=True)
    assert len((tmp_path / "out").read_text("utf-8").splitlines()) == 1


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out", "jsonl", [])
    (tmp_path / "out").write_text("[1]\n")
    with pytest.raises(CommandError, match="no result of a job"):
        opened(tmp_path / "out", "jsonl", resumes=True)


def test_one_process_writes_a_file(tmp_path: Path) -> None:
    file = opened(tmp_path / "out", "jsonl")
    file.append(RESULTS[0])
    program = (
        "import sys; from pathlib import Path; from gateway.cli.extract.results import *\n"
        "ResultFile(Path(sys.argv[1]), JsonLines(), {}, resumes=True, overwrites=False)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert "another process writes" in done.stderr
    file.close()
