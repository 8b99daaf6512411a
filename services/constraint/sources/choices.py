"""Choices: the answer is one of a list of texts."""

from __future__ import annotations

from services.constraint.core.grammar import Grammar, Literals
from services.constraint.sources.source import BuiltSource
from services.rpckit.status import GrammarTooLarge, InvalidRequest

# Together; a million bytes of prefix tree take a few seconds to compile.
MAX_CHOICES_BYTES = 1_000_000


def build(choices: tuple[str, ...]) -> BuiltSource:
    """Return the grammar of the choices; a text may be the beginning of another, and one that occurs twice counts once.

    Raises:
        InvalidRequest: there is none, or one is empty or has a lone surrogate.
        GrammarTooLarge: more than MAX_CHOICES_BYTES.
    """
    if not choices:
        raise InvalidRequest("choices needs at least one text", field="choices.values")
    values = []
    for index, choice in enumerate(dict.fromkeys(choices)):
        if not choice:
            raise InvalidRequest("a choice must not be empty", field=f"choices.values[{index}]")
        try:
            values.append(choice.encode())
        except UnicodeEncodeError:
            raise InvalidRequest(
                f"choice {choice!r} has a lone surrogate, which is not a character", field=f"choices.values[{index}]"
            ) from None
    size = sum(map(len, values))
    if size > MAX_CHOICES_BYTES:
        raise GrammarTooLarge(
            f"the choices have {size} bytes; the limit max_choices_bytes is {MAX_CHOICES_BYTES}",
            limit="max_choices_bytes",
            value=MAX_CHOICES_BYTES,
        )
    return BuiltSource(Grammar("start", {"start": Literals(tuple(values))}))
