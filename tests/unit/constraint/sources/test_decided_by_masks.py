"""What once met dead ends is a matter of the mask: nothing is left to a check but that no name comes twice."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from services.constraint.sources import ConstraintSource, SourceOptions, build
from tests.support.acceptance import accepts, matcher_of

A, B = {"properties": {"a": {"type": "string"}}, "required": ["a"]}, {"required": ["b"]}

CASES: dict[str, tuple[Any, list[Any]]] = {
    "oneOf of objects without a type": (
        {"oneOf": [A, B]},
        ["x", 1, {"a": "x"}, {"b": 1}, {"a": "x", "b": 1}, {"a": 1}],
    ),
    "oneOf of numbers": ({"oneOf": [{"maximum": 2}, {"maximum": 5}], "type": "number"}, [-1, 2, 2.5, 5, 6]),
    "oneOf of which one may be anything": ({"oneOf": [A, True]}, ["x", {}, {"a": "x"}, {"a": 1}, {"b": 2}]),
    "names that are none of some": (
        {"propertyNames": {"pattern": "^[a-c]{1,2}$", "not": {"const": "ab"}}},
        [{}, {"a": 1}, {"ab": 1}, {"ba": 1}, {"abc": 1}],
    ),
    "required": (
        {"type": "object", "properties": {"c": {"type": "null"}}, "required": ["a", "b"]},
        [{"a": 1, "b": 2}, {"b": 1, "a": 2}, {"x": 1, "b": 1, "c": None, "a": 2, "y": 3}, {"a": 1, "c": None}, {}],
    ),
}


@pytest.mark.parametrize("order", ["schema", "any"])
@pytest.mark.parametrize("name", CASES)
def test_masks_say_it_all(name: str, order: Any) -> None:
    schema, values = CASES[name]
    options = SourceOptions(property_order=order)
    assert not build(ConstraintSource("json_schema", json.dumps(schema)), options).inexact
    matcher = matcher_of(schema, SourceOptions(property_order="any"))
    for value in values:
        is_valid = jsonschema.Draft202012Validator(schema).is_valid(value)
        assert accepts(matcher, json.dumps(value).encode()) == is_valid, value
