"""Random patterns: the automata take what Python's `re` takes."""

import itertools
import json
import re
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.constraint.core.grammar import Grammar
from services.constraint.core.regex import anchors, automaton, charset, encoding, lookaround
from services.constraint.core.regex.minimise import minimise
from services.constraint.core.regex.parse import parse
from services.constraint.core.regex.widths import refuse_outside
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.validation.ecma import compiled
from services.rpckit.status import UnsupportedConstruct
from tests.support.derivation import matches

ALPHABET = 'abA1 _é한🦜-\n\u2028"\\'
ATOMS = st.sampled_from(
    [
        "a",
        "b",
        "A",
        "1",
        "é",
        "한",
        "🦜",
        ".",
        r"\d",
        r"\w",
        r"\s",
        r"\S",
        r"\W",
        "[a-z]",
        "[^a]",
        r"[^\w]",
        "[한🦜]",
        r"[\s\d]",
        r"\-",
        "(?:)",
        r"\n",
        "[A-Z_-]",
        r"\\",
        '"',
        "[é-힣]",
    ]
)
COUNTS = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?", "??", "{0,2}?", "{0}"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map("".join)
        | st.lists(inner, min_size=2, max_size=3).map(lambda options: "(?:" + "|".join(options) + ")")
        | st.tuples(inner, COUNTS).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
    ),
    max_leaves=6,
)
TEXTS = st.text(ALPHABET, max_size=6)

# Patterns with look-around, and all short texts over the characters that they tell apart.
LOOK_ATOMS = st.sampled_from(["a", "b", " ", ".", r"\w", r"\s", r"\n", "[^a]", "[ab]", "(?:)"])
ASSERTIONS = st.sampled_from(["^", "$", r"\A", r"\Z", r"\b", r"\B"])
LOOK_PATTERNS = st.recursive(
    LOOK_ATOMS | ASSERTIONS,
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map("".join)
        | st.lists(inner, min_size=2, max_size=3).map(lambda options: "(?:" + "|".join(options) + ")")
        | st.tuples(inner, COUNTS).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
        | st.tuples(st.sampled_from(["(?=", "(?!", "(?<=", "(?<!"]), inner).map(lambda pair: "".join(pair) + ")")
    ),
    max_leaves=8,
)
SHORT_TEXTS = ["".join(text) for length in range(5) for text in itertools.product("ab \n", repeat=length)]


@settings(max_examples=150, deadline=None)
@given(
    pattern=PATTERNS,
    flags=st.sampled_from(["", "(?i)", "(?s)", "(?a)", "(?is)"]),
    texts=st.lists(TEXTS, min_size=3, max_size=6),
)
def test_python_full_match(pattern: str, flags: str, texts: list[str]) -> None:
    grammar = build(ConstraintSource("regex", flags + pattern), SourceOptions()).grammar
    for text in texts:
        assert matches(grammar, text.encode()) == bool(re.fullmatch(flags + pattern, text)), text


@settings(max_examples=150, deadline=None)
@given(
    options=st.lists(
        st.tuples(st.sampled_from(["", "^"]), PATTERNS, st.sampled_from(["", "$"])), min_size=1, max_size=2
    ),
    texts=st.lists(TEXTS, min_size=3, max_size=6),
)
def test_ecma_search_inside_a_json_string(options: list[tuple[str, str, str]], texts: list[str]) -> None:
    pattern = "|".join(map("".join, options))
    tree = anchors.search(parse(pattern, "ecma"))
    assert tree is not None
    expression = automaton.to_expression(tree, encoding.json_plain)
    grammar = Grammar("start", {"start": expression})
    dfa = automaton.to_dfa(tree)
    for text in texts:
        is_found = bool(compiled(pattern).search(text))
        assert matches(grammar, json.dumps(text, ensure_ascii=False)[1:-1].encode()) == is_found, text
        assert dfa.matches(text) == is_found, text


@settings(max_examples=100, deadline=None)
@given(
    a=PATTERNS,
    b=PATTERNS,
    low=st.integers(0, 3),
    extra=st.integers(0, 3) | st.none(),
    texts=st.lists(TEXTS, min_size=5, max_size=8),
)
def test_products(a: str, b: str, low: int, extra: int | None, texts: list[str]) -> None:
    left, right = automaton.to_dfa(parse(a, "python")), automaton.to_dfa(parse(b, "python"))
    high = None if extra is None else low + extra
    both, neither = automaton.intersect(left, right), automaton.complement(left)
    counted = automaton.with_length(left, low, high)
    for text in texts:
        assert both.matches(text) == (left.matches(text) and right.matches(text))
        assert neither.matches(text) != left.matches(text)
        assert counted.matches(text) == (
            left.matches(text) and low <= len(text) and (high is None or len(text) <= high)
        )


