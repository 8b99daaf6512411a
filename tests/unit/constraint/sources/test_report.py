"""Every keyword occurrence is in the report, in the order of the source.

And the documentation says what the code does: each row of its tables is compared with the reports of small schemas.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from services.constraint.core.regex import automaton, formulas, nfa, parse
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.json_schema import document, numeric, schema
from services.constraint.sources.json_schema import keywords as kw
from services.constraint.sources.json_schema.formats import FORMATS
from services.constraint.sources.json_schema.lower import MAX_COUNTED_PROPERTIES
from services.constraint.sources.source import Draft, Enforcement, KeywordReport

ROOT = Path(__file__).parents[4]
JSON_SCHEMA_PAGE = ROOT / "docs" / "json-schema.md"

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Order",
    "type": "object",
    "x-note": 1,
    "properties": {
        "이름": {"type": "string", "description": "a name", "maxLength": 9},
        "count": {"type": "integer", "minimum": 0, "minLength": 2},
        "a/b": {"$ref": "#/$defs/used"},
    },
    "required": ["이름"],
    "additionalProperties": False,
    "$defs": {"used": {"enum": ["x"]}, "unused": {"not": {}}},
}


def report(value: object, options: SourceOptions | None = None) -> tuple[KeywordReport, ...]:
    return build(ConstraintSource("json_schema", json.dumps(value)), options or SourceOptions()).keywords


def test_every_keyword_is_reported_in_order() -> None:
    lines = report(SCHEMA)
    assert [(line.pointer, line.enforcement) for line in lines] == [
        ("/$schema", "annotation"),
        ("/title", "annotation"),
        ("/type", "masked"),
        ("/x-note", "annotation"),
        ("/properties", "masked"),
        ("/properties/이름/type", "masked"),
        ("/properties/이름/description", "annotation"),
        ("/properties/이름/maxLength", "masked"),
        ("/properties/count/type", "masked"),
        ("/properties/count/minimum", "masked"),
        ("/properties/count/minLength", "masked"),
        ("/properties/a~1b/$ref", "masked"),
        ("/required", "masked"),
        ("/additionalProperties", "masked"),
        ("/$defs", "annotation"),
        ("/$defs/used/enum", "masked"),
        ("/$defs/unused", "annotation"),
    ]
    notes = {line.pointer: line.note for line in lines}
    assert notes["/x-note"] == "unknown keyword"
    assert notes["/$defs/unused"] == "a definition that nothing refers to"


# A schema for each keyword in which the mask enforces it.
MASKED: dict[str, dict[str, Any]] = {
    "type": {"type": "integer"},
    "enum": {"enum": [1, "a", [None]]},
    "const": {"const": {"a": 1.5}},
    "minimum": {"minimum": -1.5},
    "maximum": {"maximum": 1e3},
    "exclusiveMinimum": {"exclusiveMinimum": 0},
    "exclusiveMaximum": {"exclusiveMaximum": 100},
    "multipleOf": {"multipleOf": 0.3},
    "minLength": {"minLength": 3},
    "maxLength": {"maxLength": 30},
    "pattern": {"pattern": r"^(?!ab)\w+$"},
    "format": {"format": "date-time"},
    "items": {"items": {"type": "string"}},
    "prefixItems": {"prefixItems": [{}]},
    "additionalItems": {"items": [{}], "additionalItems": False, "$schema": "http://json-schema.org/draft-07/schema#"},
    "minItems": {"minItems": 2},
    "maxItems": {"maxItems": 2},
    "uniqueItems": {"uniqueItems": True, "maxItems": 1},
    "contains": {"contains": {"type": "null"}, "minContains": 0},
    "minContains": {"contains": {"type": "null"}, "minContains": 0},
    "maxContains": {"contains": {"type": "null"}, "minContains": 0, "maxContains": 2**28},
    "properties": {"properties": {"a": {}}},
    "required": {"required": ["a"]},
    "additionalProperties": {"additionalProperties": False},
    "patternProperties": {"patternProperties": {"^a": {"type": "null"}, "b$": {}}},
    "propertyNames": {"propertyNames": {"pattern": "^a", "maxLength": 5}},
    "minProperties": {"minProperties": 2},
    "maxProperties": {"maxProperties": 2},
    "$ref": {"$ref": "#/$defs/a", "$defs": {"a": {}}},
    "$dynamicRef": {"$dynamicRef": "#a", "$defs": {"a": {"$dynamicAnchor": "a"}}},
    "$recursiveRef": {
        "properties": {"a": {"$recursiveRef": "#"}},
        "$schema": "https://json-schema.org/draft/2019-09/schema",
    },
    "allOf": {"allOf": [{"minimum": 1}, {"maximum": 2}]},
    "anyOf": {"anyOf": [{"minimum": 1}, {"maximum": 2}]},
    "oneOf": {"oneOf": [{"type": "string"}, {"type": "integer", "minimum": 1}, {"type": "number", "maximum": 0}]},
    "not": {"not": {"properties": {"a": {"enum": ["x", None]}}, "required": ["a"]}},
    "if": {"if": {"required": ["a"]}},
    "then": {"if": {"required": ["a"]}, "then": {"required": ["b"]}},
    "else": {"if": {"required": ["a"]}, "else": {"required": ["b"]}},
    "dependencies": {"dependencies": {"a": ["b"]}, "$schema": "http://json-schema.org/draft-07/schema#"},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"dependentSchemas": {"a": {"properties": {"b": {"type": "null"}}}}},
    "unevaluatedProperties": {"properties": {"a": {}}, "unevaluatedProperties": False},
    "unevaluatedItems": {"prefixItems": [{}], "unevaluatedItems": False},
}

_MANY = {"anyOf": [{"minimum": number} for number in range(30)]}
# Beyond the cases that can be merged, whatever else is beside it.
_TOO_MANY = {"allOf": [_MANY, _MANY]}
_BY_OPTION = [{"properties": {"a": {}}}, {"properties": {"b": {}}}, {"prefixItems": [{}]}]

# A schema for each keyword in which a check enforces it.
CHECKED: dict[str, dict[str, Any]] = {
    "enum": {"enum": [1], **_TOO_MANY},
    "const": {"const": 1, **_TOO_MANY},
    "multipleOf": {"multipleOf": 1.23456789},
    "minLength": {"pattern": "^(ab|c)*$", "minLength": 3, "maxLength": 20_000},
    "maxLength": {"pattern": "^(ab|c)*$", "maxLength": 20_000},
    "format": {"format": "idn-hostname"},
    "uniqueItems": {"uniqueItems": True},
    "contains": {"contains": {"type": "null"}},
    "minContains": {"contains": {"type": "null"}, "minContains": 2},
    "maxContains": {"contains": {"type": "null"}, "maxContains": 2},
    "patternProperties": {"patternProperties": {"a.{7}$": {"type": "null"}, "b.{7}$": {}}},
    "propertyNames": {"propertyNames": {"anyOf": [{"pattern": "^a"}, {"maxLength": 2}]}},
    "$ref": {"$ref": "#/$defs/a", "$defs": {"a": {}}, **_TOO_MANY},
    "$dynamicRef": {"$dynamicRef": "#a", "$defs": {"a": {"$dynamicAnchor": "a"}}, **_TOO_MANY},
    "$recursiveRef": {
        "$recursiveRef": "#/$defs/a",
        "$defs": {"a": {}},
        "$schema": "https://json-schema.org/draft/2019-09/schema",
        **_TOO_MANY,
    },
    "allOf": _TOO_MANY,
    "anyOf": {**_MANY, **_TOO_MANY},
    "oneOf": {"oneOf": [{"type": "integer"}, {"minimum": 2}]},
    "not": {"not": {"type": "integer"}},
    "if": {"if": {"multipleOf": 2}, "then": {"minimum": 0}},
    "then": {"if": {"multipleOf": 2}, "then": {"minimum": 0}},
    "else": {"if": {"multipleOf": 2}, "else": {"minimum": 0}},
    "unevaluatedProperties": {"anyOf": _BY_OPTION, "unevaluatedProperties": False},
    "unevaluatedItems": {"anyOf": _BY_OPTION, "unevaluatedItems": False},
}
# The same, with properties in any order.
# More required properties than rules are written for.
FIVE = ["b", "c", "d", "e", "f"]
CHECKED_IN_ANY_ORDER: dict[str, dict[str, Any]] = {
    "required": {"required": FIVE},
    "dependencies": {"dependencies": {"a": FIVE}, "$schema": "http://json-schema.org/draft-07/schema#"},
    "dependentRequired": {"dependentRequired": {"a": FIVE}},
    "dependentSchemas": {"dependentSchemas": {"a": {"required": FIVE}}},
}

# What is not one value for all annotations.
_ANNOTATED: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "$defs": {"a": {}},
    "definitions": {"a": {}},
}


def enforcements(keyword: str, value: object, options: SourceOptions | None = None) -> set[Enforcement]:
    """Return how a schema's occurrences of a keyword are enforced."""
    return {line.enforcement for line in report(value, options) if line.keyword == keyword}


