"""Makes one model of a dense base and the experts that were trained beside it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from services.model_worker.model.checkpoint import CheckpointError, fill
from services.model_worker.model.config import ModelConfig
from services.model_worker.model.export import write_huggingface
from services.model_worker.model.gguf_file import GgufFile, gguf_config, load_gguf
from services.model_worker.model.huggingface import tensor_sources
from services.model_worker.model.transformer import Transformer
from services.model_worker.tokenizer import TokenizerFiles, gguf_tokenizer
from services.model_worker.training.experts_file import Experts

SHIPPED_EXPERTS: Final = Path(__file__).parents[1] / "experts" / "SmolLM2-135M-Extract.safetensors"
"""For SmolLM2-135M-Instruct; the card beside them says how they were made."""
CARD: Final = "README.md"


def compose(base_file: Path, experts_file: Path, directory: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the Hugging Face directory of a base, a GGUF file, with experts beside its blocks, and their card if any.

    Raises:
        CheckpointError: one of them cannot be used, or they do not fit together.
        OSError: the directory cannot be written.
    """
    file = GgufFile(base_file)
    base = load_gguf(file, gguf_config(file), torch.float32)
    model = with_experts(base, Experts.load(experts_file))
    tokenizer = gguf_tokenizer(file)
    write_tokenizer(tokenizer, directory)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": list(tokenizer.eos_token_ids)}
    if experts_file.with_name(CARD).is_file():
        shutil.copyfile(experts_file.with_name(CARD), directory / CARD)
    write_huggingface(model, directory, dtype, ends)


def write_tokenizer(tokenizer: TokenizerFiles, directory: Path) -> None:
    """Write the files that say how text becomes tokens, which end it, and how a chat is written."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_bytes(tokenizer.tokenizer_json)
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n")
    if tokenizer.chat_template is not None:
        (directory / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


def with_experts(base: Transformer, experts: Experts) -> Transformer:
    """Return a model that computes what training did.

    The base's blocks become shared experts in Qwen2-MoE's layout, whose gate is a sigmoid without a bias: its weight is
    0, which halves the block, so the last projection is doubled. That changes no bit. A lone expert without a router
    makes the dense block wider.

    Raises:
        CheckpointError: the experts are of another base.
    """
    shape = experts.shape
    config = _mixture_config(base.config, experts) if shape.has_router else _wider_config(base.config, experts)
    state: dict[str, Tensor] = dict(base.named_parameters())
    for layer in range(base.config.num_hidden_layers):
        block = f"blocks.{layer}.feed_forward"
        if not shape.has_router:
            state[f"{block}.gate_up.weight"], state[f"{block}.down.weight"] = _wider(
                state, block, config, experts, layer
            )
        elif layer in experts.layers:
            state[f"{block}.shared.gate_up.weight"] = state.pop(f"{block}.gate_up.weight")
            state[f"{block}.shared.down.weight"] = 2 * state.pop(f"{block}.down.weight")
            state[f"{block}.shared_gate.weight"] = torch.zeros(1, config.hidden_size)
            state |= _routed(config, experts, layer)
    model = Transformer(config)
    try:
        fill(model, state, base.device)
    except RuntimeError as error:
        raise CheckpointError(f"the experts do not fit the base: {error}") from None
    return model


def _mixture_config(base: ModelConfig, experts: Experts) -> ModelConfig:
    dense_layers = frozenset(range(base.num_hidden_layers)) - experts.layers
    return replace(
        base,
        architecture="Qwen2MoeForCausalLM",
        num_experts=experts.shape.num_experts,
        num_experts_per_tok=experts.shape.num_experts_per_tok,
        norm_topk_prob=experts.shape.norm_topk_prob,
        intermediate_size=experts.shape.expert_width,
        shared_intermediate_size=base.intermediate_size,
        dense_layers=dense_layers,
        dense_intermediate_size=base.intermediate_size if dense_layers else 0,
    )


def _routed(config: ModelConfig, experts: Experts, layer: int) -> dict[str, Tensor]:
    """Return our parameters of a layer's router and experts, of the tensors that make them."""
    inside = f"blocks.{layer}.feed_forward"
    stacked = {f"{inside}.gate_up": (config.num_experts, -1, config.hidden_size)}
    stacked |= {f"{inside}.down": (config.num_experts, config.hidden_size, -1)}
    state = {}
    for name in (f"{inside}.router.weight", *stacked):
        tensor = torch.cat([_tensor(experts, source.name) for source in tensor_sources(config)[name]])
        state[name] = tensor.view(stacked[name]) if name in stacked else tensor
    return state


def _wider_config(base: ModelConfig, experts: Experts) -> ModelConfig:
    # All layers have one width; where nothing was trained, the rest is zeros.
    return replace(
        base, architecture="LlamaForCausalLM", intermediate_size=base.intermediate_size + experts.shape.expert_width
    )


def _wider(
    state: dict[str, Tensor], block: str, config: ModelConfig, experts: Experts, layer: int
) -> tuple[Tensor, Tensor]:
    """Return the dense block of a layer with the lone expert beside it."""
    width = experts.shape.expert_width
    gate, up = state[f"{block}.gate_up.weight"].chunk(2)
    down = state[f"{block}.down.weight"]
    if layer not in experts.layers:
        lone = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), torch.zeros(()))
    else:
        lone = {
            name: _tensor(experts, f"model.layers.{layer}.mlp.experts.0.{name}.weight")
            for name in ("gate_proj", "up_proj", "down_proj")
        }
    rows, columns = (width, config.hidden_size), (config.hidden_size, width)
    gate_up = [gate, lone["gate_proj"].expand(rows), up, lone["up_proj"].expand(rows)]
    return torch.cat(gate_up), torch.cat([down, lone["down_proj"].expand(columns)], dim=1)


def _tensor(experts: Experts, name: str) -> Tensor:
    if name not in experts.tensors:
        raise CheckpointError(f"the experts lack the tensor `{name}`")
    return experts.tensors[name].float()
