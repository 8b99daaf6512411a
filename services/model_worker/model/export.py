"""Writes a model as a Hugging Face directory, which `transformers` and our own worker read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from services.model_worker.model.config import ModelConfig
from services.model_worker.model.huggingface import WEIGHTS, tensor_sources
from services.model_worker.model.rope import halve_rows
from services.model_worker.model.transformer import Transformer


class ExportError(ValueError):
    """A model that cannot be written as asked."""


def write_huggingface(model: Transformer, directory: Path, dtype: torch.dtype, more: Mapping[str, Any]) -> None:
    """Write `config.json`, with what `more` says beside the model's shape, and the weights, stored as `dtype`.

    The weights come last, so a directory that has them is whole.

    Raises:
        ExportError: the architecture is one that nobody writes yet, or a weight is too large for `dtype`.
        OSError: the directory cannot be written.
    """
    config = config_json(model.config) | {"dtype": str(dtype).removeprefix("torch.")} | dict(more)
    tensors: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, sources in tensor_sources(model.config).items():
        rows = parameters[name].detach()
        rows = rows.view(-1, rows.shape[-1]) if rows.dim() > 1 else rows
        for source, part in zip(sources, torch.split(rows, [source.shape[0] for source in sources]), strict=True):
            part = halve_rows(part, source.num_rotary_heads) if source.num_rotary_heads else part
            tensors[source.name] = part.cpu().to(dtype).contiguous()
            if not tensors[source.name].isfinite().all():
                raise ExportError(f"`{source.name}` has numbers that are too large for {config['dtype']}")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    partial = directory / f"{WEIGHTS}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    # safetensors lets the owner alone read it; a worker on a volume is another user.
    partial.chmod((directory / "config.json").stat().st_mode)
    partial.replace(directory / WEIGHTS)


def config_json(config: ModelConfig) -> dict[str, Any]:
    """Return what `config.json` says of a shape.

    Raises:
        ExportError: the architecture is one that nobody writes yet, or a setting has no place there.
    """
    write = _WRITERS.get(config.architecture)
    if write is None or config.rope_scaling is not None or config.windows:
        raise ExportError(f"{config.architecture} with these settings cannot be written: {config}")
    return {
        "architectures": [config.architecture],
        "hidden_act": config.activation,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        **write(config),
    }


def _llama(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": "llama", "intermediate_size": config.intermediate_size}


def _qwen2_moe(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "qwen2_moe",
        "intermediate_size": config.dense_intermediate_size or config.intermediate_size,
        "moe_intermediate_size": config.intermediate_size,
        "shared_expert_intermediate_size": config.shared_intermediate_size,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "norm_topk_prob": config.norm_topk_prob,
        "mlp_only_layers": sorted(config.dense_layers),
        "decoder_sparse_step": 1,
        "qkv_bias": config.has_qkv_bias,
    }


_WRITERS: Final[Mapping[str, Callable[[ModelConfig], dict[str, Any]]]] = {
    "LlamaForCausalLM": _llama,
    "Qwen2MoeForCausalLM": _qwen2_moe,
}