@settings(max_examples=150, deadline=None)
@given(pattern=PATTERNS, text=TEXTS)
def test_a_matcher_that_may_stop_early(pattern: str, text: str) -> None:
    dfa = automaton.to_early_dfa(parse(pattern, "python"))
    found = re.match(pattern, text)
    assert dfa.matches(text) == (found is not None and found.end() == len(text))


@settings(max_examples=300, deadline=None)
@given(flags=st.sampled_from(["", "(?m)", "(?s)", "(?a)"]), pattern=LOOK_PATTERNS)
def test_look_around(flags: str, pattern: str) -> None:
    pattern = flags + pattern
    try:
        oracle = re.compile(pattern)
    except re.error:  # a look-behind of more than one width
        assume(False)
    tree = parse(pattern, "python")
    full, found = lookaround.full_match(tree), lookaround.search(tree)
    for text in SHORT_TEXTS:
        assert full.matches(text) == bool(oracle.fullmatch(text)), text
        assert found.matches(text) == bool(oracle.search(text)), text
    for plain, dfa in ((anchors.full_match(tree), full), (anchors.search(tree), found)):
        if plain is not None:
            # Both ways lead to the same smallest automaton.
            smallest = minimise(automaton.to_dfa(plain))
            assert len(smallest.edges) == len(dfa.edges)
            assert all(smallest.matches(text) == dfa.matches(text) for text in SHORT_TEXTS)


@settings(max_examples=300, deadline=None)
@given(
    pattern=LOOK_PATTERNS, before=st.sampled_from(["", "a", " ", "b\n"]), behind=st.sampled_from(["", "a", " ", "\n"])
)
def test_look_around_inside_a_terminal(pattern: str, before: str, behind: str) -> None:
    try:
        oracle = re.compile(pattern)
        tree = parse(pattern, "python")
        refuse_outside(tree, pattern)
    except (re.error, UnsupportedConstruct):
        assume(False)
    dfa = lookaround.early_match(tree)
    for text in SHORT_TEXTS:
        found = oracle.match(text)
        assert dfa.matches(text) == (found is not None and found.end() == len(text)), text
        # What stands around a terminal's text makes no difference: to match it there is to match one like it.
        inside = oracle.match(before + text + behind, len(before))
        assert inside is None or dfa.matches(inside[0]), text


@settings(max_examples=300, deadline=None)
@given(pattern=LOOK_PATTERNS)
def test_look_ahead_beyond_a_terminal(pattern: str) -> None:
    try:
        oracle = re.compile(pattern)
        tree = parse(pattern, "python")
        refuse_outside(tree, pattern, may_look_ahead=True)
    except (re.error, UnsupportedConstruct):
        assume(False)
    match = lookaround.prefix_match(tree)
    for text in SHORT_TEXTS:
        found = oracle.match(text)
        ends = []
        at: int | None = 0
        for end in range(len(text) + 1):
            if at in match.dfa.accepting and fits(match, match.behind.get(at), text[end:]):
                ends.append(end)
            if at is None or end == len(text):
                break
            at = target(match.dfa.edges[at], text[end])
        assert ends == ([] if found is None else [found.end()]), text
        if found is None or found.end() > 0:  # that it matches nothing at its start is not told
            assert fits(match, match.at_start, text) == (found is None), text


def target(edges: Any, char: str) -> int | None:
    return next((to for ranges, to in edges if any(low <= ord(char) <= high for low, high in ranges)), None)


def fits(match: lookaround.PrefixMatch, at: int | None, rest: str) -> bool:
    """Tell whether the rest of a text is what a match asks of it."""
    for char in rest:
        if at is None:
            return True
        at = target(match.pending[at].edges, char)
        if at == lookaround.BROKEN:
            return False
    return at is None or match.pending[at].may_end


@settings(max_examples=200, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 3000)), min_size=1, max_size=4), data=st.data()
)
def test_encodings(ranges: list[tuple[int, int]], data: st.DataObject) -> None:
    members = charset.normalise((low, min(low + span, 0x10FFFF)) for low, span in ranges)
    assume(members)
    edges = [point for low, high in members for point in (low, high, low - 1, high + 1) if 0 <= point <= 0x10FFFF]
    code_point = data.draw(st.sampled_from(edges) | st.integers(0, 0x10FFFF))
    assume(not 0xD800 <= code_point <= 0xDFFF)
    char = chr(code_point)
    is_member = any(low <= code_point <= high for low, high in members)
    for encode, spellings in (
        (encoding.utf8, [char]),
        (encoding.json_plain, [json.dumps(char, ensure_ascii=False)[1:-1]]),
        (encoding.json_any, [json.dumps(char, ensure_ascii=False)[1:-1], json.dumps(char)[1:-1]]),
    ):
        grammar = Grammar("start", {"start": encoding.characters(members, encode)})
        for spelling in spellings:
            assert matches(grammar, spelling.encode()) == is_member, (encode, spelling)
