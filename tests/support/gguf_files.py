"""Small GGUF files, written by the `gguf` package: a model of random weights, with what a test wants wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from services.model_worker.toy import CHAT_TEMPLATE, MERGES, SPECIAL_TOKENS, toy_tokenizer
from services.vocabulary import Vocabulary

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 64, 96, 4, 2, 16, 2


def token_strings() -> list[str]:
    """Name the toy's tokens in order."""
    toy = toy_tokenizer()
    tokenizer = Vocabulary(toy.tokenizer_json, 300, toy.eos_token_ids)._tokenizer
    return [str(tokenizer.id_to_token(token_id)) for token_id in range(tokenizer.get_vocab_size())]


def random_tensors(num_experts: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw a model's tensors under GGUF's names."""
    rng = np.random.default_rng(seed)
    vocab_size = len(token_strings())
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab_size, HIDDEN),
        "output.weight": (vocab_size, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    experts = () if num_experts == 1 else (num_experts,)
    suffix = "" if num_experts == 1 else "_exps"
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"blk.{layer}.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"blk.{layer}.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_gate{suffix}.weight": (*experts, INNER, HIDDEN),
            f"blk.{layer}.ffn_up{suffix}.weight": (*experts, INNER, HIDDEN),
            f"blk.{layer}.ffn_down{suffix}.weight": (*experts, HIDDEN, INNER),
        }
        if num_experts > 1:
            shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (num_experts, HIDDEN)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    num_experts: int = 1,
    quantised_as: gguf.GGMLQuantizationType | None = None,
    architecture: str = "llama",
    pre: str = "gpt-2",
    **metadata: Any,
) -> Path:
    """Write a file; `metadata` overrides or adds keys (with `__` for `.`), None leaves one out."""
    tokens = token_strings()
    values: dict[str, Any] = {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HEAD_DIM,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    if num_experts > 1:
        values |= {"llama.expert_count": num_experts, "llama.expert_used_count": 2}
    values |= {key.replace("__", "."): value for key, value in metadata.items()}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        if quantised_as is not None and tensor.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(tensor, quantised_as), raw_dtype=quantised_as)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
