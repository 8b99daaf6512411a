"""Draws a token from a step's logits.

Draws are Gumbel-max: to each kept token's logit a noise is added, and the largest sum wins, which gives each token its
softmax probability. The noise of a token is a pure function of (seed, choice, position, token id), where the position
counts the tokens written before. So a draw depends on nothing else: not on what ran in the same batch, not on how many
tokens were forced in one step, not on earlier draws. When the winner is masked afterwards and the draw repeated, the
next best has the probability that it has among the rest.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateway.decode.interfaces import Logits
from gateway.decode.logits import (
    add_bias,
    apply_bool_mask,
    apply_temperature,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_presence,
    penalise_repetition,
)
from services.rpckit.status import ServiceError
from services.vocabulary.bitmask import BoolMask


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; fields as in the contract's `Sampling`.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 keep all; a `repetition_penalty` of 1 and others of 0
    change nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0


class Sampler:
    """Draws the tokens of one text, which is one of several by the number `choice`."""

    def __init__(self, sampling: Sampling, prompt_token_ids: Sequence[int] = (), *, choice: int = 0) -> None:
        self._sampling = sampling
        self._prompt_token_ids = prompt_token_ids
        self._choice = choice

    def draw(
        self, logits: Logits, bool_mask: BoolMask, token_ids: Sequence[int], *, excluded: Collection[int] = ()
    ) -> int | None:
        """Return the token drawn from `(V,)` logits behind the text `token_ids`.

        None when the mask without `excluded` allows none.

        Raises:
            ServiceError: the logits of the allowed tokens are not numbers.
        """
        sampling = self._sampling
        allowed = self.processed(logits, bool_mask, token_ids)
        if excluded:
            allowed[list(excluded)] = -np.inf
        best = int(allowed.argmax())  # the lowest id of equals
        largest = float(allowed[best])
        if largest == -np.inf and not (bool_mask.sum() > len(set(excluded))):
            return None
        if not np.isfinite(largest):  # argmax finds NaN as well
            raise ServiceError("the model's logits are not finite numbers; its weights or its arithmetic are broken")
        if sampling.temperature == 0:
            return best
        scaled = apply_temperature(allowed, sampling.temperature)
        if sampling.top_k:
            scaled = keep_top_k(scaled, sampling.top_k)
        if sampling.top_p < 1:
            scaled = keep_top_p(scaled, sampling.top_p)
        if sampling.min_p > 0:
            scaled = keep_min_p(scaled, sampling.min_p)
        kept = np.flatnonzero(scaled > -np.inf)
        noise = gumbel_noise(sampling.seed, self._choice, len(token_ids), kept)
        return int(kept[(scaled[kept] + noise).argmax()])

    def processed(self, logits: Logits, bool_mask: BoolMask, token_ids: Sequence[int]) -> Logits:
        """Return `(V,)` logits with bias, mask and penalties: what a greedy draw takes the largest of."""
        sampling = self._sampling
        if sampling.logit_bias:
            logits = add_bias(logits, sampling.logit_bias)
        logits = apply_bool_mask(logits, bool_mask)
        if sampling.repetition_penalty != 1:
            logits = penalise_repetition(logits, [*self._prompt_token_ids, *token_ids], sampling.repetition_penalty)
        if token_ids and (sampling.presence_penalty or sampling.frequency_penalty):
            logits = penalise_presence(logits, token_ids, sampling.presence_penalty, sampling.frequency_penalty)
        return logits


def gumbel_noise(seed: int, choice: int, position: int, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return standard Gumbel noise for tokens, each a function of the four numbers alone.

    Token `i` gets output `i` of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)
    seeded by a digest of the other three, mapped to the middle of one of 2^52 cells of (0, 1): of 2^53, the last
    middle would round to 1.
    """
    state = hashlib.blake2b(struct.pack("<QQQ", seed, choice, position), digest_size=8).digest()
    z = np.frombuffer(state, "<u8") + (token_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    uniform = ((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise
