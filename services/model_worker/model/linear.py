"""Weights that are there once a checkpoint is loaded, and how rows are multiplied with them.

The plain product is `F.linear`, the definition. A model that is to serve is prepared: each weight becomes a `Product`,
which keeps the numbers as its kernel likes them best. On CPUs that is oneDNN's own blocked layout: with 2 to 32 rows
its products take about half the time of `F.linear` in float32 (docs/batching.md has the numbers).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]
"""`(N, in_features)` to `(N, out_features)`: a weight to multiply rows with."""
MakeProduct = Callable[[Tensor], Product]
"""From a weight `(out_features, in_features)`."""


def unloaded(*shape: int) -> nn.Parameter:
    """Return a parameter that has a shape and no memory."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class PlainProduct:
    """`F.linear`."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """`(N, in_features)` to `(N, out_features)`."""
        return F.linear(x, self._weight)


class PackedProduct:
    """A product with a weight in oneDNN's layout, by the operators that `torch.compile` uses for frozen weights."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    def __call__(self, x: Tensor) -> Tensor:
        """`(N, in_features)` to `(N, out_features)`."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
        return product


def fastest_product(weight: Tensor) -> Product:
    """Pack the weight where this build, this machine and its type can; else leave it as it is."""
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        try:
            return PackedProduct(weight)
        except (RuntimeError, AttributeError):  # no kernel for this type on this processor, or no such operator
            pass
    return PlainProduct(weight)


class Linear(nn.Module):
    """A matrix product, with or without a bias.

    Not `nn.Linear`, which draws initial weights: for parameters without memory that alone imports modules for four
    seconds.
    """

    def __init__(self, in_features: int, out_features: int, *, has_bias: bool = False) -> None:
        super().__init__()
        self.weight = unloaded(out_features, in_features)
        self.bias = unloaded(out_features) if has_bias else None
        self._product: Product | None = None

    def prepare(self, make: MakeProduct) -> None:
        """Use `make`'s product from now on; the weight itself lets go of its memory."""
        self._product = make(self.weight.detach())
        self.weight = unloaded(*self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_features)` to `(N, out_features)`."""
        out = F.linear(x, self.weight) if self._product is None else self._product(x)
        return out if self.bias is None else out.add_(self.bias)


class Embedding(nn.Module):
    """A vector for each token."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = unloaded(vocab_size, hidden_size)

    def forward(self, token_ids: Tensor) -> Tensor:
        """`(N,)` to `(N, hidden_size)`."""
        return F.embedding(token_ids, self.weight)
