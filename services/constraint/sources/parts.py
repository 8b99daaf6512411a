"""Constraints made of others: one after another, any one of several, text up to a delimiter, special tokens.

The grammars of all parts become one, so that masks are as exact as those of a single grammar and tokens may lie across
the border of two parts. Two kinds of parts stay out of it and leave a *hole* (`core/holes.py`): special tokens, which
have no text, and JSON Schemas that need checks beside the mask. Each of these has a matcher of its own, and begins and
ends where tokens do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from services.constraint.core.grammar import Alternation, Automaton, Bytes, Expression, Hole, Nested, Sequence
from services.constraint.core.holes import MAX_HOLES
from services.constraint.core.regex import automaton, encoding
from services.constraint.core.regex.parse import parse
from services.constraint.sources.source import BuiltSource, ConstraintSource, KeywordReport
from services.rpckit.status import GrammarTooLarge, InvalidRequest, ServiceError

# Its automaton takes the square of it.
MAX_DELIMITER_CHARACTERS: Final = 1_000
# The fewest bytes of a JSON text.
_MIN_JSON_BYTES: Final = 1


class Parts:
    """The parts of one constraint: the expression of each, the holes and the keyword reports of all."""

    def __init__(self, build: Callable[[ConstraintSource, Parts, str], BuiltSource]) -> None:
        """`build` builds a part of one of the simple kinds, which stands at a JSON Pointer."""
        self._build = build
        self._holes: dict[ConstraintSource, int] = {}
        self.keywords: list[KeywordReport] = []

    @property
    def holes(self) -> tuple[ConstraintSource, ...]:
        """What stands in each hole, by its number."""
        return tuple(self._holes)

    def expression(self, source: ConstraintSource, pointer: str = "") -> Expression:
        """Return the texts of a part. `pointer` is the JSON Pointer of where the part stands.

        Raises:
            ServiceError: as `build` does; the message and the metadata say in which part.
        """
        match source.kind:
            case "sequence" | "any_of":
                if not source.parts:
                    raise InvalidRequest(f"{source.kind} needs at least one part", field=f"{source.kind}.parts")
                parts = [self.expression(part, f"{pointer}/{source.kind}/{i}") for i, part in enumerate(source.parts)]
                return Sequence(tuple(parts)) if source.kind == "sequence" else Alternation(tuple(parts))
            case "special_token":
                return self._hole(source, len(_text_of(source).encode()))
            case "until":
                return until(_text_of(source))
            case "literal":
                return Bytes(_text_of(source).encode())
        try:
            built = self._build(source, self, pointer)
        except ServiceError as error:
            if pointer and "part" not in error.metadata:
                error.metadata["part"] = pointer
                error.message = f"part {pointer}: {error.message}"
                error.args = (error.message,)
            raise
        self.keywords += (replace(line, pointer=pointer + line.pointer) for line in built.keywords)
        return Nested(built.grammar) if built.inexact is None else self._hole(source, _MIN_JSON_BYTES)

    def _hole(self, source: ConstraintSource, min_bytes: int) -> Hole:
        number = self._holes.setdefault(source, len(self._holes))
        if number >= MAX_HOLES:
            raise GrammarTooLarge(
                f"the constraint has more than {MAX_HOLES} parts that are special tokens or schemas with checks "
                "(limit max_holes)",
                limit="max_holes",
                value=MAX_HOLES,
            )
        return Hole(number, min_bytes)


def until(delimiter: str) -> Expression:
    """Return the texts that end with a delimiter and have it nowhere else.

    Raises:
        GrammarTooLarge: more than MAX_DELIMITER_CHARACTERS.
    """
    if len(delimiter) > MAX_DELIMITER_CHARACTERS:
        raise GrammarTooLarge(
            f"the delimiter has {len(delimiter)} characters; the limit max_delimiter_characters is "
            f"{MAX_DELIMITER_CHARACTERS}",
            limit="max_delimiter_characters",
            value=MAX_DELIMITER_CHARACTERS,
        )
    # As `re` matches it: it stops at the first delimiter that it comes to.
    first = automaton.to_early_dfa(parse(f"(?s:.*?){re.escape(delimiter)}", "python"))
    expression = first.to_automaton(encoding.utf8)
    assert isinstance(expression, Automaton)
    return expression


def _text_of(source: ConstraintSource) -> str:
    if not source.text:
        raise InvalidRequest(f"{source.kind} needs a text that is not empty", field=source.kind)
    try:
        source.text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{source.kind} has a lone surrogate, which is no character", field=source.kind) from None
    return source.text
