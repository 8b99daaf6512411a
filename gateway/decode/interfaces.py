"""What the decode loop needs of the other two services, in plain types. `gateway/clients` speaks gRPC behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens to append to a sequence of the worker, which answers with the logits behind the last of them, or all.

    `position` is the number of tokens in the sequence before; 0 creates it. `truncate_to`, where given, equals
    `position` and cuts off what is there already. `fork_of` creates the sequence with the first `position` tokens of
    that one.
    """

    sequence_id: str
    position: int
    token_ids: tuple[int, ...]
    truncate_to: int | None = None
    fork_of: str | None = None
    wants_all_rows: bool = False


@dataclass(frozen=True, slots=True)
class StepReply:
    """What one step gave: `rows` is `(R, V)` float32, read-only; R is 1, or the number of its tokens."""

    rows: Logits
    forward_us: int

    @property
    def logits(self) -> Logits:
        """`(V,)`, behind the last token."""
        last: Logits = self.rows[-1]
        return last


class StepStream(Protocol):
    """Steps of one generation, many in flight; those of one sequence are applied in the order of submitting."""

    def submit(self, step: Step) -> asyncio.Future[StepReply]:
        """Send a step without waiting; the future fails with a ServiceError."""
        ...

    async def release(self, sequence_ids: Sequence[str]) -> None:
        """Free sequences; raises nothing, because a lease frees them too."""
        ...


@dataclass(frozen=True, slots=True)
class MatcherState:
    """A state of the constraint service: a value, opaque here."""

    epoch: int
    configuration_id: int
    is_terminated: bool = False


@dataclass(frozen=True, slots=True)
class Guidance:
    """A state and what may follow it. All fields but the first two speak of `after_forced`, the state behind them."""

    state: MatcherState
    forced_token_ids: tuple[int, ...]
    after_forced: MatcherState
    bitmask: npt.NDArray[np.int32]
    num_allowed: int
    is_accepting: bool
    witness_num_tokens: int
    witness_token_id: int | None
    mask_us: int = 0
    is_settled: bool = True
    """Whether nothing written so far will ever have to be taken back."""

    @property
    def is_dead_end(self) -> bool:
        """Whether no text goes on from `after_forced`: all that the mask would allow, a check refused."""
        return self.num_allowed == 0 and not self.is_accepting

    @property
    def num_needed(self) -> int:
        """Tokens from `state` to the end of one complete text: the forced ones and the witness.

        Where a check refuses the end, the grammar's witness may have no token, and the text one at least.
        """
        return len(self.forced_token_ids) + max(self.witness_num_tokens, not self.is_accepting)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a text must satisfy; kinds as in the contract's `Constraint`.

    `text` is the source, or a name; `choices` only for that kind, `parts` for those that are made of others.
    """

    kind: Literal[
        "json_schema",
        "lark",
        "regex",
        "choices",
        "grammar_name",
        "literal",
        "until",
        "special_token",
        "sequence",
        "any_of",
    ]
    text: str = ""
    choices: tuple[str, ...] = ()
    parts: tuple[Constraint, ...] = ()


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How a constraint is read; fields and words as in the contract's `CompileOptions`, with their defaults."""

    whitespace: Literal["bounded", "compact", "spaced", "pretty", "pattern"] = "bounded"
    forcing: Literal["canonical", "off"] = "canonical"
    whitespace_pattern: str = ""
    property_order: Literal["schema", "any"] = "schema"
    format: Literal["assert", "annotation"] = "assert"
    unknown_formats: Literal["annotation", "error"] = "annotation"
    integers: Literal["any", "plain"] = "any"
    escapes: Literal["any", "plain"] = "any"
    default_draft: Literal[4, 6, 7, 2019, 2020] = 2020
    documents: tuple[tuple[str, str], ...] = ()
    lexer: Literal["dynamic_complete", "contextual"] = "dynamic_complete"


@dataclass(frozen=True, slots=True)
class KeywordReport:
    """One keyword of a schema and how it is honoured."""

    pointer: str
    keyword: str
    enforcement: Literal["masked", "checked", "annotation"]
    note: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled constraint and what may come first."""

    grammar_id: str
    start: Guidance
    keywords: tuple[KeywordReport, ...]
    compile_us: int


@dataclass(frozen=True, slots=True)
class Violation:
    """One reason why a text does not satisfy a constraint. Only the place in the source: the text is not quoted."""

    schema_pointer: str


class ConstraintStream(Protocol):
    """The calls of one generation to the constraint service. Every method raises ServiceError."""

    async def compile(self, constraint: Constraint, options: CompileOptions) -> Compiled:
        """Compile a constraint, or find it compiled."""
        ...

    def advance(
        self, grammar_id: str, state: MatcherState | None, token_ids: Sequence[int]
    ) -> asyncio.Future[Guidance]:
        """Take tokens from a state, or from the start, without waiting."""
        ...

    async def validate(self, constraint: Constraint, options: CompileOptions, text: bytes) -> Sequence[Violation]:
        """Judge a finished text by the independent validator; nothing means that it is valid."""
        ...
