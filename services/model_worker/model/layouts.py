"""The architectures of Hugging Face directories, each as what its `config.json` says in the decoder's own terms.

A layout is a small function over the settings. What it does not read must be without effect on the logits, or null, or
false: anything else asks for what this decoder does not implement, and is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.model_worker.model.checkpoint import CheckpointError
from services.model_worker.model.config import ModelConfig
from services.model_worker.model.rope import LinearScaling, Llama3Scaling, RopeScaling

_HARMLESS: Final = frozenset(
    {
        "architectures",
        "model_type",
        "_name_or_path",
        "_model_name_or_path",
        "transformers_version",
        "transformers.js_config",
        "is_llama_config",
        "dtype",
        "torch_dtype",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "unk_token_id",
        "pretraining_tp",
        # Of training alone.
        "attention_dropout",
        "initializer_range",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
    }
)


class Settings:
    """A `config.json` that notes what was read of it. Every method raises CheckpointError, naming file and key."""

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file = file
        self._content = content
        self._read: set[str] = set()

    def get(self, key: str) -> Any:
        """Return a value as it is, None where there is none."""
        self._read.add(key)
        return self._content.get(key)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """Return an integer of at least `minimum`."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise CheckpointError(f"{self.file} has `{key}` = {value!r}, it must be an integer of at least {minimum}")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.file} has `{key}` = {value!r}, it must be true or false")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """Return a number over 0."""
        value = self.get(key)
        return self.as_positive(key, default if value is None else value)

    def as_positive(self, key: str, value: object) -> float:
        """Return a value that must be a number over 0."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise CheckpointError(f"{self.file} has `{key}` = {value!r}, it must be a positive number")
        return float(value)

    def layers(self, key: str, num_layers: int) -> frozenset[int]:
        """Return a list of layer numbers."""
        value = self.get(key)
        value = [] if value is None else value
        if not isinstance(value, list) or not all(type(layer) is int and 0 <= layer < num_layers for layer in value):
            raise CheckpointError(
                f"{self.file} has `{key}` = {value!r}, it must list layers from 0 to {num_layers - 1}"
            )
        return frozenset(value)

    def one_of(self, key: str, values: Sequence[str], default: str) -> str:
        """Return one of some words."""
        value = self.get(key)
        value = default if value is None else value
        if value not in values:
            raise self.unsupported([key])
        return str(value)

    def refuse_unread(self) -> None:
        """Refuse what asks for something and was not read."""
        unread = sorted(
            key
            for key, value in self._content.items()
            if key not in self._read | _HARMLESS and value is not None and value is not False
        )
        if unread:
            raise self.unsupported(unread)

    def unsupported(self, keys: Iterable[str]) -> CheckpointError:
        """Return the error for settings that this decoder does not implement."""
        asked = ", ".join(f"`{key}` = {self._content.get(key)}" for key in keys)
        return CheckpointError(f"{self.file} asks for {asked}, which this decoder does not implement")


@dataclass(frozen=True)
class Names:
    """What the tensors of a feed-forward block are called below their layer."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


@dataclass(frozen=True)
class Layout:
    """An architecture: `read` returns the fields of `ModelConfig` beyond those that all have."""

    read: Callable[[Settings], dict[str, Any]]
    names: Names = Names()
    rms_norm_eps: float | None = None
    rope_theta: float | None = 10_000.0
    """Where a config leaves these out, its architecture has a default; None: it must not."""
    needs_kv_heads: bool = False


