"""Constraints made of parts: masks against Python's `re`, which is given the same language as one pattern."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.constraint.checks import CheckedMatcher
from services.constraint.core.engine import TERMINATED, TokenTrie
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.source import Kind
from services.constraint.validation.validators import validate
from services.rpckit.status import TokenRejected
from services.vocabulary import allowed_token_ids
from tests.support.acceptance import matcher_of_source
from tests.support.grammars import vocabulary

NAME = "<|go|>"
# What stands for the special token in patterns and texts: a character that no part has.
GO = "\ue000"
MERGES = (("a", "b"), ("b", "a"), ('"', "a"), ("[", "]"), ("t", "r"), ("tr", "u"), ("]", "a"), ("b", "["), ("b", "{"))
VOCABULARY = vocabulary(MERGES, special=(NAME, "<|other|>"))
TRIE = TokenTrie(VOCABULARY)
TOKEN_OF = {token: token_id for token_id, token in enumerate(VOCABULARY.token_bytes) if token is not None}
OPTIONS = SourceOptions(whitespace="compact", escapes="plain")
MAX_TOKENS = 60


@dataclass(frozen=True)
class Language:
    """A constraint, a pattern of the same texts, and some of them."""

    source: ConstraintSource
    pattern: str
    texts: tuple[str, ...]


def simple(kind: Kind, text: str, pattern: str, *texts: str) -> Language:
    return Language(ConstraintSource(kind, text), pattern, texts)


def of_schema(schema: object, *texts: str) -> Language:
    """All texts of a schema that has few."""
    return simple("json_schema", json.dumps(schema), "|".join(map(re.escape, texts)), *texts)


def until(delimiter: str, *texts: str) -> Language:
    return simple("until", delimiter, f"(?:(?!{re.escape(delimiter)})[^{GO}])*{re.escape(delimiter)}", *texts)


UNIQUE = {"type": "array", "items": {"enum": [True, "a"]}, "uniqueItems": True, "maxItems": 2}
UNIQUE_TEXTS = ("[]", "[true]", '["a"]', '[true,"a"]', '["a",true]')
HAS_TRUE = {"type": "array", "items": {"type": "boolean"}, "contains": {"const": True}, "maxItems": 2}
HAS_TRUE_TEXTS = ("[true]", "[true,true]", "[true,false]", "[false,true]")
IN_LARK = f"""
    start: "a"* [value ("b" value)*]
    value: %json {json.dumps(UNIQUE)}
         | {NAME} "a"
