"""Grouped-query attention over a paged cache.

Shapes: N new tokens of all sequences, B sequences, T new tokens of one sequence, S keys that they look at (the new ones
among them), Hq query heads, Hkv key/value heads, G = Hq / Hkv, D head dimension.

A layer with a sliding window of W looks at the latest W tokens, the new one among them. The blocks before them stay in
the cache, so that a sequence can be cut and forked anywhere, but are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.model_worker.model.config import ModelConfig
from services.model_worker.model.linear import Linear
from services.model_worker.model.norm import RmsNorm
from services.model_worker.model.rope import rotate_

BLOCK_TOKENS = 16
"""Tokens in one block of the cache."""

KEY_TILE = 128
"""Keys in one tile of deterministic attention."""

_LONGEST_PADDING = 2
"""Sequences share a call while the longest has at most this many times the blocks of the shortest."""

_MAX_GATHERED_BYTES = 4 << 20
"""Sequences share a call while their keys and values of one layer, which are gathered for it, stay near the processor:
32 sequences of 1,000 tokens in one call took twice as long."""


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
    num_keys: int
    """S: of the sequence that has the most."""
    blocks: Tensor | slice
    """B sequences' `ceil(S / BLOCK_TOKENS)` blocks each, short ones padded: ids, or a slice where they
    are neighbours in memory, for then nothing is copied."""
    bias: Tensor | None
    """`(B, G * T, S)`: 0 where a query may look, -inf elsewhere. None: everywhere."""

    def to(self, device: torch.device) -> AttentionGroup:
        """Return the group with its tensors on a device."""
        return replace(
            self,
            blocks=self.blocks if isinstance(self.blocks, slice) else self.blocks.to(device),
            bias=None if self.bias is None else self.bias.to(device),
        )


@dataclass(frozen=True)
class AttentionPlan:
    """Who looks at what in one forward pass; made once, used by every layer."""

    positions: Tensor
    """`(N,)` int64."""
    slots: Tensor
    """`(N,)` int64: `block_id * BLOCK_TOKENS + offset`, where each new token's key and value go."""
    groups: dict[int | None, tuple[AttentionGroup, ...]]
    """By the layer's window; None where it has none."""

    def to(self, device: torch.device) -> AttentionPlan:
        """Return the plan where the model computes; it is made on the CPU."""
        if device == self.positions.device:
            return self
        groups = {window: tuple(group.to(device) for group in planned) for window, planned in self.groups.items()}
        return AttentionPlan(self.positions.to(device), self.slots.to(device), groups)


def plan_order(slices: Sequence[SequenceSlice]) -> list[int]:
    """Return the order of sequences in which those that can attend in one call are neighbours."""
    return sorted(range(len(slices)), key=lambda i: (slices[i].num_new_tokens, slices[i].position))


