"""What one token costs: floating-point operations by the shapes of the weights.

A multiplication with a weight counts as two, multiply and add; norms, activations and the softmax are left out, as
usual. Sliding windows bound the context of their layers; here every layer sees all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.model_worker.model.linear import Linear
from services.model_worker.model.moe import MoeFeedForward
from services.model_worker.model.transformer import Transformer


@dataclass(frozen=True)
class Cost:
    """Operations of one token with its logits."""

    flops_per_token: int
    """Without attention to the context."""
    dense_flops_per_token: int
    """The same if every expert worked on every token."""
    flops_per_context_token: int
    """More for each token that attention looks at, the token itself among them."""
    weight_bytes: int
    """Of all weights in memory, shared ones once."""


def cost_of(model: Transformer) -> Cost:
    """Add up a model whose weights are loaded and not `prepare`d yet."""
    config = model.config
    always = sum(2 * module.weight.numel() for module in model.modules() if isinstance(module, Linear))
    experts = sum(
        2 * (module.gate_up.numel() + module.down.numel())
        for module in model.modules()
        if isinstance(module, MoeFeedForward)
    )
    # Queries with keys, then probabilities with values.
    attention = config.num_hidden_layers * 2 * 2 * config.num_attention_heads * config.head_dim
    return Cost(
        flops_per_token=always + experts * config.num_experts_per_tok // config.num_experts,
        dense_flops_per_token=always + experts,
        flops_per_context_token=attention,
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
    )