"""
VALUE = f"(?:{'|'.join(map(re.escape, UNIQUE_TEXTS))}|{GO}a)"

LEAVES = (
    simple("literal", "ab", "ab", "ab"),
    simple("literal", "[]", r"\[\]", "[]"),
    Language(ConstraintSource("choices", choices=("a", "ab", "b")), "a|ab|b", ("a", "ab", "b")),
    simple("regex", "(ab)*", "(?:ab)*", "", "ab", "abab"),
    simple("regex", "[ab]?", "[ab]?", "", "a"),
    until("ab", "ab", "aab", "[ba]ab"),
    until("aa", "aa", "baa"),
    simple("special_token", NAME, GO, GO),
    of_schema({"enum": ["a", True]}, '"a"', "true"),
    of_schema(UNIQUE, *UNIQUE_TEXTS),
    of_schema(HAS_TRUE, *HAS_TRUE_TEXTS),
    simple("lark", IN_LARK, f"a*(?:{VALUE}(?:b{VALUE})*)?", "", "a", "aa[]", f"{GO}ab[true]b{GO}a", '["a",true]'),
)


@st.composite
def combined(draw: st.DrawFn, inner: st.SearchStrategy[Language]) -> Language:
    parts = draw(st.lists(inner, min_size=1, max_size=3))
    kind: Kind = draw(st.sampled_from(["sequence", "any_of"]))
    texts = [draw(st.sampled_from(part.texts)) for part in parts]
    return Language(
        ConstraintSource(kind, parts=tuple(part.source for part in parts)),
        ("" if kind == "sequence" else "|").join(f"(?:{part.pattern})" for part in parts),
        ("".join(texts),) if kind == "sequence" else tuple(texts),
    )


LANGUAGES = st.recursive(st.sampled_from(LEAVES), combined, max_leaves=5)


def tokens_of(text: str) -> list[int]:
    """Cut a text into single bytes, with the special token for its character."""
    return [
        token
        for char in text
        for token in (
            [VOCABULARY.special_tokens[NAME]] if char == GO else [TOKEN_OF[bytes([byte])] for byte in char.encode()]
        )
    ]


def text_of(token_ids: list[int]) -> str:
    return b"".join(map(VOCABULARY.spelling, token_ids)).decode().replace(NAME, GO)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(language=LANGUAGES, data=st.data())
def test_a_text_is_accepted_where_re_matches_it(language: Language, data: st.DataObject) -> None:
    matcher = matcher_of_source(language.source, OPTIONS, TRIE)
    pattern = re.compile(language.pattern)
    for text in language.texts:
        place = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(place, len(text)))
        put = data.draw(st.sampled_from(["", "a", "ab", "b", "[]", '"a"', GO]))
        for tried in (text, text[:place] + put + text[end:]):
            is_match = pattern.fullmatch(tried) is not None
            try:
                is_accepted = matcher.is_accepting(matcher.accept(matcher.start, tokens_of(tried)))
            except TokenRejected:
                is_accepted = False
            assert is_accepted == is_match, tried
            is_valid = validate(language.source, OPTIONS, tried.replace(GO, NAME).encode()) == []
            # In a finished text a special token's name is text as well, which free text may have.
            assert is_valid == is_match or (is_valid and GO in tried), tried


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(language=LANGUAGES, seed=st.integers(0, 1 << 30), is_canonical=st.booleans())
def test_walks_through_masks_end_in_texts_that_re_matches(language: Language, seed: int, is_canonical: bool) -> None:
    matcher = matcher_of_source(language.source, OPTIONS, TRIE, forcing="canonical" if is_canonical else "off")
    has_checks = any(hole.kind == "json_schema" for hole in build(language.source, OPTIONS).holes)
    has_checks |= isinstance(matcher, CheckedMatcher)
    rng = random.Random(seed)
    token_ids: list[int] = []
    guidance = matcher.guidance(matcher.start)
    while True:
        token_ids += guidance.forced_token_ids
        num_left = MAX_TOKENS - len(token_ids)
        allowed = allowed_token_ids(guidance.bitmask, VOCABULARY.vocab_size).tolist()
        ends = [token for token in allowed if token in VOCABULARY.eos_token_ids]
        assert len(allowed) == guidance.num_allowed
        assert bool(ends) == guidance.is_accepting or guidance.after_forced == TERMINATED
        if not allowed:  # a check refuses all that could follow
            assert has_checks
            assert not guidance.is_settled
            return
        assert has_checks or guidance.witness_num_tokens <= num_left
        if guidance.is_accepting and (num_left == 0 or rng.random() < 0.2 or allowed == ends):
            break
        token = rng.choice([token for token in allowed if token not in ends])
        following = matcher.guidance(matcher.accept(guidance.after_forced, [token]))
        if len(following.forced_token_ids) + following.witness_num_tokens >= num_left and not has_checks:
            if guidance.is_accepting:
                break
            token = guidance.witness_token_id or 0
            following = matcher.guidance(matcher.accept(guidance.after_forced, [token]))
        token_ids.append(token)
        guidance = following
        if len(token_ids) > 2 * MAX_TOKENS:  # nothing says how to end where checks have a say
            assert has_checks
            return
    assert re.fullmatch(language.pattern, text_of(token_ids)), text_of(token_ids)
    assert validate(language.source, OPTIONS, text_of(token_ids).replace(GO, NAME).encode()) == []
