"""What a caller may ask, as plain values that are in range: making one with a bad value raises InvalidRequest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.decode.interfaces import CompileOptions, Constraint
from gateway.decode.sampler import Sampling
from services.rpckit.status import InvalidRequest

MAX_STOPS: Final = 16
MAX_STOP_CHARACTERS: Final = 1000
MAX_TEMPERATURE: Final = 100.0
DEFAULT_MAX_TOKENS: Final = 512
MAX_SEED: Final = 2**64 - 1
ROLES: Final = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Raw text."""

    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise _invalid("prompt", "must not be empty")


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Tokens, taken as they are."""

    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise _invalid("token_ids", "must not be empty")

    def check(self, vocab_size: int) -> None:
        """Raise InvalidRequest when a token is none of the model's."""
        for index, token_id in enumerate(self.token_ids):
            if token_id >= vocab_size:
                raise _invalid(
                    f"token_ids.ids[{index}]", f"is {token_id}; the model's tokens go from 0 to {vocab_size - 1}"
                )


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, oldest message first."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if not self.messages:
            raise _invalid("chat.messages", "must have at least one message")
        for index, message in enumerate(self.messages):
            if message.role not in ROLES:
                raise _invalid(
                    f"chat.messages[{index}].role", f"is {message.role[:40]!r}; it must be one of {', '.join(ROLES)}"
                )


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A text to write. `max_tokens` None: DEFAULT_MAX_TOKENS, or what is left of the context where that is less."""

    prompt: Prompt
    constraint: Constraint | None = None
    compile_options: CompileOptions = field(default_factory=CompileOptions)
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _invalid("max_tokens", f"is {self.max_tokens}; it must be at least 1")
        if self.constraint is not None:
            _check_constraint(self.constraint)
            if self.stops:
                raise _invalid("stop", "cannot be combined with `constraint`: the constraint says where a text may end")
        elif self.compile_options != CompileOptions():
            raise _invalid("compile_options", "say how a constraint is read, and there is no `constraint`")
        _check_stops(self.stops)
        _check_sampling(self.sampling)


def _check_constraint(constraint: Constraint, field: str = "constraint") -> None:
    field = f"{field}.{constraint.kind}"
    if constraint.kind == "choices":
        if not constraint.choices:
            raise _invalid(field, "must have at least one text")
        for index, choice in enumerate(constraint.choices):
            if not choice:
                raise _invalid(f"{field}.values[{index}]", "must not be empty")
    elif constraint.kind in ("sequence", "any_of"):
        if not constraint.parts:
            raise _invalid(field, "must have at least one part")
        for index, part in enumerate(constraint.parts):
            _check_constraint(part, f"{field}.parts[{index}]")
    elif not constraint.text and constraint.kind != "regex":
        raise _invalid(field, "must not be empty")


def _check_stops(stops: Sequence[str]) -> None:
    if len(stops) > MAX_STOPS:
        raise _invalid("stop", f"has {len(stops)} texts; at most {MAX_STOPS} are taken")
    for index, stop in enumerate(stops):
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise _invalid(f"stop[{index}]", f"has {len(stop)} characters; it must have 1 to {MAX_STOP_CHARACTERS}")


def _check_sampling(sampling: Sampling) -> None:
    # Written so that NaN fails as well.
    if not 0 <= sampling.temperature <= MAX_TEMPERATURE:
        raise _invalid(
            "sampling.temperature", f"is {_shown(sampling.temperature)}; it must be from 0 to {MAX_TEMPERATURE:g}"
        )
    if not 0 < sampling.top_p <= 1:
        raise _invalid("sampling.top_p", f"is {_shown(sampling.top_p)}; it must be over 0 and at most 1")
    if sampling.top_k < 0:
        raise _invalid("sampling.top_k", f"is {sampling.top_k}; it must be 0 (all) or more")
    if not 0 <= sampling.seed <= MAX_SEED:
        raise _invalid("sampling.seed", f"is {sampling.seed}; it must be from 0 to {MAX_SEED}")


def _shown(value: float) -> str:
    return "not a number" if math.isnan(value) else f"{value:g}"


def _invalid(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"`{name}` {message}", field=f"generation.{name}")