def plan_attention(
    slices: Sequence[SequenceSlice],
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    padding_block: int,
    key_tile: int = 1,
    windows: Set[int | None] = frozenset({None}),
) -> AttentionPlan:
    """Plan a pass over the slices, whose tokens are rows in this order; `plan_order` gives a good one.

    Keys are padded to a multiple of `key_tile`, where blocks lack with those of `padding_block`.
    """
    positions: list[int] = []
    slots: list[int] = []
    for item in slices:
        for position in range(item.position, item.position + item.num_new_tokens):
            positions.append(position)
            slots.append(item.block_ids[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS)
    members: list[list[SequenceSlice]] = []
    block_bytes = BLOCK_TOKENS * 2 * config.num_key_value_heads * config.head_dim * dtype.itemsize
    for item in slices:
        if members and _attend_together([*members[-1], item], _MAX_GATHERED_BYTES // block_bytes):
            members[-1].append(item)
        else:
            members.append([item])
    groups: dict[int | None, tuple[AttentionGroup, ...]] = {}
    for window in windows:
        planned: list[AttentionGroup] = []
        for group in members:
            start_row = planned[-1].rows.stop if planned else 0
            planned.append(_group(group, start_row, config, dtype, padding_block, key_tile, window))
        groups[window] = tuple(planned)
    return AttentionPlan(torch.tensor(positions), torch.tensor(slots), groups)


def _attend_together(members: Sequence[SequenceSlice], max_blocks: int) -> bool:
    """Only decode rows share a call: for a prefill the padding would cost more than the call. The last is longest."""
    if members[0].num_new_tokens != 1 or members[-1].num_new_tokens != 1:
        return False
    shortest, longest = (item.position // BLOCK_TOKENS + 1 for item in (members[0], members[-1]))
    return longest <= _LONGEST_PADDING * shortest and longest * len(members) <= max_blocks


def _group(
    members: Sequence[SequenceSlice],
    start_row: int,
    config: ModelConfig,
    dtype: torch.dtype,
    padding_block: int,
    key_tile: int,
    window: int | None,
) -> AttentionGroup:
    num_new_tokens = members[0].num_new_tokens
    end = max(item.position for item in members) + num_new_tokens
    # The first key that any of them looks at, back to the start of its block and tile.
    first = 0 if window is None else max(min(item.position for item in members) - window + 1, 0)
    first -= first % math.lcm(BLOCK_TOKENS, key_tile)
    num_keys = -(-(end - first) // key_tile) * key_tile
    first_block, num_blocks = first // BLOCK_TOKENS, -(-num_keys // BLOCK_TOKENS)
    bias = None
    # Query t of a sequence at position p looks at the keys from p + t - window + 1 to p + t.
    lengths = [item.position + num_new_tokens - first for item in members]
    if num_new_tokens > 1 or min(lengths) < num_keys or (window is not None and max(lengths) > window):
        last_key = torch.tensor([item.position - first for item in members])[:, None] + torch.arange(num_new_tokens)
        keys = torch.arange(num_keys)
        is_hidden = keys > last_key[..., None]
        if window is not None:
            is_hidden |= keys <= last_key[..., None] - window
        bias = torch.zeros(is_hidden.shape, dtype=dtype).masked_fill_(is_hidden, float("-inf"))
        bias = bias.repeat(1, config.num_attention_heads // config.num_key_value_heads, 1)
    return AttentionGroup(
        rows=slice(start_row, start_row + len(members) * num_new_tokens),
        num_sequences=len(members),
        num_keys=num_keys,
        blocks=_padded_blocks(
            [item.block_ids[first_block : first_block + num_blocks] for item in members], num_blocks, padding_block
        ),
        bias=bias,
    )


def _padded_blocks(block_ids: Sequence[Sequence[int]], num_blocks: int, padding_block: int) -> Tensor | slice:
    """Give every sequence `num_blocks`."""
    if len(block_ids) == 1 and len(block_ids[0]) == num_blocks:
        first, last = block_ids[0][0], block_ids[0][-1]
        if list(block_ids[0]) == list(range(first, last + 1)):
            return slice(first, last + 1)
    padded = torch.full((len(block_ids), num_blocks), padding_block)
    for row, used in enumerate(block_ids):
        padded[row, : len(used)] = torch.tensor(used)
    return padded.flatten()


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""From queries `(Hkv, B, G * T, D)`, keys and values `(Hkv, B, S, D)` and a bias, as above, to the queries' shape."""


def attend_fused(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attend by PyTorch's fused kernel."""
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=None if bias is None else bias[None])


def attend_by_tiles(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attend with the same bits for a query whatever others and whatever keys that it may not see are beside it.

    Products are with `KEY_TILE` keys each, of which S is a multiple, and of at least four rows; what the tiles give is
    added up in their order. A tile that is hidden adds zeros, which change nothing. All in float32.
    """
    num_kv_heads, num_sequences, num_rows, head_dim = queries.shape
    num_tiles = keys.shape[2] // KEY_TILE
    rows = F.pad(queries.float() * head_dim**-0.5, (0, 0, 0, -num_rows % 4))
    by_tile = rows.unsqueeze(2).expand(-1, -1, num_tiles, -1, -1).flatten(0, 2)  # (Hkv * B * tiles, rows, D)
    tiles = (-1, KEY_TILE, head_dim)
    scores = torch.bmm(by_tile, keys.float().reshape(tiles).transpose(1, 2))
    scores = scores.view(num_kv_heads, num_sequences, num_tiles, -1, KEY_TILE)[:, :, :, :num_rows].transpose(2, 3)
    scores = scores.flatten(3)  # (Hkv, B, G * T, S)
    probs = F.softmax(scores if bias is None else scores + bias, dim=-1)
    probs = (
        F.pad(probs, (0, 0, 0, -num_rows % 4))
        .view(num_kv_heads, num_sequences, -1, num_tiles, KEY_TILE)
        .transpose(2, 3)
    )
    parts = torch.bmm(probs.reshape(-1, *probs.shape[3:]), values.float().reshape(tiles))
    parts = parts.view(num_kv_heads, num_sequences, num_tiles, -1, head_dim)[:, :, :, :num_rows]
    result = parts[:, :, 0]
    for tile in range(1, num_tiles):
        result = result + parts[:, :, tile]
    return result.to(queries.dtype)


class Attention(nn.Module):
    """Projects, rotates, writes keys and values to the cache, attends, projects back."""

    def __init__(self, config: ModelConfig, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        """Tokens that a query looks at, its own among them; None: all."""
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        num_all_heads = self.num_heads + 2 * self.num_kv_heads
        self.attend: Attend = attend_fused
        self.qkv = Linear(config.hidden_size, num_all_heads * self.head_dim, has_bias=config.has_qkv_bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm != "none":
            num_queries, num_keys = (1, 1) if self.qk_norm == "head" else (self.num_heads, self.num_kv_heads)
            self.q_norm = RmsNorm(num_queries * self.head_dim, config.rms_norm_eps)
            self.k_norm = RmsNorm(num_keys * self.head_dim, config.rms_norm_eps)
        self.output = Linear(self.num_heads * self.head_dim, config.hidden_size)

    def forward(self, x: Tensor, rotary: Tensor, layer_cache: Tensor, plan: AttentionPlan) -> Tensor:
        """Attend.

        `x`: `(N, hidden_size)`; `rotary`: `(N, 1, D / 2)` complex; `layer_cache`: `(2, Hkv, num_blocks,
        BLOCK_TOKENS, D)`, written at the plan's slots. Returns `(N, hidden_size)`.
        """
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # (N, Hq + 2 Hkv, D)
        if self.qk_norm != "none":
            self._norm_(qkv)
        rotate_(qkv[:, : self.num_heads + self.num_kv_heads], rotary)
        keys_values = qkv[:, self.num_heads :].unflatten(1, (2, self.num_kv_heads))  # (N, 2, Hkv, D)
        layer_cache.flatten(2, 3).index_copy_(2, plan.slots, keys_values.permute(1, 2, 0, 3))
        queries = qkv[:, : self.num_heads]
        attended = [self._attend(queries[group.rows], layer_cache, group) for group in plan.groups[self.window]]
        joined = attended[0] if len(attended) == 1 else torch.cat(attended)
        projected: Tensor = self.output(joined)
        return projected

    def _norm_(self, qkv: Tensor) -> None:
        """Norm queries and keys in place. `qkv`: `(N, Hq + 2 Hkv, D)`."""
        for norm, first, last in (
            (self.q_norm, 0, self.num_heads),
            (self.k_norm, self.num_heads, self.num_heads + self.num_kv_heads),
        ):
            heads = qkv[:, first:last]
            normed = norm(heads if self.qk_norm == "head" else heads.flatten(1))
            qkv[:, first:last] = normed.view(heads.shape)

    def _attend(self, queries: Tensor, layer_cache: Tensor, group: AttentionGroup) -> Tensor:
        """Attend in one group. `queries`: `(B * T, Hq, D)`. Returns `(B * T, Hq * D)`."""
        num_sequences = group.num_sequences
        blocks = group.blocks
        found = layer_cache[:, :, blocks] if isinstance(blocks, slice) else layer_cache.index_select(2, blocks)
        found = found.view(2, self.num_kv_heads, num_sequences, -1, self.head_dim)
        keys, values = found[:, :, :, : group.num_keys]  # (Hkv, B, S, D) each
        # The G query heads that share a key head stand one after another as if they were queries: (Hkv, B, G * T, D).
        by_sequence = queries.view(
            num_sequences, -1, self.num_kv_heads, self.num_heads // self.num_kv_heads, self.head_dim
        )
        stacked = by_sequence.permute(2, 0, 3, 1, 4).flatten(2, 3)
        out = self.attend(stacked, keys, values, group.bias)
        by_head = out.view(*out.shape[:2], self.num_heads // self.num_kv_heads, -1, self.head_dim)  # (Hkv, B, G, T, D)
        return by_head.permute(1, 3, 0, 2, 4).reshape(-1, self.num_heads * self.head_dim)
