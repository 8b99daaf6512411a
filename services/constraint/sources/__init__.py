"""Turns a constraint into the core's grammar form: JSON Schema, Lark, regex, choices, and what is made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from services.constraint.core.grammar import Grammar
from services.constraint.sources.source import (
    BuiltSource,
    ConstraintSource,
    KeywordReport,
    Kind,
    SourceOptions,
    Whitespace,
)
from services.rpckit.status import InvalidRequest

if TYPE_CHECKING:
    from services.constraint.sources.json_schema.schema import Schema
    from services.constraint.sources.parts import Parts


def build(source: ConstraintSource, options: SourceOptions) -> BuiltSource:
    """Build the grammar of a constraint.

    Raises:
        InvalidRequest: the constraint is not filled in.
        GrammarSyntax, UnsupportedConstruct, UnsatisfiableGrammar, GrammarTooLarge: see services/rpckit/status.py.
    """
    # Imported here because each brings its library: a process that only ever sees schemas need not load Lark.
    from services.constraint.sources.parts import Parts  # noqa: PLC0415

    parts = Parts(lambda part, parts, pointer: _build(part, options, parts, pointer))
    if source.kind in ("json_schema", "lark", "regex", "choices"):
        built = _build(source, options, parts, "")
    else:
        built = BuiltSource(Grammar("start", {"start": parts.expression(source)}))
    return replace(built, keywords=(*built.keywords, *parts.keywords), holes=parts.holes)


def _build(source: ConstraintSource, options: SourceOptions, parts: Parts, pointer: str) -> BuiltSource:
    if source.kind == "choices":
        from services.constraint.sources.choices import build as build_choices  # noqa: PLC0415

        return build_choices(source.choices)
    if source.text is None:
        raise InvalidRequest(f"a constraint of kind {source.kind} needs its text", field=source.kind)
    if source.kind == "json_schema":
        from services.constraint.sources.json_schema import build as build_json_schema  # noqa: PLC0415

        return build_json_schema(source.text, options)
    if source.kind == "regex":
        from services.constraint.sources.regex_source import build as build_regex_source  # noqa: PLC0415

        return build_regex_source(source.text)
    from services.constraint.sources.lark import build as build_lark  # noqa: PLC0415

    return build_lark(source.text, options.lexer, parts, pointer)


def read_schema(source: ConstraintSource, options: SourceOptions) -> Schema:
    """Read a JSON Schema that was built elsewhere. Raises as `build` does."""
    from services.constraint.sources.json_schema import read_schema as read_json_schema  # noqa: PLC0415

    assert source.text is not None
    return read_json_schema(source.text, options)


def common_grammar() -> Grammar:
    """Return a grammar of what many constraints have in them, for the engine to know ahead."""
    from services.constraint.sources.json_schema import common_grammar as of_json  # noqa: PLC0415

    return of_json()


__all__ = [
    "BuiltSource",
    "ConstraintSource",
    "KeywordReport",
    "Kind",
    "SourceOptions",
    "Whitespace",
    "build",
    "common_grammar",
    "read_schema",
]
