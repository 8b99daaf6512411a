"""Random walks through the masks of random patterns end in texts that the validator takes."""

import json
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.constraint.core.engine import TERMINATED, Matcher, TokenTrie, compile_grammar
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.validation import validate
from services.rpckit.status import GrammarTooLarge, UnsatisfiableGrammar
from services.vocabulary import allowed_token_ids
from tests.support.grammars import vocabulary

VOCABULARY = vocabulary((("a", "b"), ("b", "a"), ("Ġ", "a"), ("ab", "ab")))
TRIE = TokenTrie(VOCABULARY)
# Bytes that the patterns tell apart; all others are one kind to them.
TOLD_APART = frozenset(
    token_id for token_id, token in enumerate(VOCABULARY.token_bytes) if token and token[0] in b'ab "\\n'
)

ATOMS = st.sampled_from(["a", "b", " ", ".", r"\w", r"\s", r"\n", "[^a]", "[^]", r"[\Wb]", r"\S", '"', r"\\"])
ASSERTIONS = st.sampled_from(["^", "$", r"\b", r"\B"])
COUNTS = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?", "??"])
PATTERNS = st.recursive(
    ATOMS | ASSERTIONS,
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map("".join)
        | st.lists(inner, min_size=2, max_size=3).map(lambda options: "(?:" + "|".join(options) + ")")
        | st.tuples(inner, COUNTS).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
        | st.tuples(st.sampled_from(["(?=", "(?!", "(?<=", "(?<!"]), inner).map(lambda pair: "".join(pair) + ")")
    ),
    max_leaves=8,
)

pytestmark = pytest.mark.filterwarnings("ignore::numba.NumbaPerformanceWarning")


def walked(matcher: Matcher, rng: random.Random) -> bytes:
    """Return a text written at random, ended by witnesses once it is long."""
    text = b""
    state = matcher.start
    num_random = rng.randrange(12)
    while True:
        guidance = matcher.guidance(state)
        text += VOCABULARY.decode(guidance.forced_token_ids)
        state = guidance.after_forced
        token_ids = allowed_token_ids(guidance.bitmask, VOCABULARY.vocab_size).tolist()
        if num_random:
            num_random -= 1
            told_apart = [token_id for token_id in token_ids if token_id in TOLD_APART]
            token_id = rng.choice(told_apart if told_apart and rng.random() < 0.8 else token_ids)
        elif guidance.witness_token_id is not None:
            token_id = guidance.witness_token_id
        else:
            return text
        state = matcher.accept(state, [token_id])
        if state == TERMINATED:
            return text
        text += VOCABULARY.token_bytes[token_id] or b""


@settings(max_examples=60, deadline=None)
@given(patterns=st.lists(PATTERNS, min_size=1, max_size=2), rng=st.randoms(use_true_random=False))
def test_walks_end_in_texts_that_the_validator_takes(patterns: list[str], rng: random.Random) -> None:
    schema = {"type": "string", "allOf": [{"pattern": pattern} for pattern in patterns]}
    source = ConstraintSource("json_schema", json.dumps(schema))
    try:
        matcher = Matcher(compile_grammar(build(source, SourceOptions()).grammar), TRIE)
    except (UnsatisfiableGrammar, GrammarTooLarge):
        assume(False)
        raise
    for _ in range(5):
        text = walked(matcher, rng)
        assert validate(source, SourceOptions(), text) == [], text
