"""Bad input of every kind gets the error it deserves, with the place and what to do."""

import json

import pytest

from services.constraint.core.engine import CompiledGrammar, compile_grammar
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.source import Kind
from services.rpckit.status import (
    GrammarSyntax,
    GrammarTooLarge,
    InvalidRequest,
    ServiceError,
    UnsatisfiableGrammar,
    UnsupportedConstruct,
)


def error_of(kind: Kind, text: str, options: SourceOptions | None = None) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        compile_grammar(build(ConstraintSource(kind, text), options or SourceOptions()).grammar)
    return caught.value


@pytest.mark.parametrize(
    ("text", "error", "metadata"),
    [
        ('{"type": "string"', GrammarSyntax, {"line": "1", "column": "18"}),
        ("", GrammarSyntax, {"line": "1"}),
        ("[]", GrammarSyntax, {"pointer": ""}),
        ("NaN", GrammarSyntax, {}),
        ('{"minimum": NaN}', GrammarSyntax, {}),
        ('{"a": 1, "a": 2}', GrammarSyntax, {"key": "a"}),
        ('{"const": "\\ud800"}', GrammarSyntax, {}),
        ('{"type": "text"}', GrammarSyntax, {"pointer": "/type"}),
        ('{"type": []}', GrammarSyntax, {"pointer": "/type"}),
        ('{"properties": {"a": {"minLength": "3"}}}', GrammarSyntax, {"pointer": "/properties/a/minLength"}),
        ('{"minLength": -1}', GrammarSyntax, {"pointer": "/minLength"}),
        ('{"minLength": 1.5}', GrammarSyntax, {"pointer": "/minLength"}),
        ('{"minimum": null}', GrammarSyntax, {"pointer": "/minimum"}),
        ('{"properties": {"a/b": 3}}', GrammarSyntax, {"pointer": "/properties/a~1b"}),
        ('{"required": "a"}', GrammarSyntax, {"pointer": "/required"}),
        ('{"anyOf": []}', GrammarSyntax, {"pointer": "/anyOf"}),
        ('{"items": [{}]}', GrammarSyntax, {"pointer": "/items"}),
        ('{"exclusiveMinimum": true}', GrammarSyntax, {"pointer": "/exclusiveMinimum"}),
        ('{"pattern": "a("}', GrammarSyntax, {"position": "1", "pointer": "/pattern"}),
        ('{"pattern": "(?=a)*"}', GrammarSyntax, {"position": "5", "pointer": "/pattern"}),
        (
            r'{"pattern": "(?=(a))\\1"}',
            UnsupportedConstruct,
            {"name": "back-reference", "position": "7", "pointer": "/pattern"},
        ),
        (r'{"pattern": "\\p{Script=Greek}"}', UnsupportedConstruct, {"name": "property Script=Greek", "position": "0"}),
        ('{"pattern": "(?i:a)"}', UnsupportedConstruct, {"name": "inline flag"}),
        ('{"type": "string", "pattern": "a^b"}', UnsatisfiableGrammar, {}),
        ('{"patternProperties": {"a/(": {}}}', GrammarSyntax, {"position": "2", "pointer": "/patternProperties/a~1("}),
        (r'{"not": {"pattern": "(a)\\1"}}', UnsupportedConstruct, {"name": "back-reference"}),
        ('{"uniqueItems": 1}', GrammarSyntax, {"pointer": "/uniqueItems"}),
        ('{"contains": {}, "minContains": -1}', GrammarSyntax, {"pointer": "/minContains"}),
        ('{"not": []}', GrammarSyntax, {"pointer": "/not"}),
        ('{"if": {}, "then": 1}', GrammarSyntax, {"pointer": "/then"}),
        ('{"dependentRequired": {"a": "b"}}', GrammarSyntax, {"pointer": "/dependentRequired/a"}),
        ('{"dependentSchemas": {"a": ["b"]}}', GrammarSyntax, {"pointer": "/dependentSchemas/a"}),
        ('{"unevaluatedItems": {"type": "text"}}', GrammarSyntax, {"pointer": "/unevaluatedItems/type"}),
        ('{"multipleOf": 0}', GrammarSyntax, {"pointer": "/multipleOf"}),
        ('{"$ref": "https://example.com/s.json"}', UnsupportedConstruct, {"pointer": "/$ref"}),
        ('{"$ref": "#/$defs/none"}', UnsupportedConstruct, {"pointer": "/$ref"}),
        ('{"$schema": "https://example.com/dialect"}', UnsupportedConstruct, {"pointer": "/$schema"}),
        ('{"$dynamicRef": "#none"}', UnsupportedConstruct, {"pointer": "/$dynamicRef"}),
        ('{"type": "number", "minimum": 1e999}', GrammarTooLarge, {"limit": "max_bound_digits"}),
        ('{"items":' * 200 + "{}" + "}" * 200, GrammarTooLarge, {"limit": "max_schema_depth"}),
        ("[" * 100_000, GrammarTooLarge, {}),
        ("9" * 5000, GrammarTooLarge, {}),
        (
            '{"allOf": [{"pattern": "(.a){400}"}, {"pattern": "b(.{9}c){60}"}]}',
            GrammarTooLarge,
            {"limit": "max_dfa_states"},
        ),
        (
            json.dumps({"properties": {f"p{i}": {} for i in range(61)}, "minProperties": 2}),
            GrammarTooLarge,
            {"limit": "max_counted_properties"},
        ),
        ("false", UnsatisfiableGrammar, {}),
        ('{"enum": []}', UnsatisfiableGrammar, {}),
        ('{"type": "integer", "minimum": 3, "maximum": 2}', UnsatisfiableGrammar, {}),
        ('{"type": "string", "enum": [1]}', UnsatisfiableGrammar, {}),
        ('{"$ref": "#"}', UnsatisfiableGrammar, {}),
        ('{"properties": {"n": {"$ref": "#"}}, "required": ["n"], "type": "object"}', UnsatisfiableGrammar, {}),
        ('{"type": "object", "required": ["a"], "additionalProperties": false}', UnsatisfiableGrammar, {}),
        ('{"not": {}}', UnsatisfiableGrammar, {}),
        ('{"type": "string", "not": {"type": ["string", "null"]}}', UnsatisfiableGrammar, {}),
        ('{"allOf": [{"type": "string"}, {"minimum": 3, "type": "number"}]}', UnsatisfiableGrammar, {}),
        ('{"type": "array", "contains": {}, "maxItems": 0}', UnsatisfiableGrammar, {}),
        ('{"type": "object", "propertyNames": {"maxLength": 1}, "required": ["ab"]}', UnsatisfiableGrammar, {}),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_json_schema(text: str, error: type[ServiceError], metadata: dict[str, str]) -> None:
    found = error_of("json_schema", text)
    assert type(found) is error
    assert metadata.items() <= found.metadata.items()


def test_an_unknown_format_is_refused_where_the_options_say_so() -> None:
    found = error_of("json_schema", '{"items": {"format": "color"}}', SourceOptions(unknown_formats="error"))
    assert isinstance(found, UnsupportedConstruct)
    assert found.metadata.items() >= {"keyword": "format", "pointer": "/items/format"}.items()
    assert "'color' is not known" in found.message


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x": {"not": {"type": "integer"}}}},
        {"uniqueItems": True},
        {"patternProperties": {"^a": {}}},
        {"format": "color"},
        {"oneOf": [{"type": "integer"}, {"minimum": 2}]},
        {"type": "number", "multipleOf": 0.3},
        {"type": "number", "multipleOf": 1.23456789},
        {"contains": {"minimum": 3}, "maxContains": 2},
        {"if": {"multipleOf": 3}, "then": {"minimum": 2}},
        {"unevaluatedProperties": False, "anyOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
    ],
    ids=json.dumps,
)
def test_no_keyword_is_an_error(schema: object) -> None:
    compile_grammar(build(ConstraintSource("json_schema", json.dumps(schema)), SourceOptions()).grammar)


@pytest.mark.parametrize(
    ("text", "error", "metadata"),
    [
        ('start: "a" (', GrammarSyntax, {"line": "1"}),
        ('begin: "a"', GrammarSyntax, {"rule": "start"}),
        ("start: missing", GrammarSyntax, {}),
        ("start: /(/", GrammarSyntax, {}),
        ("start: /a*/", GrammarSyntax, {}),
        ("", GrammarSyntax, {}),
        ("%import secrets.KEY\nstart: KEY", UnsupportedConstruct, {"name": "%import"}),
        ("%import .secrets.KEY\nstart: KEY", UnsupportedConstruct, {"name": "%import"}),
        ("%declare X\nstart: X", UnsupportedConstruct, {"name": "%declare", "terminal": "X"}),
        ('start: A "b"\nA: /a(?=b)/', UnsupportedConstruct, {"terminal": "A", "name": "look-ahead", "position": "1"}),
        ("start: /(?<!a)b/", UnsupportedConstruct, {"name": "negative look-behind", "position": "0"}),
        (r"start: /a\b/", UnsupportedConstruct, {"name": "word boundary"}),
        ("start: /a$/", UnsupportedConstruct, {"name": "$"}),
        (r"start: /(a)\1/", UnsupportedConstruct, {"name": "back-reference"}),
        ("start: /(?<=a*)b/", GrammarSyntax, {}),
        ('start: "a" start', UnsatisfiableGrammar, {}),
    ],
)
def test_lark(text: str, error: type[ServiceError], metadata: dict[str, str]) -> None:
    found = error_of("lark", text)
    assert type(found) is error
    assert metadata.items() <= found.metadata.items()


@pytest.mark.parametrize(
    ("text", "error", "metadata"),
    [
        ("a(", GrammarSyntax, {"position": "1"}),
        ("[a", GrammarSyntax, {"position": "0"}),
        ("a**", GrammarSyntax, {"position": "2"}),
        (r"\q", GrammarSyntax, {"position": "0"}),
        ("a{3,1}", GrammarSyntax, {}),
        (r"(a)\1", UnsupportedConstruct, {"name": "back-reference", "position": "3"}),
        ("(a)?(?(1)b|c)", UnsupportedConstruct, {"name": "conditional group", "position": "4"}),
        ("(?<=a|bc)d", GrammarSyntax, {"position": "0"}),
        (r"a\bb", UnsatisfiableGrammar, {}),
        ("a*+", UnsupportedConstruct, {"name": "possessive quantifier"}),
        ("(?>a)", UnsupportedConstruct, {"name": "atomic group"}),
        ("a{99999999}", GrammarTooLarge, {"limit": "max_count"}),
        ("(" * 500 + ")" * 500, GrammarTooLarge, {"limit": "max_group_depth"}),
        ("[^\\s\\S]", UnsatisfiableGrammar, {}),
    ],
)
def test_regex(text: str, error: type[ServiceError], metadata: dict[str, str]) -> None:
    found = error_of("regex", text)
    assert type(found) is error
    assert metadata.items() <= found.metadata.items()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", '{"pattern": "^(?=.*a)(?!.*b)"}'),
        ("json_schema", r'{"pattern": "(?<=a*)\\bb\\B"}'),
        ("json_schema", r'{"pattern": "\\p{White_Space}|(?:^a$)*"}'),
        ("lark", "%import common.ESCAPED_STRING\nstart: ESCAPED_STRING"),
        ("lark", r"start: /[a-z](?=[a-z])\w\b-/"),
        ("regex", "(?<!a)b(?!c)"),
        ("regex", r"\bword"),
        ("regex", "(?:^a$\n?)+"),
    ],
)
def test_look_around_is_no_error(kind: Kind, text: str) -> None:
    compile_grammar(build(ConstraintSource(kind, text), SourceOptions()).grammar)


