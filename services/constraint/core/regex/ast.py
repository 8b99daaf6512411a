"""The syntax tree of a regular expression over characters, the same for every dialect.

Capturing or not does not matter to what is matched, so the tree does not have it. The order of options and laziness
matter only where a match may stop early (Lark's terminals); a full match tries everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.constraint.core.regex.charset import Ranges


@dataclass(frozen=True, slots=True)
class Characters:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Concatenation:
    """The parts one after the other; empty matches the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Any one of the options; without options it matches nothing."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repetition:
    """`body` from `minimum` to `maximum` times (None: no bound); a lazy one tries few before many."""

    body: Node
    minimum: int
    maximum: int | None
    is_lazy: bool = False


@dataclass(frozen=True, slots=True)
class Anchor:
    """The start or the end of the text; `position` is its place in the pattern, for messages.

    "last line" is Python's `$`: the end, or before a line feed that is the last character.
    """

    kind: Literal["start", "end", "last line"]
    position: int

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return "^" if self.kind == "start" else "$"


@dataclass(frozen=True, slots=True)
class Look:
    """The empty text at a place behind which (`is_ahead`) or before which `body` matches, or does not (`is_negated`).

    Word boundaries, and anchors that know lines, are made of these; `name` is what messages call them.
    """

    body: Node
    is_ahead: bool
    is_negated: bool
    name: str
    position: int


Node: TypeAlias = Characters | Concatenation | Choice | Repetition | Anchor | Look

EMPTY = Concatenation(())


def concatenation(parts: list[Node]) -> Node:
    """Return the parts one after the other, without needless nesting."""
    flat: list[Node] = []
    for part in parts:
        if isinstance(part, Concatenation):
            flat.extend(part.parts)
        else:
            flat.append(part)
    return flat[0] if len(flat) == 1 else Concatenation(tuple(flat))


def choice(options: list[Node]) -> Node:
    """Return any one of the options, without needless nesting."""
    return options[0] if len(options) == 1 else Choice(tuple(options))
