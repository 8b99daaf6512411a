"""What all readers of checkpoints share: the error, filling a model, and showing how far it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TypeVar

import structlog
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from services.model_worker.model.device import CPU
from services.model_worker.model.transformer import Transformer

_T = TypeVar("_T")

_log = structlog.get_logger()


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and what would do."""


def fill(model: Transformer, state: Mapping[str, Tensor], device: torch.device = CPU) -> None:
    """Give the model its parameters, on a device, and make it ready to run; names as in `named_parameters`."""
    state = {name: tensor.to(device) for name, tensor in state.items()}
    model.rotary = model.rotary.to(device)
    if model.config.tie_word_embeddings:
        state["head.weight"] = state["embedding.weight"]
    model.load_state_dict(state, assign=True)
    if model.config.tie_word_embeddings:
        model.head.weight = model.embedding.weight
    model.requires_grad_(False).eval()


def tracked(parameters: Mapping[str, _T]) -> Iterator[tuple[str, _T]]:
    """Go over what is to be loaded: with a progress bar on a terminal, with a line now and then elsewhere."""
    if sys.stderr.isatty():
        console = Console(stderr=True)
        yield from track(parameters.items(), "loading weights", console=console, transient=True)
        return
    for i, item in enumerate(parameters.items(), 1):
        yield item
        if i % 50 == 0:
            _log.info("loading weights", done=i, of=len(parameters))


def some(names: list[str]) -> str:
    """List the first five names."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
