"""The paged cache of keys and values.

Tokens live in blocks of `BLOCK_TOKENS`. A block has a reference count: a fork shares its parent's blocks and copies
nothing, and a block goes back to the pool when its last holder lets go. Who writes into a block that others hold copies
it first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from services.model_worker.model.attention import BLOCK_TOKENS
from services.model_worker.model.config import ModelConfig


class OutOfBlocksError(Exception):
    """The pool has fewer free blocks than asked for; nothing was taken."""


class KvCache:
    """Blocks, their reference counts and their memory. Used by one thread."""

    def __init__(self, config: ModelConfig, num_blocks: int, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, num_blocks, BLOCK_TOKENS, 2, config.num_key_value_heads, config.head_dim)
        # Zeros, not whatever memory held: a padded row's NaN would survive its attention weight of 0. NumPy's zeros,
        # not torch's: their pages are taken from the system only when they are written.
        zeros = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
        self.memory = torch.from_numpy(zeros).view(dtype).view(shape)
        self.num_blocks = num_blocks
        self._reference_counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks, each held once.

        Raises:
            OutOfBlocksError: there are not so many.
        """
        if num_blocks > len(self._free):
            raise OutOfBlocksError(f"{num_blocks} blocks asked for, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(num_blocks)]
        for block_id in taken:
            self._reference_counts[block_id] = 1
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """Hold blocks once more."""
        for block_id in block_ids:
            self._reference_counts[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Hold blocks once less; those that nobody holds are free."""
        for block_id in block_ids:
            self._reference_counts[block_id] -= 1
            if self._reference_counts[block_id] == 0:
                self._free.append(block_id)

    def is_shared(self, block_id: int) -> bool:
        """Say whether more than one holds the block."""
        return self._reference_counts[block_id] > 1

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of one block, all layers."""
        self.memory[:, target] = self.memory[:, source]


def num_blocks_for(num_tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-num_tokens // BLOCK_TOKENS)


def blocks_within(config: ModelConfig, num_bytes: int, dtype: torch.dtype) -> int:
    """Return how many blocks fit in so much memory."""
    return num_bytes // (BLOCK_TOKENS * config.kv_values_per_token * dtype.itemsize)


def first_blocks(block_ids: Sequence[int], num_tokens: int) -> list[int]:
    """Return those blocks that hold the first `num_tokens`."""
    return list(block_ids[: num_blocks_for(num_tokens)])
