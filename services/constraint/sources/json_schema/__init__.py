"""JSON Schema, drafts 4 to 2020-12: schema text to nodes (`schema.py`) to grammar (`lower.py`).

What a grammar cannot say is left to checks; `obligations.py` says of which values.
"""

from __future__ import annotations

from dataclasses import replace

from services.constraint.sources.json_schema import document
from services.constraint.sources.json_schema.combine import EVERYWHERE
from services.constraint.sources.json_schema.keywords import COMBINING_KEYWORDS, NEEDS
from services.constraint.sources.json_schema.lower import common_grammar, lower
from services.constraint.sources.json_schema.obligations import Obligations, may_repeat_names
from services.constraint.sources.json_schema.schema import Schema, read
from services.constraint.sources.source import BuiltSource, KeywordReport, SourceOptions


def build(text: str, options: SourceOptions) -> BuiltSource:
    """Build the grammar of a schema's text. Raises as `read_schema` and `lower.lower` do."""
    schema = read_schema(text, options)
    lowered = lower(schema, options)
    keywords = _as_enforced(schema.keywords, lowered.inexact)
    if not lowered.inexact and options.property_order == "schema" and not may_repeat_names(schema):
        return BuiltSource(lowered.grammar, keywords)
    return BuiltSource(lowered.grammar, keywords, lowered.inexact, schema)


def read_schema(text: str, options: SourceOptions) -> Schema:
    """Read a schema's text. Raises as `document.parse` and `schema.read` do."""
    return read(document.parse(text), options)


def _as_enforced(keywords: tuple[KeywordReport, ...], inexact: frozenset[str]) -> tuple[KeywordReport, ...]:
    """Return the report with what the grammar leaves to a check."""
    if not inexact:
        return keywords
    known = {line.pointer for line in keywords}
    # Whole schemas are blamed where their parts could not be merged.
    merged = {pointer.removesuffix("/*") for pointer in inexact if pointer.endswith("/*")}
    checked: set[str] = set()
    for pointer in inexact:
        if pointer.endswith("/*"):
            continue
        # A part that has no line of its own is said of the nearest keyword around it.
        at = pointer
        while at not in known and "/" in at:
            at = _around(at)
        checked.add(at)
    # What stands in these is not in the grammar at all.
    outside = tuple(f"{pointer}/" for pointer in checked if pointer.endswith(("/not", "/if", "/contains")))

    def is_checked(line: KeywordReport) -> bool:
        schema = _around(line.pointer)
        return (
            EVERYWHERE in inexact
            or line.pointer in checked
            or line.pointer.startswith(outside)
            or f"{schema}/{NEEDS.get(line.keyword)}" in checked
            or (line.keyword in COMBINING_KEYWORDS and schema in merged)
        )

    return tuple(
        replace(line, enforcement="checked") if line.enforcement == "masked" and is_checked(line) else line
        for line in keywords
    )


def _around(pointer: str) -> str:
    return pointer.rpartition("/")[0]


__all__ = ["Obligations", "Schema", "build", "common_grammar", "read_schema"]
