"""Root mean square normalisation (B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from services.model_worker.model.linear import unloaded


class RmsNorm(nn.Module):
    """Scales each row to a root mean square of 1, then by a learned weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = unloaded(size)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., size)` to the same."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
