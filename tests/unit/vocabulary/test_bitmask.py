from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.vocabulary import (
    allowed_token_ids,
    bitmask_of,
    bitmask_words,
    count_tokens,
    has_token,
    pack_bool_mask,
    unpack_bitmask,
)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_bit_of_each_token_is_where_the_definition_says(allowed: list[bool]) -> None:
    bitmask = pack_bool_mask(np.array(allowed))
    assert len(bitmask) == bitmask_words(len(allowed)) == -(-len(allowed) // 32)
    for token_id, is_allowed in enumerate(allowed):
        word = int.from_bytes(bitmask.tobytes()[4 * (token_id // 32) : 4 * (token_id // 32) + 4], "little")
        assert bool(word >> (token_id % 32) & 1) == is_allowed
    assert unpack_bitmask(bitmask, len(allowed)).tolist() == allowed
    assert unpack_bitmask(bitmask.tobytes(), len(allowed)).tolist() == allowed
    token_ids = [i for i, is_set in enumerate(allowed) if is_set]
    assert allowed_token_ids(bitmask, len(allowed)).tolist() == token_ids
    assert bitmask_of(token_ids, len(allowed)).tolist() == bitmask.tolist()
    assert [has_token(bitmask, i) for i in range(len(allowed))] == allowed
    assert count_tokens(bitmask) == len(token_ids)


def test_bits_beyond_the_vocabulary_are_zero() -> None:
    assert pack_bool_mask(np.ones(33, np.bool_)).tolist() == [-1, 1]
