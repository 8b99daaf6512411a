"""What is added to the language model's loss: so that a router spreads its tokens, and so that the base stays known.

Shapes: N tokens, E experts, A experts per token, R rows with logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def load_balancing_loss(probs: Tensor, expert_ids: Tensor) -> Tensor:
    """E times the sum of f * P over experts, f of the N * A assignments: 1 at uniform, E / A at full collapse.

    W. Fedus, B. Zoph, N. Shazeer, "Switch Transformers", 2022, for A = 1. `probs`: `(N, E)`; `expert_ids`: `(N, A)`.
    """
    num_experts = probs.shape[-1]
    shares = torch.bincount(expert_ids.flatten(), minlength=num_experts).to(probs) / expert_ids.numel()
    return num_experts * (shares * probs.mean(dim=0)).sum()


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean square of log-sum-exp: keeps logits small (B. Zoph et al., "ST-MoE", 2022). `logits`: `(N, E)`."""
    return logits.float().logsumexp(dim=-1).square().mean()


def retention_loss(logits: Tensor, base_logits: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of what the base predicts from what is predicted now, in nats.

    Keeps what the base knows where nothing else is to be learned (Z. Li, D. Hoiem, "Learning without Forgetting",
    2016). Both: `(R, vocab_size)`.
    """
    return F.kl_div(logits.log_softmax(-1), base_logits.log_softmax(-1), reduction="batchmean", log_target=True)


def entropy_loss(probs: Tensor) -> Tensor:
    """Mean entropy of a token's distribution, in nats: less of it is a router that decides. `probs`: `(N, E)`."""
    entropies: Tensor = torch.special.entr(probs).sum(dim=-1)
    return entropies.mean()


def importance_loss(probs: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' summed probability (Shazeer et al., 2017). `probs`: `(N, E)`."""
    importance = probs.sum(dim=0)
    return importance.var(correction=0) / importance.mean().square()


def diversity_loss(weights: Tensor) -> Tensor:
    """Mean squared cosine between the weights of two experts: 0 where all are orthogonal. `weights`: `(E, ...)`."""
    num_experts = weights.shape[0]
    rows = F.normalize(weights.flatten(1), dim=-1)
    cosines = rows @ rows.T - torch.eye(num_experts, device=rows.device, dtype=rows.dtype)
    return cosines.square().sum() / (num_experts * (num_experts - 1))
