"""What the model thought of a token at the moment it was drawn: known without a pass of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gateway.decode.interfaces import Logits
from services.vocabulary.bitmask import BoolMask


@dataclass(frozen=True, slots=True)
class Draw:
    """A drawn token's log-probability by the raw logits, and the probability of all tokens that the mask took out."""

    logprob: float
    removed_mass: float


def observe(logits: Logits, bool_mask: BoolMask, token_id: int) -> Draw:
    """Look at a token drawn from `(V,)` logits under a `(V,)` mask.

    In single precision, within 1e-5 of `decode.score`, which is exact and takes several times as long
    (`make bench-tracing`).
    """
    largest = logits.max()
    weights = np.exp(logits - largest)
    total = weights.sum()
    return Draw(
        logprob=float(logits[token_id] - largest - np.log(total)),
        removed_mass=min(1.0, float(weights @ ~bool_mask / total)),
    )
