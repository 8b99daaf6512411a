"""What a caller may ask, as plain values that are in range: making one with a bad value raises InvalidRequest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.decode.beam import BeamSettings
from gateway.decode.interfaces import CompileOptions, Constraint
from gateway.decode.sampler import Sampling
from services.rpckit.status import InvalidRequest

MAX_STOPS: Final = 16
MAX_STOP_CHARACTERS: Final = 1000
MAX_STOP_TOKENS: Final = 64
MAX_TEMPERATURE: Final = 100.0
MAX_PENALTY: Final = 100.0
MAX_BIASED_TOKENS: Final = 1024
MAX_TEXTS: Final = 16
MAX_BEAM_WIDTH: Final = 16
MAX_LENGTH_PENALTY: Final = 10.0
MAX_TOP_LOGPROBS: Final = 20
DEFAULT_MAX_TOKENS: Final = 512
MAX_SEED: Final = 2**64 - 1
PRESETS: Final[dict[str, Sampling]] = {
    "balanced": Sampling(temperature=0.7, top_p=0.9, top_k=50),
    "creative": Sampling(temperature=1.2, top_p=0.95, top_k=100),
    "safe": Sampling(temperature=0.3, top_p=0.8, top_k=10),
    "deterministic": Sampling(),
}
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


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, oldest message first; `plain` is the same as raw text, for models that have no chat template."""

    messages: tuple[Message, ...]
    plain: str | None = None

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
class Reasoning:
    """Free text before the answer, up to `end`; `max_tokens` None: half of the request's."""

    end: str = "</think>"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.end) <= MAX_STOP_CHARACTERS:
            raise _invalid("reasoning.end", f"has {len(self.end)} characters; it must have 1 to {MAX_STOP_CHARACTERS}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _invalid("reasoning.max_tokens", f"is {self.max_tokens}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Texts to write; fields as in the contract's `Generation`.

    `max_tokens` None: DEFAULT_MAX_TOKENS, or what is left of the context where that is less.
    """

    prompt: Prompt
    constraint: Constraint | None = None
    compile_options: CompileOptions = field(default_factory=CompileOptions)
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    min_tokens: int = 0
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    best_of: int | None = None
    beam: BeamSettings | None = None
    num_top_logprobs: int | None = None
    """Alternatives to tell with each token's log-probability; None tells none at all."""
    heals_prompt: bool = False
    value_events: bool = False
    reasoning: Reasoning | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _invalid("max_tokens", f"is {self.max_tokens}; it must be at least 1")
        if self.constraint is not None:
            _check_constraint(self.constraint)
            for name, ends in (("stop", self.stops), ("stop_token_ids", self.stop_token_ids)):
                if ends:
                    raise _invalid(
                        name, "cannot be combined with `constraint`: the constraint says where a text may end"
                    )
        elif self.compile_options != CompileOptions():
            raise _invalid("compile_options", "say how a constraint is read, and there is no `constraint`")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _invalid("min_tokens", f"is {self.min_tokens}; it must be at most max_tokens, {self.max_tokens}")
        if not 1 <= self.n <= MAX_TEXTS:
            raise _invalid("n", f"is {self.n}; it must be from 1 to {MAX_TEXTS}")
        if self.heals_prompt and not isinstance(self.prompt, TextPrompt):
            raise _invalid("heals_prompt", "is for raw text: send `prompt`")
        if self.value_events and (self.constraint is None or self.constraint.kind != "json_schema"):
            raise _invalid("value_events", "are of JSON texts: send a `constraint.json_schema`")
        if self.reasoning is not None and self.constraint is None:
            raise _invalid("reasoning", "comes before a constrained answer, and there is no `constraint`")
        if self.best_of is not None and not self.n <= self.best_of <= MAX_TEXTS:
            raise _invalid("best_of", f"is {self.best_of}; it must be from n, {self.n}, to {MAX_TEXTS}")
        if self.num_top_logprobs is not None and self.num_top_logprobs > MAX_TOP_LOGPROBS:
            raise _invalid("logprobs.num_top", f"is {self.num_top_logprobs}; at most {MAX_TOP_LOGPROBS} are told")
        _check_stops(self.stops)
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise _invalid(
                "stop_token_ids", f"has {len(self.stop_token_ids)} tokens; at most {MAX_STOP_TOKENS} are taken"
            )
        _check_sampling(self.sampling)
        if self.beam is not None:
            self._check_beam(self.beam)

    @property
    def num_drawn(self) -> int:
        """Texts that are drawn, of which the `n` best are told."""
        return self.best_of or self.n

    @property
    def is_ranked(self) -> bool:
        """Whether the texts are told by rank, at their end."""
        return self.beam is not None or self.num_drawn > self.n

    @property
    def needs_score(self) -> bool:
        """Whether the model is asked what it thinks of the finished text."""
        return self.is_ranked or self.num_top_logprobs is not None

    def check_tokens(self, vocab_size: int) -> None:
        """Raise InvalidRequest when a token that the request names is none of the model's."""
        check_token_ids("stop_token_ids", self.stop_token_ids, vocab_size)
        check_token_ids("sampling.logit_bias", [token_id for token_id, _ in self.sampling.logit_bias], vocab_size)
        if isinstance(self.prompt, TokenPrompt):
            check_token_ids("token_ids.ids", self.prompt.token_ids, vocab_size)

    def _check_beam(self, beam: BeamSettings) -> None:
        if not 1 <= beam.width <= MAX_BEAM_WIDTH:
            raise _invalid("beam.width", f"is {beam.width}; it must be from 1 to {MAX_BEAM_WIDTH}")
        if not -MAX_LENGTH_PENALTY <= beam.length_penalty <= MAX_LENGTH_PENALTY:
            raise _invalid(
                "beam.length_penalty",
                f"is {_shown(beam.length_penalty)}; it must be from {-MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}",
            )
        if self.n > beam.width:
            raise _invalid("n", f"is {self.n}; a beam of width {beam.width} has no more texts than that")
        if self.sampling.temperature > 0:
            raise _invalid("sampling.temperature", "cannot be combined with `beam`, which draws nothing")
        if self.stops:
            raise _invalid("stop", "cannot be combined with `beam`; `stop_token_ids` can")
        if self.best_of is not None:
            raise _invalid("best_of", "cannot be combined with `beam`, which ranks its texts by itself")
        for name, is_set in (("heals_prompt", self.heals_prompt), ("reasoning", self.reasoning is not None)):
            if is_set:
                raise _invalid(name, "cannot be combined with `beam`")


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A text to score: `target`, or the tokens `target_token_ids`."""

    prompt: Prompt
    target: str = ""
    target_token_ids: tuple[int, ...] | None = None
    num_top: int = 0
    with_end: bool = False

    def __post_init__(self) -> None:
        if not self.target and not self.target_token_ids and not self.with_end:
            raise _invalid("text", "has nothing to score: it is empty, and `with_end` is not set")
        if self.num_top > MAX_TOP_LOGPROBS:
            raise _invalid("num_top", f"is {self.num_top}; at most {MAX_TOP_LOGPROBS} are told")


def check_token_ids(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidRequest when a token is none of the model's."""
    for index, token_id in enumerate(token_ids):
        if token_id >= vocab_size:
            raise _invalid(f"{field}[{index}]", f"is {token_id}; the model's tokens go from 0 to {vocab_size - 1}")


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
    if not 0 <= sampling.min_p <= 1:
        raise _invalid("sampling.min_p", f"is {_shown(sampling.min_p)}; it must be from 0 to 1")
    if sampling.top_k < 0:
        raise _invalid("sampling.top_k", f"is {sampling.top_k}; it must be 0 (all) or more")
    if not 0 < sampling.repetition_penalty <= MAX_PENALTY:
        raise _invalid(
            "sampling.repetition_penalty",
            f"is {_shown(sampling.repetition_penalty)}; it must be over 0 and at most {MAX_PENALTY:g}",
        )
    penalties = {"presence_penalty": sampling.presence_penalty, "frequency_penalty": sampling.frequency_penalty}
    penalties |= {f"logit_bias[{token_id}]": value for token_id, value in sampling.logit_bias}
    for name, value in penalties.items():
        if not -MAX_PENALTY <= value <= MAX_PENALTY:
            raise _invalid(
                f"sampling.{name}", f"is {_shown(value)}; it must be from {-MAX_PENALTY:g} to {MAX_PENALTY:g}"
            )
    if len(sampling.logit_bias) > MAX_BIASED_TOKENS:
        raise _invalid(
            "sampling.logit_bias", f"has {len(sampling.logit_bias)} tokens; at most {MAX_BIASED_TOKENS} are taken"
        )
    if not 0 <= sampling.seed <= MAX_SEED:
        raise _invalid("sampling.seed", f"is {sampling.seed}; it must be from 0 to {MAX_SEED}")


def _shown(value: float) -> str:
    return "not a number" if math.isnan(value) else f"{value:g}"


def _invalid(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"`{name}` {message}", field=f"generation.{name}")
