"""The shape of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.model_worker.model.rope import RopeScaling

_COUNTS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "context_length",
    "num_experts",
    "num_experts_per_tok",
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that the decoder's code needs to know of a checkpoint; names as in Hugging Face configs.

    A dense model is the case of one expert, for which there is no router.
    """

    architecture: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    """Width inside one expert."""
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    num_experts: int = 1
    num_experts_per_tok: int = 1
    norm_topk_prob: bool = True
    """Whether the chosen experts' weights are scaled to sum to 1: without, it is another model."""
    activation: Literal["silu", "relu"] = "silu"
    is_gated: bool = True
    """Whether what is activated is multiplied with a second projection."""
    shared_intermediate_size: int = 0
    """Width inside the expert that works on every token, beside the routed ones; 0 where there is none."""
    dense_layers: frozenset[int] = frozenset()
    """Layers of a mixture that have one dense block instead, `dense_intermediate_size` wide."""
    dense_intermediate_size: int = 0
    has_qkv_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"
    """Whether queries and keys are normed, each head for itself or all heads together."""
    windows: Sequence[int | None] = ()
    """For each layer the latest tokens that attention looks at, None for all; nothing at all means all of them."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be.

        Raises:
            ValueError: naming the fields.
        """
        for name in (*_COUNTS, *(["dense_intermediate_size"] if self.dense_layers else [])):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, rotary embedding needs an even one")
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds num_experts ({self.num_experts})"
            )
        if self.windows and len(self.windows) != self.num_hidden_layers:
            raise ValueError(f"{len(self.windows)} windows are given for {self.num_hidden_layers} layers")
        if any(window is not None and window < 1 for window in self.windows):
            raise ValueError("a sliding window must have at least 1 token")
        if not self.dense_layers <= set(range(self.num_hidden_layers)):
            raise ValueError(f"dense_layers names layers that are not there: {sorted(self.dense_layers)}")

    def window(self, layer: int) -> int | None:
        """Return the latest tokens that a layer looks at; None for all."""
        return self.windows[layer] if self.windows else None

    def is_mixture(self, layer: int) -> bool:
        """Tell whether a layer has a router."""
        return self.num_experts > 1 and layer not in self.dense_layers

    def dense_width(self, layer: int) -> int:
        """Return the width inside the block of a layer without a router."""
        return self.dense_intermediate_size if layer in self.dense_layers else self.intermediate_size

    @property
    def first_projections(self) -> int:
        """Projections into a feed-forward block: gate and up, or up alone."""
        return 2 if self.is_gated else 1

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token keeps in the cache, over all layers."""
        return self.num_hidden_layers * 2 * self.num_key_value_heads * self.head_dim
