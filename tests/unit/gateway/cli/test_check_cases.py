"""`espalier check --tokenizer`: reports and cases, without a server; processes that hang or die cost one case."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli import check_offline
from gateway.cli.errors import CommandError
from gateway.cli.main import app
from services.rpckit.status import GrammarSyntax, InvalidRequest, UnknownGrammar, UnsupportedConstruct
from tests.support.grammars import vocabulary

BYTES = vocabulary((("a", "b"),))
GOOD = {"id": "good", "regex": "ab*", "tests": [{"valid": True, "text": "abb"}, {"valid": False, "text": "b"}]}
BAD = {"id": "bad", "schema": {"$ref": "urn:other"}, "tests": [{"valid": True, "data": 1}]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "tokenizer.json").write_bytes(BYTES.tokenizer_json)
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return directory


def check(*argv: str | Path) -> str:
    """Run the command; what it raises, `main` shows."""
    result = CliRunner().invoke(app, ["check", *map(str, argv)], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def run_cases(tokenizer: Path, directory: Path, rows: list[Any], *argv: str) -> list[dict[str, Any]]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (directory / "cases.jsonl").write_text("\n".join(lines) + "\n")
    out = directory / "out.jsonl"
    try:
        check("--tokenizer", tokenizer, "--cases", directory / "cases.jsonl", "--out", out, *argv)
    finally:
        written = [json.loads(line) for line in out.read_text().splitlines()]
    return written


def test_a_report(tokenizer: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"const": 12}}, "required": ["a"], "title": "[b]"}')
    (tmp_path / "good.json").write_text('{"a": 12}')
    output = check("--tokenizer", tokenizer, schema, "--text", tmp_path / "good.json")
    assert "/properties/a/const" in output
    assert "nothing: it is an annotation" in output
    assert '{"a":12}' in output
    assert "satisfies the constraint" in output
    (tmp_path / "bad.json").write_text('{"a": 13}')
    with pytest.raises(CommandError, match=r"""byte 7, behind '{"a": 1' is not allowed""") as refused:
        check("--tokenizer", tokenizer, "--schema", schema, "--text", tmp_path / "bad.json")
    assert refused.value.exit_code == 3
    (tmp_path / "bad.json").write_text('{"a": 12')
    with pytest.raises(CommandError, match="may not end at byte 8"):
        check("--tokenizer", tokenizer, schema, "--text", tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("argv", "shortest"), [(["--regex", "a{3}"], "aaa"), (["--choice", "xy", "--choice", "z"], "z")]
)
def test_reports_of_other_kinds(tokenizer: Path, argv: list[str], shortest: str) -> None:
    assert check("--tokenizer", tokenizer, *argv).splitlines()[-1] == shortest


def test_options_are_flags(tokenizer: Path, tmp_path: Path) -> None:
    schema, other, text = tmp_path / "schema.json", tmp_path / "other.json", tmp_path / "text.json"
    schema.write_text('{"items": [{"$ref": "http://x/?y=z"}]}')
    other.write_text('{"type": "string", "format": "date"}')
    text.write_text('["no",1]')
    flags = ("--document", f"http://x/?y=z={other}", "--default-draft", "7", "--whitespace", "compact")
    assert "satisfies" in check("--tokenizer", tokenizer, schema, "--text", text, *flags, "--format", "annotation")
    with pytest.raises(CommandError, match="does not satisfy"):
        check("--tokenizer", tokenizer, schema, "--text", text, *flags)
    with pytest.raises(InvalidRequest, match="whitespace_pattern"):
        check("--tokenizer", tokenizer, schema, "--whitespace", "pattern")


def test_options_of_a_case(tokenizer: Path, tmp_path: Path) -> None:
    tests = [{"valid": True, "text": "[null,1]"}, {"valid": False, "text": "[1]"}]
    options = {"documents": {"urn:a": {"type": "null"}}, "default_draft": 7, "whitespace": "compact"}
    case = {"id": 1, "schema": {"items": [{"$ref": "urn:a"}]}, "options": options, "tests": tests}
    (row,) = run_cases(tokenizer, tmp_path, [case], "--strict")
    assert row["status"] == "ok"


REASONING = [{"until": "</think>"}, {"json_schema": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}}]


def test_a_constraint_of_parts(tokenizer: Path, tmp_path: Path) -> None:
    file, text = tmp_path / "constraint.json", tmp_path / "text.txt"
    file.write_text(json.dumps({"any_of": [{"choices": ["no", "none"]}, {"sequence": REASONING}]}))
    text.write_text("hm </think>[2,1]")
    output = check("--tokenizer", tokenizer, "--constraint", file, "--text", text)
    assert "/any_of/1/sequence/1/uniqueItems" in output
    assert "satisfies the constraint" in output
    text.write_text("hm </think>[2,2]")
    with pytest.raises(CommandError, match="byte 15"):
        check("--tokenizer", tokenizer, "--constraint", file, "--text", text)


def test_a_case_of_parts(tokenizer: Path, tmp_path: Path) -> None:
    tests = [{"valid": True, "text": "</think>[1]"}, {"valid": False, "text": "[1]"}]
    case = {"id": 1, "constraint": {"sequence": REASONING}, "tests": tests}
    (row,) = run_cases(tokenizer, tmp_path, [case], "--strict")
    assert row["status"] == "ok"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "an object with exactly one of json_schema, lark"),
        ('{"sequence": {}}', "sequence is an array"),
        ('{"sequence": [{"regexp": "a"}]}', "regexp"),
        ('{"lark": 1}', "lark"),
        ("{", "Expecting"),
    ],
)
def test_a_file_that_has_no_constraint_says_why(tokenizer: Path, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "constraint.json"
    file.write_text(text)
    with pytest.raises(CommandError, match=r"constraint\.json: ") as refused:
        check("--tokenizer", tokenizer, "--constraint", file)
    assert says in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_named_grammar(tokenizer: Path) -> None:
    assert "no text is shorter than 1 bytes" in check("--tokenizer", tokenizer, "--grammar", "arithmetic")
    with pytest.raises(UnknownGrammar):
        check("--tokenizer", tokenizer, "--grammar", "nope")


def test_refused_constraints_are_raised_for_main_to_show(tokenizer: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"$ref": "urn:other"}')
    with pytest.raises(UnsupportedConstruct):
        check("--tokenizer", tokenizer, schema)
    with pytest.raises(GrammarSyntax):
        check("--tokenizer", tokenizer, "--regex", "(")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "give one of a schema"),
        (["a.json", "--regex", "a"], "at most one of"),
        (["a.json", "--schema", "b.json"], "give the schema once"),
        (["--regex", "a", "--cases", "a.jsonl"], "brings its own"),
        (["--cases", "gone.jsonl"], "cannot read gone.jsonl: No such file"),
        (["--regex", "a", "--eos-token", "<|no|>"], "has no token '<|no|>'"),
    ],
)
def test_bad_usage(tokenizer: Path, argv: list[str], says: str) -> None:
    with pytest.raises(CommandError) as refused:
        check("--tokenizer", tokenizer, *argv)
    assert says in str(refused.value)
    assert refused.value.exit_code == 2


def test_cases_need_a_tokenizer_and_it_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="needs --tokenizer"):
        check("--cases", "a.jsonl")
    with pytest.raises(CommandError, match=r"cannot read .*tokenizer\.json") as refused:
        check("--tokenizer", tmp_path, "--regex", "a")
    assert refused.value.exit_code == 2


def test_cases(tokenizer: Path, tmp_path: Path) -> None:
    good, bad = run_cases(tokenizer, tmp_path, [GOOD, "", BAD])
    assert list(good) == [
        "id",
        "status",
        "reason",
        "pointer",
        "message",
        "compile_us",
        "first_mask_us",
        "mask_us",
        "warm_mask_us",
        "tests",
    ]
    assert (good["id"], good["status"], good["reason"], good["pointer"]) == ("good", "ok", None, None)
    assert good["tests"] == [
        {"valid": True, "accepted": True, "failed_at": None},
        {"valid": False, "accepted": False, "failed_at": 0},
    ]
    assert len(good["mask_us"]) == len(good["warm_mask_us"]) == 3 + 1  # ab, b, end; b
    assert good["mask_us"][0] == good["first_mask_us"]
    assert (bad["status"], bad["reason"], bad["pointer"]) == ("rejected", "UNSUPPORTED_CONSTRUCT", "/$ref")
    assert (bad["compile_us"], bad["mask_us"], bad["tests"]) == (None, [], [])


def test_packed_cases_to_stdout_in_the_order_of_the_lines(tokenizer: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl.gz"
    with gzip.open(cases, "wt") as file:
        for number in range(200):
            print(json.dumps(GOOD | {"id": number}), file=file)
    output = check("--tokenizer", tokenizer, "--cases", cases, "--workers", "2", "--repeat", "1")
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["id"] for row in rows] == list(range(200))
    assert {len(row["warm_mask_us"]) for row in rows} == {0}


def test_bad_lines_are_named_and_the_others_run(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CommandError, match="2 lines that are no cases") as refused:
        run_cases(tokenizer, tmp_path, ["{", GOOD, {"id": 7, "regex": 1}, GOOD])
    assert refused.value.exit_code == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["status"], row["reason"]) for row in rows] == [
        (None, "error", "BAD_CASE"),
        ("good", "ok", None),
        (7, "error", "BAD_CASE"),
        ("good", "ok", None),
    ]
    assert rows[2]["message"] == "line 3: `regex` is a text"


def test_strict_fails_on_a_case_that_is_not_right(tokenizer: Path, tmp_path: Path) -> None:
    wrong = GOOD | {"tests": [{"valid": False, "text": "a"}]}
    assert run_cases(tokenizer, tmp_path, [wrong])[0]["tests"][0]["accepted"]
    run_cases(tokenizer, tmp_path, [GOOD], "--strict")
    with pytest.raises(CommandError, match="1 cases are not right") as refused:
        run_cases(tokenizer, tmp_path, [wrong, GOOD], "--strict")
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_hangs_or_dies_costs_its_own_case(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setattr(check_offline, "_TARGET", "tests.support.check_jobs:answer")
    ids = ["good", "hang", "good", "exit", "good", "eat", "good"]
    rows = run_cases(
        tokenizer, tmp_path, [GOOD | {"id": case_id} for case_id in ids], "--limit-s", "1", "--workers", workers
    )
    assert [row["id"] for row in rows] == ids
    assert [row["status"] for row in rows] == ["ok", "timeout", "ok", "error", "ok", "error", "ok"]
    hang, died, ate = rows[1], rows[3], rows[5]
    assert (hang["reason"], hang["message"]) == ("LIMIT_S", "not done within 1 s")
    assert (died["reason"], died["message"]) == ("CRASHED", "its process ended with exit code 3")
    assert (ate["reason"], ate["message"]) == ("CRASHED", "it needs more memory than it may have")


def test_an_unlimited_report_is_ended(tokenizer: Path) -> None:
    with pytest.raises(CommandError, match="allow more by --limit-s") as refused:
        check("--tokenizer", tokenizer, "--regex", "a", "--limit-s", "0.001")
    assert refused.value.exit_code == 5


def test_a_file_that_cannot_be_written(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(CommandError, match="cannot write") as refused:
        check("--tokenizer", tokenizer, "--cases", tmp_path / "cases.jsonl", "--out", tmp_path / "no" / "out.jsonl")
    assert refused.value.exit_code == 1


def test_a_damaged_packed_file(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode() * 100)[:-12])
    with pytest.raises(CommandError, match=r"cannot read .*cases\.jsonl\.gz"):
        check("--tokenizer", tokenizer, "--cases", tmp_path / "cases.jsonl.gz")