@pytest.mark.parametrize("keyword", MASKED)
def test_examples_are_masked(keyword: str) -> None:
    assert enforcements(keyword, MASKED[keyword]) == {"masked"}


@pytest.mark.parametrize("keyword", [*CHECKED, *CHECKED_IN_ANY_ORDER])
def test_examples_are_checked(keyword: str) -> None:
    if keyword in CHECKED:
        found = enforcements(keyword, CHECKED[keyword])
    else:
        found = enforcements(keyword, CHECKED_IN_ANY_ORDER[keyword], SourceOptions(property_order="any"))
    assert "checked" in found


@pytest.mark.parametrize("keyword", sorted(kw.ANNOTATIONS | kw.DEFINITIONS))
def test_annotations_are_annotations(keyword: str) -> None:
    value = {keyword: _ANNOTATED.get(keyword, "x"), "type": "string"}
    draft: Draft = 4 if keyword == "id" else 2019 if keyword == "$recursiveAnchor" else 2020
    assert enforcements(keyword, value, SourceOptions(default_draft=draft)) == {"annotation"}


@pytest.mark.parametrize("draft", get_args(Draft))
def test_a_keyword_of_other_drafts_is_an_annotation(draft: Draft) -> None:
    unknown = [keyword for keyword, kind in kw.KINDS[draft].items() if kind == "unknown in this draft"]
    lines = report(dict.fromkeys(unknown, 1), SourceOptions(default_draft=draft))
    assert {line.keyword for line in lines} == set(unknown)
    assert {line.enforcement for line in lines} <= {"annotation"}


