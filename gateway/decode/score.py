"""How probable a text is by the model, token by token: by one pass over all of it, whatever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from gateway.decode.interfaces import Logits
from gateway.decode.sequence import ModelSequence
from services.vocabulary import Vocabulary, has_token, unpack_bitmask
from services.vocabulary.bitmask import Bitmask

_LEAST_LOGPROB: Final = -1e9


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """An alternative."""

    token_id: int
    spelling: bytes
    logprob: float
    is_allowed: bool


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """What the model thought of a token; fields as in the contract's message of this name. None: without a mask."""

    token_id: int
    spelling: bytes
    logprob: float
    masked_logprob: float | None
    removed_mass: float | None
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class TextScore:
    """The tokens of a text, and the log-probability that an end token follows, where that was asked for."""

    tokens: tuple[TokenLogprob, ...]
    end_logprob: float | None = None

    @property
    def logprob(self) -> float:
        """Of the whole text, with its end where that was asked for."""
        return sum(token.logprob for token in self.tokens) + (self.end_logprob or 0.0)


async def score(
    sequence: ModelSequence,
    token_ids: Sequence[int],
    vocabulary: Vocabulary,
    *,
    masks: Sequence[Bitmask] | None = None,
    num_top: int = 0,
    end_token_ids: Sequence[int] = (),
) -> TextScore:
    """Score the text `token_ids` behind what `sequence` has, which gets the text.

    `masks`: a packed bitmask (words,) for each token, what was allowed in its place. `end_token_ids`: ask for the
    probability that one of them follows.

    Raises:
        ServiceError: as the worker answers.
    """
    tokens: list[TokenLogprob] = []
    row = await sequence.logits()
    num_rows = sequence.max_rows
    num_sent = len(token_ids) if end_token_ids else len(token_ids) - 1
    for start in range(0, len(token_ids), num_rows):
        chunk = token_ids[start : min(start + num_rows, num_sent)]
        rows = [row, *(await sequence.rows(chunk) if chunk else ())]
        for index, token_id in enumerate(token_ids[start : start + num_rows]):
            mask = None if masks is None else masks[start + index]
            tokens.append(_token(rows[index], token_id, vocabulary, mask, num_top))
        row = rows[-1]
    if not end_token_ids:
        return TextScore(tuple(tokens))
    wide = row.astype(np.float64)
    return TextScore(tuple(tokens), float(_log_sum_exp(wide[list(end_token_ids)]) - _log_sum_exp(wide)))


def _token(row: Logits, token_id: int, vocabulary: Vocabulary, mask: Bitmask | None, num_top: int) -> TokenLogprob:
    wide = row.astype(np.float64)
    total = _log_sum_exp(wide)
    masked_logprob = removed_mass = None
    if mask is not None:
        allowed = _log_sum_exp(wide[unpack_bitmask(mask, len(row))])
        masked_logprob = min(0.0, max(_LEAST_LOGPROB, float(wide[token_id] - allowed)))
        removed_mass = max(0.0, float(-np.expm1(allowed - total)))
    best = np.argsort(-row, kind="stable")[:num_top].tolist() if num_top else []
    top = tuple(
        TopLogprob(
            other, vocabulary.spelling(other), float(wide[other] - total), mask is None or has_token(mask, other)
        )
        for other in best
        if np.isfinite(row[other])
    )
    # A model may rule a token out; what goes over the wire is a number.
    logprob = max(_LEAST_LOGPROB, float(wide[token_id] - total))
    return TokenLogprob(token_id, vocabulary.spelling(token_id), logprob, masked_logprob, removed_mass, top)


def _log_sum_exp(values: npt.NDArray[np.float64]) -> np.float64:
    largest = values.max()
    result: np.float64 = largest + np.log(np.exp(values - largest).sum())
    return result
