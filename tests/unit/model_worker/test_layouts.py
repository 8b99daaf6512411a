"""Every layout against `transformers`, which writes the checkpoints; and our own against a few lines of PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.model_worker.loading import load_model
from services.model_worker.model.checkpoint import CheckpointError
from services.model_worker.model.kernels import FAST, deterministic_kernels
from services.model_worker.model.moe import Expert, MoeFeedForward, make_experts, moe_by_definition, moe_by_expert
from services.model_worker.sequence import Step
from services.model_worker.toy import toy_tokenizer
from tests.support.gguf_files import write_gguf
from tests.support.toy_model import DrivenEngine, prefill_logits, random_tokens
from tests.unit.model_worker.test_huggingface import edit_json, save, with_random_norms

NUM_DECODED = 64
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": [0, 2],
}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama, llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral, window": ("Mistral", {"sliding_window": 20}),
    "mistral, no window": ("Mistral", {"sliding_window": None, "head_dim": 12}),
    "mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "mixtral, window": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 30}),
    "olmoe": ("Olmoe", {"num_experts": 16, "num_experts_per_tok": 8}),
    "olmoe, renormalised": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 3, "norm_topk_prob": True}),
    "qwen2": ("Qwen2", {}),
    "qwen2, windows from a layer on": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen2 moe": ("Qwen2Moe", {**MOE, "shared_expert_intermediate_size": 32}),
    "qwen2 moe, some dense": (
        "Qwen2Moe",
        {**MOE, "shared_expert_intermediate_size": 32, "mlp_only_layers": [1], "norm_topk_prob": True},
    ),
    "qwen2 moe, every second": ("Qwen2Moe", {**MOE, "shared_expert_intermediate_size": 32, "decoder_sparse_step": 2}),
    "qwen3 moe": ("Qwen3Moe", {**MOE, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3 moe, some dense": ("Qwen3Moe", {**MOE, "head_dim": 8, "mlp_only_layers": [0, 2]}),
}


def made(name: str, **fields: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(5)
    config = getattr(transformers, f"{name}Config")(**SHAPE | fields)
    model = with_random_norms(getattr(transformers, f"{name}ForCausalLM")(config))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):  # all zeros at first
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(params=LAYOUTS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, transformers.PreTrainedModel]:
    name, fields = LAYOUTS[request.param]
    oracle = made(name, **fields)
    return save(oracle, tmp_path, max_shard_size="60KB"), oracle


def test_prompt_and_decode_steps_have_the_logits_of_transformers(
    saved: tuple[Path, transformers.PreTrainedModel],
) -> None:
    directory, oracle = saved
    prompt = list(random_tokens(45))
    loaded = load_model(str(directory), torch.float32)
    assert loaded.num_parameters == oracle.num_parameters()
    with torch.inference_mode():
        expected_prompt = oracle(torch.tensor([prompt])).logits[0].numpy()
        greedy = oracle.generate(
            torch.tensor([prompt]),
            do_sample=False,
            min_new_tokens=NUM_DECODED,
            max_new_tokens=NUM_DECODED,
            eos_token_id=None,
            pad_token_id=0,
        )[0].tolist()
        expected = oracle(torch.tensor([greedy])).logits[0].numpy()
    np.testing.assert_allclose(prefill_logits(prompt, loaded.model), expected_prompt, atol=1e-4)
    loaded.model.prepare(FAST)
    driven = DrivenEngine(loaded.model, num_blocks=32)
    row = driven.one("a", 0, prompt).logits[-1]
    for position in range(len(prompt), len(prompt) + NUM_DECODED):
        np.testing.assert_allclose(row, expected[position - 1], atol=1e-4)
        assert int(row.argmax()) == greedy[position]
        row = driven.one("a", position, greedy[position : position + 1]).logits[-1]


def test_deterministic_rows_have_the_same_bits_alone_and_beside_others(
    saved: tuple[Path, transformers.PreTrainedModel],
) -> None:
    directory, _ = saved
    model = load_model(str(directory), torch.float32).model
    model.prepare(deterministic_kernels(model.config))
    texts = [random_tokens(5 + 7 * i, seed=i) for i in range(9)]
    alone = [DrivenEngine(model).one("a", 0, text, logits="all").logits.tobytes() for text in texts]
    driven = DrivenEngine(model, num_blocks=200, max_batch_tokens=50)
    outcomes = driven.run(
        *(Step(sequence_id=str(i), position=0, token_ids=text, logits="all") for i, text in enumerate(texts))
    )
    assert [outcome.logits.tobytes() for outcome in outcomes] == alone  # type: ignore[union-attr]


def test_what_a_token_uses_is_counted(saved: tuple[Path, transformers.PreTrainedModel]) -> None:
    directory, oracle = saved
    config = oracle.config
    loaded = load_model(str(directory), torch.float32)
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", 1)
    names = [name for name, _ in oracle.named_parameters() if "experts." in name]
    idle = 0
    if names:
        in_experts = sum(parameter.numel() for name, parameter in oracle.named_parameters() if "experts." in name)
        idle = in_experts // num_experts * (num_experts - config.num_experts_per_tok)
    assert loaded.num_active_parameters == oracle.num_parameters() - idle
    assert loaded.cost.dense_flops_per_token - loaded.cost.flops_per_token == 2 * idle


def espalier(directory: Path, tensors: dict[str, Tensor], **fields: Any) -> Path:
    """Write a directory of our own layout."""
    config = {
        "architectures": ["EspalierMoeForCausalLM"],
        "vocab_size": 300,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "moe_intermediate_size": 12,
        "tie_word_embeddings": True,
    } | fields
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    (directory / "tokenizer.json").write_bytes(toy_tokenizer().tokenizer_json)
    save_file(tensors, directory / "model.safetensors")
    return directory


def tensors_of(*, num_experts: int, is_gated: bool, shared: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    layer = "model.layers.0"
    tensors = {"model.embed_tokens.weight": random(300, 16), "model.norm.weight": random(16)}
    tensors |= {f"{layer}.{name}.weight": random(16) for name in ("input_layernorm", "post_attention_layernorm")}
    tensors |= {f"{layer}.self_attn.{name}_proj.weight": random(16, 16) for name in "qkvo"}
    tensors[f"{layer}.mlp.gate.weight"] = random(num_experts, 16) * 5
    blocks = {f"experts.{i}": 12 for i in range(num_experts)} | ({"shared_expert": shared} if shared else {})
    for block, width in blocks.items():
        for name in ("gate_proj", "up_proj") if is_gated else ("up_proj",):
            tensors[f"{layer}.mlp.{block}.{name}.weight"] = random(width, 16)
        tensors[f"{layer}.mlp.{block}.down_proj.weight"] = random(16, width)
    if shared:
        tensors[f"{layer}.mlp.shared_expert_gate.weight"] = random(1, 16)
    return tensors


def feed_forward_by_hand(
    tensors: dict[str, Tensor], x: Tensor, function: Callable[[Tensor], Tensor], per_token: int, is_renormalised: bool
) -> Tensor:
    """What the block computes, token by token, from the checkpoint's own tensors."""

    def block(name: str, row: Tensor) -> Tensor:
        weights = {key.split(".")[-2]: value for key, value in tensors.items() if f"mlp.{name}." in key}
        if "gate_proj" in weights:
            inner = function(weights["gate_proj"] @ row) * (weights["up_proj"] @ row)
        else:
            inner = function(weights["up_proj"] @ row)
        return weights["down_proj"] @ inner

    router = tensors["model.layers.0.mlp.gate.weight"]
    rows = []
    for row in x:
        probs = torch.softmax(router @ row, dim=-1)
        chosen = probs.argsort(descending=True)[:per_token].tolist()
        total = probs[chosen].sum() if is_renormalised else 1.0
        out = sum(probs[i] / total * block(f"experts.{i}", row) for i in chosen)
        if "model.layers.0.mlp.shared_expert_gate.weight" in tensors:
            gate = torch.sigmoid(tensors["model.layers.0.mlp.shared_expert_gate.weight"] @ row)
            out = out + gate * block("shared_expert", row)
        rows.append(out)
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "num_experts", "shared"),
    [
        ({"hidden_act": "relu", "gated": False, "num_experts_per_tok": 1}, 4, 0),  # Switch
        ({"num_experts_per_tok": 5}, 5, 0),  # dense: all experts, by the softmax
        ({"num_experts_per_tok": 5, "hidden_act": "relu", "gated": False, "shared_expert_intermediate_size": 8}, 5, 8),
        ({"num_experts_per_tok": 2, "norm_topk_prob": True, "shared_expert_intermediate_size": 20}, 6, 20),
    ],
    ids=["switch", "dense mixture", "dense relu, shared", "shared, renormalised"],
)
def test_our_own_layout_computes_what_a_few_lines_say(
    tmp_path: Path, fields: dict[str, Any], num_experts: int, shared: int
) -> None:
    is_gated = fields.get("gated", True)
    tensors = tensors_of(num_experts=num_experts, is_gated=is_gated, shared=shared)
    model = load_model(str(espalier(tmp_path, tensors, num_experts=num_experts, **fields)), torch.float32).model
    block = model.blocks[0].feed_forward
    assert isinstance(block, MoeFeedForward)
    x = torch.randn(23, 16, generator=torch.Generator().manual_seed(1))
    function = F.relu if fields.get("hidden_act") == "relu" else F.silu
    expected = feed_forward_by_hand(
        tensors, x, function, fields["num_experts_per_tok"], fields.get("norm_topk_prob", False)
    )
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    rows = random_tokens(30)
    plain = prefill_logits(rows, model)
    model.prepare(FAST)
    np.testing.assert_allclose(prefill_logits(rows, model), plain, atol=1e-4)


