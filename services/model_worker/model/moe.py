"""The mixture-of-experts feed-forward block.

Shapes: N tokens, E experts, A = `num_experts_per_tok`, H hidden size, I width inside an expert, P projections into it:
gate and up, or up alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.model_worker.model.config import ModelConfig
from services.model_worker.model.linear import Linear, MakeProduct, PlainProduct, Product, unloaded
from services.model_worker.model.rows import sigmoid, silu

Activation = Callable[[Tensor], Tensor]
"""From what is projected into a block, `(N, P I)`, to what is projected out of it, `(N, I)`."""


def activation_of(config: ModelConfig) -> Activation:
    """Return what a block does between its projections."""
    function: Activation = silu if config.activation == "silu" else F.relu

    def gated(projected: Tensor) -> Tensor:
        gate, up = projected.chunk(2, dim=-1)
        return function(gate).mul_(up)

    return gated if config.is_gated else function


@dataclass(frozen=True)
class Expert:
    """One feed-forward block, its weights ready to multiply with."""

    gate_up: Product
    """`(N, H)` to `(N, P I)`."""
    down: Product
    """`(N, I)` to `(N, H)`."""
    activation: Activation

    def __call__(self, x: Tensor) -> Tensor:
        """`(N, H)` to `(N, H)`."""
        return self.down(self.activation(self.gate_up(x)))


def make_experts(
    gate_up: Tensor, down: Tensor, activation: Activation, make: MakeProduct = PlainProduct
) -> list[Expert]:
    """Return the E experts. `gate_up`: `(E, P I, H)`; `down`: `(E, H, I)`."""
    return [Expert(make(ours), make(theirs), activation) for ours, theirs in zip(gate_up, down, strict=True)]


@dataclass
class RoutingLog:
    """What the routers of one forward pass chose, layer by layer: the model appends, whoever runs it reads."""

    probabilities: list[Tensor] = field(default_factory=list)
    """`(N, E)` float32 each."""
    expert_ids: list[Tensor] = field(default_factory=list)
    """`(N, A)` each."""

    def part(self, tokens: slice) -> RoutingLog:
        """Return what was chosen for some of the tokens."""
        return RoutingLog([rows[tokens] for rows in self.probabilities], [rows[tokens] for rows in self.expert_ids])


def route(probs: Tensor, num_experts_per_tok: int, norm_topk_prob: bool) -> tuple[Tensor, Tensor]:
    """Choose experts. `probs`: `(N, E)` float32. Returns weights `(N, A)` float32 and expert ids `(N, A)`."""
    weights, expert_ids = probs.topk(num_experts_per_tok, dim=-1)
    if norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, expert_ids


def moe_by_definition(x: Tensor, weights: Tensor, expert_ids: Tensor, experts: Sequence[Expert]) -> Tensor:
    """Say what the block computes: the fast path is tested against this loop.

    `x`: `(N, H)`; `weights`, `expert_ids`: `(N, A)`; E experts. Returns `(N, H)`.
    """
    result = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for weight, expert_id in zip(weights[token], expert_ids[token].tolist(), strict=True):
            result[token] += weight * experts[expert_id](x[token : token + 1])[0]
    return result


def moe_by_expert(x: Tensor, weights: Tensor, expert_ids: Tensor, experts: Sequence[Expert]) -> Tensor:
    """Compute the same with one matrix product per expert that was hit: its tokens stand together. Shapes as above."""
    num_tokens, num_per_token = expert_ids.shape
    by_expert = expert_ids.flatten().argsort(stable=True)  # (N * A,)
    token_of = by_expert // num_per_token
    counts = torch.bincount(expert_ids.flatten(), minlength=len(experts)).tolist()
    weight_of = weights.flatten()[by_expert].unsqueeze(-1).to(x.dtype)
    result = torch.zeros_like(x)
    start = 0
    for expert_id, count in enumerate(counts):
        if count == 0:
            continue
        rows = slice(start, start + count)
        start += count
        # All rows of one expert are different tokens, so adding by index never meets itself.
        tokens = token_of[rows]
        out = experts[expert_id](x if count == num_tokens == 1 else x[tokens])
        result.index_add_(0, tokens, out.mul_(weight_of[rows]))
    return result


class DenseFeedForward(nn.Module):
    """One block for all tokens, no router."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden_size, config.first_projections * width)
        self.down = Linear(width, config.hidden_size)
        self._activation = activation_of(config)

    def forward(self, x: Tensor, log: RoutingLog | None = None) -> Tensor:
        """`(N, H)` to `(N, H)`; nothing is routed, so nothing is logged."""
        out: Tensor = self.down(self._activation(self.gate_up(x)))
        return out


class MoeFeedForward(nn.Module):
    """A router and E experts, of which a token uses A; beside them, in some models, one that every token uses.

    How much of that one is added, a gate of its own says (Qwen, "Qwen1.5-MoE", 2024).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        num_experts, hidden, inner = config.num_experts, config.hidden_size, config.intermediate_size
        self.router = Linear(hidden, num_experts)
        self.gate_up = unloaded(num_experts, config.first_projections * inner, hidden)
        self.down = unloaded(num_experts, hidden, inner)
        self.shared: DenseFeedForward | None = None
        if config.shared_intermediate_size:
            self.shared = DenseFeedForward(config, config.shared_intermediate_size)
            self.shared_gate = Linear(hidden, 1)
        self._activation = activation_of(config)
        self._experts: list[Expert] | None = None

    def prepare(self, make: MakeProduct) -> None:
        """Use `make`'s products from now on; the weights themselves let go of their memory."""
        self._experts = make_experts(self.gate_up.detach(), self.down.detach(), self._activation, make)
        self.gate_up, self.down = unloaded(*self.gate_up.shape), unloaded(*self.down.shape)

    def forward(self, x: Tensor, log: RoutingLog | None = None) -> Tensor:
        """`(N, H)` to `(N, H)`; what was routed where goes to the log."""
        probs = F.softmax(self.router(x), dim=-1, dtype=torch.float32)
        weights, expert_ids = route(probs, self.num_experts_per_tok, self.norm_topk_prob)
        if log is not None:
            log.probabilities.append(probs)
            log.expert_ids.append(expert_ids)
        experts = self._experts or make_experts(self.gate_up, self.down, self._activation)
        out = moe_by_expert(x, weights, expert_ids, experts)
        return out if self.shared is None else out.add_(self.shared(x) * sigmoid(self.shared_gate(x)))


def feed_forward(config: ModelConfig, layer: int) -> DenseFeedForward | MoeFeedForward:
    """Make the block that the configuration asks for."""
    return MoeFeedForward(config) if config.is_mixture(layer) else DenseFeedForward(config, config.dense_width(layer))
