"""The core against the definition of a grammar, over random grammars, vocabularies and walks."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from services.constraint.core.compiled_grammar import CompiledGrammar
from services.constraint.core.engine import TERMINATED, Matcher, TokenTrie, compile_grammar
from services.constraint.core.grammar import Grammar
from services.rpckit.status import TokenRejected, UnsatisfiableGrammar, UnsupportedConstruct
from services.vocabulary import Vocabulary, allowed_token_ids
from tests.support.derivation import matches
from tests.support.grammars import LETTERS, grammars, vocabularies, vocabulary

WORDS = [bytes(word) for length in range(5) for word in itertools.product(LETTERS, repeat=length)]
BYTES = TokenTrie(vocabulary())

pytestmark = pytest.mark.filterwarnings("ignore::numba.NumbaPerformanceWarning")
thorough = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def compiled_or_skip(grammar: Grammar, trie: TokenTrie = BYTES) -> CompiledGrammar:
    try:
        return compile_grammar(grammar).restricted_to(trie.usable_bytes)
    except (UnsatisfiableGrammar, UnsupportedConstruct):
        assume(False)
        raise


def state_after(matcher: Matcher, vocabulary: Vocabulary, text: bytes) -> int | None:
    """Return the state after `text`, byte by byte, or None when a byte is outside its mask."""
    byte_ids = {token: token_id for token_id, token in enumerate(vocabulary.token_bytes) if token and len(token) == 1}
    try:
        return matcher.accept(matcher.start, [byte_ids[bytes([byte])] for byte in text])
    except TokenRejected:
        return None


@thorough
@given(grammars())
def test_accepts_exactly_the_texts_that_the_grammar_derives(grammar: Grammar) -> None:
    language = {word for word in WORDS if matches(grammar, word)}
    try:
        compiled = compile_grammar(grammar)
    except UnsupportedConstruct:
        assume(False)
    except UnsatisfiableGrammar:
        assert not language
        return
    matcher = Matcher(compiled, BYTES, forcing="off")
    for word in WORDS:
        state = state_after(matcher, BYTES.vocabulary, word)
        accepted = state is not None and matcher.guidance(state).is_accepting
        assert accepted == (word in language), word
    prefixes = {word[:end] for word in language for end in range(len(word) + 1)}
    assert all(state_after(matcher, BYTES.vocabulary, prefix) is not None for prefix in prefixes)


@thorough
@given(grammars(), vocabularies(), st.randoms(use_true_random=False))
def test_mask_is_what_trying_every_token_finds(grammar: Grammar, vocabulary: Vocabulary, rng: random.Random) -> None:
    trie = TokenTrie(vocabulary)
    compiled = compiled_or_skip(grammar, trie)
    matcher = Matcher(compiled, trie, forcing="off")
    by_bytes = Matcher(compiled, trie, forcing="off")
    text = b""
    state = matcher.start
    for _ in range(6):
        allowed = set(allowed_token_ids(matcher.guidance(state).bitmask, vocabulary.vocab_size).tolist())
        expected = {
            token_id
            for token_id, token in enumerate(vocabulary.token_bytes)
            if token is not None and state_after(by_bytes, vocabulary, text + token) is not None
        }
        if matches(grammar, text):
            expected |= set(vocabulary.eos_token_ids)
        assert allowed == expected
        token_id = rng.choice(sorted(allowed))
        state = matcher.accept(state, [token_id])
        if state == TERMINATED:
            assert matcher.guidance(state).num_allowed == 0
            break
        text += vocabulary.token_bytes[token_id] or b""


@thorough
@given(grammars(), vocabularies(), st.sampled_from(["canonical", "off"]), st.randoms(use_true_random=False))
def test_witness_ends_every_walk_in_a_text_of_the_grammar(
    grammar: Grammar, vocabulary: Vocabulary, forcing: str, rng: random.Random
) -> None:
    trie = TokenTrie(vocabulary)
    matcher = Matcher(compiled_or_skip(grammar, trie), trie, forcing=forcing)
    text = b""
    state = matcher.start
    for _ in range(rng.randrange(5)):
        guidance = matcher.guidance(state)
        for token_id in guidance.forced_token_ids:
            text += vocabulary.token_bytes[token_id] or b""
        choices = [
            token_id
            for token_id in allowed_token_ids(guidance.bitmask, vocabulary.vocab_size).tolist()
            if token_id not in vocabulary.eos_token_ids
        ]
        state = guidance.after_forced
        if not choices:
            break
        token_id = rng.choice(choices)
        state = matcher.accept(state, [token_id])
        text += vocabulary.token_bytes[token_id] or b""
    while True:
        guidance = matcher.guidance(state)
        text += vocabulary.decode(guidance.forced_token_ids)
        state = guidance.after_forced
        if guidance.witness_token_id is None:
            assert guidance.witness_num_tokens == 0
            assert guidance.is_accepting
            break
        before = guidance.witness_num_tokens
        state = matcher.accept(state, [guidance.witness_token_id])
        text += vocabulary.token_bytes[guidance.witness_token_id] or b""
        after = matcher.guidance(state)
        assert before == 1 + len(after.forced_token_ids) + after.witness_num_tokens
    assert len(text) > 12 or matches(grammar, text)


@thorough
@given(grammars(), vocabularies(), st.randoms(use_true_random=False))
def test_forced_tokens_are_the_only_ones_that_their_masks_admit(
    grammar: Grammar, vocabulary: Vocabulary, rng: random.Random
) -> None:
    trie = TokenTrie(vocabulary)
    matcher = Matcher(compiled_or_skip(grammar, trie), trie)
    state = matcher.start
    for _ in range(6):
        guidance = matcher.guidance(state)
        for token_id in guidance.forced_token_ids:
            for other in rng.sample(range(vocabulary.vocab_size), 20):
                if other != token_id:
                    with pytest.raises(TokenRejected):
                        matcher.accept(state, [other])
            state = matcher.accept(state, [token_id])
        assert state == guidance.after_forced
        allowed = allowed_token_ids(guidance.bitmask, vocabulary.vocab_size).tolist()
        assert len(allowed) == guidance.num_allowed > 0
        state = matcher.accept(state, [rng.choice(allowed)])
        if state == TERMINATED:
            break


@thorough
@given(grammars(), st.randoms(use_true_random=False))
def test_states_are_values(grammar: Grammar, rng: random.Random) -> None:
    """Rollback, forks and a rebuild from the tokens find the same states and masks, whatever happened in between."""
    compiled = compiled_or_skip(grammar)
    matcher = Matcher(compiled, BYTES)
    history: list[tuple[int, list[int]]] = [(matcher.start, [])]
    for _ in range(12):
        state, tokens = rng.choice(history)
        allowed = allowed_token_ids(matcher.guidance(state).bitmask, BYTES.vocabulary.vocab_size).tolist()
        forced = matcher.guidance(state).forced_token_ids
        token_id = forced[0] if forced else rng.choice(allowed or [0]) if state != TERMINATED else None
        if token_id is not None:
            history.append((matcher.accept(state, [token_id]), [*tokens, token_id]))
    rebuilt = Matcher(CompiledGrammar.from_bytes(compiled.to_bytes()), BYTES)
    for state, tokens in history:
        assert matcher.accept(matcher.start, tokens) == state
        mine, other = matcher.guidance(state), rebuilt.guidance(rebuilt.accept(rebuilt.start, tokens))
        assert (mine.bitmask == other.bitmask).all()
        assert mine.forced_token_ids == other.forced_token_ids
        assert mine.witness_num_tokens == other.witness_num_tokens
