"""A compiled grammar as it is kept outside of the process that compiled it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import TypeAdapter

from services.constraint.core.engine import Guidance
from services.constraint.sources import ConstraintSource, KeywordReport, Kind
from services.vocabulary import bitmask_words, count_tokens

_LENGTHS: Final = struct.Struct("<III")  # bytes of the report, of the opening, of its mask


@dataclass(frozen=True, slots=True)
class GrammarReport:
    """What goes with a compiled grammar; fields as in `BuiltSource`.

    `min_bytes` are the fewest bytes of a text, where `holes` keep the engine from telling. `kind` is the source's,
    `compile_seconds` what the compile took.
    """

    keywords: tuple[KeywordReport, ...]
    inexact: frozenset[str] | None = None
    holes: tuple[ConstraintSource, ...] = ()
    min_bytes: int | None = None
    kind: Kind = "json_schema"
    compile_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Opening:
    """What whoever asks for the grammar is told: that needs no table to be read.

    `guidance` is of the start state, in the numbers that a fresh matcher gives, with a vocabulary that is not named
    here. `min_bytes` are the fewest bytes of a text.
    """

    guidance: Guidance
    min_bytes: int

    def check(self, vocab_size: int) -> None:
        """See that it can be an answer to somebody with a vocabulary of this size.

        Raises:
            ValueError: it cannot.
        """
        guidance = self.guidance
        ids = (*guidance.forced_token_ids, *(() if guidance.witness_token_id is None else (guidance.witness_token_id,)))
        is_sound = (
            all(0 <= token_id < vocab_size for token_id in ids)
            and len(guidance.bitmask) == bitmask_words(vocab_size)
            and count_tokens(guidance.bitmask) == guidance.num_allowed
            and min(guidance.state, guidance.after_forced, guidance.witness_num_tokens, self.min_bytes) >= 0
        )
        if not is_sound:
            raise ValueError("the opening contradicts itself, or is of another vocabulary")

    def is_of(self, guidance: Guidance) -> bool:
        """Tell whether a matcher's guidance says the same: the same states, tokens and mask."""
        mine = self.guidance
        return (mine.state, mine.after_forced, mine.forced_token_ids) == (
            guidance.state,
            guidance.after_forced,
            guidance.forced_token_ids,
        ) and np.array_equal(mine.bitmask, guidance.bitmask)


@dataclass(frozen=True, slots=True)
class StoredGrammar:
    """A compiled grammar: the engine's own bytes, and what goes with it."""

    compiled: bytes
    report: GrammarReport
    opening: Opening | None = None

    def to_bytes(self) -> bytes:
        """Pack: three lengths, report and opening as JSON, the opening's mask, the engine's bytes."""
        report, opening, mask = _REPORT.dump_json(self.report), b"", b""
        if self.opening is not None:
            guidance = self.opening.guidance
            mask = guidance.bitmask.astype("<i4", copy=False).tobytes()
            opening = _OPENING.dump_json(
                (
                    guidance.state,
                    guidance.forced_token_ids,
                    guidance.after_forced,
                    guidance.num_allowed,
                    guidance.is_accepting,
                    guidance.witness_num_tokens,
                    guidance.witness_token_id,
                    guidance.is_settled,
                    self.opening.min_bytes,
                )
            )
        lengths = _LENGTHS.pack(len(report), len(opening), len(mask))
        return lengths + report + opening + mask + self.compiled

    @classmethod
    def from_bytes(cls, data: bytes) -> StoredGrammar:
        """Unpack. The engine's bytes are checked where they are read.

        Raises:
            ValueError: not what `to_bytes` made.
        """
        if len(data) < _LENGTHS.size:
            raise ValueError("too short")
        pieces, end = [], _LENGTHS.size
        for length in _LENGTHS.unpack_from(data):
            pieces.append(data[end : end + length])
            end += length
        if end > len(data):
            raise ValueError("the report or the opening is cut off")
        report, opening, mask = pieces
        return cls(data[end:], _REPORT.validate_json(report, strict=True), _opening(opening, mask) if opening else None)


def _opening(data: bytes, mask: bytes) -> Opening:
    state, forced, after, num_allowed, is_accepting, num_tokens, first, is_settled, min_bytes = _OPENING.validate_json(
        data, strict=True
    )
    bitmask = np.frombuffer(mask, "<i4")  # raises ValueError where the mask has half a word
    return Opening(
        Guidance(state, forced, after, bitmask, num_allowed, is_accepting, num_tokens, first, is_settled), min_bytes
    )


_REPORT: Final = TypeAdapter(GrammarReport)
# `Guidance` without its bitmask, then `min_bytes`.
_OPENING: Final = TypeAdapter(tuple[int, tuple[int, ...], int, int, bool, int, int | None, bool, int])
