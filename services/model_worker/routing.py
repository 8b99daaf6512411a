"""What the routers do: which experts the tokens go to, over all layers, and whether they still spread.

Shapes: L layers with a router, N tokens, E experts, A experts per token. The share f of an expert is its part of the
N * A assignments, P the mean of its router probability. The balance E * sum(f * P) is 1 where both are uniform and
E / A where the same A experts take everything (W. Fedus, B. Zoph, N. Shazeer, "Switch Transformers", JMLR 23, 2022).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import structlog
import torch

from services.model_worker import metrics
from services.model_worker.model.moe import RoutingLog

_log = structlog.get_logger()

# Label sets of one metric; more experts than this are not told apart there.
_MAX_SERIES: Final = 2048

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Routing:
    """Sums over tokens."""

    num_tokens: int
    tokens_per_expert: npt.NDArray[np.int64]
    """`(L, E)`."""
    probability_sums: Floats
    """`(L, E)`."""
    entropy_sums: Floats
    """`(L,)`, of the router's distribution, in nats."""

    @classmethod
    def nothing(cls, num_layers: int, num_experts: int) -> Routing:
        """Return sums over no tokens."""
        shape = (num_layers, num_experts)
        return cls(0, np.zeros(shape, np.int64), np.zeros(shape), np.zeros(num_layers))

    @classmethod
    def of(cls, log: RoutingLog) -> Routing:
        """Sum up a forward pass, a few operations for all layers together."""
        probabilities = torch.stack(log.probabilities)  # (L, N, E)
        num_layers, num_tokens, num_experts = probabilities.shape
        ids = torch.stack(log.expert_ids).view(num_layers, -1)  # (L, N * A)
        offsets = torch.arange(num_layers, device=ids.device).unsqueeze(-1) * num_experts
        counts = torch.bincount((ids + offsets).flatten(), minlength=num_layers * num_experts)
        entropies = torch.special.entr(probabilities).sum(dim=(1, 2))
        return cls(
            num_tokens,
            counts.view(num_layers, num_experts).cpu().numpy(),
            probabilities.sum(dim=1).double().cpu().numpy(),
            entropies.double().cpu().numpy(),
        )

    def __add__(self, other: Routing) -> Routing:
        return Routing(
            self.num_tokens + other.num_tokens,
            self.tokens_per_expert + other.tokens_per_expert,
            self.probability_sums + other.probability_sums,
            self.entropy_sums + other.entropy_sums,
        )

    @property
    def balance(self) -> Floats:
        """`(L,)`; 1 where there were no tokens."""
        num_experts = self.tokens_per_expert.shape[1]
        shares = self.tokens_per_expert / np.maximum(self.tokens_per_expert.sum(axis=1, keepdims=True), 1)
        if self.num_tokens == 0:
            return np.ones(len(shares))
        balance: Floats = num_experts * (shares * self.mean_probabilities).sum(axis=1)
        return balance

    @property
    def mean_probabilities(self) -> Floats:
        """`(L, E)`."""
        return self.probability_sums / max(self.num_tokens, 1)

    @property
    def mean_entropy(self) -> Floats:
        """`(L,)`, in nats."""
        return self.entropy_sums / max(self.num_tokens, 1)


def collapse_limit(num_experts: int, num_experts_per_tok: float, collapse: float) -> float:
    """Return the balance beyond which a layer has collapsed: the part `collapse` of the way from 1 to E / A."""
    worst = num_experts / num_experts_per_tok
    # Where every token goes to every expert there is nothing to collapse.
    return 1 + collapse * (worst - 1) if worst > 1 else float("inf")


class RoutingMonitor:
    """Adds up the routing of all forward passes, and warns when it collapses. `observe` is for one thread."""

    def __init__(
        self, layers: Sequence[int], num_experts: int, num_experts_per_tok: int, *, window_tokens: int, collapse: float
    ) -> None:
        """`layers` have a router. Each `window_tokens` are looked at for themselves.

        A layer has collapsed where its balance is beyond the part `collapse` of the way from 1 to E / A.
        """
        self.layers: Final = tuple(layers)
        self._num_experts = num_experts
        self._window_tokens = window_tokens
        self._limit = collapse_limit(num_experts, num_experts_per_tok, collapse)
        self._total = self._window = Routing.nothing(len(layers), num_experts)
        self._lock = threading.Lock()
        self._collapsed: frozenset[int] = frozenset()
        # An expert that never gets a token counts too, so each is there from the start.
        self._expert_names = range(num_experts) if len(layers) * num_experts <= _MAX_SERIES else ("all",)
        for layer in self.layers:
            for expert in self._expert_names:
                metrics.EXPERT_TOKENS.labels(layer, expert)

    @property
    def total(self) -> Routing:
        """Sums since the start, every token that went through the model, those of dropped steps too."""
        with self._lock:
            return self._total

    def observe(self, log: RoutingLog) -> None:
        """Take in a forward pass."""
        seen = Routing.of(log)
        with self._lock:
            self._total += seen
        self._window += seen
        if self._window.num_tokens >= self._window_tokens:
            # Thousands of counters: not with every pass.
            self._count(self._window)
            self._judge(self._window)
            self._window = Routing.nothing(len(self.layers), self._num_experts)

    def _count(self, seen: Routing) -> None:
        for layer, counts in zip(self.layers, seen.tokens_per_expert.tolist(), strict=True):
            shown = counts if len(self._expert_names) == self._num_experts else [sum(counts)]
            for expert, count in zip(self._expert_names, shown, strict=True):
                if count:
                    metrics.EXPERT_TOKENS.labels(layer, expert).inc(count)

    def _judge(self, window: Routing) -> None:
        balances = dict(zip(self.layers, window.balance.tolist(), strict=True))
        for layer, entropy in zip(self.layers, window.mean_entropy.tolist(), strict=True):
            metrics.ROUTING_BALANCE.labels(layer).set(balances[layer])
            metrics.ROUTING_ENTROPY.labels(layer).set(entropy)
        collapsed = frozenset(layer for layer, balance in balances.items() if balance > self._limit)
        metrics.COLLAPSED_LAYERS.set(len(collapsed))
        if collapsed - self._collapsed:
            _log.warning(
                "routing has collapsed: few experts take most tokens",
                layers=sorted(collapsed),
                balance={layer: round(balances[layer], 2) for layer in sorted(collapsed)},
                limit=round(self._limit, 2),
                num_tokens=window.num_tokens,
            )
        if self._collapsed - collapsed:
            _log.info("routing has recovered", layers=sorted(self._collapsed - collapsed))
        self._collapsed = collapsed
