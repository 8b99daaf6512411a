"""What a schema's grammar takes is what jsonschema takes, up to property order, white space and spelling."""

import json
import random
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.constraint.core.grammar import Grammar
from services.constraint.sources import ConstraintSource, SourceOptions, Whitespace, build
from services.constraint.validation import validate
from services.constraint.validation.json_validator import json_validator
from services.rpckit.status import UnsatisfiableGrammar
from tests.support.derivation import matches
from tests.support.schemas import mutated, random_schema, random_value

SPELLINGS: dict[Whitespace, dict[str, object]] = {
    "bounded": {"indent": 2},
    "compact": {"separators": (",", ":")},
    "spaced": {},
}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), whitespace=st.sampled_from(list(SPELLINGS)))
def test_accepts_what_jsonschema_accepts(seed: int, whitespace: Whitespace) -> None:
    rng = random.Random(seed)
    schema = random_schema(rng)
    source = ConstraintSource("json_schema", json.dumps(schema, ensure_ascii=False))
    options = SourceOptions(whitespace)
    grammar = build(source, options).grammar
    for _ in range(4):
        value = random_value(rng, schema)
        if rng.random() < 0.4:
            value = mutated(rng, value)
        text = json.dumps(value, ensure_ascii=False, **SPELLINGS[whitespace]).encode()  # type: ignore[arg-type]
        assert matches(grammar, text) == (validate(source, options, text) == []), (schema, text.decode())


def accepts(schema: object, text: str, whitespace: Whitespace = "bounded") -> bool:
    return matches(
        build(ConstraintSource("json_schema", json.dumps(schema)), SourceOptions(whitespace)).grammar, text.encode()
    )


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_number_bounds_are_exact(data: st.DataObject) -> None:
    number = st.decimals(-150, 150, places=2).map(float) | st.integers(-1100, 1100)
    schema = {"type": data.draw(st.sampled_from(["number", "integer"]))}
    for keyword in data.draw(
        st.sets(st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), min_size=1)
    ):
        schema[keyword] = data.draw(number)
    source = ConstraintSource("json_schema", json.dumps(schema))
    try:
        grammar: Grammar | None = build(source, SourceOptions()).grammar
    except UnsatisfiableGrammar:
        grammar = None
    validator = json_validator(json.dumps(schema), SourceOptions())
    near = [value for key, value in schema.items() if key != "type"]
    for _ in range(5):
        value = data.draw(number | st.sampled_from(near) | st.sampled_from(near).map(lambda v: round(v + 0.001, 3)))
        text = json.dumps(value)
        is_accepted = grammar is not None and matches(grammar, text.encode())
        assert is_accepted == validator.is_valid(json.loads(text, parse_float=Decimal)), (schema, text)


@pytest.mark.parametrize(
    ("text", "is_accepted"),
    [
        ('{"a":1}', True),
        ('{ "a" : 1 }', True),
        ('{\n  "a": 1\n}', True),
        ("{\n" + " " * 40 + '"a":1}', True),
        ("{\n" + " " * 41 + '"a":1}', False),
        ('{  "a":1}', False),
        ('{\t"a":1}', False),
        ('{\n\n"a":1}', False),
        (' {"a":1}', False),
        ('{"a":1}\n', False),
        ("{ }", True),
        ("{  }", False),
    ],
)
def test_bounded_white_space(text: str, is_accepted: bool) -> None:
    assert accepts({"type": "object"}, text) == is_accepted


def test_a_declared_key_is_no_additional_one_however_it_is_spelt() -> None:
    schema = {"properties": {"나이": {"type": "integer"}, "a\tb": {"type": "null"}}, "type": "object"}
    assert accepts(schema, '{"나이":1,"나":"x","나이2":"y","a":2,"a\\tb2":3}')
    for key in ("나이", "\\ub098이", "a\\tb", "a\\u0009b"):
        assert not accepts(schema, f'{{"{key}":"text"}}'), key


@pytest.mark.parametrize("text", ['"\\ud83e\\udd9c"', '"🦜"', '"\\uD83E\\uDD9C"', '"\\n"', '"\\u000a"', '"\\/"'])
def test_an_escape_counts_as_one_character(text: str) -> None:
    assert accepts({"type": "string", "minLength": 1, "maxLength": 1}, text)


@pytest.mark.parametrize("text", ['"\\ud83e"', '"\\udd9c\\ud83e"', '"\n"', '"\\x41"', '"ab"', '""'])
def test_a_lone_surrogate_or_bad_escape_is_no_character(text: str) -> None:
    assert not accepts({"type": "string", "minLength": 1, "maxLength": 1}, text)


def test_recursion_through_references() -> None:
    tree = {
        "$defs": {
            "t": {
                "type": "object",
                "properties": {"v": {"type": "integer"}, "c": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
                "required": ["v"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/t",
    }
    assert accepts(tree, '{"v":1,"c":[{"v":2},{"v":3,"c":[]}]}')
    assert not accepts(tree, '{"v":1,"c":[{"c":[]}]}')


def test_all_of_merges_recursive_schemas() -> None:
    schema = {
        "$defs": {
            "a": {"type": "object", "properties": {"next": {"$ref": "#/$defs/a"}}, "required": ["x"]},
            "b": {
                "type": "object",
                "properties": {"next": {"$ref": "#/$defs/b"}, "x": {"type": "integer", "minimum": 3}},
            },
        },
        "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
    }
    assert accepts(schema, '{"next":{"x":4},"x":3}')
    assert not accepts(schema, '{"next":{"x":2},"x":3}')
    assert not accepts(schema, '{"next":{},"x":3}')
