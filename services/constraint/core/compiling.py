"""Compiles kernels with Numba and keeps the machine code on disk.

Numba notices a change only in the file of the function itself, not in those that it calls. So the directory's name has
a digest of all sources here: a change anywhere compiles anew, and versions side by side do not disturb each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def _cache_directory() -> Path:
    """Return a writable directory.

    Below NUMBA_CACHE_DIR where that is set, else in the user's cache, else a temporary one. What NUMBA_CACHE_DIR has
    in a read-only image is copied to a temporary one, because Numba takes no directory that it cannot write to.
    """
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    name = f"kernels-{hashlib.sha256(sources).hexdigest()[:16]}"
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    parent = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier"
    with contextlib.suppress(OSError):
        (parent / name).mkdir(parents=True, exist_ok=True)
        if os.access(parent / name, os.W_OK):
            return parent / name
    temporary = Path(tempfile.mkdtemp(prefix="espalier-"))
    if (parent / name).is_dir():
        shutil.copytree(parent / name, temporary / name)
    # For processes that this one starts; without it each would copy, or compile in half a minute.
    os.environ["NUMBA_CACHE_DIR"] = str(temporary)
    return temporary / name


numba.config.CACHE_DIR = str(_cache_directory())  # type: ignore[attr-defined]


def compiled(function: F) -> F:
    """Compile `function` at its first call, without the GIL, or load it from disk."""
    return cast(F, njit(nogil=True, cache=True)(function))
