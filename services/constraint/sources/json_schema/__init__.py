"""JSON Schema, drafts 4 to 2020-12: schema text to nodes (`schema.py`) to grammar (`lower.py`).

What a grammar cannot say is left to checks; `obligations.py` says of which values.
"""

from __future__ import annotations

from dataclasses import replace

from services.constraint.sources.json_schema import document
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
    checked: set[str] = set()
    for pointer in inexact:
        # A part that has no line of its own is said of the nearest keyword around it.
        at = pointer
        while at not in known and "/" in at:
            at = at.rpartition("/")[0]
        checked.add(at)

    def is_checked(line: KeywordReport) -> bool:
        schema = line.pointer.rpartition("/")[0]
        return (
            line.pointer in checked
            or f"{schema}/{NEEDS.get(line.keyword)}" in checked
            # A whole schema is blamed where its parts could not be merged.
            or (line.keyword in COMBINING_KEYWORDS and schema in inexact)
        )

    return tuple(
        replace(line, enforcement="checked") if line.enforcement == "masked" and is_checked(line) else line
        for line in keywords
    )


__all__ = ["Obligations", "Schema", "build", "common_grammar", "read_schema"]
