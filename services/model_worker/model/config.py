"""The shape of a decoder."""

from __future__ import annotations

from dataclasses import dataclass


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
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    num_experts: int = 1
    num_experts_per_tok: int = 1
    norm_topk_prob: bool = True
    """Whether the chosen experts' weights are scaled to sum to 1: without, it is another model."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be.

        Raises:
            ValueError: naming the fields.
        """
        for name in (
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
        ):
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

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token keeps in the cache, over all layers."""
        return self.num_hidden_layers * 2 * self.num_key_value_heads * self.head_dim
