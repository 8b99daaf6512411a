"""The paged cache of keys and values.

Tokens live in blocks of `BLOCK_TOKENS`. A block has a reference count: a fork shares its parent's blocks and copies
nothing, and a block is free when its last holder lets go. Who writes into a block that others hold copies it first.

A block whose tokens are all there is published under its key, a digest of these tokens and of all tokens before them:
what determines its content, for the model and the type are the cache's own. Whoever needs the same tokens at the same
place takes the block instead of computing it. A free block stays findable until its memory is given to somebody else,
the longest unused first. (Chained keys are vLLM's automatic prefix caching.)
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from services.model_worker.model.attention import BLOCK_TOKENS
from services.model_worker.model.config import ModelConfig
from services.model_worker.model.device import CPU

ROOT_KEY = b""
"""The key before a sequence's first block."""


class OutOfBlocksError(Exception):
    """The pool has fewer free blocks than asked for; nothing was taken."""


class KvCache:
    """Blocks, their reference counts and their memory. Used by one thread."""

    def __init__(self, config: ModelConfig, num_blocks: int, dtype: torch.dtype, device: torch.device = CPU) -> None:
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, num_blocks + 1, BLOCK_TOKENS, config.head_dim)
        if device.type == "cpu":
            # NumPy's zeros, not torch's: their pages are taken from the system only when they are written.
            zeros = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
            self.memory = torch.from_numpy(zeros).view(dtype).view(shape)
        else:
            self.memory = torch.zeros(shape, dtype=dtype, device=device)
        self.num_blocks = num_blocks
        self.padding_block = num_blocks
        """Belongs to nobody and holds zeros: pads sequences that attend beside longer ones."""
        self._reference_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        """In the order in which they are given away."""
        self._used: set[int] = set()
        """Blocks that were given away before."""
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks, each held once; what was published of them is forgotten, and they hold zeros.

        For what lies behind a sequence's last token is read and weighted with 0, and another's NaN would survive that.

        Raises:
            OutOfBlocksError: there are not so many.
        """
        if num_blocks > len(self._free):
            raise OutOfBlocksError(f"{num_blocks} blocks asked for, {len(self._free)} free")
        taken = [self._free.popitem(last=False)[0] for _ in range(num_blocks)]
        for block_id in taken:
            self._reference_counts[block_id] = 1
            if (key := self._key_of.pop(block_id, None)) is not None:
                del self._block_of[key]
            if block_id in self._used:
                self.memory[:, :, :, block_id] = 0
            self._used.add(block_id)
        return taken

    def hold(self, block_ids: Iterable[int]) -> None:
        """Hold blocks once more, be they free or not."""
        for block_id in block_ids:
            self._reference_counts[block_id] += 1
            self._free.pop(block_id, None)

    def release(self, block_ids: Sequence[int]) -> None:
        """Hold blocks once less; those that nobody holds are free.

        The last is given away first: without the blocks before it, it could not be found.
        """
        for block_id in reversed(block_ids):
            self._reference_counts[block_id] -= 1
            if self._reference_counts[block_id] == 0:
                self._free[block_id] = None
                self._free.move_to_end(block_id, last=block_id in self._key_of)

    def is_writable(self, block_id: int) -> bool:
        """Say whether the block has one holder and is not published: else it must stay as it is."""
        return self._reference_counts[block_id] == 1 and block_id not in self._key_of

    def publish(self, block_id: int, key: bytes) -> None:
        """Let others find a held block, whose tokens are all written, unless they find an equal one already."""
        if key not in self._block_of and block_id not in self._key_of:
            self._block_of[key] = block_id
            self._key_of[block_id] = key

    def find(self, key: bytes) -> int | None:
        """Return the block published under the key; it is not held by this."""
        return self._block_of.get(key)

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of one block, all layers."""
        self.memory[:, :, :, target] = self.memory[:, :, :, source]


def block_keys(parent: bytes, token_ids: Sequence[int]) -> list[bytes]:
    """Return the keys of the full blocks that these tokens fill behind the block whose key is `parent`."""
    keys = []
    for end in range(BLOCK_TOKENS, len(token_ids) + 1, BLOCK_TOKENS):
        parent = hashlib.sha256(parent + array("q", token_ids[end - BLOCK_TOKENS : end]).tobytes()).digest()
        keys.append(parent)
    return keys


def num_blocks_for(num_tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-num_tokens // BLOCK_TOKENS)


def blocks_within(config: ModelConfig, num_bytes: int, dtype: torch.dtype) -> int:
    """Return how many blocks fit in so much memory."""
    return num_bytes // (BLOCK_TOKENS * config.kv_values_per_token * dtype.itemsize)
