"""Who goes where in training: top-k of noisy router logits, and no more for an expert than it has room for.

Shapes: N tokens, E experts, A = `num_experts_per_tok` (E in a dense mixture).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from services.model_worker.model.moe import route


@dataclass(frozen=True)
class Assignment:
    """What a router decided for N tokens."""

    logits: Tensor
    """`(N, E)` float32, without noise."""
    probs: Tensor
    """`(N, E)` float32, of what was chosen by: with noise where there was some."""
    weights: Tensor
    """`(N, A)`; 0 where the expert had no room."""
    expert_ids: Tensor
    """`(N, A)`, best first."""
    is_kept: Tensor
    """`(N, A)` bool: whether the expert had room."""

    @property
    def num_dropped(self) -> int:
        """Choices that found no room."""
        return int((~self.is_kept).sum())


def assign(
    logits: Tensor,
    num_experts_per_tok: int,
    *,
    norm_topk_prob: bool,
    noise: Tensor | None = None,
    capacity: int | None = None,
) -> Assignment:
    """Choose experts. `logits`, `noise`: `(N, E)`; at most `capacity` tokens go to each expert."""
    probs = F.softmax(logits if noise is None else logits + noise, dim=-1, dtype=torch.float32)
    weights, expert_ids = route(probs, num_experts_per_tok, norm_topk_prob)
    is_kept = torch.ones_like(expert_ids, dtype=torch.bool)
    if capacity is not None:
        is_kept = within_capacity(expert_ids, logits.shape[-1], capacity)
        weights = weights * is_kept
    return Assignment(logits.float(), probs, weights, expert_ids, is_kept)


def gating_noise(x: Tensor, noise_weight: Tensor, scale: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw noise for router logits, as wide as each token asks for.

    N. Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", 2017:
    a standard normal number times softplus(x W). `x`: `(N, H)`; `noise_weight`: `(E, H)`. Returns `(N, E)`.
    """
    width = F.softplus(F.linear(x, noise_weight).float())
    normal = torch.randn(width.shape, generator=generator, device=width.device)
    return scale * normal * width


def expert_capacity(num_tokens: int, num_experts: int, num_experts_per_tok: int, factor: float) -> int:
    """Return the tokens that an expert has room for: `factor` times its fair share, rounded up."""
    return math.ceil(factor * num_tokens * num_experts_per_tok / num_experts)


def within_capacity(expert_ids: Tensor, num_experts: int, capacity: int) -> Tensor:
    """Tell which choices find room: all first choices go before all second ones, each in the order of the tokens.

    D. Lepikhin et al., "GShard", 2020. `expert_ids`: `(N, A)`. Returns `(N, A)` bool.
    """
    in_order = expert_ids.T.flatten()  # (A * N,)
    places = F.one_hot(in_order, num_experts).cumsum(dim=0).gather(1, in_order[:, None]).squeeze(1)  # from 1
    return (places <= capacity).view(expert_ids.shape[1], -1).T
