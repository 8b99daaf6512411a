"""What is extracted from documents, as plain values in range: making one with a bad value raises InvalidRequest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gateway.decode.beam import BeamSettings
from gateway.decode.interfaces import CompileOptions, Constraint
from gateway.decode.sampler import Sampling
from gateway.request import GenerationRequest, Prompt, TextPrompt
from services.rpckit.status import InvalidRequest

MAX_EXAMPLES: Final = 16
DEFAULT_INSTRUCTIONS: Final = "Write what the document says as a JSON object."
_ONE_LINE: Final = CompileOptions(whitespace="spaced")


@dataclass(frozen=True, slots=True)
class Document:
    """A text by a name."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """A document's text with its record, as JSON text."""

    text: str
    record: str


@dataclass(frozen=True, slots=True)
class Extraction:
    """What to extract from each document, and how; fields as in the contract's message of this name."""

    json_schema: str
    compile_options: CompileOptions = _ONE_LINE
    instructions: str = DEFAULT_INSTRUCTIONS
    examples: tuple[Example, ...] = ()
    shows_schema: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    beam: BeamSettings | None = None
    max_tokens: int | None = None
    timeout_s: float | None = None
    provenance: bool = False
    exact_scores: bool = False

    def __post_init__(self) -> None:
        if len(self.examples) > MAX_EXAMPLES:
            raise _invalid("examples", f"has {len(self.examples)} examples; at most {MAX_EXAMPLES} are taken")
        for index, example in enumerate(self.examples):
            for name in ("text", "record"):
                if not getattr(example, name):
                    raise _invalid(f"examples[{index}].{name}", "must not be empty")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise _invalid("timeout_ms", "is 0; it must be at least 1")
        self.generation(TextPrompt("any"))

    def generation(self, prompt: Prompt) -> GenerationRequest:
        """Return the request of one document's record.

        Raises:
            InvalidRequest: a value is out of range.
        """
        # A beam draws nothing of which something could be known by the way, and scores its texts by itself.
        is_scored = self.exact_scores or self.beam is not None
        return GenerationRequest(
            prompt=prompt,
            constraint=Constraint("json_schema", self.json_schema),
            compile_options=self.compile_options,
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            beam=self.beam,
            num_top_logprobs=0 if is_scored else None,
        )


def _invalid(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"`{name}` {message}", field=f"extraction.{name}")
