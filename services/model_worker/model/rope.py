"""Rotary position embedding, as a multiplication of complex numbers.

Coordinates `2i` and `2i + 1` of a head make one complex number: the layout of the original Llama and of GGUF's `llama`
files. Hugging Face checkpoints pair `i` with `i + head_dim / 2` instead; `interleave_rows` turns their weights into
ours. Both give the same attention: queries and keys are reordered alike, and a dot product does not see the order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from services.model_worker.model.rows import rows_at_once


@dataclass(frozen=True)
class LinearScaling:
    """Positions are divided by a factor (kaiokendev, "Things I'm learning while training SuperHOT", 2023)."""

    factor: float

    def __call__(self, inverse_frequencies: Tensor) -> Tensor:
        """`(head_dim / 2,)` to the same."""
        return inverse_frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow rotations are divided by a factor, fast ones stay, those between are blended: as Llama 3.1 has it."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int

    def __call__(self, inverse_frequencies: Tensor) -> Tensor:
        """`(head_dim / 2,)` to the same."""
        wavelengths = 2 * math.pi / inverse_frequencies
        slow = self.original_context_length / self.low_freq_factor
        fast = self.original_context_length / self.high_freq_factor
        share = (self.original_context_length / wavelengths - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        scaled = torch.where(wavelengths > slow, inverse_frequencies / self.factor, inverse_frequencies)
        blended = (1 - share) * scaled / self.factor + share * scaled
        is_between = (wavelengths >= fast) & (wavelengths <= slow)
        return torch.where(is_between, blended, scaled)


@dataclass(frozen=True)
class FactorScaling:
    """Each rotation is slowed by a factor of its own, as GGUF files have it."""

    factors: tuple[float, ...]

    def __call__(self, inverse_frequencies: Tensor) -> Tensor:
        """`(head_dim / 2,)` to the same."""
        return inverse_frequencies / torch.tensor(self.factors)


RopeScaling = LinearScaling | Llama3Scaling | FactorScaling


def rotary_table(num_positions: int, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Return `(num_positions, head_dim / 2)` complex64: what each pair is multiplied by at each position.

    Rounded to float32 at the same places as in `transformers`, because at position 8,000 the difference would show.
    """
    inverse_frequencies: Tensor = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if scaling is not None:
        inverse_frequencies = scaling(inverse_frequencies)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), inverse_frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def rotate_(heads: Tensor, rotary: Tensor) -> None:
    """Rotate in place. `heads`: `(N, num_heads, head_dim)`, `rotary`: `(N, 1, head_dim / 2)` complex64."""
    all_pairs = heads.view(*heads.shape[:-1], -1, 2)
    num_rows = rows_at_once(heads.shape[1] * heads.shape[2] // 2)
    for pairs, factors in zip(torch.split(all_pairs, num_rows), torch.split(rotary, num_rows), strict=True):
        if heads.dtype is torch.float32:
            torch.view_as_complex(pairs).mul_(factors)
        else:
            pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(factors)))


def interleave_rows(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder a `(num_heads * head_dim, ...)` projection from Hugging Face's pairs `(i, i + head_dim / 2)` to ours."""
    by_half = weight.view(num_heads, 2, -1, *weight.shape[1:])
    return by_half.transpose(1, 2).reshape(weight.shape)


def halve_rows(weight: Tensor, num_heads: int) -> Tensor:
    """Undo `interleave_rows`."""
    by_pair = weight.view(num_heads, -1, 2, *weight.shape[1:])
    return by_pair.transpose(1, 2).reshape(weight.shape)
