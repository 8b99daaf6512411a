from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.decode.logits import (
    apply_bool_mask,
    apply_temperature,
    keep_top_k,
    keep_top_p,
)

rows = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    # Few distinct values, so that ties are common; -inf is what a mask leaves.
    elements=st.one_of(st.integers(-3, 3).map(float), st.just(-np.inf), st.floats(-50, 50, width=32)),
).filter(lambda row: bool(np.isfinite(row).any()))


def ranked(row: np.ndarray) -> list[int]:
    """Ids by (logit descending, id ascending), without those that are out."""
    return sorted((i for i in range(len(row)) if row[i] > -np.inf), key=lambda i: (-row[i], i))


def kept(row: np.ndarray) -> set[int]:
    return {int(i) for i in np.flatnonzero(row > -np.inf)}


@given(rows, st.integers(1, 50))
def test_top_k_keeps_the_k_best_and_lower_ids_of_equals(row: np.ndarray, top_k: int) -> None:
    assert kept(keep_top_k(row, top_k)) == set(ranked(row)[:top_k])


@given(rows, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_best_that_reach_p(row: np.ndarray, top_p: float) -> None:
    order = ranked(row)
    probs = np.exp(row[order].astype(np.float64) - row.max())
    reached = np.cumsum(probs / probs.sum())
    # What lies within rounding of p may fall either way.
    sizes = {int((reached < top_p - 1e-9).sum()) + 1, int((reached < top_p + 1e-9).sum()) + 1}

    result = kept(keep_top_p(row, top_p))

    assert len(result) in sizes
    assert result == set(order[: len(result)])


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 8.0])
@pytest.mark.parametrize("top_p", [0.001, 0.5, 0.9, 0.999999])
def test_top_p_of_a_large_vocabulary_equals_a_full_sort(spread: float, top_p: float) -> None:
    row = (np.random.default_rng(3).normal(size=50_000) * spread).astype(np.float32)
    order = np.argsort(-row, kind="stable")
    probs = np.exp(row[order].astype(np.float64))
    before = np.concatenate(([0.0], (probs / probs.sum()).cumsum()[:-1]))

    result = np.flatnonzero(keep_top_p(row, top_p) > -np.inf)

    # A rounding error in a sum of 50,000 may move the edge by one.
    assert abs(len(result) - int((before < top_p).sum())) <= 1
    assert set(result.tolist()) == set(order[: len(result)].tolist())


def test_the_token_that_crosses_p_is_kept() -> None:
    row = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    assert kept(keep_top_p(row, 0.6)) == {1, 2}


def test_filters_work_row_by_row() -> None:
    batch = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)
    for filtered in (keep_top_k(batch, 2), keep_top_p(batch, 0.9), apply_temperature(batch, 0.5)):
        assert filtered.shape == batch.shape
    np.testing.assert_array_equal(keep_top_k(batch, 2)[1], keep_top_k(batch[1], 2))
    np.testing.assert_array_equal(keep_top_p(batch, 0.9)[0], keep_top_p(batch[0], 0.9))


def test_no_filter_changes_its_argument() -> None:
    row = np.array([3, 1, 2], np.float32)
    for filter_row in (
        lambda: apply_bool_mask(row, np.array([True, False, True])),
        lambda: apply_temperature(row, 2.0),
        lambda: keep_top_k(row, 1),
        lambda: keep_top_k(row, 0),
        lambda: keep_top_p(row, 0.5),
        lambda: keep_top_p(row, 1.0),
    ):
        filter_row()[:] = 0
    assert row.tolist() == [3, 1, 2]


@pytest.mark.parametrize("temperature", [1e-45, 1e-10, 1.0, 100.0])
def test_temperature_never_overflows(temperature: float) -> None:
    scaled = apply_temperature(np.array([3e38, 1.0, -3e38, -np.inf], np.float32), temperature)
    assert scaled[0] == 0
    assert not np.isnan(scaled).any()


def test_the_mask_takes_tokens_out() -> None:
    assert apply_bool_mask(np.array([1, 2], np.float32), np.array([True, False])).tolist() == [1, -np.inf]
