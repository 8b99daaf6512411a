"""Weights that are there once a checkpoint is loaded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unloaded(*shape: int) -> nn.Parameter:
    """Return a parameter that has a shape and no memory."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class Linear(nn.Module):
    """A matrix product without bias.

    Not `nn.Linear`, which draws initial weights: for parameters without memory that alone imports modules for four
    seconds.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = unloaded(out_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_features)` to `(N, out_features)`."""
        return F.linear(x, self.weight)


class Embedding(nn.Module):
    """A vector for each token."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = unloaded(vocab_size, hidden_size)

    def forward(self, token_ids: Tensor) -> Tensor:
        """`(N,)` to `(N, hidden_size)`."""
        return F.embedding(token_ids, self.weight)
