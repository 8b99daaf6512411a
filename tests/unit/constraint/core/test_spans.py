"""Spans are found where they are, and shared by the grammars of a vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from services.constraint.core import spans
from services.constraint.core.engine import Matcher, TokenTrie, compile_grammar
from services.constraint.core.grammar import (
    Alternation,
    Automaton,
    ByteRange,
    Bytes,
    Expression,
    Grammar,
    Repeat,
    Sequence,
    optional,
)
from services.constraint.sources.json_schema.strings import ANY_CHARACTER, PLAIN_CHARACTER
from services.vocabulary import bitmask_words
from tests.support.grammars import vocabulary

LETTER = ByteRange(97, 122)
EARLY, LATE = ByteRange(97, 109), ByteRange(110, 122)
DIGIT = ByteRange(48, 57)


def matcher(body: Expression, trie: TokenTrie) -> Matcher:
    return Matcher(compile_grammar(Grammar("start", {"start": body})), trie, forcing="off")


def addresses(one: Matcher) -> set[int]:
    """Return the addresses of the span tables that a matcher has."""
    return {int(address) for address in one.configurations.spans.arrays.address if address}


def mask(one: Matcher, state: int) -> list[int]:
    out = np.zeros(bitmask_words(vocabulary().vocab_size), np.int32)
    one.fill_bitmask(state, out)
    return out.tolist()


@pytest.mark.parametrize(
    ("body", "num_spans"),
    [
        (Repeat(LETTER, 0, None), 1),
        (Repeat(LETTER, 1, None), 1),  # the first letter has the state of the others
        (Repeat(LETTER, 3, 70), 1),
        (Repeat(ANY_CHARACTER, 0, None), 20),  # one for each place inside a character
        (Repeat(PLAIN_CHARACTER, 2, 9), 14),
        (Repeat(DIGIT, 0, None), 0),  # few tokens are digits: walked
        (Bytes(b"abc"), 0),
        # Not deterministic, so no span.
        (Repeat(Automaton(0, (1,), ((0, 97, 122, 1), (0, 97, 122, 2), (2, 97, 122, 1))), 0, None), 0),
        # A loop that does not always come back to its beginning.
        (Repeat(Sequence((LETTER, Repeat(LETTER, 0, None), Bytes(b"-"))), 0, None), 1),
        # Behind every unit the same may follow: the beginning of the next one, or a hyphen.
        (Repeat(Sequence((LETTER, optional(Bytes(b"-q")))), 0, None), 1),
        # A hyphen may follow one letter and not another.
        (Repeat(Alternation((Sequence((EARLY, optional(Bytes(b"-q")))), LATE)), 0, None), 0),
    ],
)
def test_finds(body: Expression, num_spans: int) -> None:
    found = matcher(body, TokenTrie(vocabulary())).configurations.spans.arrays.state_span
    assert np.count_nonzero(found) == num_spans


def test_grammars_share_tables() -> None:
    trie = TokenTrie(vocabulary((("a", "b"),)))
    first = matcher(Sequence((Repeat(LETTER, 0, None), Bytes(b"-"))), trie)
    mask(first, first.start)
    second = matcher(Sequence((Bytes(b"x"), Repeat(LETTER, 0, None), Bytes(b"!"))), trie)
    assert addresses(first)
    assert addresses(first) == addresses(second)


def test_tables_beyond_the_limit_go_and_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [Sequence((Repeat(ByteRange(low, 122), 0, None), Bytes(b"-"))) for low in range(60, 80)]
    roomy = TokenTrie(vocabulary((("a", "b"),)))
    expected = [mask(one, one.start) for one in (matcher(body, roomy) for body in bodies)]
    monkeypatch.setattr(spans, "_MAX_BYTES", 1)
    narrow = TokenTrie(vocabulary((("a", "b"),)))
    made = [matcher(body, narrow) for body in bodies]
    # The first pass forgets each table as the next one is made, while its matcher goes on using it.
    for _ in range(2):
        assert [mask(one, one.start) for one in made] == expected
    again = [matcher(body, narrow) for body in bodies]
    assert [mask(one, one.start) for one in again] == expected
