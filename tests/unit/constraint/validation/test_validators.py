import json

import pytest

from services.constraint.sources import ConstraintSource, SourceOptions
from services.constraint.validation import ValidatorPool, validate
from services.rpckit.status import DeadlineExceeded, GrammarSyntax, UnsupportedConstruct


def is_valid(schema: object, text: str) -> bool:
    return validate(ConstraintSource("json_schema", json.dumps(schema)), SourceOptions(), text.encode()) == []


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"type": "number", "multipleOf": 0.01}, "19.99", True),
        ({"type": "number", "multipleOf": 0.01}, "19.999", False),
        ({"pattern": "^a$"}, '"a"', True),
        ({"pattern": "^a$"}, '"a\\n"', False),
        ({"pattern": r"^\d$"}, '"٣"', False),
        ({"pattern": r"^\w$"}, '"é"', False),
        ({"pattern": r"^\s$"}, '"\\ufeff"', True),
        ({"pattern": "^.$"}, '"\\u2028"', False),
        ({"pattern": r"^\u{1f99c}\p{L}$"}, '"🦜한"', True),
        ({"format": "date"}, '"2023-02-30"', False),
        ({"format": "date"}, '"2024-02-29"', True),
        ({"type": "integer"}, "1.0", True),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer"}, "1.0", False),
        ({"maximum": 0.1}, "0.1000000000000000000000001", False),
        ({"const": 1}, "true", False),
        ({"type": "number"}, "1e400", True),
        ({"type": "number"}, "1e99999999999999999999", False),
        ({}, "NaN", False),
        ({}, "[1,]", False),
        ({}, "", False),
    ],
)
def test_json(schema: object, text: str, expected: bool) -> None:
    assert is_valid(schema, text) == expected


def test_violations_say_where() -> None:
    source = ConstraintSource("json_schema", '{"items": {"required": ["이름"], "type": "object"}}')
    (violation,) = validate(source, SourceOptions(), b"[{}]")
    assert (violation.instance_pointer, violation.schema_pointer) == ("/0", "/items/required")


def test_at_most_ten_violations() -> None:
    assert (
        len(
            validate(
                ConstraintSource("json_schema", '{"items": {"type": "null"}}'),
                SourceOptions(),
                json.dumps([1] * 50).encode(),
            )
        )
        == 10
    )


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        (ConstraintSource("choices", None, ("파랑", "red")), "파랑", "blue"),
        (ConstraintSource("regex", r"a+\d?"), "aa1", "aa\n"),
        (ConstraintSource("lark", 'start: "a"+\n%ignore " "'), "a a", "b"),
    ],
)
def test_other_kinds(source: ConstraintSource, good: str, bad: str) -> None:
    assert validate(source, SourceOptions(), good.encode()) == []
    assert validate(source, SourceOptions(), bad.encode()) != []
    assert "UTF-8" in validate(source, SourceOptions(), b"\xff")[0].message


async def test_the_pool_kills_what_hangs_and_serves_on() -> None:
    pool = ValidatorPool(1)
    await pool.start()
    try:
        hanging = ConstraintSource("regex", "(a|a)*(a|a)*(a|a)*b")
        with pytest.raises(DeadlineExceeded):
            await pool.validate(hanging, SourceOptions(), b"a" * 60, timeout_s=0.5)
        assert await pool.validate(ConstraintSource("regex", "a+"), SourceOptions(), b"aaa", timeout_s=60) == []
        with pytest.raises(GrammarSyntax) as syntax:
            await pool.validate(ConstraintSource("json_schema", "{"), SourceOptions(), b"1", timeout_s=60)
        assert syntax.value.metadata["line"] == "1"
        with pytest.raises(UnsupportedConstruct):
            await pool.validate(
                ConstraintSource("json_schema", '{"$ref": "urn:other"}'), SourceOptions(), b"1", timeout_s=60
            )
        long_number = b"1" * 5000
        assert (
            await pool.validate(
                ConstraintSource("json_schema", '{"type": "integer"}'), SourceOptions(), long_number, timeout_s=60
            )
            == []
        )
    finally:
        await pool.close()


def test_documents_are_of_the_constraint() -> None:
    source = ConstraintSource("json_schema", '{"items": {"$ref": "urn:a"}}')
    options = SourceOptions(documents=(("urn:a", '{"type": "null"}'),))
    assert validate(source, options, b"[null]") == []
    assert validate(source, options, b"[1]")[0].instance_pointer == "/0"
    with pytest.raises(UnsupportedConstruct, match=r"options\.documents"):
        validate(source, SourceOptions(), b"[null]")
