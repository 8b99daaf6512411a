"""What a grammar takes too much of is checked, wherever it stands; found by comparing with the validator."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.constraint.sources import ConstraintSource, SourceOptions
from services.constraint.validation.validators import validate
from tests.support.acceptance import accepts, matcher_of


def _one_of_30(first: int) -> dict[str, Any]:
    return {"anyOf": [{"type": "integer", "minimum": first + i, "maximum": first + i} for i in range(30)]}


LOW, HIGH = _one_of_30(0), _one_of_30(100)
# Its lengths take too large an automaton together with the pattern.
LONG = {"pattern": r"^.+@(.+\.)+[a-z]{2,}$", "maxLength": 5000}
PATTERNS = [{"pattern": "^a"}, {"pattern": "^b"}]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        # Merging is given up where no schema of the text is to blame.
        ({"properties": {"a": LOW}, "patternProperties": {"^a": HIGH}}, {"a": 5}),
        ({"properties": {"a": {"allOf": [LOW, HIGH]}}}, {"a": 5}),
        ({"items": LOW, "allOf": [{"items": HIGH}]}, [5]),
        ({"properties": {"a": {"if": LOW, "then": HIGH}}}, {"a": 5}),
        # The same in two places is written once, and checked in both.
        ({"properties": {"a": LONG, "b": dict(LONG)}}, {"b": "@b.".rjust(5000, "a") + "cc"}),
        # What stands for the other values has no schema.
        ({"items": {"not": {"properties": {"a": {"type": "string"}}}}}, [{"b": 1}]),
        ({"items": {"not": {"properties": {"b": True, "c": False}, "type": "object"}}}, [{"a": True}]),
        ({"items": {"if": {"properties": {"a": {"const": 1}}}, "else": {"required": ["b"]}}}, [{"a": 2}]),
        # Names that a grammar cannot say, though each of their schemas could be said.
        ({"items": {"propertyNames": {"anyOf": PATTERNS}}}, [{"c": 1}]),
        ({"items": {"propertyNames": {"not": {"enum": ["a", "b"]}}}}, [{"a": 1}]),
        ({"propertyNames": {"format": "regex"}}, {"(": 1}),
        ({"items": {"propertyNames": {"format": "idn-hostname"}}}, [{"-a-": 1}]),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_an_invalid_value_is_not_accepted(schema: Any, value: Any) -> None:
    options = SourceOptions(property_order="any")
    text = json.dumps(value).encode()
    assert validate(ConstraintSource("json_schema", json.dumps(schema)), options, text) != []
    assert not accepts(matcher_of(schema, options), text)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"not": {"anyOf": [True, {"properties": {"a": True}}], "unevaluatedProperties": False}}, {"b": 1}),
        ({"not": {"unevaluatedItems": {"type": "string"}}}, [1]),
        ({"oneOf": [{"unevaluatedProperties": {"type": "string"}}, {"type": "object"}]}, {"a": 1}),
    ],
    ids=json.dumps,
)
def test_a_valid_value_is_accepted_though_its_beginning_is_evaluated(schema: Any, value: Any) -> None:
    assert accepts(matcher_of(schema, SourceOptions(property_order="any")), json.dumps(value).encode())
