"""What is seen of a draw by the way, against what scoring a text says of the same row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.decode.draws import observe
from gateway.decode.logits import log_sum_exp
from gateway.decode.score import _token
from services.vocabulary import pack_bool_mask
from tests.support.fake_services import VOCAB_SIZE, vocabulary

rows = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    # Few distinct values, so that ties are common; -inf is what a mask leaves.
    elements=st.one_of(st.integers(-3, 3).map(float), st.just(-np.inf), st.floats(-50, 50, width=32)),
).filter(lambda row: bool(np.isfinite(row).any()))


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_a_draw_is_seen_as_it_is_scored(scale: float) -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        row = (rng.standard_normal(VOCAB_SIZE) * scale).astype(np.float32)
        mask = rng.random(len(row)) < rng.random()
        mask[5] = True
        seen = observe(row, mask, 5)
        scored = _token(row, 5, vocabulary(), pack_bool_mask(mask), 0)
        assert seen.logprob == pytest.approx(scored.logprob, abs=1e-4)
        assert seen.removed_mass == pytest.approx(scored.removed_mass, abs=1e-5)


@given(rows, st.integers(0, 2**40 - 1))
def test_the_removed_mass_is_what_the_mask_leaves_of_one(row: np.ndarray, bits: int) -> None:
    mask = np.array([bits >> i & 1 for i in range(len(row))], np.bool_)
    allowed = row[mask]
    kept_mass = float(np.exp(log_sum_exp(allowed) - log_sum_exp(row))) if np.isfinite(allowed).any() else 0.0
    assert observe(row, mask, 0).removed_mass == pytest.approx(1 - kept_mass, abs=1e-5)


@pytest.mark.parametrize(("mask", "mass"), [([True, True], 0.0), ([False, False], 1.0), ([True, False], 0.5)])
def test_the_removed_mass_of_all_of_nothing_and_of_half(mask: list[bool], mass: float) -> None:
    assert observe(np.array([7.0, 7.0], np.float32), np.array(mask), 0).removed_mass == mass