def read_config(settings: Settings, architecture: str) -> ModelConfig:
    """Read the shape of a model whose architecture is one of `LAYOUTS`.

    Raises:
        CheckpointError: a setting is not supported, or the settings make no sense.
    """
    layout = LAYOUTS[architecture]
    num_heads, hidden_size = settings.integer("num_attention_heads"), settings.integer("hidden_size")
    if settings.get("head_dim") is None and hidden_size % num_heads:
        raise CheckpointError(
            f"{settings.file} has no `head_dim`, and `hidden_size` ({hidden_size}) is no multiple of "
            f"`num_attention_heads` ({num_heads})"
        )
    theta, scaling = _rope(settings, layout.rope_theta)
    fields: dict[str, Any] = {
        "architecture": architecture,
        "num_hidden_layers": settings.integer("num_hidden_layers"),
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": settings.integer("num_key_value_heads", None if layout.needs_kv_heads else num_heads),
        "head_dim": settings.integer("head_dim", hidden_size // num_heads),
        "vocab_size": settings.integer("vocab_size"),
        "context_length": settings.integer("max_position_embeddings"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rms_norm_eps": settings.positive("rms_norm_eps", layout.rms_norm_eps),
        "tie_word_embeddings": settings.boolean("tie_word_embeddings", False),
    }
    fields |= layout.read(settings)
    if "intermediate_size" not in fields:
        fields["intermediate_size"] = settings.integer("intermediate_size")
    if "activation" not in fields:
        settings.one_of("hidden_act", ["silu"], "silu")
    settings.refuse_unread()
    try:
        return ModelConfig(**fields)
    except ValueError as error:
        raise CheckpointError(f"{settings.file}: {error}") from None


def _rope(settings: Settings, default: float | None) -> tuple[float, RopeScaling | None]:
    """Read base and scaling of the rotary embedding: at the top, or in `rope_parameters` since transformers 5."""
    top = settings.get("rope_theta")
    thetas = {} if top is None else {"rope_theta": top}
    found: RopeScaling | None = None
    for key in ("rope_parameters", "rope_scaling"):
        value = settings.get(key)
        values = {} if value is None else value
        if not isinstance(values, dict):
            raise settings.unsupported([key])
        if values.get("rope_theta") is not None:
            thetas[f"{key}.rope_theta"] = values["rope_theta"]
        found = _scaling(settings, key, values) or found
    known = {settings.as_positive(key, value) for key, value in thetas.items()}
    if len(known) > 1:
        raise CheckpointError(f"{settings.file} has rotary bases that differ: {thetas}")
    return (known.pop() if known else settings.as_positive("rope_theta", default)), found


def _scaling(settings: Settings, key: str, values: Mapping[str, Any]) -> RopeScaling | None:
    kind = values.get("rope_type", values.get("type", "default"))
    names = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }.get(kind)
    given = {name for name, value in values.items() if value is not None} - {"rope_theta", "rope_type", "type"}
    if names is None or given != set(names):
        raise CheckpointError(
            f"{settings.file} asks for `{key}` = {dict(values)}, this decoder implements the rope types `default`, "
            "`linear` and `llama3`, each with its own settings alone"
        )
    numbers = [settings.as_positive(f"{key}.{name}", values[name]) for name in names]
    if kind == "linear":
        return LinearScaling(*numbers)
    if kind == "llama3":
        return Llama3Scaling(numbers[0], numbers[1], numbers[2], int(numbers[3]))
    return None


def _llama(_: Settings) -> dict[str, Any]:
    return {}


def _mistral(settings: Settings) -> dict[str, Any]:
    return {"windows": _same_window(settings)}


def _mixtral(settings: Settings) -> dict[str, Any]:
    return {
        # With one expert our decoder has no router, which is another set of tensors.
        "num_experts": settings.integer("num_local_experts", minimum=2),
        "num_experts_per_tok": settings.integer("num_experts_per_tok"),
        "windows": _same_window(settings),
    }


def _olmoe(settings: Settings) -> dict[str, Any]:
    return {"qk_norm": "all", **_mixture(settings, per_token=8, experts=64)}


def _qwen2(settings: Settings) -> dict[str, Any]:
    return {"has_qkv_bias": True, "windows": _windows_by_layer(settings)}


def _qwen3(settings: Settings) -> dict[str, Any]:
    return {"qk_norm": "head", "windows": _windows_by_layer(settings)}


def _qwen2_moe(settings: Settings) -> dict[str, Any]:
    return {
        "has_qkv_bias": settings.boolean("qkv_bias", True),
        "windows": _windows_by_layer(settings),
        "intermediate_size": settings.integer("moe_intermediate_size"),
        "shared_intermediate_size": settings.integer("shared_expert_intermediate_size"),
        **_dense_layers(settings),
        **_mixture(settings),
    }


def _qwen3_moe(settings: Settings) -> dict[str, Any]:
    settings.get("max_window_layers")  # says nothing here: a window is one of all layers
    uses_window = settings.boolean("use_sliding_window", False)
    return {
        "qk_norm": "head",
        "windows": _same_window(settings) if uses_window else _no_window(settings),
        "intermediate_size": settings.integer("moe_intermediate_size"),
        **_dense_layers(settings),
        **_mixture(settings),
    }


def _espalier_moe(settings: Settings) -> dict[str, Any]:
    """Read our own layout (docs/models.md): what no published architecture has, from the same block."""
    shared = settings.integer("shared_expert_intermediate_size", 0, minimum=0)
    return {
        "activation": settings.one_of("hidden_act", ["silu", "relu"], "silu"),
        "is_gated": settings.boolean("gated", True),
        "intermediate_size": settings.integer("moe_intermediate_size"),
        "shared_intermediate_size": shared,
        "has_qkv_bias": settings.boolean("qkv_bias", False),
        **_dense_layers(settings),
        **_mixture(settings),
    }


def _mixture(settings: Settings, *, per_token: int | None = None, experts: int | None = None) -> dict[str, Any]:
    """Read a router's settings; the number of experts has two names."""
    local = settings.get("num_local_experts")
    return {
        "num_experts": settings.integer("num_experts", local if local is not None else experts, minimum=2),
        "num_experts_per_tok": settings.integer("num_experts_per_tok", per_token),
        "norm_topk_prob": settings.boolean("norm_topk_prob", False),
    }


def _dense_layers(settings: Settings) -> dict[str, Any]:
    """Read which layers of a mixture have a dense block."""
    num_layers = settings.integer("num_hidden_layers")
    step = settings.integer("decoder_sparse_step", 1)
    dense = settings.layers("mlp_only_layers", num_layers)
    dense |= {layer for layer in range(num_layers) if (layer + 1) % step}
    settings.get("intermediate_size")  # of dense layers alone
    return {"dense_layers": dense, "dense_intermediate_size": settings.integer("intermediate_size")} if dense else {}


def _same_window(settings: Settings) -> tuple[int | None, ...]:
    if settings.get("sliding_window") is None:
        return ()
    return (settings.integer("sliding_window"),) * settings.integer("num_hidden_layers")


def _no_window(settings: Settings) -> tuple[int | None, ...]:
    settings.get("sliding_window")
    return ()


def _windows_by_layer(settings: Settings) -> tuple[int | None, ...]:
    """Read which layers have a window: by name, or from a layer on as before transformers 5."""
    num_layers = settings.integer("num_hidden_layers")
    kinds, first = settings.get("layer_types"), settings.get("max_window_layers")
    if kinds is not None and (
        not isinstance(kinds, list) or not all(kind in ("full_attention", "sliding_attention") for kind in kinds)
    ):
        raise settings.unsupported(["layer_types"])
    if not settings.boolean("use_sliding_window", False):
        if kinds is not None and "sliding_attention" in kinds:
            raise settings.unsupported(["layer_types"])
        return _no_window(settings)
    window = settings.integer("sliding_window")
    if kinds is None:
        first = settings.integer("max_window_layers", 28 if first is None else first, minimum=0)
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


LLAMA: Final = "LlamaForCausalLM"
ESPALIER_MOE: Final = "EspalierMoeForCausalLM"

LAYOUTS: Final[dict[str, Layout]] = {
    LLAMA: Layout(_llama),
    "MistralForCausalLM": Layout(_mistral),
    "MixtralForCausalLM": Layout(
        _mixtral, Names("block_sparse_moe", "w1", "w3", "w2"), rope_theta=None, needs_kv_heads=True
    ),
    "OlmoeForCausalLM": Layout(_olmoe),
    "Qwen2ForCausalLM": Layout(_qwen2),
    "Qwen2MoeForCausalLM": Layout(_qwen2_moe),
    "Qwen3ForCausalLM": Layout(_qwen3),
    "Qwen3MoeForCausalLM": Layout(_qwen3_moe),
    ESPALIER_MOE: Layout(_espalier_moe),
}
