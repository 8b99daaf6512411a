"""Prompts with common beginnings in a small cache: whatever is found there is what would have been computed.

In deterministic mode, bit for bit; there also with a sliding window, which forks, cuts and finds must not disturb.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.model_worker.kv_cache import ROOT_KEY, KvCache, block_keys, num_blocks_for
from services.model_worker.model.attention import BLOCK_TOKENS
from services.model_worker.model.transformer import Transformer
from services.model_worker.runner import ModelRunner, RunnerInput
from services.model_worker.sequence import Logits, Step
from services.rpckit.status import OutOfCapacity
from tests.support.toy_model import (
    TOLERANCE,
    DrivenEngine,
    deterministic_toy,
    prefill_logits,
    random_tokens,
    serving_toy,
    shared_toy,
    windowed_toy,
)

NUM_BLOCKS = 10
COMMON = random_tokens(200)
TEXTS = (COMMON, COMMON[:32] + random_tokens(100, 1), COMMON[:40] + random_tokens(100, 2), random_tokens(100, 3))
NAMES = ("a", "b", "c")

operations = st.lists(
    st.tuples(
        st.sampled_from(["create", "create", "append", "fork", "cut", "cancel", "release"]),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.sampled_from(TEXTS),
        st.integers(1, 70),
        st.integers(0, 10**6),
    ),
    min_size=3,
    max_size=12,
)


@lru_cache(maxsize=5000)
def prefill_row(token_ids: tuple[int, ...], oracle: Transformer) -> Logits:
    return prefill_logits(token_ids, oracle)[-1:]


def expected_memory(token_ids: tuple[int, ...], model: Transformer) -> torch.Tensor:
    """Return the cache after one prefill into blocks 0, 1, 2 …"""
    num_blocks = num_blocks_for(len(token_ids))
    cache = KvCache(model.config, num_blocks, model.dtype)
    ModelRunner(model, cache).forward([RunnerInput(token_ids, 0, range(num_blocks), 0)])
    return cache.memory


@pytest.mark.parametrize(
    ("served", "oracle", "tolerance"),
    [(serving_toy, shared_toy, TOLERANCE), (deterministic_toy, deterministic_toy, 0), (windowed_toy, windowed_toy, 0)],
    ids=["fast", "deterministic", "windowed"],
)
@settings(max_examples=25, deadline=None)
@given(operations=operations, texts_at_once=st.lists(st.sampled_from(TEXTS), max_size=3))
def test_what_is_found_is_what_would_be_computed(
    operations: list[tuple[str, str, str, tuple[int, ...], int, int]],
    texts_at_once: list[tuple[int, ...]],
    served: Callable[[], Transformer],
    oracle: Callable[[], Transformer],
    tolerance: float,
) -> None:
    def assert_row(actual: Logits, token_ids: tuple[int, ...]) -> None:
        np.testing.assert_allclose(actual, prefill_row(token_ids, oracle()), atol=tolerance, rtol=0)

    driven = DrivenEngine(served(), max_batch_tokens=24, num_blocks=NUM_BLOCKS)
    tokens: dict[str, tuple[int, ...]] = {}
    seen: set[tuple[int, ...]] = set()
    for kind, name, other, text, length, seed in operations:
        if kind == "release" or (kind == "create" and name in tokens):
            driven.release(name)
            tokens.pop(name, None)
        if kind == "release":
            continue
        own = tokens.get(name, ())
        position, parent, begun = len(own), None, own
        if kind == "fork" and other in tokens and name not in tokens:
            position = 1 + seed % len(tokens[other])
            parent, begun = other, tokens[other][:position]
        elif kind == "cut":
            position = seed % (len(own) + 1)
            begun = own[:position]
        new = text[position : position + length]  # the common text goes on where it stands
        if not new:
            continue
        is_cut = kind == "cut" and bool(own)
        step = Step(
            sequence_id=name,
            position=position,
            token_ids=new,
            truncate_to=position if is_cut else None,
            fork_of=parent,
        )
        seen.add(begun + new)
        if kind == "cancel":
            (future,) = driven.submit(step)
            for _ in range(1 + seed % 3):
                driven.engine.step()
            if future.cancel():
                driven.engine.step()
                continue
            outcome = future.exception() or future.result()
        else:
            (outcome,) = driven.run(step)
        if isinstance(outcome, OutOfCapacity):
            continue
        assert not isinstance(outcome, BaseException), outcome
        tokens[name] = begun + new
        assert outcome.num_cached_tokens % BLOCK_TOKENS == 0
        assert_row(outcome.logits, tokens[name])
    steps = [Step(sequence_id=f"at once {i}", position=0, token_ids=text[:50]) for i, text in enumerate(texts_at_once)]
    seen |= {text[:50] for text in texts_at_once}
    for step, outcome in zip(steps, driven.run(*steps), strict=True):
        if not isinstance(outcome, OutOfCapacity):
            assert not isinstance(outcome, BaseException), outcome
            assert_row(outcome.logits, step.token_ids)
    for token_ids in seen:
        memory = None
        for number, key in enumerate(block_keys(ROOT_KEY, token_ids)):
            if (block_id := driven.cache.find(key)) is not None:
                memory = expected_memory(token_ids, oracle()) if memory is None else memory
                found, expected = driven.cache.memory[:, :, :, block_id], memory[:, :, :, number]
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    driven.release(*NAMES, *(step.sequence_id for step in steps))
    assert driven.num_used_blocks == 0
