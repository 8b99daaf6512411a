"""Holes: places in a grammar where something else than the grammar says what the text is.

In the grammar, and so in its tables, a hole is a few bytes that no UTF-8 text has, its *stand-in*. Who runs the grammar
walks over the stand-in where the hole's own text has ended, and keeps tokens with such bytes out of masks.
"""

from __future__ import annotations

from typing import Final

import numpy as np

_NEVER_IN_UTF8: Final = bytes((0xC0, 0xC1, *range(0xF5, 0x100)))

MAX_HOLES: Final = len(_NEVER_IN_UTF8) ** 2

STAND_IN_BYTES: Final = np.isin(np.arange(256), list(_NEVER_IN_UTF8)).astype(np.uint8)
"""(256,) 1 for each byte that stand-ins are made of."""


def stand_in(hole: int) -> bytes:
    """Return the bytes that stand for a hole in a grammar, none the beginning of another's; `hole` < MAX_HOLES."""
    first, second = divmod(hole, len(_NEVER_IN_UTF8))
    return bytes((_NEVER_IN_UTF8[first], _NEVER_IN_UTF8[second]))


def has_stand_in_bytes(token: bytes) -> bool:
    """Tell whether a token has bytes of stand-ins, so that it never stands in a text."""
    return any(byte in _NEVER_IN_UTF8 for byte in token)
