from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest

from gateway.decode.sampler import Sampler, Sampling, gumbel_noise
from services.rpckit.status import ServiceError

ALL = np.ones(8, np.bool_)
LOGITS = np.array([0.5, 2.0, -1.0, 1.0, 2.0, 0.0, -3.0, 1.5], np.float32)


def draw(
    logits: np.ndarray,
    bool_mask: np.ndarray,
    sampling: Sampling,
    *,
    position: int,
    choice: int = 0,
    excluded: Collection[int] = (),
) -> int | None:
    return Sampler(sampling, choice=choice).draw(logits, bool_mask, range(position), excluded=excluded)


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    expected = counts.sum() * probs
    return float((((counts - expected) ** 2) / expected).sum())


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def counts_of(sampling: Sampling, num_draws: int, **options: object) -> np.ndarray:
    drawn = [draw(LOGITS, ALL, sampling, position=position, **options) for position in range(num_draws)]  # type: ignore[arg-type]
    return np.bincount(np.array(drawn), minlength=8)


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert draw(LOGITS, ALL, Sampling(), position=0) == 1


def test_the_mask_goes_first() -> None:
    only_worst = np.arange(8) == 6
    for sampling in (Sampling(), Sampling(temperature=1, top_k=1), Sampling(temperature=1, top_p=0.01)):
        assert draw(LOGITS, only_worst, sampling, position=0) == 6


# 20,000 draws; the bounds are the 0.9999 quantiles of chi-square with 7, 2 and 6 degrees of freedom.
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_frequencies_are_those_of_softmax(temperature: float) -> None:
    counts = counts_of(Sampling(temperature=temperature, seed=5), 20_000)
    assert chi_square(counts, softmax(LOGITS / temperature)) < 29.9


def test_frequencies_within_top_k_are_renormalised() -> None:
    counts = counts_of(Sampling(temperature=1, top_k=3, seed=5), 20_000)
    assert counts[[0, 2, 3, 5, 6]].sum() == 0
    assert chi_square(counts[[1, 4, 7]], softmax(LOGITS[[1, 4, 7]])) < 18.5


def test_a_repeated_draw_without_the_winner_is_distributed_as_the_rest() -> None:
    sampling = Sampling(temperature=1, seed=9)
    # Only positions where token 1 had won first, as after a rollback.
    positions = [i for i in range(40_000) if draw(LOGITS, ALL, sampling, position=i) == 1]
    drawn = [draw(LOGITS, ALL, sampling, position=i, excluded={1}) for i in positions]
    counts = np.bincount(np.array(drawn), minlength=8)
    rest = [0, 2, 3, 4, 5, 6, 7]
    assert counts[1] == 0
    assert chi_square(counts[rest], softmax(LOGITS[rest])) < 27.9


def test_a_draw_is_a_function_of_seed_choice_and_position() -> None:
    wide = np.zeros(5000, np.float32)
    mask = np.ones(5000, np.bool_)
    drawn = {
        draw(wide, mask, Sampling(temperature=1, seed=seed), position=position, choice=choice)
        for seed in (0, 1, 2**64 - 1)
        for position in range(3)
        for choice in range(2)
    }
    assert len(drawn) == 18
    first = draw(wide, mask, Sampling(temperature=1, seed=1), position=2)
    assert first == draw(wide, mask, Sampling(temperature=1, seed=1), position=2)


def test_the_noise_of_a_token_does_not_depend_on_the_others() -> None:
    together = gumbel_noise(7, 0, 3, np.arange(1000))
    alone = gumbel_noise(7, 0, 3, np.array([517]))
    assert together[517] == alone[0]
    assert np.isfinite(together).all()


def test_the_noise_is_gumbel() -> None:
    noise = gumbel_noise(1, 0, 0, np.arange(100_000))
    cells = np.floor(np.exp(-np.exp(-noise)) * 50).astype(int)  # its distribution function makes it uniform
    assert chi_square(np.bincount(cells, minlength=50), np.full(50, 0.02)) < 100


def test_nothing_allowed_is_none() -> None:
    assert draw(LOGITS, np.zeros(8, np.bool_), Sampling(), position=0) is None
    assert draw(LOGITS, ALL, Sampling(temperature=1), position=0, excluded=set(range(8))) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(ServiceError, match="not finite"):
        draw(np.full(8, bad, np.float32), ALL, Sampling(temperature=1), position=0)