@pytest.mark.parametrize("per_token", [1, 3, 8])
@pytest.mark.parametrize("is_gated", [True, False])
def test_the_fast_path_is_the_definition(per_token: int, is_gated: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    gate_up = torch.randn(8, 24 if is_gated else 12, 16, generator=generator)
    down = torch.randn(8, 16, 12, generator=generator)

    def activation(projected: Tensor) -> Tensor:
        if not is_gated:
            return F.relu(projected)
        gate, up = projected.chunk(2, dim=-1)
        return F.silu(gate) * up

    experts: Sequence[Expert] = make_experts(gate_up, down, activation)
    for num_tokens in (1, 2, 17):
        x = torch.randn(num_tokens, 16, generator=generator)
        weights, ids = torch.rand(num_tokens, 8, generator=generator).topk(per_token)
        torch.testing.assert_close(
            moe_by_expert(x, weights, ids, experts), moe_by_definition(x, weights, ids, experts), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 0}, "`sliding_window` = 0"),
        ("qwen2", {"layer_types": 5}, "`layer_types` = 5"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "`layer_types`"),
        ("qwen2 moe, some dense", {"mlp_only_layers": [3]}, "`mlp_only_layers` = .*layers from 0 to 2"),
        ("olmoe", {"clip_qkv": 8.0}, "`clip_qkv` = 8.0"),
        ("olmoe", {"norm_topk_prob": "yes"}, "`norm_topk_prob` = 'yes', it must be true or false"),
        ("qwen3", {"attention_bias": True}, "`attention_bias` = True"),
        ("qwen3", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope types `default`, `linear`"),
        ("qwen2 moe", {"hidden_act": "gelu"}, "`hidden_act` = gelu"),
    ],
)
def test_settings_that_are_not_implemented_are_named(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    model, fields = LAYOUTS[name]
    directory = save(made(model, **fields), tmp_path)
    edit_json(directory / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(str(directory), torch.float32)


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    model, fields = LAYOUTS["qwen2 moe"]
    directory = save(made(model, **fields), tmp_path)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    gate = "model.layers.1.mlp.shared_expert_gate.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != gate}, file)
    with pytest.raises(CheckpointError, match=f"lacks 1 tensors: {gate}"):
        load_model(str(directory), torch.float32)
    bias = "model.layers.0.self_attn.k_proj.bias"
    save_file(tensors | {bias: torch.zeros(7)}, file)
    with pytest.raises(CheckpointError, match=rf"`{bias}` has the shape \(7,\), config.json asks for \(16,\)"):
        load_model(str(directory), torch.float32)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
EXPERT_NAMES = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}


def gguf_tensors(directory: Path, *, num_heads: int, num_kv_heads: int, is_llama: bool) -> dict[str, np.ndarray]:
    """Name and order a checkpoint's tensors as llama.cpp's converter does."""
    tensors: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for file in directory.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            array = tensor.numpy()
            stem, kind = name.rsplit(".", 1)
            prefix, inside = "", stem
            if stem.startswith("model.layers."):
                _, _, layer, inside = stem.split(".", 3)
                prefix = f"blk.{layer}."
            if ".experts." in inside:
                number, part = inside.split(".experts.")[1].split(".")
                experts.setdefault(f"{prefix}ffn_{EXPERT_NAMES[part]}_exps.weight", {})[int(number)] = array
                continue
            heads = {"self_attn.q_proj": num_heads, "self_attn.k_proj": num_kv_heads}.get(inside)
            if is_llama and heads:  # the converter reorders the rows of these two, of this architecture alone
                array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
            if inside == "mlp.shared_expert_gate":
                array = array[0]
            tensors[f"{prefix}{GGUF_NAMES[inside]}.{kind}"] = array
    for name, by_number in experts.items():
        tensors[name] = np.stack([by_number[number] for number in sorted(by_number)])
    return tensors


@pytest.mark.parametrize(
    ("layout", "architecture"),
    [
        ("mistral, no window", "llama"),
        ("mixtral", "llama"),
        ("olmoe", "olmoe"),
        ("qwen2", "qwen2"),
        ("qwen2 moe", "qwen2moe"),
        ("qwen3", "qwen3"),
        ("qwen3 moe", "qwen3moe"),
    ],
)
def test_a_gguf_file_is_its_safetensors_twin(tmp_path: Path, layout: str, architecture: str) -> None:
    name, fields = LAYOUTS[layout]
    directory = save(made(name, **fields), tmp_path)
    twin = load_model(str(directory), torch.float32)
    config = twin.model.config
    tensors = gguf_tensors(
        directory,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        is_llama=architecture == "llama",
    )
    metadata = {
        "block_count": config.num_hidden_layers,
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": SHAPE["intermediate_size"],
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_dim,
    }
    if config.num_experts > 1:
        metadata |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
    if config.intermediate_size != SHAPE["intermediate_size"]:
        metadata["expert_feed_forward_length"] = config.intermediate_size
    path = write_gguf(
        tmp_path / "twin.gguf",
        tensors,
        architecture=architecture,
        **{f"{architecture}.{key}".replace(".", "__"): value for key, value in metadata.items()},
    )
    loaded = load_model(str(path), torch.float32)
    assert loaded.num_active_parameters == twin.num_active_parameters
    token_ids = random_tokens(60)
    np.testing.assert_allclose(
        prefill_logits(token_ids, loaded.model), prefill_logits(token_ids, twin.model), atol=1e-5
    )


def test_rope_factors_of_a_gguf_file_are_those_of_llama_3(tmp_path: Path) -> None:
    name, fields = LAYOUTS["llama, llama3 rope"]
    directory = save(made(name, **fields), tmp_path)
    twin = load_model(str(directory), torch.float32)
    config = twin.model.config
    tensors = gguf_tensors(directory, num_heads=6, num_kv_heads=2, is_llama=True)
    plain = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    assert config.rope_scaling is not None
    tensors["rope_freqs.weight"] = (plain / config.rope_scaling(plain)).numpy()
    shape = {
        "llama.block_count": 3,
        "llama.context_length": 256,
        "llama.embedding_length": 48,
        "llama.feed_forward_length": 40,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
    }
    path = write_gguf(
        tmp_path / "twin.gguf", tensors, **{key.replace(".", "__"): value for key, value in shape.items()}
    )
    token_ids = random_tokens(200)
    np.testing.assert_allclose(
        prefill_logits(token_ids, load_model(str(path), torch.float32).model),
        prefill_logits(token_ids, twin.model),
        atol=1e-4,
    )
