"""What the routing picture shows, whatever it is drawn with: tokens, layers, experts, and the colour of each expert."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

FEW_TOKENS: Final = 16
"""A mask that allows so many tokens or fewer has said most of what comes."""

_HUES: Final = 24
"""More than these are hard to tell apart; experts beyond them differ in lightness too."""

Mark = Literal["", "few", "forced"]


@dataclass(frozen=True, slots=True)
class PictureToken:
    """A row: a token of the prompt, or one that was written."""

    text: str
    """As it is shown."""
    is_generated: bool
    num_allowed: int | None = None
    """Tokens that the mask allowed in its place; None where there was no mask."""

    @property
    def mark(self) -> Mark:
        """Whether the constraint chose the token, or nearly."""
        if self.num_allowed is None or self.num_allowed > FEW_TOKENS:
            return ""
        return "forced" if self.num_allowed == 1 else "few"


@dataclass(frozen=True)
class PictureLayer:
    """A column, and what its router did over all of the tokens; fields as in the contract's `LayerRouting`."""

    number: int
    tokens_per_expert: tuple[int, ...]
    mean_entropy: float
    balance: float

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Part of the assignments that each expert has."""
        total = max(sum(self.tokens_per_expert), 1)
        return tuple(count / total for count in self.tokens_per_expert)

    @property
    def busiest(self) -> int:
        """The expert with the most tokens."""
        return int(np.argmax(self.tokens_per_expert))

    @property
    def num_idle(self) -> int:
        """Experts that got no token."""
        return self.tokens_per_expert.count(0)


@dataclass(frozen=True)
class Picture:
    """The experts of some tokens."""

    model: str
    tokens: tuple[PictureToken, ...]
    layers: tuple[PictureLayer, ...]
    experts: npt.NDArray[np.uint16]
    """`(T, L, A)`, best first: A experts of each token in each layer with a router."""

    def __post_init__(self) -> None:
        shape = len(self.tokens), len(self.layers)
        if self.experts.shape[:2] != shape:
            raise ValueError(f"experts of {self.experts.shape[:2]} tokens and layers, but there are {shape}")

    @property
    def num_experts(self) -> int:
        """Of a layer."""
        return len(self.layers[0].tokens_per_expert)

    @property
    def num_experts_per_tok(self) -> int:
        """Of a token in a layer."""
        return int(self.experts.shape[2])

    @property
    def max_entropy(self) -> float:
        """In nats, of a router that does not prefer any expert."""
        return math.log(self.num_experts)

    @property
    def max_balance(self) -> float:
        """Where the same few experts take everything; 1 is the least."""
        return self.num_experts / self.num_experts_per_tok

    @cached_property
    def max_share(self) -> float:
        """The most that one expert has in any layer: bars are drawn up to it."""
        return max(max(layer.shares) for layer in self.layers)


def read_experts(data: bytes, *, num_tokens: int, num_layers: int) -> npt.NDArray[np.uint16]:
    """Read `StepResult.expert_ids`; returns `(T, L, A)`."""
    return np.frombuffer(data, "<u2").astype(np.uint16).reshape(num_tokens, num_layers, -1)


def colours(num_experts: int) -> Sequence[str]:
    """Give each expert a colour, `#rrggbb`, that can be told from its neighbours' and be seen on light and on dark."""
    num_tones = math.ceil(num_experts / _HUES)
    num_hues = math.ceil(num_experts / num_tones)

    def colour(expert: int) -> str:
        hue, tone = divmod(expert, num_tones)
        lightness = 0.4 + 0.35 * (tone + 0.5) / num_tones
        rgb = colorsys.hls_to_rgb(hue / num_hues, lightness, 0.65)
        return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)

    return [colour(expert) for expert in range(num_experts)]
