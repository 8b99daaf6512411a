"""Reads GGUF files, memory-mapped, every tensor dequantised into the type asked for.

Fails closed: an architecture, a setting or a tensor that this decoder does not know is refused by name, because to
leave it out would give another model's logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.model_worker.model.checkpoint import CheckpointError, fill, some, tracked
from services.model_worker.model.config import ModelConfig
from services.model_worker.model.device import CPU
from services.model_worker.model.rope import FactorScaling, LinearScaling, RopeScaling, interleave_rows
from services.model_worker.model.transformer import Transformer

GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class _Layout:
    """What an architecture is beyond its metadata."""

    has_halved_pairs: bool = True
    """Whether rotary embedding pairs `i` with `i + head_dim / 2`; `llama` files have their rows in our order."""
    has_qkv_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"
    norm_topk_prob: bool = True


_LAYOUTS: Final = {
    # Llama, SmolLM, Mistral and Mixtral.
    "llama": _Layout(has_halved_pairs=False),
    "olmoe": _Layout(qk_norm="all", norm_topk_prob=False),
    "qwen2": _Layout(has_qkv_bias=True),
    "qwen2moe": _Layout(has_qkv_bias=True, norm_topk_prob=False),
    "qwen3": _Layout(qk_norm="head"),
    "qwen3moe": _Layout(qk_norm="head"),
}

_KNOWN_KEYS = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "vocab_size",
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
    }
)

_ROPE_FACTORS: Final = "rope_freqs.weight"
"""What each rotation's frequency is divided by, where a model has a long context by that."""


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """The package's reader, twice as fast: it slices `data` a million times, which `numpy.memmap` makes slow."""

    @property  # type: ignore[override]
    def data(self) -> npt.NDArray[np.uint8]:
        """The mapped file."""
        return self._plain_data

    @data.setter
    def data(self, mapped: npt.NDArray[np.uint8]) -> None:
        self._plain_data = mapped.view(np.ndarray)


