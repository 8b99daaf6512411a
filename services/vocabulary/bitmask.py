"""The one definition of a bitmask: int32 words, bit `i % 32` of word `i // 32` is token `i`, 1 = allowed.

On the wire the words are little-endian; `ceil(vocab_size / 32)` of them make a row.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Bitmask = npt.NDArray[np.int32]
BoolMask = npt.NDArray[np.bool_]


def bitmask_words(vocab_size: int) -> int:
    """Return the number of words in a row for `vocab_size` tokens."""
    return (vocab_size + 31) // 32


def bitmask_of(token_ids: Iterable[int], vocab_size: int) -> Bitmask:
    """Return a `(words,)` bitmask of these tokens."""
    bitmask = np.zeros(bitmask_words(vocab_size), np.int32)
    for token_id in token_ids:
        bitmask[token_id >> 5] |= np.uint32(1 << (token_id & 31)).astype(np.int32)
    return bitmask


def has_token(bitmask: Bitmask, token_id: int) -> bool:
    """Tell whether a row allows a token."""
    return bool(bitmask[token_id >> 5] >> (token_id & 31) & 1)


def have_tokens(bitmask: Bitmask, token_ids: npt.NDArray[np.int32]) -> BoolMask:
    """Tell of each of the token ids whether a row allows it; returns the shape of `token_ids`."""
    bits: BoolMask = (bitmask[token_ids >> 5] >> (token_ids & 31) & 1).astype(np.bool_)
    return bits


def count_tokens(bitmask: Bitmask) -> int:
    """Return how many tokens a row allows."""
    return int(np.bitwise_count(bitmask.view(np.uint32)).sum())


def pack_bool_mask(bool_mask: BoolMask) -> Bitmask:
    """Pack a `(vocab_size,)` bool mask into a `(words,)` bitmask; the bits beyond the vocabulary are 0."""
    padded = np.zeros(bitmask_words(len(bool_mask)) * 32, dtype=np.bool_)
    padded[: len(bool_mask)] = bool_mask
    return np.packbits(padded, bitorder="little").view("<i4").astype(np.int32, copy=False)


def unpack_bitmask(bitmask: Bitmask | bytes, vocab_size: int) -> BoolMask:
    """Unpack a row, as an array or as its bytes on the wire, into a `(vocab_size,)` bool mask."""
    row = np.frombuffer(bitmask, dtype=np.uint8) if isinstance(bitmask, bytes) else bitmask.astype("<i4").view(np.uint8)
    return np.unpackbits(row, count=vocab_size, bitorder="little").view(np.bool_)


def allowed_token_ids(bitmask: Bitmask | bytes, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return the ids of the allowed tokens, ascending."""
    return np.flatnonzero(unpack_bitmask(bitmask, vocab_size))
