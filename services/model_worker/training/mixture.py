"""Routed experts with gradients: what is trained, and added to what the dense block gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.model_worker.training.gating import Assignment, assign, expert_capacity, gating_noise

_INITIAL_STD: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class MixtureShape:
    """The experts of one layer. One expert alone has no router: a dense block, the control of an experiment."""

    num_experts: int = 8
    num_experts_per_tok: int = 2
    """All of them: a dense mixture."""
    expert_width: int = 64
    """Width inside one expert."""
    norm_topk_prob: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: naming the field.
        """
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(f"num_experts_per_tok is {self.num_experts_per_tok}, of {self.num_experts} experts")
        if self.expert_width < 1:
            raise ValueError(f"expert_width is {self.expert_width}, it must be at least 1")
        if self.num_experts_per_tok == 1 < self.num_experts and self.norm_topk_prob:
            raise ValueError("with one expert per token norm_topk_prob makes its weight 1: the router would not learn")

    @property
    def has_router(self) -> bool:
        """Whether there is something to choose."""
        return self.num_experts > 1


@dataclass(frozen=True, kw_only=True)
class GatingOptions:
    """What a router does in training alone."""

    noise_scale: float = 0.0
    """Of noisy top-k; 0: none."""
    capacity_factor: float | None = None
    """Room of an expert in fair shares; None: room for all."""


PLAIN_GATING: Final = GatingOptions()
"""As in service: no noise, room for all."""


class TrainableMixture(nn.Module):
    """A router and its experts. What they give is nothing at first, because their last projection is zero."""

    def __init__(
        self,
        hidden_size: int,
        shape: MixtureShape,
        options: GatingOptions = PLAIN_GATING,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.options = options
        num_experts, width = shape.num_experts, shape.expert_width
        self.gate_up = nn.Parameter(_normal((num_experts, 2 * width, hidden_size), hidden_size**-0.5, generator))
        self.down = nn.Parameter(torch.zeros(num_experts, hidden_size, width))
        if shape.has_router:
            self.router = nn.Parameter(_normal((num_experts, hidden_size), _INITIAL_STD, generator))
            self.noise = nn.Parameter(torch.zeros(num_experts, hidden_size), requires_grad=options.noise_scale > 0)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Assignment | None]:
        """`(N, H)` to what is to be added, `(N, H)`, and what the router decided, if there is one."""
        # Taken apart once: an index of each expert would make a gradient as large as all of them.
        experts = list(zip(self.gate_up.unbind(), self.down.unbind(), strict=True))
        if not self.shape.has_router:
            return _expert(x, *experts[0]), None
        decided = self._assign(x, generator)
        out = torch.zeros_like(x)
        for expert, (gate_up, down) in enumerate(experts):
            rows, choices = ((decided.expert_ids == expert) & decided.is_kept).nonzero(as_tuple=True)
            if len(rows):
                weights = decided.weights[rows, choices].unsqueeze(-1).to(x.dtype)
                out = out.index_add(0, rows, _expert(x.index_select(0, rows), gate_up, down) * weights)
        return out, decided

    def _assign(self, x: Tensor, generator: torch.Generator | None) -> Assignment:
        shape, options = self.shape, self.options
        noise, capacity = None, None
        if self.training and options.noise_scale > 0:
            noise = gating_noise(x, self.noise, options.noise_scale, generator)
        if self.training and options.capacity_factor is not None:
            capacity = expert_capacity(len(x), shape.num_experts, shape.num_experts_per_tok, options.capacity_factor)
        return assign(
            F.linear(x, self.router),
            shape.num_experts_per_tok,
            norm_topk_prob=shape.norm_topk_prob,
            noise=noise,
            capacity=capacity,
        )


def _expert(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`x`: `(N, H)`; `gate_up`: `(2 I, H)`; `down`: `(H, I)`. Returns `(N, H)`."""
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator) * std
