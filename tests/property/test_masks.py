"""Masks where the shortcuts of `masks.py` are taken: kernel = plain Python twin = trying every token."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from services.constraint.core.engine import TERMINATED, CompiledGrammar, Matcher, TokenTrie, compile_grammar
from services.constraint.core.grammar import (
    EMPTY,
    Alternation,
    Automaton,
    ByteRange,
    Bytes,
    Expression,
    Grammar,
    Literals,
    Reference,
    Repeat,
    Sequence,
    optional,
)
from services.constraint.core.reference import Reference as Twin
from services.constraint.core.reference import TooAmbiguousError
from services.constraint.sources.json_schema.keys import any_key_but
from services.constraint.sources.json_schema.strings import ANY_CHARACTER, PLAIN_CHARACTER
from services.rpckit.status import UnsatisfiableGrammar, UnsupportedConstruct
from services.vocabulary import allowed_token_ids

PIECES = [
    b"a",
    b"b",
    b"z",
    b"A",
    b"0",
    b'"',
    b"\\",
    b"n",
    b"u",
    b"-",
    b",",
    b" ",
    b"\n",
    "é".encode(),
    "🦜".encode(),
    b"\xc3",
]


@dataclass(frozen=True)
class Words:
    """As much of a vocabulary as masks need."""

    token_bytes: tuple[bytes | None, ...]
    eos_token_ids: tuple[int, ...]

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)


def vocabularies() -> st.SearchStrategy[Any]:
    """The pieces' bytes, some words of several pieces, an end token and an id without text."""
    words = st.lists(st.lists(st.sampled_from(PIECES), min_size=2, max_size=5).map(b"".join), min_size=5, max_size=25)

    def make(found: list[bytes]) -> Words:
        tokens: list[bytes | None] = [bytes([byte]) for byte in sorted({byte for piece in PIECES for byte in piece})]
        tokens += [*dict.fromkeys(found), None, None]
        return Words(tuple(tokens), (len(tokens) - 1,))

    return words.map(make)


EARLY, LATE = ByteRange(0x61, 0x6D), ByteRange(0x6E, 0x7A)
LETTER, CAPITAL = ByteRange(0x61, 0x7A), ByteRange(0x41, 0x5A)
# Some are loops over single bytes, some over characters of several, one repeats what follows it.
CHARACTERS = st.sampled_from(
    [
        ByteRange(0x61, 0x7A),
        ByteRange(0x30, 0x7A),
        ANY_CHARACTER,
        PLAIN_CHARACTER,
        Automaton(0, (1,), ((0, 0x20, 0x5A, 1), (0, 0x61, 0x7A, 1), (0, 0xC3, 0xC3, 2), (2, 0x80, 0xBF, 1))),
    ]
)
COUNTS = st.sampled_from([(0, None), (1, None), (3, None), (0, 2), (1, 3), (2, 2), (0, 40), (5, 300), (2, 18)])
FOLLOWERS = st.sampled_from(
    [
        Bytes(b'"'),
        Bytes(b"-"),
        Bytes(b""),
        Bytes(b"az"),
        ByteRange(0x61, 0x6D),
        Bytes(b'",'),
        Literals((b"--", b"a-", b'"')),
    ]
)
SPACE = Alternation(
    (EMPTY, Bytes(b" "), Sequence((Bytes(b"\n"), Repeat(Alternation((Bytes(b" "), Bytes(b"\t"))), 0, 2))))
)


def units() -> st.SearchStrategy[Expression]:
    """Letters as the bodies of loops: some with one more piece, before or behind, that may be missing."""
    piece = st.sampled_from([Bytes(b"-"), Bytes(b"-n"), Bytes(b"0"), Bytes("é".encode()), ByteRange(0x61, 0x62)])

    def way(letters: Expression) -> st.SearchStrategy[Expression]:
        head = piece.map(lambda head: Sequence((optional(head), letters)))
        tail = piece.map(lambda tail: Sequence((letters, optional(tail))))
        return st.one_of(st.just(letters), head, tail)

    return st.tuples(way(EARLY), way(LATE), way(CAPITAL)).map(Alternation)


