"""What comes before the answer in a text: a piece of the prompt that was taken back, and reasoning.

Both are written by the model under the same constraint as the answer, which stands behind them as the last part of a
sequence; neither is part of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.decode.interfaces import Constraint
from gateway.decode.stop import StopMatcher
from services.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Parted:
    """New text of a generation, by what it is part of."""

    reasoning: str
    answer: str


class Preamble:
    """Parts the text of one generation, as it comes, into what is before the answer and the answer."""

    def __init__(self, *, healed: str = "", reasoning_end: str | None = None) -> None:
        """Expect `healed`, then free text up to the first `reasoning_end` where that is given, then the answer."""
        self._healed = healed
        self._num_healed_left = len(healed)
        self._end = reasoning_end
        self._matcher = StopMatcher(() if reasoning_end is None else (reasoning_end,))
        self.reasoning = ""
        self.answer = ""

    @property
    def is_reasoning(self) -> bool:
        """Whether the reasoning has not ended yet."""
        return self._end is not None and not self._matcher.is_stopped

    def push(self, text: str) -> Parted:
        """Take the next piece of the text. What may become the end of the reasoning is held back."""
        num_healed = min(self._num_healed_left, len(text))
        self._num_healed_left -= num_healed
        reasoning, answer = "", text[num_healed:]
        if self.is_reasoning:
            reasoning = self._matcher.push(answer)
            answer = self._matcher.rest
        self.reasoning += reasoning
        self.answer += answer
        return Parted(reasoning, answer)

    def constraint_behind(self, constraint: Constraint) -> Constraint:
        """Return what the whole text must satisfy, where the answer must satisfy `constraint`."""
        parts = [Constraint("literal", self._healed)] if self._healed else []
        parts += [Constraint("until", self._end)] if self._end is not None else []
        return Constraint("sequence", parts=(*parts, constraint)) if parts else constraint


def taken_back(token_ids: list[int], vocabulary: Vocabulary) -> tuple[list[int], str]:
    """Take the last token off a prompt, and those before it that share a character with it; return its text as well.

    Where that would leave nothing, or the token has no text, the prompt stays as it is.
    """
    for num_taken in range(1, min(4, len(token_ids) - 1) + 1):
        spellings = [vocabulary.token_bytes[token_id] for token_id in token_ids[-num_taken:]]
        if not all(spellings):
            break
        try:
            return token_ids[:-num_taken], b"".join(spelling or b"" for spelling in spellings).decode()
        except UnicodeDecodeError:
            continue
    return token_ids, ""
