"""Expressions for JSON strings by length, patterns and formats.

Free strings take every spelling that JSON has for a character. Strings under a pattern or a format are written in one
way, `encoding.json_plain`.
"""

from __future__ import annotations

from functools import lru_cache

from services.constraint.core.grammar import NOTHING, Bytes, Expression, Repeat, Sequence
from services.constraint.core.regex import anchors, automaton, charset, encoding, lookaround
from services.constraint.core.regex.ast import Node
from services.constraint.core.regex.automaton import Dfa
from services.constraint.core.regex.parse import parse
from services.constraint.sources.json_schema import lengths
from services.constraint.sources.json_schema.formats import FORMATS
from services.constraint.sources.json_schema.nodes import String

_QUOTE = Bytes(b'"')
ANY_CHARACTER = encoding.characters(charset.EVERYTHING, encoding.json_any)
PLAIN_CHARACTER = encoding.characters(charset.EVERYTHING, encoding.json_plain)
ANY_STRING: Expression = Sequence((_QUOTE, Repeat(ANY_CHARACTER, 0, None), _QUOTE))
PLAIN_STRING: Expression = Sequence((_QUOTE, Repeat(PLAIN_CHARACTER, 0, None), _QUOTE))


def string(node: String) -> Expression:
    """Return the expression of the strings of a node, quotes included.

    Raises:
        GrammarSyntax, UnsupportedConstruct, GrammarTooLarge: as the patterns' parsing and products do.
    """
    if node.max_length is not None and node.max_length < node.min_length:
        return NOTHING
    patterns = patterns_of(node)
    if not patterns:
        return Sequence((_QUOTE, Repeat(ANY_CHARACTER, node.min_length, node.max_length), _QUOTE))
    return Sequence((_QUOTE, _body(patterns, node.min_length, node.max_length), _QUOTE))


def patterns_of(node: String) -> tuple[str, ...]:
    """Return all patterns that a string must match, those of its formats among them."""
    return tuple(dict.fromkeys((*node.patterns, *(FORMATS[name].pattern for name in node.formats))))


def matches(node: String, value: str) -> bool:
    """Tell whether a string is one of the node's."""
    if len(value) < node.min_length or (node.max_length is not None and len(value) > node.max_length):
        return False
    return all(dfa_of(pattern).matches(value) for pattern in patterns_of(node))


@lru_cache(maxsize=512)
def tree_of(pattern: str) -> Node | None:
    """Return the plain tree of all strings in which a pattern is found; None if it takes an automaton."""
    tree = anchors.search(parse(pattern, "ecma"))
    return None if tree is None else lengths.simplified(tree)


@lru_cache(maxsize=128)
def dfa_of(pattern: str) -> Dfa:
    """Return the automaton of all strings in which a pattern is found."""
    tree = tree_of(pattern)
    return lookaround.search(parse(pattern, "ecma")) if tree is None else automaton.to_dfa(tree)


@lru_cache(maxsize=256)
def _body(patterns: tuple[str, ...], minimum: int, maximum: int | None) -> Expression:
    if len(patterns) == 1 and (tree := tree_of(patterns[0])) is not None:
        # The core makes counts cheap, and knows the masks of loops over characters: the tree is kept where it can be.
        bounded = lengths.within(tree, minimum, maximum)
        if bounded is not None:
            return automaton.to_expression(bounded, encoding.json_plain)
    dfa = dfa_of(patterns[0])
    for pattern in patterns[1:]:
        dfa = automaton.intersect(dfa, dfa_of(pattern))
    if minimum == 0 and maximum is None:
        return dfa.to_automaton(encoding.json_plain)
    return lengths.product(dfa, minimum, maximum, encoding.json_plain)