def expressions() -> st.SearchStrategy[Expression]:
    """Loops with what may follow them, loops in loops, keys but some names, white space, calls from several places."""

    def repeated(body: st.SearchStrategy[Expression], counts: st.SearchStrategy[Any]) -> st.SearchStrategy[Expression]:
        return st.builds(lambda body, counts: Repeat(body, *counts), body, counts)

    few_counts = st.sampled_from([(0, None), (1, None), (0, 3)])
    loop = st.one_of(repeated(CHARACTERS, COUNTS), repeated(units(), few_counts))
    keys = st.lists(st.sampled_from(["a", "ab", "abz", "b", "é", "éa", 'q"', "", "z🦜"]), max_size=4, unique=True)
    leaf = st.one_of(
        loop,
        loop,
        keys.map(any_key_but),
        st.just(Reference("space")),
        st.just(Reference("other")),
        FOLLOWERS,
        st.builds(lambda one, two: Sequence((one, two)), loop, FOLLOWERS),
    )

    def grow(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.one_of(
            several.map(Sequence), several.map(Alternation), inner.map(optional), repeated(inner, few_counts)
        )

    return st.recursive(leaf, grow, max_leaves=4)


def grammars() -> st.SearchStrategy[Grammar]:
    """Grammars over those."""
    return st.builds(
        lambda start, other: Grammar("start", {"start": start, "other": other, "space": SPACE}),
        expressions(),
        expressions(),
    )


# Names, without the word `az` or with it; a number; white space; a string; a word that names begin with; a mark.
NAME = Automaton(0, (1,), ((0, 0x61, 0x7A, 1), (1, 0x61, 0x7A, 1), (1, 0x30, 0x39, 1)))
NAME_BUT_AZ = Automaton(
    0,
    (1, 3),
    (
        *((0, 0x61, 0x61, 2), (0, 0x62, 0x7A, 1), (1, 0x61, 0x7A, 1), (1, 0x30, 0x39, 1)),
        *((2, 0x61, 0x79, 1), (2, 0x30, 0x39, 1), (2, 0x7A, 0x7A, 3), (3, 0x61, 0x7A, 1), (3, 0x30, 0x39, 1)),
    ),
)
LEXEMES: dict[str, Expression] = {
    "name": NAME,
    "name but az": Automaton(0, (1, 2), NAME_BUT_AZ.edges, bases=((2, 1), (3, 1))),
    "number": Automaton(
        0, (1, 3), ((0, 0x30, 0x39, 1), (1, 0x30, 0x39, 1), (1, 0x2C, 0x2C, 2), (2, 0x30, 0x39, 3), (3, 0x30, 0x39, 3))
    ),
    "gap": Automaton(0, (1,), ((0, 0x20, 0x20, 1), (0, 0x0A, 0x0A, 1), (1, 0x20, 0x20, 1), (1, 0x0A, 0x0A, 1))),
    "string": Sequence((Bytes(b'"'), Repeat(PLAIN_CHARACTER, 0, None), Bytes(b'"'))),
    "word": Bytes(b"az"),
    "mark": ByteRange(0x2C, 0x2D),
    "letter": ByteRange(0x61, 0x7A),
    "ambiguous": Automaton(0, (1,), ((0, 0x61, 0x7A, 0), (0, 0x61, 0x7A, 1))),
}


def token_grammars() -> st.SearchStrategy[Grammar]:
    """Grammars whose rules are over lexemes, with counts and with calls that nothing but the rule's end follows."""
    leaf = st.sampled_from([*LEXEMES, "start", "other"]).map(Reference)

    def grow(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        several = st.lists(inner, min_size=2, max_size=4).map(tuple)
        return st.one_of(
            several.map(Sequence),
            several.map(Alternation),
            inner.map(optional),
            st.builds(
                lambda body, counts: Repeat(body, *counts), inner, st.sampled_from([(0, None), (1, 3), (2, 100)])
            ),
        )

    body = st.recursive(leaf, grow, max_leaves=6)
    return st.builds(
        lambda start, other: Grammar("start", {**LEXEMES, "start": start, "other": other}, frozenset(LEXEMES)),
        body,
        body,
    )


COMMON = Grammar("start", {"start": Sequence((Reference("space"), Repeat(ANY_CHARACTER, 0, None))), "space": SPACE})
QUOTES = Words((b"a", b'"', b'a"', b'"a', b'aa"', None), (5,))
HYPHENS = Words((b"a", b"A", b"n", b"q", b"-", b"aA", b"a-q", b"n-q", b"aaa", None), (9,))
SPACES = Words((b" ", b"\n", b"  ", b"\n \n", None), (4,))


def in_a_loop(body: Expression) -> Grammar:
    """Make the grammar of any number of these."""
    return Grammar("start", {"start": Repeat(body, 0, None), "space": SPACE})


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(grammars(), vocabularies(), st.booleans(), st.randoms(use_true_random=False))
@example(
    Grammar("start", {"start": Sequence((Repeat(ByteRange(0x61, 0x7A), 2, 3), Bytes(b'"')))}),
    QUOTES,
    False,
    random.Random(1),
)
@example(in_a_loop(Alternation((Sequence((EARLY, optional(Bytes(b"-q")))), LATE))), HYPHENS, False, random.Random(1))
@example(in_a_loop(Alternation((LETTER, Sequence((optional(Bytes(b"-")), CAPITAL))))), HYPHENS, False, random.Random(1))
@example(in_a_loop(Repeat(LETTER, 2, 2)), HYPHENS, False, random.Random(1))
@example(in_a_loop(Reference("space")), SPACES, True, random.Random(1))
def test_mask_is_what_the_twin_finds(grammar: Grammar, words: Any, knows_common: bool, rng: random.Random) -> None:
    trie = TokenTrie(words)
    try:
        compiled = compile_grammar(grammar)
    except UnsatisfiableGrammar:
        assume(False)
    if knows_common:
        Matcher(compile_grammar(COMMON), trie, forcing="off", is_common=True)
    matcher = Matcher(CompiledGrammar.from_bytes(compiled.to_bytes()), trie, forcing="off")
    try:
        compare(matcher, Twin(compiled), words, rng)
    except TooAmbiguousError:
        assume(False)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(token_grammars(), vocabularies(), st.randoms(use_true_random=False))
def test_masks_of_lexemes_are_what_the_twin_finds(grammar: Grammar, words: Any, rng: random.Random) -> None:
    trie = TokenTrie(words)
    try:
        compiled = compile_grammar(grammar)
    except (UnsatisfiableGrammar, UnsupportedConstruct):
        assume(False)
    matcher = Matcher(CompiledGrammar.from_bytes(compiled.to_bytes()), trie, forcing="off")
    try:
        compare(matcher, Twin(compiled), words, rng)
    except TooAmbiguousError:
        assume(False)


def compare(matcher: Matcher, twin: Twin, words: Any, rng: random.Random) -> None:
    """Walk a few tokens and compare the masks."""
    state, mine = matcher.start, twin.start
    for _ in range(4):
        bitmask = matcher.guidance(state).bitmask
        allowed = set(allowed_token_ids(bitmask, words.vocab_size).tolist())
        expected = twin.allowed(mine, words.token_bytes, words.eos_token_ids)
        assert allowed == expected, [words.token_bytes[token_id] for token_id in allowed ^ expected]
        # Long words go further and are rarer than bytes.
        choices = sorted(allowed, key=lambda token_id: -len(words.token_bytes[token_id] or b""))
        token_id = rng.choice(choices[:10] if rng.random() < 0.7 else choices)
        state = matcher.accept(state, [token_id])
        if state == TERMINATED:
            break
        mine = twin.after(mine, words.token_bytes[token_id])


# The loop over letters that is a base, state 0, ends with a quote, as do the others.
BASE = ((0, 0x61, 0x7A, 0), (0, 0x22, 0x22, 1))
ODD, EVEN = [[(letter, letter) for letter in range(first, 0x7B, 2)] for first in (0x61, 0x62)]


@pytest.mark.parametrize(
    "edges",
    [
        # Another loop, which differs from the base in the quote alone, but never leads back to it.
        [(2, 0x61, 0x7A, 3), (3, 0x61, 0x7A, 3), (3, 0x22, 0x22, 4), (4, 0x22, 0x22, 1)],
        # All letters but one lead to the base.
        [(2, 0x61, 0x61, 3), (2, 0x62, 0x7A, 0), (3, 0x61, 0x7A, 0), (3, 0x22, 0x22, 1)],
        # Each letter leads elsewhere than the one before: noting the differences is given up.
        [
            *((source, *odd, 2) for source in (2, 3) for odd in ODD),
            *((source, *even, 3) for source in (2, 3) for even in EVEN),
            (3, 0x22, 0x22, 1),
        ],
        # Hardly a letter may follow.
        [(2, 0x61, 0x62, 3), (3, 0x63, 0x64, 2), (3, 0x22, 0x22, 1)],
    ],
    ids=["a loop of its own", "back to the base", "alternating", "few letters"],
)
def test_a_base_changes_nothing(edges: list[tuple[int, int, int, int]]) -> None:
    letters = [bytes([letter]) for letter in range(0x61, 0x7B)]
    short = [first + second for first in letters for second in [b"", *letters]]
    texts = [*short, *(text + b"aaa" for text in short), *(text + b'"' for text in short), b'"']
    words = Words((*texts, None), (len(texts),))
    trie = TokenTrie(words)
    with_bases, plain = (
        Matcher(compile_grammar(Grammar("start", {"start": automaton})), trie, forcing="off")
        for automaton in (
            Automaton(2, (1,), (*BASE, *edges), bases=((2, 0), (3, 0))),
            Automaton(2, (1,), (*BASE, *edges)),
        )
    )
    mine, other = with_bases.start, plain.start
    for text in (b"ac", b"b", b'a"'):
        bitmask = with_bases.guidance(mine).bitmask
        assert bitmask.tolist() == plain.guidance(other).bitmask.tolist()
        if texts.index(text) not in allowed_token_ids(bitmask, words.vocab_size):
            break
        mine, other = with_bases.accept(mine, [texts.index(text)]), plain.accept(other, [texts.index(text)])
