"""Where the real models are: `make model` puts them there."""

from pathlib import Path

import pytest

from gateway.cli.model import FILE_NAME, MIXTURE_NAME

_DIRECTORY = Path(__file__).parents[2] / "models"
MODEL_PATH = _DIRECTORY / FILE_NAME
MIXTURE_PATH = _DIRECTORY / MIXTURE_NAME


def real_model_path() -> Path:
    """Return the dense model's file; a test that needs it fails, not skips, where it is missing."""
    return _there(MODEL_PATH)


def real_mixture_path() -> Path:
    """Return the directory of the mixture that ships, in the same way."""
    return _there(MIXTURE_PATH)


def _there(path: Path) -> Path:
    if not path.exists():
        pytest.fail(f"{path} is not there: run `make model` first")
    return path
