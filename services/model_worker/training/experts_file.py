"""Routers and experts as one safetensors file, by the names that the whole model's tensors have."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from services.model_worker.model.checkpoint import CheckpointError
from services.model_worker.training.mixture import MixtureShape, TrainableMixture

_FORMAT: Final = "espalier-experts-1"
_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Experts:
    """What is added to a dense base."""

    shape: MixtureShape
    tensors: dict[str, Tensor]
    """By the names of Qwen2-MoE; without a router those of a lone `expert`."""

    @property
    def layers(self) -> frozenset[int]:
        """The layers that they stand in."""
        return frozenset(int(found[1]) for found in map(_LAYER.match, self.tensors) if found)

    @classmethod
    def of(cls, first_layer: int, shape: MixtureShape, mixtures: list[TrainableMixture]) -> Experts:
        """Take what was trained, as it is now."""
        tensors: dict[str, Tensor] = {}
        for layer, mixture in enumerate(mixtures, first_layer):
            prefix = f"model.layers.{layer}.mlp"
            if shape.has_router:
                tensors[f"{prefix}.gate.weight"] = mixture.router.detach()
            for expert in range(shape.num_experts):
                gate, up = mixture.gate_up.detach()[expert].chunk(2)
                named = {"gate_proj": gate, "up_proj": up, "down_proj": mixture.down.detach()[expert]}
                tensors |= {f"{prefix}.experts.{expert}.{name}.weight": weight for name, weight in named.items()}
        return cls(shape, tensors)

    def save(self, file: Path, dtype: torch.dtype, about: dict[str, str]) -> None:
        """Write them; `about` goes into the file's metadata."""
        tensors = {name: tensor.cpu().to(dtype).contiguous() for name, tensor in self.tensors.items()}
        shape = {"format": _FORMAT, "shape": json.dumps(asdict(self.shape))}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file, metadata=about | shape)

    @classmethod
    def load(cls, file: Path) -> Experts:
        """Read them.

        Raises:
            CheckpointError: the file is none of this kind, or is damaged.
        """
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise CheckpointError(f"{file} holds no experts: its metadata lack `format` = {_FORMAT}")
                shape = MixtureShape(**json.loads(metadata["shape"]))
                return cls(shape, {name: opened.get_tensor(name) for name in tuple(opened.keys())})
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file} cannot be read: {error}") from None
