"""What is seen of a draw by the way, against what scoring a text says of the same row."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.decode.draws import observe
from gateway.decode.score import _token
from services.vocabulary import pack_bool_mask
from tests.support.fake_services import VOCAB_SIZE, vocabulary


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
