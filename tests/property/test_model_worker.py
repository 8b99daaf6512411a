"""Any order of steps, forks, cuts, retries and releases: each sequence has the logits of one prefill of its tokens."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.toy_model import TOLERANCE, DrivenEngine, prefill_logits, random_tokens

NAMES = ("a", "b", "c")

operations = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "fork", "cut", "retry", "release"]),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.integers(1, 40),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(operations=operations, max_batch_tokens=st.sampled_from([16, 23, 64]))
def test_sequences_are_what_their_tokens_say(
    operations: list[tuple[str, str, str, int, int]], max_batch_tokens: int
) -> None:
    driven = DrivenEngine(max_batch_tokens=max_batch_tokens)
    tokens: dict[str, tuple[int, ...]] = {}
    latest: dict[str, tuple[int, tuple[int, ...], str | None]] = {}
    for kind, name, other, length, seed in operations:
        new = random_tokens(length, seed)
        if kind == "release":
            assert driven.release(name) == (name in tokens)
            tokens.pop(name, None)
            continue
        if kind == "retry" and name in tokens:
            position, new, parent = latest[name]
            outcome = driven.one(name, position, new, fork_of=parent)
        elif kind == "fork" and other in tokens and name not in tokens:
            position = 1 + seed % len(tokens[other])
            outcome = driven.one(name, position, new, fork_of=other)
            tokens[name], latest[name] = tokens[other][:position] + new, (position, new, other)
        elif kind == "cut" and name in tokens:
            position = seed % (len(tokens[name]) + 1)
            outcome = driven.one(name, position, new, truncate_to=position)
            tokens[name], latest[name] = tokens[name][:position] + new, (position, new, None)
        else:
            position = len(tokens.get(name, ()))
            outcome = driven.one(name, position, new)
            tokens[name], latest[name] = tokens.get(name, ()) + new, (position, new, None)
        assert outcome.position == len(tokens[name])
        np.testing.assert_allclose(outcome.logits, prefill_logits(tokens[name])[-1:], atol=TOLERANCE)
    driven.release(*NAMES)
    assert driven.num_used_blocks == 0
