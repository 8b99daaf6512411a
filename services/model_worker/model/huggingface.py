"""Reads Hugging Face checkpoints: a directory with `config.json` and safetensors files, memory-mapped.

Fails closed like the reader of GGUF files: an architecture, a setting or a tensor that this decoder does not know is
refused by name, because to leave it out would give another model's logits. Pickles are never read: to load one is to
run the code in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.model_worker.model.checkpoint import CheckpointError, fill, some, tracked
from services.model_worker.model.config import ModelConfig
from services.model_worker.model.device import CPU
from services.model_worker.model.layouts import LAYOUTS, Settings, read_config
from services.model_worker.model.rope import interleave_rows
from services.model_worker.model.transformer import Transformer

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_MAX_MAPPED_BYTES: Final = 128 << 20
"""Pages that were read of a file stay in memory as long as it is mapped, so the files are opened anew now and then."""

_STORED_TYPES: Final = ("F32", "F16", "BF16")

_ROTARY_BUFFER: Final = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Computed from `rope_theta`; old checkpoints carry it along."""


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint, which makes some rows of one of our parameters."""

    name: str
    shape: tuple[int, ...]
    num_rotary_heads: int = 0
    """Heads whose rows must be reordered for our rotary embedding; 0 leaves the rows as they are."""


def holds_safetensors(path: Path) -> bool:
    """Tell whether the path is a directory with safetensors weights."""
    return (path / WEIGHTS).is_file() or (path / INDEX).is_file()


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file cannot be read, or is something else.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, it must be a JSON object")
    return content


def huggingface_config(directory: Path) -> ModelConfig:
    """Read the shape of the model from `config.json`.

    Raises:
        CheckpointError: the architecture or one of its settings is not supported, or the settings make no sense.
    """
    file = directory / "config.json"
    content = read_json(file)
    architectures = content.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or architectures[0] not in LAYOUTS:
        raise CheckpointError(f"{file} has `architectures` = {architectures}; supported are: {', '.join(LAYOUTS)}")
    return read_config(Settings(file, content), architectures[0])


def load_huggingface(
    directory: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device = CPU
) -> Transformer:
    """Make the model and fill it from the directory's safetensors.

    Raises:
        CheckpointError: files are missing or damaged; tensors are missing, have wrong shapes or types that cannot be
            read, or are not known to this decoder.
    """
    with ExitStack() as stack:
        tensors = _open_tensors(directory, stack)
        sources = tensor_sources(config)
        _check(directory, config, tensors, sources)
        model = Transformer(config)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        state: dict[str, Tensor] = {}
        num_mapped_bytes = 0
        for name, parts in tracked(sources):
            if num_mapped_bytes > _MAX_MAPPED_BYTES:
                stack.close()
                tensors, num_mapped_bytes = _open_tensors(directory, stack), 0
            rows = torch.empty(shapes[name], dtype=dtype)
            state[name] = rows
            rows = rows.view(-1, *rows.shape[-1:]) if rows.dim() > 1 else rows
            start = 0
            for part in parts:
                weight = tensors[part.name].get_tensor(part.name)
                if part.num_rotary_heads:
                    weight = interleave_rows(weight, part.num_rotary_heads)
                rows[start : start + weight.shape[0]] = weight
                start += weight.shape[0]
                num_mapped_bytes += weight.nbytes
                del weight  # which would keep its file mapped
            state[name] = state[name].to(device)
    fill(model, state, device)
    return model


def _open_tensors(directory: Path, stack: ExitStack) -> dict[str, Any]:
    """Map the files into memory; returns the open file that holds each tensor."""
    if (directory / WEIGHTS).is_file():
        file = _open(directory / WEIGHTS, stack)
        return dict.fromkeys(file.keys(), file)
    index = directory / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no `weight_map` that names the files of the tensors")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index} names the file {shard!r}, it must be one in the same directory")
    tensors: dict[str, Any] = {}
    for shard in sorted(set(weight_map.values())):
        file = _open(directory / shard, stack)
        misplaced = sorted({name for name, of in weight_map.items() if of == shard} ^ set(file.keys()))
        if misplaced:
            raise CheckpointError(f"{index} and {shard} do not agree on {len(misplaced)} tensors: {some(misplaced)}")
        tensors |= dict.fromkeys(file.keys(), file)
    return tensors


def _open(file: Path, stack: ExitStack) -> Any:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: {INDEX} names it")
    try:
        return stack.enter_context(safe_open(file, framework="pt"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged or was not downloaded whole: {error}") from None


def _check(
    directory: Path, config: ModelConfig, tensors: Mapping[str, Any], sources: Mapping[str, tuple[Source, ...]]
) -> None:
    """Compare the checkpoint's tensors with what is needed, before any is read."""
    needed = {source.name: source for parts in sources.values() for source in parts}
    if missing := sorted(needed.keys() - tensors.keys()):
        raise CheckpointError(f"{directory} lacks {len(missing)} tensors: {some(missing)}")
    unknown = {name for name in tensors.keys() - needed.keys() if not _ROTARY_BUFFER.fullmatch(name)}
    if config.tie_word_embeddings and "lm_head.weight" in unknown:
        head, embedding = (tensors[name].get_tensor(name) for name in ("lm_head.weight", "model.embed_tokens.weight"))
        if not torch.equal(head, embedding):
            raise CheckpointError(
                f"{directory} has `tie_word_embeddings` = true, but `lm_head.weight` differs from the embedding"
            )
        unknown.remove("lm_head.weight")
    if unknown:
        raise CheckpointError(
            f"{directory} has {len(unknown)} tensors that this decoder does not implement: {some(sorted(unknown))}"
        )
    for name, source in needed.items():
        stored = tensors[name].get_slice(name)
        if tuple(stored.get_shape()) != source.shape:
            raise CheckpointError(
                f"{directory}: tensor `{name}` has the shape {tuple(stored.get_shape())}, "
                f"config.json asks for {source.shape}"
            )
        if stored.get_dtype() not in _STORED_TYPES:
            raise CheckpointError(
                f"{directory}: tensor `{name}` is stored as {stored.get_dtype()}; "
                f"supported are: {', '.join(_STORED_TYPES)}"
            )


