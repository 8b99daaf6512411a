"""Expressions for JSON strings by length, patterns and formats.

With `escapes` "any", a string may be written in every spelling that JSON has for its characters; with "plain" in one,
that of `encoding.json_plain`, so that what a pattern leaves no choice in can be forced.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Final

from services.constraint.core.grammar import NOTHING, Bytes, Expression, Repeat, Sequence
from services.constraint.core.regex import anchors, automaton, charset, encoding, lookaround
from services.constraint.core.regex.ast import Node
from services.constraint.core.regex.automaton import Dfa
from services.constraint.core.regex.encoding import Encoding
from services.constraint.core.regex.parse import parse
from services.constraint.sources.json_schema import lengths
from services.constraint.sources.json_schema.formats import FORMATS
from services.constraint.sources.json_schema.nodes import String
from services.constraint.sources.source import Spelling

_QUOTE = Bytes(b'"')
ANY_CHARACTER = encoding.characters(charset.EVERYTHING, encoding.json_any)
PLAIN_CHARACTER = encoding.characters(charset.EVERYTHING, encoding.json_plain)
ANY_STRING: Expression = Sequence((_QUOTE, Repeat(ANY_CHARACTER, 0, None), _QUOTE))
PLAIN_STRING: Expression = Sequence((_QUOTE, Repeat(PLAIN_CHARACTER, 0, None), _QUOTE))

# Characters at the end of a text that the next one need not have: about a token.
_LATEST: Final = 24

_CHARACTERS: dict[Spelling, Expression] = {"any": ANY_CHARACTER, "plain": PLAIN_CHARACTER}
_ENCODINGS: dict[Spelling, Encoding] = {"any": encoding.json_any, "plain": encoding.json_plain}


def string(node: String, escapes: Spelling = "any") -> Expression:
    """Return the expression of the strings of a node, quotes included.

    What only the `check` of a format can tell is not in it.

    Raises:
        GrammarSyntax, UnsupportedConstruct, GrammarTooLarge: as the patterns' parsing and products do.
    """
    if node.max_length is not None and node.max_length < node.min_length:
        return NOTHING
    patterns = patterns_of(node)
    if not patterns:
        return Sequence((_QUOTE, Repeat(_CHARACTERS[escapes], node.min_length, node.max_length), _QUOTE))
    return Sequence((_QUOTE, _body(patterns, node.min_length, node.max_length, _ENCODINGS[escapes]), _QUOTE))


def patterns_of(node: String) -> tuple[str, ...]:
    """Return all patterns that a string must match, those of its formats among them."""
    return tuple(dict.fromkeys((*node.patterns, *(FORMATS[name].pattern for name in node.formats))))


def matches(node: String, value: str) -> bool:
    """Tell whether a string is one of the node's."""
    if len(value) < node.min_length or (node.max_length is not None and len(value) > node.max_length):
        return False
    if not all(found_in(pattern, value) for pattern in patterns_of(node)):
        return False
    return all(check(value) for name in node.formats if (check := FORMATS[name].check) is not None)


def has_room(node: String, begun: str, next_character: tuple[int, int] | None = None) -> bool:
    """Tell whether a string that begins so can match each of the node's patterns within its `max_length`.

    `next_character` are the lowest and highest code point of the character that must come next, if one must. What only
    the `check` of a format can tell is not regarded.
    """
    if node.max_length is None:
        return True
    rests = [_search(pattern).least_rest(begun, next_character) for pattern in patterns_of(node)]
    rests.append(0 if next_character is None else 1)
    return all(rest is not None and len(begun) + rest <= node.max_length for rest in rests)


def longest_rest(node: String) -> int:
    """Return how many characters are always enough to end a string that can match any one of the node's patterns."""
    return max((_search(pattern).longest_rest for pattern in patterns_of(node)), default=0)


def found_in(pattern: str, text: str) -> bool:
    """Tell whether an ECMA-262 pattern is found in a text. By automaton, so in time linear in the text."""
    return _search(pattern).finds(text)


@lru_cache(maxsize=512)
def _search(pattern: str) -> _Search:
    return _Search(dfa_of(pattern))


class _Search:
    """An automaton that remembers its steps, and where the latest text led but for its end; the next may begin so."""

    def __init__(self, dfa: Dfa) -> None:
        self._dfa = dfa
        self._steps: list[dict[str, int]] = [{} for _ in dfa.edges]
        self._latest = "", 0  # a text, and the state behind it

    def finds(self, text: str) -> bool:
        return self._state_behind(text) in self._dfa.accepting

    def least_rest(self, begun: str, next_character: tuple[int, int] | None) -> int | None:
        """Return the fewest characters with which a text that begins so is found; None where none is."""
        state = self._state_behind(begun)
        if state < 0 or next_character is None:
            return self._rests.get(state)
        lowest, highest = next_character
        rests = [
            1 + self._rests[target]
            for ranges, target in self._dfa.edges[state]
            if target in self._rests and any(low <= highest and lowest <= high for low, high in ranges)
        ]
        return min(rests, default=None)

    @cached_property
    def longest_rest(self) -> int:
        """The most that `least_rest` ever is."""
        return max(self._rests.values(), default=0)

    @cached_property
    def _rests(self) -> dict[int, int]:
        """The fewest characters from each state to an accepting one, where there is a way."""
        sources: list[set[int]] = [set() for _ in self._dfa.edges]
        for source, out in enumerate(self._dfa.edges):
            for _, target in out:
                sources[target].add(source)
        rests, latest = dict.fromkeys(self._dfa.accepting, 0), set(self._dfa.accepting)
        while latest:
            before = {source for state in latest for source in sources[state]} - rests.keys()
            rests |= dict.fromkeys(before, rests[next(iter(latest))] + 1)
            latest = before
        return rests

    def _state_behind(self, text: str) -> int:
        begun, state = self._latest
        if not text.startswith(begun):
            begun, state = "", 0
        behind = max(len(begun), len(text) - _LATEST)
        state = self._run(text[len(begun) : behind], state)
        self._latest = text[:behind], state
        return self._run(text[behind:], state)

    def _run(self, text: str, state: int) -> int:
        """Return the state behind a text, -1 where nothing goes on with it."""
        for character in text:
            if state < 0:
                break
            steps = self._steps[state]
            if character not in steps:
                steps[character] = self._dfa.step(state, ord(character))
            state = steps[character]
        return state


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
def _body(patterns: tuple[str, ...], minimum: int, maximum: int | None, encode: Encoding) -> Expression:
    if len(patterns) == 1 and (tree := tree_of(patterns[0])) is not None:
        # The core makes counts cheap, and knows the masks of loops over characters: the tree is kept where it can be.
        bounded = lengths.within(tree, minimum, maximum)
        if bounded is not None:
            return automaton.to_expression(bounded, encode)
    dfa = dfa_of(patterns[0])
    for pattern in patterns[1:]:
        dfa = automaton.intersect(dfa, dfa_of(pattern))
    if minimum == 0 and maximum is None:
        return dfa.to_automaton(encode)
    return lengths.product(dfa, minimum, maximum, encode)
