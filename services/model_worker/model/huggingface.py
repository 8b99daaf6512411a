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

import structlog
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.model_worker.model.config import ModelConfig
from services.model_worker.model.rope import interleave_rows
from services.model_worker.model.transformer import Transformer
from services.model_worker.model.weights import CheckpointError, fill, some

_log = structlog.get_logger()

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

LLAMA, MIXTRAL = "LlamaForCausalLM", "MixtralForCausalLM"
SUPPORTED_ARCHITECTURES: Final = (LLAMA, MIXTRAL)

_READ_KEYS: Final = frozenset(
    {
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rope_theta",
        "rope_parameters",
        "rope_scaling",
        "rms_norm_eps",
        "tie_word_embeddings",
        "hidden_act",
        "num_local_experts",
        "num_experts_per_tok",
    }
)

_HARMLESS_KEYS: Final = frozenset(
    {
        "architectures",
        "model_type",
        "_name_or_path",
        "transformers_version",
        "transformers.js_config",
        "is_llama_config",
        "dtype",
        "torch_dtype",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "pretraining_tp",
        # Of training alone.
        "attention_dropout",
        "initializer_range",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
    }
)
"""What does not change the logits. Any other key must be null or false, as a feature is that is not used."""

_STORED_TYPES: Final = ("F32", "F16", "BF16")

