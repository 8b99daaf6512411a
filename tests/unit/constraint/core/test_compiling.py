"""Where compiled kernels are kept."""

import os
from pathlib import Path

import pytest

from services.constraint.core import compiling


@pytest.fixture(autouse=True)
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "chosen"))
    monkeypatch.setattr(compiling.tempfile, "tempdir", str(tmp_path))
    return tmp_path / "chosen"


def test_a_directory_that_may_be_written_is_used(chosen: Path) -> None:
    assert compiling._cache_directory().parent == chosen
    assert os.environ["NUMBA_CACHE_DIR"] == str(chosen)


@pytest.mark.parametrize("has_kernels", [True, False])
def test_a_read_only_directory_is_copied(chosen: Path, has_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = compiling._cache_directory()
    if has_kernels:
        (kernels / "core_1").mkdir()
        (kernels / "core_1" / "walk.nbc").write_bytes(b"code")
    else:
        kernels.rmdir()
        kernels.parent.rmdir()
        kernels.parent.write_bytes(b"a file, below which nothing can be made")
    # Root may write wherever the file system lets it.
    monkeypatch.setattr(compiling.os, "access", lambda path, mode: chosen not in Path(path).parents)
    copied = compiling._cache_directory()
    assert copied.name == kernels.name
    assert copied.parent != chosen
    assert [path.read_bytes() for path in copied.rglob("*.nbc")] == ([b"code"] if has_kernels else [])

    # Processes that are started from here find the copy, and do not make another.
    assert os.environ["NUMBA_CACHE_DIR"] == str(copied.parent)
    assert compiling._cache_directory() == copied
