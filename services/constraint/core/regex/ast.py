"""The syntax tree of a regular expression over characters, the same for every dialect.

Greedy and lazy, capturing or not: none of it matters to what is matched, so the tree does not have it.
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
    """`body` from `minimum` to `maximum` times (None: no bound)."""

    body: Node
    minimum: int
    maximum: int | None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The start or the end of the text; `position` is its place in the pattern, for messages."""

    kind: Literal["start", "end"]
    position: int


Node: TypeAlias = Characters | Concatenation | Choice | Repetition | Anchor

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
    """Return any one of the options, single characters joined into one set where they all are."""
    return options[0] if len(options) == 1 else Choice(tuple(options))
