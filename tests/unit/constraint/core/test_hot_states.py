"""What one matcher learned, taken in by another: the same answers, or none; whatever the bytes are."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from services.constraint.core.engine import (
    CompiledGrammar,
    CorruptGrammarError,
    Forcing,
    Guidance,
    HotStates,
    Matcher,
    MatcherLimits,
    TokenTrie,
    adopt,
    compile_grammar,
    hot_states,
    num_known,
)
from services.constraint.core.grammar import Alternation, ByteRange, Bytes, Grammar, Reference, Repeat, Sequence
from services.rpckit.status import ServiceError
from services.vocabulary import Vocabulary, allowed_token_ids, bitmask_words
from tests.support.grammars import grammars, vocabularies, vocabulary

GRAMMAR = Grammar(
    "start",
    {
        "start": Sequence((Bytes(b"["), Repeat(Reference("item"), 0, 100), Bytes(b"]"))),
        "item": Alternation((Reference("start"), Repeat(ByteRange(48, 57), 1, None), Bytes("forced 한".encode()))),
    },
)
COMPILED = compile_grammar(GRAMMAR)
TRIE = TokenTrie(vocabulary())
NUM_WORDS = bitmask_words(TRIE.vocabulary.vocab_size)


def _walk(matcher: Matcher, seed: int, num_tokens: int = 30) -> list[int]:
    """Ask on the way along random tokens, which are returned."""
    rng = random.Random(seed)
    state, taken = matcher.start, []
    for _ in range(num_tokens):
        guidance = matcher.guidance(state)
        taken += guidance.forced_token_ids
        allowed = allowed_token_ids(guidance.bitmask, matcher.trie.vocabulary.vocab_size).tolist()
        if not allowed:
            break
        token_id = rng.choice(allowed)
        taken.append(token_id)
        state = matcher.accept(guidance.after_forced, (token_id,))
    return taken


def _answers(matcher: Matcher, token_ids: list[int]) -> list[tuple[Any, ...]]:
    """All that is said about each prefix, but the numbers of states."""
    state, answers = matcher.start, [_plain(matcher.guidance(matcher.start))]
    for token_id in token_ids:
        state = matcher.accept(state, (token_id,))
        answers.append(_plain(matcher.guidance(state)))
    return answers


def _plain(guidance: Guidance) -> tuple[Any, ...]:
    return (guidance.forced_token_ids, guidance.bitmask.tobytes(), *(getattr(guidance, name) for name in _SAID))


_SAID = ("num_allowed", "is_accepting", "witness_num_tokens", "witness_token_id")


def _learned(num_walks: int = 5) -> Matcher:
    matcher = Matcher(COMPILED, TRIE)
    for seed in range(num_walks):
        _walk(matcher, seed)
    return matcher


HOT = hot_states(_learned())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(grammars(), vocabularies(), st.sampled_from(["canonical", "off"]), st.integers(0, 1000))
def test_who_adopts_answers_as_who_learned(grammar: Grammar, words: Vocabulary, forcing: Forcing, seed: int) -> None:
    trie = TokenTrie(words)
    try:
        compiled = CompiledGrammar.from_bytes(compile_grammar(grammar).to_bytes())
        learned = Matcher(compiled, trie, forcing=forcing)
    except ServiceError:
        assume(False)
        return
    texts = [_walk(learned, seed + i, 12) for i in range(3)]
    data = hot_states(learned).to_bytes()
    adopting = Matcher(compiled, trie, forcing=forcing)
    _walk(adopting, seed + 7, 5)  # knows something of its own
    adopt(adopting, HotStates.from_bytes(data, num_words=bitmask_words(words.vocab_size)))
    fresh = Matcher(compiled, trie, forcing=forcing)
    for text in [*texts, _walk(fresh, seed + 20, 12)]:
        assert _answers(adopting, text) == _answers(fresh, text)


def test_what_is_adopted_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    adopting = Matcher(COMPILED, TRIE)
    assert adopt(adopting, HOT) == len(HOT.masks) == 4
    known = num_known(adopting), len(adopting.configurations)
    monkeypatch.setattr(Matcher, "_find_forced_token", pytest.fail)
    for seed in range(5):
        _walk(adopting, seed)
    assert (num_known(adopting), len(adopting.configurations)) == known


def test_adopting_twice_and_in_circles_changes_nothing() -> None:
    adopting = Matcher(COMPILED, TRIE)
    adopt(adopting, HOT)
    before = len(adopting.configurations), num_known(adopting)
    adopt(adopting, HOT)
    adopt(adopting, hot_states(adopting))
    assert (len(adopting.configurations), num_known(adopting)) == before
    assert len(hot_states(adopting).masks) == len(HOT.masks)


def test_bounds_are_kept_and_what_was_asked_about_comes_first() -> None:
    learned = _learned()
    few = hot_states(learned, max_configurations=7)
    assert few.num_configurations == 7
    assert (few.knowledge.forced_token != -2).all()
    fewer = hot_states(learned, max_mask_bytes=3 * 4 * NUM_WORDS)
    assert adopt(Matcher(COMPILED, TRIE), fewer) == len(fewer.masks) == 3
    none = hot_states(Matcher(COMPILED, TRIE), max_mask_bytes=0)
    assert adopt(Matcher(COMPILED, TRIE), HotStates.from_bytes(none.to_bytes(), num_words=NUM_WORDS)) == 0


def test_a_matcher_without_room_takes_what_fits() -> None:
    small = MatcherLimits(max_mask_bytes=1)
    adopting = Matcher(COMPILED, TRIE, limits=small)
    assert 0 < adopt(adopting, HOT) <= 16
    fresh = Matcher(COMPILED, TRIE)
    text = _walk(fresh, 3)
    assert _answers(adopting, text) == _answers(fresh, text)


def test_masks_that_are_alike_are_kept_once() -> None:
    asked = sum(row != 0 for row in HOT.knowledge.mask)
    assert len({row.tobytes() for row in HOT.masks}) == len(HOT.masks) < asked


@pytest.mark.parametrize(
    "change",
    [
        {"frame_parent": 10**6},
        {"frame_parent": -1},
        {"frame_return": 10**6},
        {"frame_return": -2},
        {"frame_count": -1},
        {"item_state": 10**6},
        {"item_node": 0},
        {"item_node": 10**6},
        {"configuration_accepts": 2},
        {"configuration_start": -5},
        {"node_start": 10**6},
        {"edge_source": 10**6},
        {"edge_target": -1},
        {"edge_class": 255},
        {"mask": 10**6},
        {"forced_token": 10**6},
        {"witness_token": -2},
    ],
    ids=str,
)
def test_an_index_out_of_range_is_corrupt(change: dict[str, int]) -> None:
    ((name, value),) = change.items()
    part = "structure" if name in HOT.structure._fields else "knowledge"
    array = getattr(getattr(HOT, part), name).copy()
    array[len(array) // 2] = value
    wrong = replace(HOT, **{part: getattr(HOT, part)._replace(**{name: array})})
    with pytest.raises(CorruptGrammarError):
        adopt(Matcher(COMPILED, TRIE), wrong)


def test_a_bit_behind_the_vocabulary_is_corrupt() -> None:
    masks = HOT.masks.copy()
    masks[0, -1] |= np.int32(-(1 << 31))
    assert TRIE.vocabulary.vocab_size % 32
    with pytest.raises(CorruptGrammarError):
        adopt(Matcher(COMPILED, TRIE), replace(HOT, masks=masks))


def test_any_bytes_are_read_or_corrupt_and_never_crash() -> None:
    data, rng = HOT.to_bytes(), random.Random(5)
    num_read = 0
    for _ in range(1500):
        wild = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            wild[rng.randrange(len(wild))] = rng.randrange(256)
        if rng.random() < 0.1:
            del wild[rng.randrange(len(wild)) :]
        try:
            adopting = Matcher(COMPILED, TRIE)
            adopt(adopting, HotStates.from_bytes(bytes(wild), num_words=NUM_WORDS))
            num_read += 1
            _walk(adopting, rng.randrange(100))
        except (CorruptGrammarError, ServiceError):
            pass
    assert 0 < num_read < 1500