@pytest.mark.parametrize("choices", [(), ("a", ""), ("\ud800",)])
def test_choices(choices: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest):
        build(ConstraintSource("choices", None, choices), SourceOptions())


def test_counts_in_a_pattern_are_not_written_out() -> None:
    schema = json.dumps({"type": "string", "pattern": "^([a-z]{1,1000};){1,1000}$"})
    compiled = compile_grammar(build(ConstraintSource("json_schema", schema), SourceOptions()).grammar)
    assert len(compiled.to_bytes()) < 50_000


@pytest.mark.parametrize(
    ("kind", "keyword"), [("string", "minLength"), ("array", "minItems"), ("object", "minProperties")]
)
@pytest.mark.parametrize("count", [10**7, 10**9, 10**18])
def test_huge_minimum_is_a_limit_not_a_contradiction(kind: str, keyword: str, count: int) -> None:
    error = error_of("json_schema", json.dumps({"properties": {"a": {"type": kind, keyword: count}}}))
    assert isinstance(error, GrammarTooLarge)
    assert error.metadata["limit"] == "max_minimum_count"
    assert error.metadata["pointer"] == f"/properties/a/{keyword}"


@pytest.mark.parametrize(
    ("kind", "keyword"), [("string", "maxLength"), ("array", "maxItems"), ("object", "maxProperties")]
)
@pytest.mark.parametrize("count", [2**28, 2**29, 2**31 - 1, 10**18])
def test_huge_maximum_bounds_nothing(kind: str, keyword: str, count: int) -> None:
    source = ConstraintSource("json_schema", json.dumps({"type": kind, keyword: count}))
    compiled = compile_grammar(build(source, SourceOptions()).grammar)
    CompiledGrammar.from_bytes(compiled.to_bytes())
