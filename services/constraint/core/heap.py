"""Keeps freed memory in the process.

By default the C library gives large blocks back to the system at once, and each page that is fetched anew costs a page
fault, which in a sandboxed container takes longer than most masks. A server that makes and drops grammars all day is
better off with memory that it has touched before.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

import numpy as np

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
_M_ARENA_MAX: Final = -8

_PAGE_BYTES: Final = 4096
_ARENA_BYTES: Final = 1 << 20
_OBJECT_BYTES: Final = 400

_kept: list[bytes] = []


def keep_freed_memory(ready_bytes: int) -> None:
    """Have the allocator keep what is freed, for this whole process, and make `ready_bytes` ready to be used.

    Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_ARENA_MAX, 1)  # what one thread frees, another can use
    np.empty(ready_bytes, np.uint8)[::_PAGE_BYTES] = 0
    # Python's own allocator gives an arena back when it is empty: one small object keeps it.
    objects = [bytes(_OBJECT_BYTES) for _ in range(ready_bytes // _OBJECT_BYTES)]
    _kept.extend(objects[:: _ARENA_BYTES // _OBJECT_BYTES // 2])
