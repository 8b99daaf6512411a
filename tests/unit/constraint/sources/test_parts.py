"""Parts that are hostile, or not filled in: each ends in a grammar, or in an error that names the limit."""

from __future__ import annotations

import json
import time

import pytest

from services.constraint.compiling import compile_source
from services.constraint.sources import ConstraintSource, SourceOptions
from services.constraint.sources.source import Kind
from services.constraint.validation.validators import validate
from services.rpckit.status import GrammarTooLarge, InvalidRequest, ServiceError

# Seconds of processor time that a case may take.
BUDGET_S = 5.0


def made_of(kind: Kind, *parts: ConstraintSource) -> ConstraintSource:
    return ConstraintSource(kind, parts=parts)


def nested(kind: Kind, depth: int) -> ConstraintSource:
    source = ConstraintSource("literal", "a")
    for _ in range(depth):
        source = made_of(kind, source, ConstraintSource("literal", "b"))
    return source


def doubled(depth: int) -> ConstraintSource:
    source = ConstraintSource("regex", "[ab]")
    for _ in range(depth):
        source = made_of("sequence", source, source)
    return source


def checked(count: int) -> ConstraintSource:
    schemas = ({"type": "array", "uniqueItems": True, "maxItems": 2 + number} for number in range(count))
    return made_of("any_of", *(ConstraintSource("json_schema", json.dumps(schema)) for schema in schemas))


HOSTILE: dict[str, tuple[ConstraintSource, str | None]] = {
    "a long delimiter": (ConstraintSource("until", "ab" * 500), None),
    "too long a delimiter": (ConstraintSource("until", "a" * 1001), "max_delimiter_characters"),
    "20,000 alternatives": (made_of("any_of", *(ConstraintSource("literal", f"v {i}") for i in range(20_000))), None),
    "5,000 patterns": (
        made_of("sequence", *(ConstraintSource("regex", f"[a-z]{{{i % 7}}}") for i in range(5_000))),
        None,
    ),
    "sequences within sequences": (nested("sequence", 90), None),
    "too many of them": (nested("any_of", 2_000), "max_group_depth"),
    "parts that double": (doubled(12), None),
    "free text thirty times": (made_of("sequence", *[ConstraintSource("regex", "(?s:.*)")] * 30), None),
    "as many holes as there may be": (checked(169), None),
    "one hole more": (checked(170), "max_holes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_parts_are_compiled_or_refused_by_name(name: str) -> None:
    source, limit = HOSTILE[name]
    started = time.process_time()
    try:
        found = compile_source(source, SourceOptions()) and None
    except GrammarTooLarge as error:
        found = error.metadata["limit"]
    assert found == limit
    assert time.process_time() - started < BUDGET_S


def test_a_text_that_can_be_divided_in_many_ways_is_judged_in_time() -> None:
    parts = [ConstraintSource("regex", "[ab]*")] * 5 + [ConstraintSource("literal", "c")]
    started = time.process_time()
    assert validate(made_of("sequence", *parts), SourceOptions(), b"ab" * 40 + b"c") == []
    assert validate(made_of("sequence", *parts), SourceOptions(), b"ab" * 40)
    assert time.process_time() - started < BUDGET_S


EMPTY: dict[str, tuple[ConstraintSource, str]] = {
    "no parts": (made_of("any_of"), "any_of.parts"),
    "no delimiter": (ConstraintSource("until", ""), "until"),
    "no text": (ConstraintSource("literal"), "literal"),
    "half a character": (ConstraintSource("literal", "\ud800"), "literal"),
    "no name": (made_of("sequence", ConstraintSource("special_token", "")), "special_token"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_is_not_filled_in_is_refused(name: str) -> None:
    source, field = EMPTY[name]
    with pytest.raises(InvalidRequest) as caught:
        compile_source(source, SourceOptions())
    assert caught.value.field == field


def test_the_last_part_s_own_validator_says_what_is_wrong_where_it_alone_is_to_blame() -> None:
    schema = ConstraintSource("json_schema", '{"properties": {"a": {"maximum": 3}}}')
    source = made_of("sequence", ConstraintSource("until", "=>"), schema)
    (violation,) = validate(source, SourceOptions(), b'so =>{"a": 4}')
    assert (violation.instance_pointer, violation.schema_pointer) == ("/a", "/properties/a/maximum")
    (violation,) = validate(source, SourceOptions(), b'{"a": 4}')
    assert "cannot be divided" in violation.message


def test_errors_of_nested_parts_say_where() -> None:
    inner = made_of("any_of", ConstraintSource("regex", "a"), ConstraintSource("regex", "("))
    with pytest.raises(ServiceError, match="part /sequence/1/any_of/1: ") as caught:
        compile_source(made_of("sequence", ConstraintSource("literal", "x"), inner), SourceOptions())
    assert caught.value.metadata["part"] == "/sequence/1/any_of/1"
