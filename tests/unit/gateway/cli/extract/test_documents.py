"""Inputs of a job: every form, and what people have in their files."""

from __future__ import annotations

import csv
import io
import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.errors import CommandError
from gateway.cli.extract import documents as module
from gateway.cli.extract.documents import Document, Documents


def read(path: Path, **options: Any) -> list[Document]:
    with Documents(str(path), **options) as opened:
        return list(opened)


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(
        '{"id": "a", "text": "한국어"}\n\n"bare"\r\n{"text": "no id"}\n{"id": 7, "text": "number"}', "utf-8"
    )
    assert read(file) == [
        Document("a", "한국어"),
        Document("1", "bare"),
        Document("2", "no id"),
        Document("7", "number"),
    ]


def test_fields_have_any_name(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"key": "a", "body": "text"}\n')
    assert read(file, text_field="body", id_field="key") == [Document("a", "text")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "no JSON"),
        (b"[1]", "neither a text nor an object"),
        (b'{"id": "x"}', "no text by the name of 'text'"),
        (b'{"id": "x", "text": 5}', "no text by the name of 'text'"),
        (b'"\xff"', "no JSON"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_a_bad_line_is_one_document_with_a_problem(tmp_path: Path, line: bytes, problem: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'"before"\n' + line + b'\n"behind"\n')
    before, bad, behind = read(file)
    assert (before.text, behind.text) == ("before", "behind")
    assert bad.problem is not None
    assert problem in bad.problem


def test_a_line_that_is_too_long_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 1000)
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps("x" * 10_000) + "\n" + json.dumps("y" * 900) + "\n")
    long, fine = read(file)
    assert long.problem == "it has too many bytes; at most 1000 are taken"
    assert fine.text == "y" * 900


def test_a_table_with_a_text_column(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text('\ufeffid,text,more\r\n1,"two\nlines, ""quoted""",x\r\n2,plain,y\r\n', "utf-8")
    assert read(file) == [Document("1", 'two\nlines, "quoted"'), Document("2", "plain")]


def test_a_table_without_one_is_a_text_for_each_row(tmp_path: Path) -> None:
    file = tmp_path / "in.tsv"
    file.write_text("name\tprice\nkimchi\t5\n")
    assert read(file) == [Document("0", "name: kimchi\nprice: 5")]


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=5))
def test_any_table_that_csv_writes(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerows([("id", "text"), *rows])
    text = written.getvalue()
    if any(char in "\ufffd\ufeff\0" for char in text):
        return
    file = tmp_path_factory.mktemp("t") / "in.csv"
    file.write_bytes(text.encode())
    assert [(document.id, document.text) for document in read(file)] == rows


def test_a_directory_in_the_order_of_names(tmp_path: Path) -> None:
    for name, content in {"b.txt": b"second", "a/x.txt": b"first", "c.bin": b"\xff", ".hidden": b"no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    first, second, bad = read(tmp_path)
    assert (first, second) == (Document("a/x.txt", "first"), Document("b.txt", "second"))
    assert bad.problem is not None
    assert "not UTF-8" in bad.problem


def test_another_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "letter.md").write_text("Dear all")
    assert read(tmp_path / "letter.md") == [Document("letter.md", "Dear all")]


def test_an_input_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No such file"):
        Documents(str(tmp_path / "nobody.jsonl"))


def test_a_million_lines_begin_at_once(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    with file.open("w") as out:
        for start in range(0, 1_000_000, 1000):
            out.write("".join(f'{{"id": "{n}", "text": "document {n}"}}\n' for n in range(start, start + 1000)))
    started = time.perf_counter()
    with Documents(str(file)) as opened:
        assert [document.id for document in islice(opened, 3)] == ["0", "1", "2"]
        assert opened.position < 100_000
        assert opened.size == file.stat().st_size
    assert time.perf_counter() - started < 1
