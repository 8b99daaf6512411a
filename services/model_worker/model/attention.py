"""Grouped-query attention over a paged cache.

Shapes: N new tokens of all sequences, B sequences, T new tokens of one sequence, S cached tokens (the new ones among
them), Hq query heads, Hkv key/value heads, G = Hq / Hkv, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.model_worker.model.config import ModelConfig
from services.model_worker.model.linear import Linear
from services.model_worker.model.rope import rotate_

BLOCK_TOKENS = 16
"""Tokens in one block of the cache."""

_LONGEST_PADDING = 2
"""Sequences share a call while the longest has at most this many times the blocks of the shortest."""


@dataclass(frozen=True)
class SequenceSlice:
    """The new tokens of one sequence in a forward pass."""

    block_ids: Sequence[int]
    """The sequence's blocks, those that the new tokens will fill included."""
    position: int
    """Tokens before the new ones."""
    num_new_tokens: int


@dataclass(frozen=True)
class AttentionGroup:
    """Sequences with equally many new tokens, whose rows are neighbours: they attend in one call."""

    rows: slice
    num_sequences: int
    num_cached_tokens: int
    """S: the longest sequence's tokens."""
    block_ids: Tensor
    """`(B * ceil(S / BLOCK_TOKENS),)`: where keys and values lie; short sequences are padded with any block."""
    bias: Tensor | None
    """`(B, 1, G * T, S)`: 0 where a query may look, -inf elsewhere. None: everywhere."""


@dataclass(frozen=True)
class AttentionPlan:
    """Who looks at what in one forward pass; made once, used by every layer."""

    positions: Tensor
    """`(N,)` int64."""
    slots: Tensor
    """`(N,)` int64: `block_id * BLOCK_TOKENS + offset`, where each new token's key and value go."""
    groups: tuple[AttentionGroup, ...]


def plan_order(slices: Sequence[SequenceSlice]) -> list[int]:
    """Return the order of sequences in which those that can attend in one call are neighbours."""
    return sorted(range(len(slices)), key=lambda i: (slices[i].num_new_tokens, slices[i].position))


def plan_attention(slices: Sequence[SequenceSlice], config: ModelConfig, dtype: torch.dtype) -> AttentionPlan:
    """Plan a pass over the slices, whose tokens are rows in this order; `plan_order` gives a good one."""
    positions: list[int] = []
    slots: list[int] = []
    for item in slices:
        for position in range(item.position, item.position + item.num_new_tokens):
            positions.append(position)
            slots.append(item.block_ids[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS)
    groups: list[AttentionGroup] = []
    first = start_row = 0
    while first < len(slices):
        last = first + 1
        while last < len(slices) and _attend_together(slices[first], slices[last]):
            last += 1
        members = slices[first:last]
        groups.append(_group(members, start_row, config, dtype))
        start_row = groups[-1].rows.stop
        first = last
    return AttentionPlan(torch.tensor(positions), torch.tensor(slots), tuple(groups))


def _attend_together(shortest: SequenceSlice, other: SequenceSlice) -> bool:
    """Only decode rows share a call: for a prefill the padding would cost more than the call."""
    if shortest.num_new_tokens != 1 or other.num_new_tokens != 1:
        return False
    return other.position // BLOCK_TOKENS + 1 <= _LONGEST_PADDING * (shortest.position // BLOCK_TOKENS + 1)


def _group(members: Sequence[SequenceSlice], start_row: int, config: ModelConfig, dtype: torch.dtype) -> AttentionGroup:
    num_new_tokens = members[0].num_new_tokens
    num_cached_tokens = max(item.position for item in members) + num_new_tokens
    num_blocks = -(-num_cached_tokens // BLOCK_TOKENS)
    block_ids = torch.zeros(len(members), num_blocks, dtype=torch.int64)
    for row, item in enumerate(members):
        used = item.block_ids[:num_blocks]
        block_ids[row, : len(used)] = torch.tensor(used)
    bias = None
    if num_new_tokens > 1 or any(item.position + 1 < num_cached_tokens for item in members):
        # Query t of a sequence at position p looks at keys 0 to p + t.
        last_key = torch.tensor([item.position for item in members])[:, None] + torch.arange(num_new_tokens)
        is_hidden = torch.arange(num_cached_tokens) > last_key[..., None]
        bias = torch.zeros(is_hidden.shape, dtype=dtype).masked_fill_(is_hidden, float("-inf"))
        group_size = config.num_attention_heads // config.num_key_value_heads
        bias = bias.repeat(1, group_size, 1).unsqueeze(1)
    return AttentionGroup(
        rows=slice(start_row, start_row + len(members) * num_new_tokens),
        num_sequences=len(members),
        num_cached_tokens=num_cached_tokens,
        block_ids=block_ids.flatten(),
        bias=bias,
    )


class Attention(nn.Module):
    """Projects, rotates, writes keys and values to the cache, attends, projects back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        num_all_heads = self.num_heads + 2 * self.num_kv_heads
        self.qkv = Linear(config.hidden_size, num_all_heads * self.head_dim)
        self.output = Linear(self.num_heads * self.head_dim, config.hidden_size)

    def forward(self, x: Tensor, rotary: Tensor, layer_cache: Tensor, plan: AttentionPlan) -> Tensor:
        """Attend.

        `x`: `(N, hidden_size)`; `rotary`: `(N, 1, D / 2)` complex; `layer_cache`: `(num_blocks, BLOCK_TOKENS, 2, Hkv,
        D)`, written at the plan's slots. Returns `(N, hidden_size)`.
        """
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # (N, Hq + 2 Hkv, D)
        rotate_(qkv[:, : self.num_heads + self.num_kv_heads], rotary)
        keys_values = qkv[:, self.num_heads :].unflatten(1, (2, self.num_kv_heads))  # (N, 2, Hkv, D)
        layer_cache.flatten(0, 1).index_copy_(0, plan.slots, keys_values)
        queries = qkv[:, : self.num_heads]
        attended = [self._attend(queries[group.rows], layer_cache, group) for group in plan.groups]
        joined = attended[0] if len(attended) == 1 else torch.cat(attended)
        projected: Tensor = self.output(joined)
        return projected

    def _attend(self, queries: Tensor, layer_cache: Tensor, group: AttentionGroup) -> Tensor:
        """Attend in one group. `queries`: `(B * T, Hq, D)`. Returns `(B * T, Hq * D)`."""
        num_sequences, num_cached = group.num_sequences, group.num_cached_tokens
        gathered = layer_cache.index_select(0, group.block_ids)
        gathered = gathered.view(num_sequences, -1, *layer_cache.shape[2:])  # (B, blocks * BLOCK_TOKENS, 2, Hkv, D)
        keys = gathered[:, :num_cached, 0].transpose(1, 2)  # (B, Hkv, S, D)
        values = gathered[:, :num_cached, 1].transpose(1, 2)
        # The G query heads that share a key head stand one after another as if they were queries: (B, Hkv, G * T, D).
        by_sequence = queries.view(
            num_sequences, -1, self.num_kv_heads, self.num_heads // self.num_kv_heads, self.head_dim
        )
        stacked = by_sequence.permute(0, 2, 3, 1, 4).flatten(2, 3)
        out = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=group.bias)
        by_head = out.view(num_sequences, self.num_heads, -1, self.head_dim)  # (B, Hq, T, D)
        return by_head.transpose(1, 2).reshape(-1, self.num_heads * self.head_dim)
