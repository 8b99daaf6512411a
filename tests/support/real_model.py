"""Where the real model is: `make model` puts it there."""

from pathlib import Path

import pytest

MODEL_PATH = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def real_model_path() -> Path:
    """Return the file; a test that needs it fails, not skips, where it is missing."""
    if not MODEL_PATH.is_file():
        pytest.fail(f"{MODEL_PATH} is not there: run `make model` first")
    return MODEL_PATH
