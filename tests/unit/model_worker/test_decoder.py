"""The decoder against `transformers`, and the fast experts against their definition."""

import pytest
import torch
import transformers

from services.model_worker.model.checkpoint import fill
from services.model_worker.model.config import ModelConfig
from services.model_worker.model.linear import PlainProduct, fastest_product
from services.model_worker.model.moe import make_experts, moe_by_definition, moe_by_expert, route
from services.model_worker.model.rope import interleave_rows, rotary_table, rotate_
from services.model_worker.model.transformer import Transformer
from tests.support.toy_model import prefill_logits, random_tokens

SHAPE = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
}


def from_transformers(model: transformers.PreTrainedModel, **fields: object) -> Transformer:
    """Copy the weights of a Llama or Mixtral of `transformers` into our decoder."""
    config = ModelConfig(
        architecture="test",
        num_hidden_layers=SHAPE["num_hidden_layers"],
        hidden_size=SHAPE["hidden_size"],
        intermediate_size=SHAPE["intermediate_size"],
        num_attention_heads=SHAPE["num_attention_heads"],
        num_key_value_heads=SHAPE["num_key_value_heads"],
        head_dim=SHAPE["hidden_size"] // SHAPE["num_attention_heads"],
        vocab_size=SHAPE["vocab_size"],
        context_length=SHAPE["max_position_embeddings"],
        rope_theta=5000.0,
        **fields,
    )
    theirs = dict(model.state_dict())
    state = {"embedding.weight": theirs["model.embed_tokens.weight"], "norm.weight": theirs["model.norm.weight"]}
    if not config.tie_word_embeddings:
        state["head.weight"] = theirs["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        ours, source = f"blocks.{layer}", f"model.layers.{layer}"
        state[f"{ours}.attention_norm.weight"] = theirs[f"{source}.input_layernorm.weight"]
        state[f"{ours}.feed_forward_norm.weight"] = theirs[f"{source}.post_attention_layernorm.weight"]
        state[f"{ours}.attention.qkv.weight"] = torch.cat(
            [
                interleave_rows(theirs[f"{source}.self_attn.q_proj.weight"], config.num_attention_heads),
                interleave_rows(theirs[f"{source}.self_attn.k_proj.weight"], config.num_key_value_heads),
                theirs[f"{source}.self_attn.v_proj.weight"],
            ]
        )
        state[f"{ours}.attention.output.weight"] = theirs[f"{source}.self_attn.o_proj.weight"]
        if config.num_experts == 1:
            state[f"{ours}.feed_forward.gate_up.weight"] = torch.cat(
                [theirs[f"{source}.mlp.gate_proj.weight"], theirs[f"{source}.mlp.up_proj.weight"]]
            )
            state[f"{ours}.feed_forward.down.weight"] = theirs[f"{source}.mlp.down_proj.weight"]
        else:
            state[f"{ours}.feed_forward.router.weight"] = theirs[f"{source}.mlp.gate.weight"]
            state[f"{ours}.feed_forward.gate_up"] = theirs[f"{source}.mlp.experts.gate_up_proj"]
            state[f"{ours}.feed_forward.down"] = theirs[f"{source}.mlp.experts.down_proj"]
    decoder = Transformer(config)
    fill(decoder, state)
    return decoder


def assert_same_logits(decoder: Transformer, oracle: transformers.PreTrainedModel) -> None:
    token_ids = random_tokens(70, vocab_size=SHAPE["vocab_size"])
    with torch.inference_mode():
        expected = oracle.eval()(torch.tensor([token_ids])).logits[0]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(torch.from_numpy(prefill_logits(token_ids, decoder)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_tied", [False, True])
def test_llama_has_the_logits_of_transformers(is_tied: bool) -> None:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        **SHAPE,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=is_tied,
        initializer_range=0.2,
    )
    oracle = transformers.LlamaForCausalLM(config)
    assert_same_logits(from_transformers(oracle, tie_word_embeddings=is_tied), oracle)


@pytest.mark.parametrize("window", [1, 7, 33, 100])
def test_sliding_windows_are_those_of_transformers(window: int) -> None:
    torch.manual_seed(3)
    config = transformers.MistralConfig(
        **SHAPE,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        initializer_range=0.2,
        sliding_window=window,
        attn_implementation="eager",
    )
    oracle = transformers.MistralForCausalLM(config)
    decoder = from_transformers(oracle)
    for block in decoder.blocks:
        block.attention.window = window
    assert_same_logits(decoder, oracle)


def test_mixtral_has_the_logits_of_transformers() -> None:
    torch.manual_seed(2)
    config = transformers.MixtralConfig(
        **SHAPE,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        num_local_experts=5,
        num_experts_per_tok=2,
        initializer_range=0.2,
        sliding_window=None,
    )
    oracle = transformers.MixtralForCausalLM(config)
    assert_same_logits(from_transformers(oracle, num_experts=5, num_experts_per_tok=2), oracle)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 2, 33])
def test_experts_by_expert_are_experts_by_definition(num_tokens: int, norm_topk_prob: bool) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, 12, generator=generator)
    matrices = torch.randn(6, 16, 12, generator=generator), torch.randn(6, 12, 8, generator=generator)
    weights, expert_ids = route(torch.randn(num_tokens, 6, generator=generator).softmax(dim=-1), 3, norm_topk_prob)

    def activation(projected: torch.Tensor) -> torch.Tensor:
        gate, up = projected.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    expected = moe_by_definition(x, weights, expert_ids, make_experts(*matrices, activation))
    for make in (PlainProduct, fastest_product):
        experts = make_experts(*matrices, activation, make)
        torch.testing.assert_close(moe_by_expert(x, weights, expert_ids, experts), expected)


def test_weights_of_experts_sum_to_one_only_where_the_model_says_so() -> None:
    router_logits = torch.tensor([[2.0, 1.0, 0.0]])
    normed, expert_ids = route(router_logits.softmax(dim=-1), 2, True)
    plain, _ = route(router_logits.softmax(dim=-1), 2, False)
    assert expert_ids.tolist() == [[0, 1]]
    torch.testing.assert_close(normed, torch.softmax(torch.tensor([[2.0, 1.0]]), -1))
    torch.testing.assert_close(plain, torch.softmax(router_logits, -1)[:, :2])


def test_rotation_turns_neighbours_by_position_times_frequency() -> None:
    heads = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])
    rotate_(heads, rotary_table(8, 4, 100.0)[torch.tensor([3])].unsqueeze(1))
    angles = torch.tensor([3.0, 0.3])
    expected = torch.stack([angles.cos(), angles.sin()], -1).flatten()
    torch.testing.assert_close(heads.flatten(), expected)


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_experts_per_tok \(3\) exceeds num_experts \(2\)"):
        ModelConfig(
            architecture="test",
            num_hidden_layers=1,
            hidden_size=8,
            intermediate_size=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            vocab_size=8,
            context_length=8,
            num_experts=2,
            num_experts_per_tok=3,
        )
