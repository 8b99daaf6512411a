"""Deterministic mode: a row has the same bits alone, in any batch, in any piece of a prompt, on one and two threads."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from services.model_worker.model.attention import KEY_TILE, attend_by_tiles, attend_fused
from services.model_worker.model.kernels import NotDeterministicError, agreeing_tile_rows, deterministic_kernels
from services.model_worker.model.rope import rotary_table, rotate_
from services.model_worker.model.rows import silu
from services.model_worker.model.transformer import Transformer
from services.model_worker.sequence import Step
from services.model_worker.toy import CONFIG, toy_model
from tests.support.toy_model import TOLERANCE, DrivenEngine, prefill_logits, random_tokens, shared_toy

# Odd widths, so that rows end inside of vectors and threads split them.
WIDE = replace(
    CONFIG, hidden_size=184, intermediate_size=328, num_attention_heads=6, num_key_value_heads=2, head_dim=24
)


@pytest.fixture(params=[1, 2], autouse=True)
def num_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def deterministic(config: object = WIDE, dtype: torch.dtype = torch.float32) -> Transformer:
    model = toy_model(1, dtype, config)
    model.prepare(deterministic_kernels(model.config))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_experts", "window"), [(1, None), (4, 40)])
def test_logits_are_bit_identical_alone_in_batches_and_in_pieces(
    dtype: torch.dtype, num_experts: int, window: int | None
) -> None:
    model = deterministic(replace(WIDE, num_experts=num_experts, num_experts_per_tok=min(2, num_experts)), dtype)
    model.blocks[0].attention.window = window
    texts = [random_tokens(length, seed=length) for length in (1, 5, 16, 33, 129, 300)]
    alone = [prefill_logits(text, model) for text in texts]
    for max_batch_tokens in (16, 37, 512):
        driven = DrivenEngine(model, max_batch_tokens=max_batch_tokens)
        steps = [Step(sequence_id=str(i), position=0, token_ids=text, logits="all") for i, text in enumerate(texts)]
        for outcome, expected in zip(driven.run(*steps), alone, strict=True):
            assert np.array_equal(outcome.logits, expected)
    driven = DrivenEngine(model)
    for position in range(33):  # decode beside others that begin, end and stand elsewhere
        steps = [
            Step(sequence_id=str(i), position=position, token_ids=(text[position],))
            for i, text in enumerate(texts)
            if position < len(text)
        ]
        rows = {step.sequence_id: outcome.logits for step, outcome in zip(steps, driven.run(*steps), strict=True)}
        for name, row in rows.items():
            assert np.array_equal(row[0], alone[int(name)][position])
    found = DrivenEngine(model)
    found.one("a", 0, texts[5][:200])
    again = found.one("b", 0, texts[5])
    assert again.num_cached_tokens == 192
    assert np.array_equal(again.logits, alone[5][-1:])


def test_deterministic_mode_computes_what_the_definition_says() -> None:
    tokens = random_tokens(300)
    model = toy_model(0)
    model.prepare(deterministic_kernels(model.config))
    np.testing.assert_allclose(prefill_logits(tokens, model), prefill_logits(tokens, shared_toy()), atol=TOLERANCE)


@pytest.mark.parametrize("num_rows", [1, 3, 12, 50])
def test_attention_by_tiles_is_attention(num_rows: int) -> None:
    torch.manual_seed(num_rows)
    queries, keys = torch.randn(2, 3, num_rows, 24), torch.randn(2, 3, 3 * KEY_TILE, 24)
    values = torch.randn_like(keys)
    bias = torch.zeros(3, num_rows, 3 * KEY_TILE).masked_fill_(torch.rand(3, num_rows, 3 * KEY_TILE) < 0.5, -torch.inf)
    bias[0, 0, KEY_TILE:] = -torch.inf
    for mask in (None, bias):
        torch.testing.assert_close(
            attend_by_tiles(queries, keys, values, mask), attend_fused(queries, keys, values, mask)
        )


def test_a_row_is_never_split_among_threads() -> None:
    gate = torch.randn(700, 2 * 48).chunk(2, dim=-1)[0]
    whole = silu(gate)
    torch.testing.assert_close(whole, F.silu(gate))
    table = rotary_table(300, 24, 100.0).unsqueeze(1)
    heads = torch.randn(300, 20, 24)
    rotated = heads.clone()
    rotate_(rotated, table)
    for num_rows in range(101, 300, 2):
        assert torch.equal(silu(gate[: 2 * num_rows + 1]), whole[: 2 * num_rows + 1])
        part = heads[:num_rows].clone()
        rotate_(part, table[:num_rows])
        assert torch.equal(part, rotated[:num_rows])


def test_a_machine_that_cannot_keep_the_promise_is_found_out() -> None:
    weight = torch.randn(8, 8)
    x = torch.randn(128, 8)

    def depends_on_place(rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, weight) * (1 + torch.arange(len(rows))[:, None] % 2 * 1e-6)

    def depends_on_number(rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, weight) * (1 if len(rows) < 32 else 1 + 1e-6)

    with pytest.raises(NotDeterministicError, match="another place"):
        agreeing_tile_rows(depends_on_place, x)
    assert agreeing_tile_rows(lambda rows: rows @ weight.double().float(), x)[-1] == 4
    assert agreeing_tile_rows(depends_on_number, x) == (16, 8, 4)
