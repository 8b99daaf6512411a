"""Regex: the whole text matches a pattern in Python's `re` syntax."""

from __future__ import annotations

from services.constraint.core.grammar import Grammar
from services.constraint.core.regex import anchors, automaton, encoding, lookaround
from services.constraint.core.regex.parse import parse
from services.constraint.sources.source import BuiltSource


def build(pattern: str) -> BuiltSource:
    """Return the grammar of all texts that `re.fullmatch` takes.

    Raises:
        GrammarSyntax, UnsupportedConstruct, GrammarTooLarge: as `parse` and `lookaround.full_match` do.
    """
    tree = parse(pattern, "python")
    plain = anchors.full_match(tree)
    if plain is not None:
        expression = automaton.to_expression(plain, encoding.utf8)
    else:
        expression = lookaround.full_match(tree).to_automaton(encoding.utf8)
    return BuiltSource(Grammar("start", {"start": expression}))
