"""Checks beside masks: random walks end in valid texts, valid texts are accepted, masks and steps agree."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.constraint.checks.progress import begun_string
from services.constraint.core.engine import TERMINATED, TokenTrie
from services.constraint.sources import ConstraintSource, SourceOptions
from services.constraint.validation.json_validator import json_validator
from services.constraint.validation.validators import validate
from services.rpckit.status import ServiceError, TokenRejected
from services.vocabulary import allowed_token_ids, bitmask_words
from tests.support.acceptance import accepts, matcher_of
from tests.support.checked_schemas import instances, place_in, schemas, within
from tests.support.grammars import vocabulary

# Tokens of several bytes that end, close and go on: what masks must see through.
MERGES = (
    ("a", "b"),
    ('"', ","),
    ('"', ":"),
    ('",', '"'),
    ("]", ","),
    ("}", ","),
    ("]", "}"),
    ("}", "]"),
    ("}", "}"),
    ("]", "]"),
    ("1", ","),
    ("1", "]"),
    ("1", "}"),
    ('"', "a"),
    ('"a', '"'),
    ('"a"', ":"),
    ('"', "]"),
    ('"', "}"),
    ('"', '"'),
    ("[", "]"),
    ("{", "}"),
    ("[", "1"),
    ("a", '"'),
    ('a"', ","),
    ('a"', "]"),
    (",", "1"),
    (",", '"'),
)
CLOSING = frozenset(b'",]}')
TRIE = TokenTrie(vocabulary(MERGES))
SPELLED = [(token, spelled) for token, spelled in enumerate(TRIE.vocabulary.token_bytes) if spelled]
OPTIONS = st.builds(
    SourceOptions,
    whitespace=st.sampled_from(["compact", "bounded"]),
    property_order=st.sampled_from(["schema", "any"]),
)


def walk(matcher: Any, rng: random.Random, max_tokens: int = 80) -> tuple[bytes, bool]:
    """Follow the masks at random; return the text, and whether it was ended."""
    token_bytes, eos = TRIE.vocabulary.token_bytes, TRIE.vocabulary.eos_token_ids
    row = np.zeros(bitmask_words(TRIE.vocabulary.vocab_size), np.int32)
    state, text = matcher.start, b""
    for _ in range(max_tokens):
        matcher.fill_bitmask(state, row)
        allowed = allowed_token_ids(row, TRIE.vocabulary.vocab_size).tolist()
        refused = [token for token, spelled in enumerate(token_bytes) if spelled and token not in allowed]
        for token in rng.sample(refused, min(3, len(refused))):
            with pytest.raises(TokenRejected):
                matcher.accept(state, [token])
        for token in allowed:
            if not CLOSING.isdisjoint(token_bytes[token] or b""):
                matcher.accept(state, [token])
        assert matcher.is_accepting(state) == any(token in eos for token in allowed)
        if not allowed:
            return text, False  # a dead end
        ends = [token for token in allowed if token in eos]
        token = ends[0] if ends and rng.random() < 0.5 else rng.choice(allowed)
        state = matcher.accept(state, [token])
        if state == TERMINATED:
            return text, True
        text += token_bytes[token] or b""
    return text, False


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=schemas(), options=OPTIONS, seed=st.integers(0, 1 << 30))
def test_walks_that_end_are_valid(schema: Any, options: SourceOptions, seed: int) -> None:
    try:
        matcher = matcher_of(schema, options, TRIE)
    except ServiceError:
        return
    source = ConstraintSource("json_schema", json.dumps(schema))
    rng = random.Random(seed)
    for _ in range(6):
        text, has_ended = walk(matcher, rng)
        if has_ended:
            assert validate(source, options, text) == []


def cut(text: bytes, rng: random.Random) -> list[int]:
    """Cut a text into tokens at random."""
    tokens, at = [], 0
    while at < len(text):
        fitting = [token for token, spelled in SPELLED if text.startswith(spelled, at)]
        token = rng.choice(fitting)
        tokens.append(token)
        at += len(TRIE.vocabulary.token_bytes[token] or b"")
    return tokens


def allows(matcher: Any, tokens: list[int]) -> bool:
    """Tell whether each token is in the mask before it, and the end token in the last."""
    row = np.zeros(bitmask_words(TRIE.vocabulary.vocab_size), np.int32)
    state = matcher.start
    for token in [*tokens, *TRIE.vocabulary.eos_token_ids]:
        matcher.fill_bitmask(state, row)
        if not row[token >> 5] >> (token & 31) & 1:
            return False
        state = matcher.accept(state, [token])
    return True


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(), schema=schemas(), place=st.sampled_from(["root", "member", "item"]), seed=st.integers(0, 1 << 30)
)
def test_texts_are_judged_as_the_validator_does(data: st.DataObject, schema: Any, place: str, seed: int) -> None:
    """Whatever tokens they are cut into."""
    schema = within(schema, place)
    options = SourceOptions(property_order="any")
    source = ConstraintSource("json_schema", json.dumps(schema))
    values = [place_in(data.draw(instances()), place) for _ in range(8)]
    validator = json_validator(source.text or "", options)
    expected = [validator.is_valid(value) for value in values]
    try:
        matcher, by_tokens = matcher_of(schema, options), matcher_of(schema, options, TRIE)
    except ServiceError:
        assert not any(expected)
        return
    rng = random.Random(seed)
    for value, is_valid in zip(values, expected, strict=True):
        text = json.dumps(value, ensure_ascii=False).encode()
        assert accepts(matcher, text) == is_valid, (value, validate(source, options, text))
        assert allows(by_tokens, cut(text, rng)) == is_valid


LONG_STRINGS: dict[str, Any] = {
    "email": {"type": "string", "format": "email", "maxLength": 80},
    "uri": {"type": "string", "format": "uri", "maxLength": 70, "minLength": 3},
    "hostname": {"type": "string", "format": "hostname", "maxLength": 90},
}


@pytest.mark.parametrize("name", LONG_STRINGS)
@pytest.mark.parametrize("place", ["root", "member", "item"])
def test_a_string_that_grows_as_it_can_still_ends_within_its_length(name: str, place: str) -> None:
    """Walks that end a string only when nothing else is left: without a dead end, and the last text is valid."""
    schema = LONG_STRINGS[name]
    if place == "member":
        schema = {"type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False}
    elif place == "item":
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 2}
    matcher = matcher_of(schema, SourceOptions(whitespace="compact"), TRIE)
    assert not matcher.is_plain  # the length is checked: automaton and length together are too large for a mask
    source = ConstraintSource("json_schema", json.dumps(schema))
    token_bytes, eos = TRIE.vocabulary.token_bytes, set(TRIE.vocabulary.eos_token_ids)
    row = np.zeros(bitmask_words(TRIE.vocabulary.vocab_size), np.int32)
    rng = random.Random(f"{name} {place}")
    for _ in range(4):
        state, text = matcher.start, b""
        for _ in range(3000):
            matcher.fill_bitmask(state, row)
            allowed = allowed_token_ids(row, TRIE.vocabulary.vocab_size).tolist()
            assert allowed, f"a dead end behind {text!r}"
            for token in rng.sample(allowed, min(5, len(allowed))):
                matcher.accept(state, [token])
            going_on = [token for token in allowed if token not in eos and b'"' not in (token_bytes[token] or b'"')]
            token = rng.choice(going_on if going_on and text.count(b'"') % 2 else allowed)
            state = matcher.accept(state, [token])
            if state == TERMINATED:
                break
            text += token_bytes[token] or b""
        assert state == TERMINATED
        assert validate(source, SourceOptions(whitespace="compact"), text) == []


@given(text=st.text(min_size=1, max_size=4), ensure_ascii=st.booleans(), data=st.data())
def test_what_a_cut_string_may_become(text: str, ensure_ascii: bool, data: st.DataObject) -> None:
    body = json.dumps(text, ensure_ascii=ensure_ascii)[1:-1].encode()
    begun, next_character = begun_string(body[: data.draw(st.integers(0, len(body)))])
    assert text.startswith(begun)
    if next_character is None:
        assert body.startswith(json.dumps(begun, ensure_ascii=ensure_ascii)[1:-1].encode())
    else:
        assert next_character[0] <= ord(text[len(begun)]) <= next_character[1]