def tensor_sources(config: ModelConfig) -> dict[str, tuple[Source, ...]]:
    """Name the checkpoint's tensors that make each of our parameters, one below the other."""
    hidden, vocab, head_dim = config.hidden_size, config.vocab_size, config.head_dim
    num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
    q_rows, kv_rows = num_heads * head_dim, num_kv_heads * head_dim
    sources: dict[str, tuple[Source, ...]] = {
        "embedding.weight": (Source("model.embed_tokens.weight", (vocab, hidden)),),
        "norm.weight": (Source("model.norm.weight", (hidden,)),),
    }
    if not config.tie_word_embeddings:
        sources["head.weight"] = (Source("lm_head.weight", (vocab, hidden)),)
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        attention = f"{theirs}.self_attn"
        sources |= {
            f"{ours}.attention_norm.weight": (Source(f"{theirs}.input_layernorm.weight", (hidden,)),),
            f"{ours}.attention.qkv.weight": (
                Source(f"{attention}.q_proj.weight", (q_rows, hidden), num_heads),
                Source(f"{attention}.k_proj.weight", (kv_rows, hidden), num_kv_heads),
                Source(f"{attention}.v_proj.weight", (kv_rows, hidden)),
            ),
            f"{ours}.attention.output.weight": (Source(f"{attention}.o_proj.weight", (hidden, q_rows)),),
            f"{ours}.feed_forward_norm.weight": (Source(f"{theirs}.post_attention_layernorm.weight", (hidden,)),),
        }
        if config.has_qkv_bias:
            sources[f"{ours}.attention.qkv.bias"] = (
                Source(f"{attention}.q_proj.bias", (q_rows,), num_heads),
                Source(f"{attention}.k_proj.bias", (kv_rows,), num_kv_heads),
                Source(f"{attention}.v_proj.bias", (kv_rows,)),
            )
        if config.qk_norm != "none":
            num_q, num_k = (1, 1) if config.qk_norm == "head" else (num_heads, num_kv_heads)
            sources |= {
                f"{ours}.attention.q_norm.weight": (Source(f"{attention}.q_norm.weight", (num_q * head_dim,), num_q),),
                f"{ours}.attention.k_norm.weight": (Source(f"{attention}.k_norm.weight", (num_k * head_dim,), num_k),),
            }
        sources |= _feed_forward_sources(config, layer)
    return sources


def _feed_forward_sources(config: ModelConfig, layer: int) -> dict[str, tuple[Source, ...]]:
    names = LAYOUTS[config.architecture].names
    ours, theirs = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.{names.block}"
    hidden = config.hidden_size
    first = (names.gate, names.up) if config.is_gated else (names.up,)

    def block(prefix: str, width: int) -> tuple[list[Source], Source]:
        return (
            [Source(f"{prefix}.{part}.weight", (width, hidden)) for part in first],
            Source(f"{prefix}.{names.down}.weight", (hidden, width)),
        )

    if not config.is_mixture(layer):
        gate_up, down = block(theirs, config.dense_width(layer))
        return {f"{ours}.gate_up.weight": tuple(gate_up), f"{ours}.down.weight": (down,)}
    experts = [block(f"{theirs}.experts.{i}", config.intermediate_size) for i in range(config.num_experts)]
    sources = {
        f"{ours}.router.weight": (Source(f"{theirs}.gate.weight", (config.num_experts, hidden)),),
        f"{ours}.gate_up": tuple(source for gate_up, _ in experts for source in gate_up),
        f"{ours}.down": tuple(down for _, down in experts),
    }
    if config.shared_intermediate_size:
        gate_up, down = block(f"{theirs}.shared_expert", config.shared_intermediate_size)
        sources |= {
            f"{ours}.shared.gate_up.weight": tuple(gate_up),
            f"{ours}.shared.down.weight": (down,),
            f"{ours}.shared_gate.weight": (Source(f"{theirs}.shared_expert_gate.weight", (1, hidden)),),
        }
    return sources
