"""What two processes must agree on about tokens: their bytes, their digest and the bit order of a mask."""

from services.vocabulary.bitmask import (
    allowed_token_ids,
    bitmask_of,
    bitmask_words,
    count_tokens,
    has_token,
    pack_bool_mask,
    unpack_bitmask,
)
from services.vocabulary.token_bytes import UnsupportedTokenizerError
from services.vocabulary.vocabulary import Vocabulary

__all__ = [
    "UnsupportedTokenizerError",
    "Vocabulary",
    "allowed_token_ids",
    "bitmask_of",
    "bitmask_words",
    "count_tokens",
    "has_token",
    "pack_bool_mask",
    "unpack_bitmask",
]
