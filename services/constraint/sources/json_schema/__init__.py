"""JSON Schema, drafts 4 to 2020-12: schema text to nodes (`schema.py`) to grammar (`lower.py`)."""

from __future__ import annotations

from services.constraint.sources.json_schema import document
from services.constraint.sources.json_schema.lower import common_grammar, lower
from services.constraint.sources.json_schema.schema import read
from services.constraint.sources.source import BuiltSource, SourceOptions


def build(text: str, options: SourceOptions) -> BuiltSource:
    """Build the grammar of a schema's text. Raises as `document.parse`, `schema.read` and `lower.lower` do."""
    schema = read(document.parse(text))
    return BuiltSource(lower(schema, options.whitespace), schema.keywords)


__all__ = ["build", "common_grammar"]
