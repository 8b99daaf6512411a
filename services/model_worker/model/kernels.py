"""How a model computes: the products and the attention that it is prepared with for serving."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.model_worker.model.attention import KEY_TILE, Attend, attend_by_tiles, attend_fused
from services.model_worker.model.config import ModelConfig
from services.model_worker.model.device import CPU
from services.model_worker.model.linear import MakeProduct, PlainProduct, Product, fastest_product

MAX_TILE_ROWS = 128
_MIN_TILE_ROWS = 4


class NotDeterministicError(Exception):
    """Kernels of this machine give a row different bits beside different others."""


@dataclass(frozen=True)
class Kernels:
    """What to compute with."""

    make_product: MakeProduct
    attend: Attend = attend_fused
    key_tile: int = 1
    """Keys are padded to a multiple of this."""


DEFINITION = Kernels(PlainProduct)
"""As a model computes before it is prepared."""

FAST = Kernels(fastest_product)


def deterministic_kernels(config: ModelConfig, device: torch.device = CPU) -> Kernels:
    """Return kernels with which a row's result has the same bits alone, in any batch and in any piece of a prompt.

    For one machine, type and number of threads. What this rests on is tried on random numbers: here for attention, and
    for products when a weight is prepared.

    Raises:
        NotDeterministicError: it does not hold here.
    """
    _try_attention(config, device)
    return Kernels(_MakeInvariantProduct(), attend_by_tiles, KEY_TILE)


class InvariantProduct:
    """A product that runs its rows in tiles of few sizes, all of which were seen to give a row the same bits.

    What a matrix kernel adds up in which order depends on the number of rows, mostly for fewer than four.
    """

    def __init__(self, product: Product, tile_rows: tuple[int, ...]) -> None:
        self._product = product
        self._tile_rows = tile_rows
        """Descending."""

    def __call__(self, x: Tensor) -> Tensor:
        """`(N, in_features)` to `(N, out_features)`."""
        num_rows = x.shape[0]
        smallest = self._tile_rows[-1]
        if num_rows % smallest:
            x = torch.cat([x, x.new_zeros(smallest - num_rows % smallest, x.shape[1])])
        tiles = []
        start = 0
        for size in self._tile_rows:
            while len(x) - start >= size:
                tiles.append(self._product(x[start : start + size]))
                start += size
        joined = tiles[0] if len(tiles) == 1 else torch.cat(tiles) if tiles else self._product(x)
        return joined[:num_rows]


class _MakeInvariantProduct:
    """Tries each kind of weight once."""

    def __init__(self) -> None:
        self._tile_rows: dict[tuple[object, ...], tuple[int, ...]] = {}

    def __call__(self, weight: Tensor) -> Product:
        """Make the product of one weight.

        Raises:
            NotDeterministicError: as above.
        """
        product = fastest_product(weight)
        kind = (type(product), weight.shape, weight.dtype, weight.device)
        if kind not in self._tile_rows:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(MAX_TILE_ROWS, weight.shape[1], generator=generator).to(weight)
            self._tile_rows[kind] = agreeing_tile_rows(product, x)
        return InvariantProduct(product, self._tile_rows[kind])


@torch.inference_mode()
def agreeing_tile_rows(product: Product, x: Tensor) -> tuple[int, ...]:
    """Return the numbers of rows, descending powers of two from 4 on, with which all rows of `x` get the same bits.

    `x`: `(MAX_TILE_ROWS, in_features)`, random: with another order of additions some of its many sums would differ.

    Raises:
        NotDeterministicError: not even four rows do, wherever they stand.
    """

    def by_tiles(rows: Tensor, size: int) -> Tensor:
        return torch.cat([product(tile) for tile in torch.split(rows, size)])

    expected = by_tiles(x, _MIN_TILE_ROWS)
    if not torch.equal(by_tiles(x.roll(1, 0), _MIN_TILE_ROWS), expected.roll(1, 0)):
        raise NotDeterministicError(
            f"products of {tuple(expected.shape)} give a row other bits at another place; "
            "the deterministic mode cannot be had on this machine with this type"
        )
    sizes = [_MIN_TILE_ROWS]
    while sizes[-1] < len(x):
        size = 2 * sizes[-1]
        is_same = torch.equal(by_tiles(x, size), expected)
        if not is_same or not torch.equal(by_tiles(x.roll(1, 0), size), expected.roll(1, 0)):
            break
        sizes.append(size)
    return tuple(reversed(sizes))


@torch.inference_mode()
def _try_attention(config: ModelConfig, device: torch.device) -> None:
    """Compare queries alone with the same among others, over more keys and in another sequence's place."""
    generator = torch.Generator().manual_seed(0)
    num_tokens, num_sequences, num_tiles = 32, 3, 3
    group_size = config.num_attention_heads // config.num_key_value_heads
    shape = (config.num_key_value_heads, num_sequences, num_tiles * KEY_TILE, config.head_dim)
    keys, values = torch.randn(2, *shape, generator=generator).to(device)
    queries = torch.randn(*shape[:2], group_size * num_tokens, config.head_dim, generator=generator).to(device)
    bias = torch.zeros(num_sequences, queries.shape[2], shape[2], device=device)
    bias[:, :, KEY_TILE:] = float("-inf")
    together = attend_by_tiles(queries, keys, values, bias)
    for sequence in range(num_sequences):
        near = slice(sequence, sequence + 1), slice(0, KEY_TILE)
        for token in (0, 1, num_tokens - 1):
            rows = slice(token, None, num_tokens)  # as heads stand: one token of each
            alone = attend_by_tiles(queries[:, near[0], rows], keys[:, *near], values[:, *near], None)
            if not torch.equal(alone, together[:, near[0], rows]):
                raise NotDeterministicError("attention gives a query other bits beside others on this machine")
