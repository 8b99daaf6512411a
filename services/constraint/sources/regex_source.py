"""Regex: the whole text matches a pattern in Python's `re` syntax."""

from __future__ import annotations

from services.constraint.core.grammar import Grammar
from services.constraint.core.regex import anchors, automaton, encoding
from services.constraint.core.regex.parse import parse
from services.constraint.sources.source import BuiltSource


def build(pattern: str) -> BuiltSource:
    """Return the grammar of all texts that `re.fullmatch` takes.

    Raises:
        GrammarSyntax, UnsupportedConstruct, GrammarTooLarge: as `parse` does.
    """
    tree = anchors.full_match(parse(pattern, "python"), pattern)
    return BuiltSource(Grammar("start", {"start": automaton.to_expression(tree, encoding.utf8)}))
