"""Compiles kernels with Numba and keeps the machine code on disk.

Numba notices a change only in the file of the function itself, not in those that it calls. So the directory's name has
a digest of all sources here: a change anywhere compiles anew, and versions side by side do not disturb each other.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def _cache_directory() -> Path:
    """Return a writable directory.

    Below NUMBA_CACHE_DIR where that is set, else in the user's cache, else a temporary one.
    """
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    name = f"kernels-{hashlib.sha256(sources).hexdigest()[:16]}"
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier"
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    for parent in [Path(chosen)] if chosen else [user_cache]:
        try:
            (parent / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(parent / name, os.W_OK):
            return parent / name
    # Compiled anew by each process, in about 15 seconds; a read-only image carries the directory instead.
    return Path(tempfile.mkdtemp(prefix="espalier-"))


numba.config.CACHE_DIR = str(_cache_directory())  # type: ignore[attr-defined]


def compiled(function: F) -> F:
    """Compile `function` at its first call, without the GIL, or load it from disk."""
    return cast(F, njit(nogil=True, cache=True)(function))
