"""How probable a text is by the model, token by token: by one pass over all of it, whatever wrote it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final

import numpy as np

from gateway.decode.interfaces import Logits
from gateway.decode.logits import log_sum_exp, ranked_best
from gateway.decode.sequence import ModelSequence
from services.vocabulary import Vocabulary, has_token, unpack_bitmask
from services.vocabulary.bitmask import Bitmask, count_tokens

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
    num_allowed: int | None
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
        here = slice(start, start + num_rows)
        masks_here = repeat(None) if masks is None else masks[here]
        # Milliseconds a row with a large vocabulary: not on the event loop.
        tokens += await asyncio.to_thread(_tokens, rows, token_ids[here], masks_here, vocabulary, num_top)
        row = rows[-1]
    if not end_token_ids:
        return TextScore(tuple(tokens))
    return TextScore(tuple(tokens), float(log_sum_exp(row[list(end_token_ids)]) - log_sum_exp(row)))


def _tokens(
    rows: Sequence[Logits],
    token_ids: Sequence[int],
    masks: Iterable[Bitmask | None],
    vocabulary: Vocabulary,
    num_top: int,
) -> list[TokenLogprob]:
    """Score tokens, each by the `(V,)` row before it."""
    return [
        _token(row, token_id, vocabulary, mask, num_top)
        for row, token_id, mask in zip(rows, token_ids, masks, strict=False)
    ]


def _token(row: Logits, token_id: int, vocabulary: Vocabulary, mask: Bitmask | None, num_top: int) -> TokenLogprob:
    total = log_sum_exp(row)
    masked_logprob = removed_mass = num_allowed = None
    if mask is not None:
        allowed = log_sum_exp(row[unpack_bitmask(mask, len(row))])
        masked_logprob = min(0.0, max(_LEAST_LOGPROB, float(row[token_id] - allowed)))
        removed_mass = max(0.0, float(-np.expm1(allowed - total)))
        num_allowed = count_tokens(mask)
    top = tuple(
        TopLogprob(other, vocabulary.spelling(other), float(row[other] - total), mask is None or has_token(mask, other))
        for other in ranked_best(row, num_top)
    )
    # A model may rule a token out; what goes over the wire is a number.
    logprob = max(_LEAST_LOGPROB, float(row[token_id] - total))
    return TokenLogprob(
        token_id, vocabulary.spelling(token_id), logprob, masked_logprob, removed_mass, num_allowed, top
    )
