"""Tensors of one forward pass: from chunks of steps to rows of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from services.model_worker.kv_cache import KvCache
from services.model_worker.model.attention import Attention, SequenceSlice, plan_attention, plan_order
from services.model_worker.model.moe import RoutingLog
from services.model_worker.model.transformer import Transformer
from services.model_worker.routing import Routing, RoutingMonitor
from services.model_worker.sequence import Experts, Logits


@dataclass(frozen=True)
class RunnerInput:
    """New tokens of one sequence."""

    token_ids: Sequence[int]
    position: int
    block_ids: Sequence[int]
    num_logit_rows: int
    """How many rows of logits are wanted, counted from the last token backwards."""
    wants_experts: bool = False
    wants_routing: bool = False


@dataclass(frozen=True)
class RunnerOutput:
    """What came of one sequence's tokens."""

    logits: Logits
    """`(num_logit_rows, vocab_size)`."""
    experts: Experts | None = None
    """`(T, L, A)`, where asked for: which experts each token went to, in each layer with a router, best first."""
    routing: Routing | None = None
    """Where asked for: what the routers did over these tokens."""


class ModelRunner:
    """A model and the memory of its cache."""

    def __init__(self, model: Transformer, cache: KvCache, routing: RoutingMonitor | None = None) -> None:
        """`routing` is told of each forward pass of a model with routers."""
        self._model = model
        self._routing = routing if model.routed_layers else None
        self._cache = cache
        self._windows = {module.window for module in model.modules() if isinstance(module, Attention)}

    def forward(self, inputs: Sequence[RunnerInput]) -> list[RunnerOutput]:
        """Run the new tokens of all sequences in one pass."""
        order = plan_order([_slice(item) for item in inputs])
        ordered = [inputs[i] for i in order]
        plan = plan_attention(
            [_slice(item) for item in ordered],
            self._model.config,
            self._model.dtype,
            padding_block=self._cache.padding_block,
            key_tile=self._model.kernels.key_tile,
            windows=self._windows,
        ).to(self._model.device)
        token_ids = [token_id for item in ordered for token_id in item.token_ids]
        logit_rows: list[int] = []
        end = 0
        for item in ordered:
            end += len(item.token_ids)
            logit_rows.extend(range(end - item.num_logit_rows, end))
        wants_experts = any(item.wants_experts for item in inputs) and bool(self._model.routed_layers)
        wants_routing = any(item.wants_routing for item in inputs) and bool(self._model.routed_layers)
        log = RoutingLog() if self._routing is not None or wants_experts or wants_routing else None
        device = self._model.device
        rows = self._model(
            torch.tensor(token_ids, device=device),
            plan,
            self._cache.memory,
            torch.tensor(logit_rows, dtype=torch.int64, device=device),
            log,
        )
        logits: Logits = rows.cpu().numpy()
        if self._routing is not None and log is not None:
            self._routing.observe(log)
        experts: Experts | None = None
        if wants_experts and log is not None:
            experts = torch.stack(log.expert_ids, dim=1).cpu().numpy().astype(np.uint16)  # (N, L, A)
        results = [RunnerOutput(logits)] * len(inputs)
        row = token = 0
        for i, item in zip(order, ordered, strict=True):
            tokens = slice(token, token + len(item.token_ids))
            of_item = experts[tokens] if item.wants_experts and experts is not None else None
            sums = Routing.of(log.part(tokens)) if item.wants_routing and wants_routing and log is not None else None
            results[i] = RunnerOutput(logits[row : row + item.num_logit_rows], of_item, sums)
            row, token = row + item.num_logit_rows, tokens.stop
        return results


def _slice(item: RunnerInput) -> SequenceSlice:
    return SequenceSlice(item.block_ids, item.position, len(item.token_ids))
