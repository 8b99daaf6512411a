"""What a picture says, apart from how it is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gateway.cli.routing.picture import FEW_TOKENS, Picture, PictureLayer, PictureToken, colours, read_experts


@pytest.mark.parametrize(
    ("num_allowed", "mark"), [(None, ""), (1, "forced"), (2, "few"), (FEW_TOKENS, "few"), (FEW_TOKENS + 1, "")]
)
def test_what_the_mask_left_marks_a_token(num_allowed: int | None, mark: str) -> None:
    assert PictureToken("'a'", is_generated=True, num_allowed=num_allowed).mark == mark


def test_shares_of_a_layer() -> None:
    layer = PictureLayer(3, (6, 0, 2, 0), mean_entropy=1.0, balance=1.5)
    assert layer.shares == (0.75, 0, 0.25, 0)
    assert (layer.busiest, layer.num_idle) == (0, 2)


def test_experts_as_the_contract_lays_them_out() -> None:
    data = np.arange(12, dtype="<u2").tobytes()
    experts = read_experts(data, num_tokens=2, num_layers=3)
    assert experts.tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]


def test_what_all_layers_are_measured_by() -> None:
    layers = (PictureLayer(0, (3, 1, 0, 0), 1.0, 1.5), PictureLayer(2, (1, 1, 1, 1), 1.0, 1.0))
    tokens = (PictureToken("'a'", False), PictureToken("'b'", True))
    picture = Picture("m", tokens, layers, np.zeros((2, 2, 2), np.uint16))
    assert (picture.num_experts, picture.num_experts_per_tok) == (4, 2)
    assert (picture.max_entropy, picture.max_balance, picture.max_share) == (math.log(4), 2, 0.75)
    with pytest.raises(ValueError, match="experts of"):
        Picture("m", tokens[:1], layers, picture.experts)


@pytest.mark.parametrize("num_experts", [2, 8, 24, 25, 64, 128, 256])
def test_each_expert_has_a_colour_of_its_own(num_experts: int) -> None:
    assert len(set(colours(num_experts))) == num_experts
    # Neither white nor black, so that it is seen on any paper.
    for colour in colours(num_experts):
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        assert 40 < 0.3 * red + 0.59 * green + 0.11 * blue < 225