def documented(page: Path, section: str) -> dict[str, str]:
    """Return the names in a section's table and what the documentation says of each."""
    rows = re.findall(r"^\| (`.*?`) \| ([^|]+?) \|", section_of(page, section), re.MULTILINE)
    listed = [(name, status) for names, status in rows for name in re.findall(r"`([^`]+)`", names)]
    assert len(dict(listed)) == len(listed)
    return dict(listed)


def section_of(page: Path, title: str) -> str:
    return re.split(r"\n##+ ", re.split(rf"\n##+ {title}\n", page.read_text())[1])[0]


@pytest.mark.parametrize(("page", "section"), [(JSON_SCHEMA_PAGE, "Keywords"), (ROOT / "README.md", "JSON Schema")])
def test_documentation_lists_every_keyword_as_the_code_has_it(page: Path, section: str) -> None:
    checked = CHECKED.keys() | CHECKED_IN_ANY_ORDER.keys()
    expected = {
        keyword: " / ".join(
            status for status, examples in (("masked", MASKED), ("checked", checked)) if keyword in examples
        )
        for keyword in MASKED.keys() | checked
    } | dict.fromkeys(kw.ANNOTATIONS | kw.DEFINITIONS, "annotation")
    assert expected.keys() == kw.KINDS[2020].keys()
    assert documented(page, section) == expected


def test_documentation_lists_every_format_as_the_code_has_it() -> None:
    expected = {name: "masked" if known.check is None else "checked" for name, known in FORMATS.items()}
    assert documented(JSON_SCHEMA_PAGE, "Formats") == expected


def test_documentation_lists_every_limit_as_the_code_has_it() -> None:
    expected = {
        "max_schema_bytes": document.MAX_SCHEMA_BYTES,
        "max_schema_depth": document.MAX_SCHEMA_DEPTH,
        "max_minimum_count": schema.MAX_MINIMUM_COUNT,
        "max_bound_digits": numeric.MAX_BOUND_DIGITS,
        "max_counted_properties": MAX_COUNTED_PROPERTIES,
        "max_pattern_characters": parse.MAX_PATTERN_CHARACTERS,
        "max_group_depth": parse.MAX_GROUP_DEPTH,
        "max_count": parse.MAX_COUNT,
        "max_nfa_states": nfa.MAX_NFA_STATES,
        "max_dfa_states": automaton.MAX_DFA_STATES,
        "max_formula_nodes": formulas.MAX_FORMULA_NODES,
        "max_formula_depth": formulas.MAX_FORMULA_DEPTH,
    }
    assert documented(JSON_SCHEMA_PAGE, "Limits") == {name: f"{value:,}" for name, value in expected.items()}