class GgufFile:
    """A GGUF file: its metadata as plain values, its tensors mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            CheckpointError: it cannot be read, or is no whole GGUF file.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                magic = file.read(len(GGUF_MAGIC))
        except OSError as error:
            raise CheckpointError(f"cannot read the model file {path}: {error.strerror}") from None
        if magic != GGUF_MAGIC:
            raise CheckpointError(f"{path} is not a GGUF file: it begins with {magic!r}, not {GGUF_MAGIC!r}")
        try:
            reader = _Reader(path)
            self._fields = reader.fields
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # the reader raises whatever its parsing meets: IndexError, ValueError, KeyError
            raise CheckpointError(
                f"{path} is damaged or was not downloaded whole: {type(error).__name__}: {error}"
            ) from None

    def get(self, key: str) -> Any:
        """Return a metadata value as int, float, bool, str or list, or None where the file has none."""
        field = self._fields.get(key)
        return None if field is None else field.contents()

    def require(self, key: str) -> Any:
        """Return a metadata value.

        Raises:
            CheckpointError: the file has none.
        """
        if key not in self._fields:
            raise CheckpointError(f"{self.path} has no `{key}` in its metadata, so it is not a model that can be run")
        return self.get(key)

    def keys_under(self, prefix: str) -> Iterator[str]:
        """Iterate over the names of all metadata that begin with the prefix, without it."""
        return (key.removeprefix(prefix) for key in self._fields if key.startswith(prefix))


def gguf_config(file: GgufFile) -> ModelConfig:
    """Read the shape of the model.

    Raises:
        CheckpointError: the architecture or one of its settings is not supported, or the metadata make no sense.
    """
    architecture = file.require("general.architecture")
    if architecture not in _LAYOUTS:
        raise CheckpointError(
            f"{file.path} has the architecture `{architecture}`; supported are: {', '.join(_LAYOUTS)}"
        )
    layout = _LAYOUTS[architecture]
    prefix = f"{architecture}."
    unknown = sorted(set(file.keys_under(prefix)) - _KNOWN_KEYS)
    if unknown:
        raise CheckpointError(
            f"{file.path} asks for {', '.join(f'`{prefix}{key}` = {file.get(prefix + key)}' for key in unknown)}, "
            "which this decoder does not implement"
        )
    num_heads = file.require(prefix + "attention.head_count")
    hidden_size = file.require(prefix + "embedding_length")
    head_dim = file.get(prefix + "attention.key_length") or hidden_size // num_heads
    for key in ("attention.value_length", "rope.dimension_count"):
        if (file.get(prefix + key) or head_dim) != head_dim:
            raise CheckpointError(
                f"{file.path} has `{prefix}{key}` = {file.get(prefix + key)}, "
                f"this decoder needs the head dimension {head_dim}"
            )
    num_experts = file.get(prefix + "expert_count") or 1
    shared = file.tensors.get("blk.0.ffn_gate_shexp.weight")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(
            f"{file.path} has no tensor `token_embd.weight`: it holds no model, or only a part of one"
        )
    rope_scaling = _rope_scaling(file, prefix, head_dim)
    try:
        return ModelConfig(
            architecture=architecture,
            num_hidden_layers=file.require(prefix + "block_count"),
            hidden_size=hidden_size,
            intermediate_size=file.get(prefix + "expert_feed_forward_length")
            or file.require(prefix + "feed_forward_length"),
            num_attention_heads=num_heads,
            num_key_value_heads=file.get(prefix + "attention.head_count_kv") or num_heads,
            head_dim=head_dim,
            vocab_size=int(embedding.shape[-1]),
            context_length=file.require(prefix + "context_length"),
            rope_theta=float(file.get(prefix + "rope.freq_base") or 10_000.0),
            rms_norm_eps=float(file.require(prefix + "attention.layer_norm_rms_epsilon")),
            tie_word_embeddings="output.weight" not in file.tensors,
            num_experts=num_experts,
            num_experts_per_tok=file.get(prefix + "expert_used_count") or 1,
            norm_topk_prob=layout.norm_topk_prob,
            shared_intermediate_size=0 if shared is None else int(shared.shape[-1]),
            has_qkv_bias=layout.has_qkv_bias,
            qk_norm=layout.qk_norm,
            rope_scaling=rope_scaling,
        )
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from None


def _rope_scaling(file: GgufFile, prefix: str, head_dim: int) -> RopeScaling | None:
    kind = file.get(prefix + "rope.scaling.type") or "none"
    if kind not in ("none", "linear"):
        raise CheckpointError(
            f"{file.path} has `{prefix}rope.scaling.type` = {kind}; supported are none, linear and {_ROPE_FACTORS}"
        )
    if kind == "linear":
        return LinearScaling(float(file.require(prefix + "rope.scaling.factor")))
    if _ROPE_FACTORS not in file.tensors:
        return None
    factors = _dequantised(file, _ROPE_FACTORS, torch.float32)
    if tuple(factors.shape) != (head_dim // 2,) or not bool((factors > 0).all()):
        raise CheckpointError(f"{file.path}: `{_ROPE_FACTORS}` must have {head_dim // 2} numbers over 0")
    return FactorScaling(tuple(factors.tolist()))


def load_gguf(file: GgufFile, config: ModelConfig, dtype: torch.dtype, device: torch.device = CPU) -> Transformer:
    """Make the model and fill it from the file.

    Raises:
        CheckpointError: tensors are missing, have wrong shapes or unknown types, or are not known to this decoder.
    """
    parts_of = _gguf_parts(config)
    needed = {part.name for parts in parts_of.values() for part in parts}
    missing = sorted(needed - file.tensors.keys())
    if missing:
        raise CheckpointError(f"{file.path} lacks {len(missing)} tensors: {some(missing)}")
    unknown = sorted(file.tensors.keys() - needed - {_ROPE_FACTORS})
    if unknown:
        raise CheckpointError(
            f"{file.path} has {len(unknown)} tensors that this decoder does not implement: {some(unknown)}"
        )
    model = Transformer(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    state: dict[str, Tensor] = {}
    for name, parts in tracked(parts_of):
        tensors = [_read(file, part, dtype) for part in parts]
        names = tuple(part.name for part in parts)
        state[name] = tensors[0] if len(tensors) == 1 else _joined(file, names, tensors)
        if state[name].dim() == 1 and shapes[name][0] == 1:
            state[name] = state[name][None]  # a projection to one number is stored as a row
        if tuple(state[name].shape) != shapes[name]:
            raise CheckpointError(
                f"{file.path}: {' + '.join(names)} has the shape {tuple(state[name].shape)}, "
                f"the metadata ask for {shapes[name]}"
            )
        state[name] = state[name].to(device)
    fill(model, state, device)
    return model


@dataclass(frozen=True)
class _Part:
    """A tensor of the file, which makes some rows of one of our parameters."""

    name: str
    num_rotary_heads: int = 0
    """Heads whose rows must be reordered for our rotary embedding; 0 leaves the rows as they are."""


def _gguf_parts(config: ModelConfig) -> dict[str, tuple[_Part, ...]]:
    """Name the file's tensors that make each of our parameters, joined along their rows."""
    layout = _LAYOUTS[config.architecture]
    num_heads, num_kv_heads = (
        (config.num_attention_heads, config.num_key_value_heads) if layout.has_halved_pairs else (0, 0)
    )
    parts: dict[str, tuple[_Part, ...]] = {
        "embedding.weight": (_Part("token_embd.weight"),),
        "norm.weight": (_Part("output_norm.weight"),),
    }
    if not config.tie_word_embeddings:
        parts["head.weight"] = (_Part("output.weight"),)
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{layer}", f"blk.{layer}"
        parts[f"{ours}.attention_norm.weight"] = (_Part(f"{theirs}.attn_norm.weight"),)
        for kind in ("weight", "bias") if config.has_qkv_bias else ("weight",):
            parts[f"{ours}.attention.qkv.{kind}"] = (
                _Part(f"{theirs}.attn_q.{kind}", num_heads),
                _Part(f"{theirs}.attn_k.{kind}", num_kv_heads),
                _Part(f"{theirs}.attn_v.{kind}"),
            )
        if config.qk_norm != "none":
            num_q, num_k = (1, 1) if config.qk_norm == "head" else (num_heads, num_kv_heads)
            parts[f"{ours}.attention.q_norm.weight"] = (_Part(f"{theirs}.attn_q_norm.weight", num_q),)
            parts[f"{ours}.attention.k_norm.weight"] = (_Part(f"{theirs}.attn_k_norm.weight", num_k),)
        parts[f"{ours}.attention.output.weight"] = (_Part(f"{theirs}.attn_output.weight"),)
        parts[f"{ours}.feed_forward_norm.weight"] = (_Part(f"{theirs}.ffn_norm.weight"),)

        def block(suffix: str, theirs: str = theirs) -> tuple[tuple[_Part, ...], tuple[_Part, ...]]:
            return (
                (_Part(f"{theirs}.ffn_gate{suffix}.weight"), _Part(f"{theirs}.ffn_up{suffix}.weight")),
                (_Part(f"{theirs}.ffn_down{suffix}.weight"),),
            )

        inside = f"{ours}.feed_forward"
        if config.num_experts == 1:
            parts[f"{inside}.gate_up.weight"], parts[f"{inside}.down.weight"] = block("")
            continue
        parts[f"{inside}.router.weight"] = (_Part(f"{theirs}.ffn_gate_inp.weight"),)
        parts[f"{inside}.gate_up"], parts[f"{inside}.down"] = block("_exps")
        if config.shared_intermediate_size:
            parts[f"{inside}.shared.gate_up.weight"], parts[f"{inside}.shared.down.weight"] = block("_shexp")
            parts[f"{inside}.shared_gate.weight"] = (_Part(f"{theirs}.ffn_gate_inp_shexp.weight"),)
    return parts


