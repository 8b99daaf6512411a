"""Where a model computes."""

from __future__ import annotations

from typing import Final

import torch

CPU: Final = torch.device("cpu")


def device_of(name: str) -> torch.device:
    """Return what `auto`, `cpu`, `cuda` or `cuda:<number>` means here.

    Raises:
        ValueError: this machine, or this build of PyTorch, has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"the device is {name}, but PyTorch {torch.__version__} finds no GPU here: use `cpu` or `auto`"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"the device is {name}, but there are only {torch.cuda.device_count()} GPUs")
    return device
