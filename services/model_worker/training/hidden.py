"""What the lower layers give for each text, on disk: they never change, so it is computed once for all runs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from services.model_worker.training.examples import Example
from services.model_worker.training.network import Network, Rows

_DTYPE: Final = np.float32


class HiddenStates:
    """`(num_tokens, hidden_size)` of all examples, mapped from a file, and where each begins."""

    def __init__(self, states: np.memmap, starts: Sequence[int]) -> None:
        self._states = states
        self._starts = starts

    def of(self, index: int) -> Tensor:
        """Return one example's `(N, H)`."""
        return torch.from_numpy(np.array(self._states[self._starts[index] : self._starts[index + 1]]))


def hidden_states(
    network: Network, base_digest: str, examples: Sequence[Example], directory: Path, advance: Callable[[int], None]
) -> HiddenStates:
    """Compute the states, or find those of another run over the same texts, model and layers.

    A run that was broken off goes on with the text it was at. `advance` is told the tokens that are done.

    Raises:
        OSError: the directory cannot be written, or has no room.
    """
    lengths = [len(example.token_ids) for example in examples]
    starts = [0, *np.cumsum(lengths).tolist()]
    identity = json.dumps([base_digest, network.first_layer, [example.token_ids for example in examples]])
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    file, done_file = directory / f"{name}.f32", directory / f"{name}.done"
    shape = (starts[-1], network.base.config.hidden_size)
    num_done = int(done_file.read_text()) if file.exists() and done_file.exists() else 0
    num_bytes = shape[0] * shape[1] * np.dtype(_DTYPE).itemsize
    if not num_done and shutil.disk_usage(directory).free < num_bytes:
        # Writing to the map would end the process without a word.
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {num_bytes / 1e6:.0f} MB are needed", str(directory))
    states = np.memmap(file, _DTYPE, "r+" if num_done else "w+", shape=shape)
    advance(starts[num_done])
    for index in range(num_done, len(examples)):
        token_ids = torch.tensor(examples[index].token_ids, device=network.base.device)
        states[starts[index] : starts[index + 1]] = network.lower(token_ids, Rows((lengths[index],))).cpu().numpy()
        advance(lengths[index])
        if index % 100 == 99 or index == len(examples) - 1:
            states.flush()
            done_file.write_text(str(index + 1))
    return HiddenStates(states, starts)
