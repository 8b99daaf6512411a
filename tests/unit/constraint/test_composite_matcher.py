"""Holes of a grammar: what is forgotten, what is too much, and that batches and forks see the same."""

from __future__ import annotations

import numpy as np
import pytest

from services.constraint.composite_matcher import CompositeMatcher
from services.constraint.core.engine import REJECTED, Batch, MatcherLimits, TokenTrie
from services.constraint.sources import ConstraintSource, SourceOptions
from services.rpckit.status import LeaseExpired, OutOfFuel, TokenRejected
from services.vocabulary import allowed_token_ids, bitmask_words
from tests.support.acceptance import matcher_of_source
from tests.support.grammars import vocabulary

NAME = "<|go|>"
VOCABULARY = vocabulary((("a", "b"), ("]", "a"), ("a", '"')), special=(NAME,))
TRIE = TokenTrie(VOCABULARY)
UNIQUE = ConstraintSource("json_schema", '{"type": "array", "items": {"enum": ["a", 1]}, "uniqueItems": true}')
NESTED = ConstraintSource("json_schema", '{"type": "array", "uniqueItems": true}')
STRING = ConstraintSource("json_schema", '{"type": "string", "format": "regex"}')


def composite(*parts: ConstraintSource) -> CompositeMatcher:
    matcher = matcher_of_source(ConstraintSource("sequence", parts=parts), SourceOptions(), TRIE)
    assert isinstance(matcher, CompositeMatcher)
    return matcher


def literal(text: str) -> ConstraintSource:
    return ConstraintSource("literal", text)


def tokens(text: str) -> list[int]:
    return [VOCABULARY.token_bytes.index(bytes([byte])) for byte in text.encode()]


def allowed(matcher: CompositeMatcher, state: int) -> set[bytes]:
    row = np.zeros(bitmask_words(VOCABULARY.vocab_size), np.int32)
    matcher.fill_bitmask(state, row)
    return {VOCABULARY.spelling(token_id) for token_id in allowed_token_ids(row, VOCABULARY.vocab_size)}


def test_no_token_lies_across_the_border_of_a_hole() -> None:
    matcher = composite(literal("a"), STRING, literal("ab"))
    assert allowed(matcher, matcher.start) == {b"a"}  # `a"` would begin the string
    state = matcher.accept(matcher.start, tokens('a"x"'))
    assert allowed(matcher, state) == {b"a", b"ab"}
    matcher = composite(UNIQUE, literal("a"))
    assert b"]a" not in allowed(matcher, matcher.accept(matcher.start, tokens("[1")))


def test_bytes_that_stand_for_holes_are_no_text() -> None:
    matcher = composite(ConstraintSource("regex", "(?s:.*)"), literal("x"), UNIQUE)
    state = matcher.accept(matcher.start, tokens("x"))
    assert not {bytes([byte]) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))} & allowed(matcher, state)
    for byte in (0xC0, 0xFF):
        with pytest.raises(TokenRejected):
            matcher.accept(state, [VOCABULARY.token_bytes.index(bytes([byte]))])


def test_a_text_that_can_be_read_in_too_many_ways_says_so() -> None:
    matcher = composite(ConstraintSource("regex", "(?s:.*)"), NESTED)
    state = matcher.accept(matcher.start, tokens("[" * 100 + "]"))
    assert matcher.is_accepting(state)
    with pytest.raises(OutOfFuel, match="max_readings") as caught:
        matcher.accept(state, tokens("[" * MatcherLimits().max_readings))
    assert caught.value.metadata["limit"] == "max_readings"


def test_states_that_were_forgotten_are_replayed() -> None:
    parts = (literal("abababab" * 4), UNIQUE, ConstraintSource("special_token", NAME))
    small, large = composite(*parts), composite(*parts)
    small._max_bytes = 5_000
    text = tokens("abababab" * 4 + '["a",1]')
    early = small.accept(small.start, text[:3])
    state = small.accept(small.start, text)
    assert not small.has_state(early)
    with pytest.raises(LeaseExpired):
        small.guidance(early)
    assert allowed(small, state) == allowed(large, large.accept(large.start, text)) == {NAME.encode()}
    assert small.guidance(small.accept(small.start, text[:3])).num_allowed == 1
    assert small.num_bytes < large.num_bytes


def test_a_part_that_forgot_its_states_makes_this_matcher_forget() -> None:
    matcher = composite(literal("a"), UNIQUE)
    state = matcher.accept(matcher.start, tokens("a[1"))
    part = matcher._parts[0]
    part._states.clear()  # type: ignore[attr-defined]
    part._states[0] = (part._matcher.start, part._checks.start)  # type: ignore[attr-defined]
    with pytest.raises(LeaseExpired):
        allowed(matcher, state)
    part._next.clear()  # type: ignore[attr-defined]
    part._number_of.clear()  # type: ignore[attr-defined]
    assert b"]" in allowed(matcher, matcher.accept(matcher.start, tokens("a[1")))


def test_a_batch_has_the_same_masks() -> None:
    matcher = composite(ConstraintSource("special_token", NAME), UNIQUE)
    states = np.array([matcher.start, matcher.start])
    rows = np.zeros((2, bitmask_words(VOCABULARY.vocab_size)), np.int32)
    Batch([matcher, matcher]).advance(states, np.array([VOCABULARY.special_tokens[NAME], 0]), rows)  # type: ignore[list-item]
    assert states[1] == REJECTED
    assert rows[0].tolist() == matcher.guidance(int(states[0])).bitmask.tolist()
