"""What `jsonschema` as it comes does not judge exactly, and whose drafts and documents it is given."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from services.constraint.sources import SourceOptions
from services.constraint.validation import validators
from services.rpckit.status import UnsupportedConstruct

DRAFT4 = "http://json-schema.org/draft-04/schema#"
DRAFT7 = "http://json-schema.org/draft-07/schema#"
DRAFT2019 = "https://json-schema.org/draft/2019-09/schema"


def is_valid(schema: object, text: str, **options: Any) -> bool:
    """Judge a text without building its grammar, which need not take every schema."""
    return validators._validate_json(json.dumps(schema), SourceOptions(**options), text) == []


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"patternProperties": {r"^\d$": False}}, ['{"a": 1}', '{"٣": 1}', '{"1\\n": 1}'], ['{"1": 1}']),
        (
            {"patternProperties": {"^a$": True, "(b)\\W": {}}, "additionalProperties": False},
            ['{"a": 1}', '{"b!": 1}', '{"bé": 1}'],
            ['{"a\\n": 1}', '{"b": 1}'],
        ),
        (
            {"allOf": [{"patternProperties": {r"^\w$": True}}], "unevaluatedProperties": False},
            ['{"a": 1}'],
            ['{"é": 1}', '{"a\\n": 1}'],
        ),
        ({"propertyNames": {"pattern": "^a$"}}, ['{"a": 1}'], ['{"a\\n": 1}']),
        ({"uniqueItems": True}, ["[1, true]", "[0, false, null, []]", "[[1], [true]]"], ["[1, 1.0]", "[10, 1e1]"]),
        ({"uniqueItems": True}, ['[{"a": 1}, {"a": true}]'], ['[{"a": 1, "b": 2}, {"b": 2.0, "a": 1}]']),
        ({"uniqueItems": True}, ['["1", 1]'], ["[[1], [true], [1]]"]),
        ({"uniqueItems": False}, ["[1, 1]"], []),
        ({"enum": [1, [0], {"a": False}]}, ["1", "1.0", "[0.0]", '{"a": false}'], ["true", "[false]", '{"a": 0}']),
        ({"const": 1e2}, ["100", "1e2"], ["true", "1e1"]),
        ({"const": True}, ["true"], ["1"]),
        ({}, ['{"a": {"a": 1}}'], ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "\\u0061": 2}}]']),
    ],
)
def test_values_and_patterns(schema: object, valid: list[str], invalid: list[str]) -> None:
    assert [text for text in valid if not is_valid(schema, text)] == []
    assert [text for text in invalid if is_valid(schema, text)] == []


@pytest.mark.parametrize("draft", [2019, 2020])
@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        # Each of these is one that the library gets wrong in draft 2019-09.
        ({"additionalProperties": {"type": "integer"}, "unevaluatedProperties": False}, ['{"a": 1}'], ['{"a": null}']),
        ({"additionalProperties": {"type": "integer"}}, ['{"type": 1}'], ['{"type": null}']),
        ({"unevaluatedItems": True}, ["[1]"], []),
        ({"unevaluatedItems": {"type": "null"}}, ["[null]", "[]"], ["[1]"]),
        # And these hold what the rules for both come to.
        (
            {
                "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
                "then": {"properties": {"b": True}},
                "else": {"properties": {"c": True}},
                "unevaluatedProperties": False,
            },
            ['{"a": 1, "b": 1}', '{"c": 1}', "{}", "1"],
            ['{"a": 2}', '{"b": 1}', '{"a": 1, "c": 1}'],
        ),
        (
            {
                "anyOf": [{"required": ["a"], "properties": {"a": True}}, {"properties": {"b": True}}],
                "not": {"not": {"properties": {"c": True}}},
                "dependentSchemas": {"a": {"properties": {"d": True}}},
                "unevaluatedProperties": {"type": "null"},
            },
            ['{"a": 1, "d": 1}', '{"b": 1, "c": null, "d": null}'],
            ['{"b": 1, "c": 1}', '{"b": 1, "d": 1}'],
        ),
        (
            {
                "$id": "http://x/y",
                "allOf": [{"$id": "z/", "$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": True}}}}],
                "$defs": {"a": {}},
                "unevaluatedProperties": False,
            },
            ['{"a": 1}'],
            ['{"b": 1}'],
        ),
    ],
)
def test_what_is_unevaluated(draft: int, schema: object, valid: list[str], invalid: list[str]) -> None:
    assert [text for text in valid if not is_valid(schema, text, default_draft=draft)] == []
    assert [text for text in invalid if is_valid(schema, text, default_draft=draft)] == []


def test_contains_evaluates_from_2020_12_on() -> None:
    schema = {"contains": {"type": "null"}, "unevaluatedItems": {"type": "integer"}}
    assert is_valid(schema, "[1, null]")
    assert not is_valid(schema, "[1, null]", default_draft=2019)


def test_recursive_references_skip_resources_without_an_anchor() -> None:
    schema = {
        "$schema": DRAFT2019,
        "$id": "http://x/outer",
        "$recursiveAnchor": True,
        "maxItems": 1,
        "anyOf": [{"$ref": "middle"}],
        "$defs": {
            "middle": {"$id": "middle", "$ref": "inner"},
            "inner": {"$id": "inner", "$recursiveAnchor": True, "items": {"$recursiveRef": "#"}},
        },
    }
    assert is_valid(schema, "[[]]")
    assert not is_valid(schema, "[[1, 2]]")


def test_dynamic_scopes_begin_at_the_schema_whether_it_has_a_uri_or_not() -> None:
    tree = {"$id": "http://x/tree", "$dynamicAnchor": "node", "items": {"$dynamicRef": "#node"}}
    strict = {"$dynamicAnchor": "node", "maxItems": 1}
    for schema in (
        {**strict, "$ref": "http://x/tree"},
        {**strict, "$id": "http://x/strict", "$ref": "tree"},
        {**strict, "$id": "http://x/strict", "allOf": [tree]},
        {**strict, "allOf": [tree]},
    ):
        documents = () if "allOf" in schema else (("http://x/tree", json.dumps(tree)),)
        assert is_valid(schema, "[[1]]", documents=documents)
        assert not is_valid(schema, "[[1, 2]]", documents=documents)


@pytest.mark.parametrize("draft", [4, 6, 7, 2019, 2020])
def test_references_are_resolved_within_every_keyword(draft: int) -> None:
    inner = {"id" if draft == 4 else "$id": "inner/", "definitions": {"a": {"enum": [1]}}, "properties": {}}
    inner["properties"] = {"x": {"$ref": "#/definitions/a"}}
    for schema in ({"oneOf": [{"enum": [0]}, inner]}, {"not": {"not": inner}}, {"allOf": [{"anyOf": [inner]}]}):
        assert is_valid(schema, '{"x": 1}', default_draft=draft)
        assert not is_valid(schema, '{"x": 2}', default_draft=draft)
    if draft >= 6:
        assert is_valid({"contains": inner}, '[{"x": 1}]', default_draft=draft)
        assert not is_valid({"contains": inner}, '[{"x": 2}]', default_draft=draft)


def test_documents_are_found_and_judged_by_their_drafts() -> None:
    documents = (
        ("urn:old", json.dumps({"$schema": DRAFT4, "maximum": 5, "exclusiveMaximum": True, "const": 1})),
        ("urn:plain", '{"items": [{"type": "null"}], "$ref": "urn:old"}'),
        ("http://x/y", '{"$id": "http://z/", "$defs": {"a": {"$anchor": "name", "multipleOf": 0.01}}}'),
    )
    assert is_valid({"$ref": "urn:old"}, "4.5", documents=documents)
    assert not is_valid({"$ref": "urn:old"}, "5", documents=documents)
    assert is_valid({"$ref": "http://z/#name"}, "19.99", documents=documents)
    assert is_valid({"$ref": "http://x/y#/$defs/a"}, "19.99", documents=documents)
    # Up to draft 7 a list in `items` is a prefix, and hidden by `$ref`.
    assert is_valid({"$ref": "urn:plain"}, "[1]", documents=documents, default_draft=7)
    assert not is_valid({"$ref": "urn:plain"}, "[1]", documents=documents, default_draft=2019)


def test_a_schema_within_keeps_to_exact_numbers_whatever_its_draft() -> None:
    schema = {"allOf": [{"$id": "http://x/", "$schema": DRAFT7, "multipleOf": 0.01, "type": "number"}]}
    assert is_valid(schema, "19.99")
    assert not is_valid(schema, "19.999")


def test_the_default_draft_is_that_of_schemas_without_one() -> None:
    schema = {"items": [{"type": "null"}]}
    assert not is_valid(schema, "[1]", default_draft=7)
    assert is_valid({"$defs": {"a": False}, "$ref": "#/$defs/a"}, "1", default_draft=2020) is False
    assert is_valid({"type": "integer"}, "1.0", default_draft=6)
    assert not is_valid({"type": "integer"}, "1.0", default_draft=4)


def test_formats_are_annotations_on_demand() -> None:
    schema = {"type": "string", "format": "date"}
    assert not is_valid(schema, '"x"')
    assert is_valid(schema, '"x"', format="annotation")
    assert not is_valid(schema, "1", format="annotation")


def test_metaschemas_are_built_in() -> None:
    for uri in (DRAFT4, DRAFT7, DRAFT2019, "https://json-schema.org/draft/2020-12/schema"):
        assert is_valid({"$ref": uri}, '{"minLength": 1}')
        assert not is_valid({"$ref": uri}, '{"minLength": -1}')


def test_nothing_is_ever_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it connects")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(UnsupportedConstruct, match="finds nothing"):
        is_valid({"$ref": "http://127.0.0.1:9/schema"}, "1")
