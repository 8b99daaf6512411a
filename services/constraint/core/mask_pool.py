"""Memory for masks, handed out in blocks and taken back when a grammar goes.

Memory that is new to the process costs more than a mask does: the kernel clears each page when it is first touched. So
blocks are used again, by whatever grammar comes next.
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
import numpy.typing as npt

ROWS_PER_BLOCK: Final = 32


class MaskPool:
    """Blocks of masks (ROWS_PER_BLOCK, words), of one vocabulary. Thread-safe."""

    def __init__(self, num_words: int, *, max_idle_bytes: int = 64 << 20) -> None:
        """At most `max_idle_bytes` of blocks that nobody uses are kept."""
        self._num_words = num_words
        self._lock = threading.Lock()
        self._idle: list[npt.NDArray[np.int32]] = []
        self._max_idle = max(1, max_idle_bytes // (4 * ROWS_PER_BLOCK * num_words))

    def prepare(self, num_blocks: int) -> None:
        """Have blocks ready whose memory was touched."""
        self.give_back([np.ones((ROWS_PER_BLOCK, self._num_words), np.int32) for _ in range(num_blocks)])

    def take(self) -> npt.NDArray[np.int32]:
        """Return a block, with whatever it holds."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return np.empty((ROWS_PER_BLOCK, self._num_words), np.int32)

    def give_back(self, blocks: list[npt.NDArray[np.int32]]) -> None:
        """Take blocks back, which their owner uses no more."""
        with self._lock:
            self._idle.extend(blocks[: self._max_idle - len(self._idle)])
