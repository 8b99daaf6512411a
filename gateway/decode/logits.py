"""Filters on a step's logits, in the one documented order: bias, bitmask, penalties, temperature, top-k, top-p, min-p.

Each function is pure, takes `(..., V)` float32 and returns a new array of that shape in which a token that is out is
`-inf`. The bitmask goes before all that keeps the best, or top-k could leave nothing that is legal. Candidates rank by
(logit descending, id ascending), so that a tie at the edge of top-k or top-p is decided the same way everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.decode.interfaces import Logits
from services.vocabulary.bitmask import BoolMask


def add_bias(logits: Logits, bias: Sequence[tuple[int, float]]) -> Logits:
    """Add to the logits of some token ids."""
    result = logits.copy()
    for token_id, value in bias:
        result[..., token_id] += np.float32(value)
    return result


def apply_bool_mask(logits: Logits, bool_mask: BoolMask) -> Logits:
    """Take out the tokens whose bit is not set; `bool_mask` is `(V,)` or of the logits' shape."""
    return np.where(bool_mask, logits, np.float32(-np.inf))


def penalise_repetition(logits: Logits, token_ids: Sequence[int], penalty: float) -> Logits:
    """Divide positive logits of `token_ids` by `penalty`, multiply negative ones; 1 changes nothing.

    N. S. Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation", 2019, section
    4.1, with the sign regarded.
    """
    result = logits.copy()
    ids = np.unique(np.array(token_ids, np.int64))
    found = result[..., ids]
    result[..., ids] = np.where(found > 0, found / np.float32(penalty), found * np.float32(penalty))
    return result


def penalise_presence(logits: Logits, token_ids: Sequence[int], presence: float, frequency: float) -> Logits:
    """Take `presence` off the logits of `token_ids`, and `frequency` for each time that a token is among them."""
    result = logits.copy()
    ids, counts = np.unique(np.array(token_ids, np.int64), return_counts=True)
    result[..., ids] -= (presence + frequency * counts).astype(np.float32)
    return result


def apply_temperature(logits: Logits, temperature: float) -> Logits:
    """Divide by `temperature`, which is over 0. The largest logit becomes 0 first, so that nothing overflows."""
    largest = logits.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # far below the largest is as good as out
        scaled: Logits = ((logits - largest).astype(np.float64) / temperature).astype(np.float32)
    return scaled


def log_sum_exp(logits: Logits) -> np.float64:
    """Return the logarithm of the sum of the exponentials of a row, in float64: what makes logits log-probabilities."""
    wide = logits.astype(np.float64)
    largest = wide.max()
    total: np.float64 = largest + np.log(np.exp(wide - largest).sum())
    return total


def removed_mass(logits: Logits, bool_mask: BoolMask) -> float:
    """Return the probability of the tokens of a `(V,)` row that the mask takes out, in float32: a number to watch.

    Cheaper than finding the largest allowed logit; `log_sum_exp` twice is exact and takes several times as long
    (`make bench-tracing`).
    """
    weights = np.exp(logits - logits.max())
    return min(1.0, float(weights @ ~bool_mask / weights.sum()))


def log_softmax(logits: Logits) -> Logits:
    """Return the logarithms of the probabilities of a `(V,)` row."""
    result: Logits = (logits.astype(np.float64) - log_sum_exp(logits)).astype(np.float32)
    return result


def ranked_best(logits: Logits, num_best: int) -> list[int]:
    """Return the ids of the best of a `(V,)` row, best first, of equals the lowest first; none that is out."""
    if num_best == 0:
        return []
    place = max(0, len(logits) - num_best)
    candidates = np.flatnonzero((logits >= np.partition(logits, place)[place]) & (logits > -np.inf))
    best: list[int] = candidates[np.argsort(-logits[candidates], kind="stable")][:num_best].tolist()
    return best


def keep_top_k(logits: Logits, top_k: int) -> Logits:
    """Keep the `top_k` best; 0 keeps all."""
    vocab_size = logits.shape[-1]
    if top_k == 0 or top_k >= vocab_size:
        return logits.copy()
    edge = np.partition(logits, vocab_size - top_k, axis=-1)[..., vocab_size - top_k, None]
    is_over, is_edge = logits > edge, logits == edge
    num_free = top_k - is_over.sum(axis=-1, keepdims=True)
    is_kept = is_over | (is_edge & (is_edge.cumsum(axis=-1) <= num_free))
    return np.where(is_kept, logits, np.float32(-np.inf))


def keep_top_p(logits: Logits, top_p: float) -> Logits:
    """Keep the fewest best whose probabilities reach `top_p`: the token that crosses it is kept. 1 keeps all."""
    if top_p >= 1:
        return logits.copy()
    kept = np.full_like(logits, -np.inf)
    for row, kept_row in zip(logits.reshape(-1, logits.shape[-1]), kept.reshape(-1, logits.shape[-1]), strict=True):
        token_ids = _nucleus(row, top_p)
        kept_row[token_ids] = row[token_ids]
    return kept


def keep_min_p(logits: Logits, min_p: float) -> Logits:
    """Keep the tokens that have at least `min_p` times the likeliest one's probability; 0 keeps all.

    M. N. Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", 2024.
    """
    if min_p <= 0:
        return logits.copy()
    edge = logits.max(axis=-1, keepdims=True) + np.float32(np.log(min_p))
    return np.where(logits >= edge, logits, np.float32(-np.inf))


# Most nuclei are far smaller than this; sorting so many costs a hundredth of sorting 50,000.
_FIRST_LOOK = 512


def _nucleus(row: Logits, top_p: float) -> np.ndarray:
    """Return the ids of the tokens that top-p keeps of a `(V,)` row."""
    weights = np.exp(row.astype(np.float64) - row.max())
    wanted = top_p * weights.sum()
    if len(row) > _FIRST_LOOK:
        edge = np.partition(row, len(row) - _FIRST_LOOK)[len(row) - _FIRST_LOOK]
        # Strictly over the edge: of those at the edge itself, some are not among the candidates.
        candidates = np.flatnonzero(row > edge)
        if weights[candidates].sum() > wanted * (1 + 1e-9):
            return _first_reaching(row, weights, candidates, wanted)
    return _first_reaching(row, weights, np.flatnonzero(row > -np.inf), wanted)


def _first_reaching(row: Logits, weights: np.ndarray, candidates: np.ndarray, wanted: float) -> np.ndarray:
    ranked = candidates[np.argsort(-row[candidates], kind="stable")]
    before = np.concatenate(([0.0], weights[ranked].cumsum()[:-1]))
    return ranked[before < wanted]