def _read(file: GgufFile, part: _Part, dtype: torch.dtype) -> Tensor:
    tensor = _dequantised(file, part.name, dtype)
    if part.num_rotary_heads == 0 or tensor.shape[0] % (2 * part.num_rotary_heads):
        return tensor  # with a wrong shape it is refused by whoever asked
    return interleave_rows(tensor, part.num_rotary_heads)


def _dequantised(file: GgufFile, name: str, dtype: torch.dtype) -> Tensor:
    """Read one tensor, shape as PyTorch has it (GGUF lists dimensions from the innermost)."""
    tensor = file.tensors[name]
    try:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise CheckpointError(
            f"{file.path}: tensor `{name}` is stored as {tensor.tensor_type.name}, which cannot be read"
        ) from None
    shape = [int(size) for size in reversed(tensor.shape)]
    # A float32 tensor comes as a view of the read-only map; torch needs memory that it may call its own.
    return torch.from_numpy(np.require(values, requirements=["C", "W", "O"]).reshape(shape)).to(dtype)


def _joined(file: GgufFile, names: tuple[str, ...], tensors: list[Tensor]) -> Tensor:
    """Join along the rows: the last dimension but one, where there are two."""
    try:
        return torch.cat(tensors, dim=-2 if tensors[0].dim() > 1 else 0)
    except (RuntimeError, IndexError):
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in zip(names, tensors, strict=True))
        raise CheckpointError(f"{file.path}: these tensors do not fit together: {shapes}") from None
