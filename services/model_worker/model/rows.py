"""Operations on elements that give a row the same bits whatever rows stand beside it.

PyTorch gives each thread a run of a large tensor's elements, and what is left over at the end of a run goes through
other code than full vectors do, whose last bit may differ. Where a run ends in the middle of a row depends on the
number of rows. So nothing here is so large at once that it is split.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_GRAIN = 32768
"""`at::internal::GRAIN_SIZE`: fewer elements than this run in one thread."""

_VECTOR = 64
"""A multiple of the numbers in any vector register."""


def rows_at_once(num_elements_per_row: int) -> int:
    """Return how many rows one call may have. A row that is split alone is always split at the same place."""
    return max(1, (_GRAIN - 1) // num_elements_per_row)


def sigmoid(x: Tensor) -> Tensor:
    """`(N, 1)` to the same. Each row fills a vector of its own, so that it is never left over."""
    wide = x.expand(-1, _VECTOR).contiguous()
    parts = [torch.sigmoid(part) for part in torch.split(wide, rows_at_once(_VECTOR))]
    return torch.cat(parts)[:, :1]


def silu(x: Tensor) -> Tensor:
    """`(N, I)` to the same, `x * sigmoid(x)`."""
    parts = torch.split(x, rows_at_once(x.shape[-1]))
    return F.silu(x) if len(parts) <= 1 else torch.cat([F.silu(part) for part in parts])
