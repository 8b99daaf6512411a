"""Cases: how a line is read, and what the engine makes of one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from services.constraint.checking import BadCaseError, Case, CaseTest, Checker, parse_case
from services.constraint.sources import ConstraintSource, SourceOptions
from services.rpckit.status import InvalidRequest, UnsupportedConstruct
from tests.support.grammars import vocabulary

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def checker() -> Checker:
    return Checker(vocabulary((("a", "b"), ("ab", "c"), ('"', "a")), missing="ñ"))


def case(**fields: Any) -> Case:
    return parse_case(json.dumps({"id": "x"} | fields))


def test_a_line_is_read() -> None:
    read = case(
        schema=SCHEMA,
        options={"whitespace": "compact", "forcing": "canonical"},
        tests=[{"valid": True, "data": {"a": "é"}}, {"valid": False, "text": "{"}],
    )
    assert read == Case(
        "x",
        ConstraintSource("json_schema", json.dumps(SCHEMA)),
        SourceOptions("compact"),
        "canonical",
        (CaseTest(True, '{"a": "é"}'), CaseTest(False, "{")),
    )
    every = case(
        schema=True,
        options={
            "whitespace": "pattern",
            "whitespace_pattern": " ?",
            "property_order": "any",
            "format": "annotation",
            "unknown_formats": "error",
            "integers": "plain",
            "escapes": "plain",
            "default_draft": 7,
            "documents": {"urn:a": {"type": "null"}, "urn:b": True},
        },
    )
    assert every.options == SourceOptions(
        "pattern",
        " ?",
        "any",
        "annotation",
        "error",
        "plain",
        "plain",
        7,
        (("urn:a", '{"type": "null"}'), ("urn:b", "true")),
    )
    assert case(lark='start: "a"').source == ConstraintSource("lark", 'start: "a"')
    assert case(regex="a").source == ConstraintSource("regex", "a")
    assert case(choices=["a", "b"]).source == ConstraintSource("choices", choices=("a", "b"))
    assert case(schema=True, options={}).source == ConstraintSource("json_schema", "true")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "this one has none"),
        ({"regex": "a", "lark": "b"}, "this one has lark, regex"),
        ({"regex": 1}, "`regex` is a text"),
        ({"choices": "ab"}, "`choices` is a list of texts"),
        ({"choices": [1]}, "`choices` is a list of texts"),
        ({"regex": "a", "options": []}, "`options` is an object"),
        ({"regex": "a", "options": {"white": 1}}, "no option is named 'white'"),
        (
            {"regex": "a", "options": {"whitespace": "lots"}},
            "one of bounded, compact, spaced, pretty, pattern, not 'lots'",
        ),
        ({"regex": "a", "options": {"default_draft": 5}}, "one of 4, 6, 7, 2019, 2020, not 5"),
        ({"regex": "a", "options": {"whitespace_pattern": 1}}, "whitespace_pattern is a text"),
        ({"regex": "a", "options": {"whitespace": "pattern"}}, "set `whitespace_pattern` exactly when"),
        ({"regex": "a", "options": {"documents": []}}, "an object of schemas by URI"),
        ({"regex": "a", "tests": {}}, "`tests` is a list"),
        ({"regex": "a", "tests": [{"valid": True, "text": "a"}, {"text": "a"}]}, "test 1 is not"),
        ({"regex": "a", "tests": [{"valid": True}]}, "test 0 is not"),
        ({"regex": "a", "tests": [{"valid": True, "text": "a", "data": 1}]}, "test 0 is not"),
        ({"regex": "a", "tests": [{"valid": True, "text": 1}]}, "the `text` of test 0"),
    ],
)
def test_what_is_no_case_says_why(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(BadCaseError) as refused:
        case(**fields)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[]", "an object with an `id`"),
        ('{"regex": "a"}', "an object with an `id`"),
        ('{"id": 1, "schema": ' + "[" * 50_000 + "]" * 50_000 + "}", "nested deeper"),
        ('{"id": 1, "schema": ' + "1" * 5000 + "}", "digits"),
    ],
)
def test_what_is_not_even_an_object_says_why(line: str, says: str) -> None:
    with pytest.raises(BadCaseError, match=says):
        parse_case(line)


def test_deep_values_are_read() -> None:
    depth = 3000
    read = parse_case('{"id": 1, "regex": "a", "tests": [{"valid": true, "data": ' + "[" * depth + "]" * depth + "}]}")
    assert read.tests[0].text == "[" * depth + "]" * depth
    assert sys.getrecursionlimit() < depth


def test_tokens_are_judged_one_by_one_and_the_end_last(checker: Checker) -> None:
    texts = ["abc", "ab", "abd", "abcc", ""]
    outcome = checker.run(case(regex="abc+", tests=[{"valid": text == "abc", "text": text} for text in texts]))
    assert (outcome.status, outcome.reason) == ("ok", None)
    # abc is one token, and so is ab; abcc is abc, c; abd is ab, d.
    assert [test.is_accepted for test in outcome.tests] == [True, False, False, True, False]
    assert [test.failed_at for test in outcome.tests] == [None, 1, 1, None, 0]
    num_masks = 2 + 2 + 2 + 3 + 1
    assert len(outcome.mask_us) == len(outcome.warm_mask_us) == num_masks
    assert outcome.first_mask_us == outcome.mask_us[0]
    assert outcome.compile_us is not None
    assert outcome.compile_us > 0
    assert min(outcome.mask_us) > 0


@pytest.mark.parametrize("repeat", [1, 3])
def test_the_last_of_several_passes_is_the_warm_one(checker: Checker, repeat: int) -> None:
    outcome = checker.run(case(regex="a", tests=[{"valid": True, "text": "a"}]), num_passes=repeat)
    assert len(outcome.mask_us) == 2
    assert len(outcome.warm_mask_us) == (0 if repeat == 1 else 2)


def test_without_texts_the_first_mask_is_timed(checker: Checker) -> None:
    outcome = checker.run(case(schema=SCHEMA))
    assert outcome.first_mask_us is not None
    assert outcome.mask_us == []


@pytest.mark.parametrize(
    ("fields", "reason", "pointer"),
    [
        ({"schema": {"$ref": "urn:other"}}, "UNSUPPORTED_CONSTRUCT", "/$ref"),
        ({"schema": {"type": 1}}, "GRAMMAR_SYNTAX", "/type"),
        ({"schema": False}, "UNSATISFIABLE_GRAMMAR", ""),
        ({"regex": "("}, "GRAMMAR_SYNTAX", None),
        ({"lark": "start"}, "GRAMMAR_SYNTAX", None),
        ({"choices": []}, "INVALID_REQUEST", None),
    ],
)
def test_refused_constraints_are_outcomes(
    checker: Checker, fields: dict[str, Any], reason: str, pointer: str | None
) -> None:
    outcome = checker.run(case(tests=[{"valid": True, "text": "a"}], **fields))
    assert (outcome.status, outcome.reason, outcome.pointer) == ("rejected", reason, pointer)
    assert outcome.message
    assert json.loads(outcome.to_json())["tests"] == []


@pytest.mark.parametrize("text", ["ñ", "\ud800"])
def test_a_text_that_no_tokens_spell_is_not_accepted(checker: Checker, text: str) -> None:
    # `missing` takes away the byte 0xF1, which the piece ñ stands for, and with it nothing of ñ itself.
    byte = "\U00040000" if text == "ñ" else text
    outcome = checker.run(case(regex="(?s:.*)", tests=[{"valid": True, "text": byte}]))
    (test,) = outcome.tests
    assert (test.is_accepted, test.failed_at) == (False, None)
    assert test.note is not None
    assert json.loads(outcome.to_json())["tests"][0]["note"] == test.note


def test_forcing_closes_other_cuts(checker: Checker) -> None:
    fields: dict[str, Any] = {"choices": ["abcd"], "tests": [{"valid": True, "text": "abcd"}]}
    for options in ({}, {"forcing": "canonical"}, {"forcing": "off"}):
        (test,) = checker.run(case(options=options, **fields)).tests
        assert test.is_accepted
    assert checker.report(case(options={"forcing": "canonical"}, **fields)).num_allowed == 1
    assert checker.report(case(**fields)).num_allowed == 3  # a, ab, abc


def test_a_report(checker: Checker) -> None:
    report = checker.report(case(schema=SCHEMA, tests=[{"valid": True, "text": '{"a": x}'}]))
    assert {keyword.pointer for keyword in report.keywords} >= {"/properties/a/type", "/required"}
    assert json.loads(report.witness).keys() == {"a"}
    assert report.min_bytes == len(report.witness) == len('{"a":0}')
    assert report.witness_num_tokens <= report.min_bytes
    assert report.failed_at_byte == len('{"a": ')
    assert checker.report(case(schema=SCHEMA)).failed_at_byte is None


def test_reports_raise(checker: Checker) -> None:
    with pytest.raises(UnsupportedConstruct):
        checker.report(case(schema={"$ref": "urn:other"}))
    with pytest.raises(InvalidRequest, match="spell"):
        checker.report(case(regex=".", tests=[{"valid": True, "text": "\ud800"}]))


def test_masks_have_no_token_of_the_padding(checker: Checker) -> None:
    report = checker.report(case(regex="(?s:.*)"))
    texts = [token for token in checker.vocabulary.token_bytes if token is not None]
    assert report.num_allowed <= len(texts) + len(checker.vocabulary.eos_token_ids)
    assert isinstance(report.num_allowed, int)
    assert not isinstance(report.num_allowed, np.integer)


def test_no_model_is_loaded_for_it() -> None:
    code = "import sys, services.constraint.checking; print({'torch', 'transformers', 'gguf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