_ROTARY_BUFFER: Final = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Computed from `rope_theta`; old checkpoints carry it along."""


@dataclass(frozen=True)
class _Source:
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
    if (
        not isinstance(architectures, list)
        or len(architectures) != 1
        or architectures[0] not in SUPPORTED_ARCHITECTURES
    ):
        raise CheckpointError(
            f"{file} has `architectures` = {architectures}; supported are: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    (architecture,) = architectures
    unknown = sorted(
        key
        for key, value in content.items()
        if key not in _READ_KEYS | _HARMLESS_KEYS and value is not None and value is not False
    )
    if content.get("hidden_act", "silu") != "silu":
        unknown.append("hidden_act")
    if architecture == LLAMA:
        unknown += sorted({"num_local_experts", "num_experts_per_tok"} & content.keys())
    if unknown:
        raise CheckpointError(
            f"{file} asks for {', '.join(f'`{key}` = {content[key]}' for key in unknown)}, "
            "which this decoder does not implement"
        )
    num_heads = _integer(file, content, "num_attention_heads")
    hidden_size = _integer(file, content, "hidden_size")
    if content.get("head_dim") is None and hidden_size % num_heads:
        raise CheckpointError(
            f"{file} has no `head_dim`, and `hidden_size` ({hidden_size}) is no multiple of "
            f"`num_attention_heads` ({num_heads})"
        )
    is_tied = content.get("tie_word_embeddings", False)
    if not isinstance(is_tied, bool):
        raise CheckpointError(f"{file} has `tie_word_embeddings` = {is_tied!r}, it must be true or false")
    # Where a config leaves these out, its architecture has a default; Mixtral's published configs never do.
    is_llama = architecture == LLAMA
    try:
        return ModelConfig(
            architecture=architecture,
            num_hidden_layers=_integer(file, content, "num_hidden_layers"),
            hidden_size=hidden_size,
            intermediate_size=_integer(file, content, "intermediate_size"),
            num_attention_heads=num_heads,
            num_key_value_heads=_integer(file, content, "num_key_value_heads", num_heads if is_llama else None),
            head_dim=_integer(file, content, "head_dim", hidden_size // num_heads),
            vocab_size=_integer(file, content, "vocab_size"),
            context_length=_integer(file, content, "max_position_embeddings"),
            rope_theta=_rope_theta(file, content, 10_000.0 if is_llama else None),
            rms_norm_eps=_positive(file, "rms_norm_eps", content.get("rms_norm_eps")),
            tie_word_embeddings=is_tied,
            # With one expert our decoder has no router, which is another set of tensors.
            num_experts=1 if is_llama else _integer(file, content, "num_local_experts", minimum=2),
            num_experts_per_tok=1 if is_llama else _integer(file, content, "num_experts_per_tok"),
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _integer(file: Path, content: Mapping[str, Any], key: str, default: int | None = None, *, minimum: int = 1) -> int:
    value = content.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise CheckpointError(f"{file} has `{key}` = {value!r}, it must be an integer of at least {minimum}")
    return value


def _positive(file: Path, key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise CheckpointError(f"{file} has `{key}` = {value!r}, it must be a positive number")
    return float(value)


def _rope_theta(file: Path, content: Mapping[str, Any], default: float | None) -> float:
    """Read the base of the rotary embedding: at the top, or in `rope_parameters` since transformers 5."""
    thetas = {} if content.get("rope_theta") is None else {"rope_theta": content["rope_theta"]}
    for key in ("rope_parameters", "rope_scaling"):
        value = content.get(key)
        settings = {} if value is None else value
        is_plain = isinstance(settings, dict) and all(
            name == "rope_theta" or (name in ("rope_type", "type") and setting == "default")
            for name, setting in settings.items()
        )
        if not is_plain:
            raise CheckpointError(
                f"{file} asks for `{key}` = {value}, this decoder implements only the rope type `default`"
            )
        if settings.get("rope_theta") is not None:
            thetas[f"{key}.rope_theta"] = settings["rope_theta"]
    values = {_positive(file, key, value) for key, value in thetas.items()}
    if len(values) > 1:
        raise CheckpointError(f"{file} has rotary bases that differ: {thetas}")
    return values.pop() if values else _positive(file, "rope_theta", default)


def load_huggingface(directory: Path, config: ModelConfig, dtype: torch.dtype) -> Transformer:
    """Make the model and fill it from the directory's safetensors.

    Raises:
        CheckpointError: files are missing or damaged; tensors are missing, have wrong shapes or types that cannot be
            read, or are not known to this decoder.
    """
    with ExitStack() as stack:
        tensors = _open_tensors(directory, stack)
        sources = _sources(config)
        _check(directory, config, tensors, sources)
        model = Transformer(config)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        state: dict[str, Tensor] = {}
        for i, (name, parts) in enumerate(sources.items()):
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
            if (i + 1) % 50 == 0:
                _log.info("loading weights", done=i + 1, of=len(sources))
    fill(model, state)
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
    directory: Path, config: ModelConfig, tensors: Mapping[str, Any], sources: Mapping[str, tuple[_Source, ...]]
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


def _sources(config: ModelConfig) -> dict[str, tuple[_Source, ...]]:
    """Name the checkpoint's tensors that make each of our parameters, one below the other."""
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
    q_rows, kv_rows = num_heads * config.head_dim, num_kv_heads * config.head_dim
    sources: dict[str, tuple[_Source, ...]] = {
        "embedding.weight": (_Source("model.embed_tokens.weight", (vocab, hidden)),),
        "norm.weight": (_Source("model.norm.weight", (hidden,)),),
    }
    if not config.tie_word_embeddings:
        sources["head.weight"] = (_Source("lm_head.weight", (vocab, hidden)),)
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        sources |= {
            f"{ours}.attention_norm.weight": (_Source(f"{theirs}.input_layernorm.weight", (hidden,)),),
            f"{ours}.attention.qkv.weight": (
                _Source(f"{theirs}.self_attn.q_proj.weight", (q_rows, hidden), num_heads),
                _Source(f"{theirs}.self_attn.k_proj.weight", (kv_rows, hidden), num_kv_heads),
                _Source(f"{theirs}.self_attn.v_proj.weight", (kv_rows, hidden)),
            ),
            f"{ours}.attention.output.weight": (_Source(f"{theirs}.self_attn.o_proj.weight", (hidden, q_rows)),),
            f"{ours}.feed_forward_norm.weight": (_Source(f"{theirs}.post_attention_layernorm.weight", (hidden,)),),
        }
        if config.num_experts == 1:
            sources |= {
                f"{ours}.feed_forward.gate_up.weight": (
                    _Source(f"{theirs}.mlp.gate_proj.weight", (inner, hidden)),
                    _Source(f"{theirs}.mlp.up_proj.weight", (inner, hidden)),
                ),
                f"{ours}.feed_forward.down.weight": (_Source(f"{theirs}.mlp.down_proj.weight", (hidden, inner)),),
            }
        else:
            moe = f"{theirs}.block_sparse_moe"
            experts = [f"{moe}.experts.{expert}" for expert in range(config.num_experts)]
            sources |= {
                f"{ours}.feed_forward.router.weight": (_Source(f"{moe}.gate.weight", (config.num_experts, hidden)),),
                f"{ours}.feed_forward.gate_up": tuple(
                    _Source(f"{expert}.{part}.weight", (inner, hidden)) for expert in experts for part in ("w1", "w3")
                ),
                f"{ours}.feed_forward.down": tuple(
                    _Source(f"{expert}.w2.weight", (hidden, inner)) for expert in experts
                ),
            }
    return sources
