"""The one grammar form that every source lowers into: named rules over expressions on bytes.

An expression is a small tree of frozen values. `Bytes`, `ByteRange` and `Automaton` match bytes; `Sequence`,
`Alternation` and `Repeat` combine; `Reference` calls a rule, which is where recursion and sharing live. Rules may be
left-recursive, nullable, ambiguous or unproductive: the lowering (`lowering.py`) takes care of it. Expressions may be
shared freely; to share the *automaton* of a large one, make it a rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Bytes:
    """Exactly these bytes; empty matches the empty text."""

    value: bytes


@dataclass(frozen=True, slots=True)
class ByteRange:
    """One byte from `low` to `high`, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Literals:
    """Any one of many byte strings: what an `enum` or a choice becomes. One prefix tree, however many there are."""

    values: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Automaton:
    """A finite automaton over bytes, nondeterministic or not, as a regex front end makes it.

    States are numbered from 0; `edges` are (source, low byte, high byte, target). Without accepting states it matches
    nothing. `bases` are (state, another one that goes on in the same way but for a few texts): they change nothing of
    what is matched and make masks cheap where the other state's are.
    """

    start: int
    accepting: tuple[int, ...]
    edges: tuple[tuple[int, int, int, int], ...]
    epsilons: tuple[tuple[int, int], ...] = ()
    bases: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Sequence:
    """The parts one after the other; empty matches the empty text."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Alternation:
    """Any one of the options; without options it matches nothing."""

    options: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`body` from `minimum` to `maximum` times (None: no bound). Cheap for any count."""

    body: Expression
    minimum: int
    maximum: int | None


@dataclass(frozen=True, slots=True)
class Reference:
    """A call of the rule of this name."""

    rule: str


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """A text of another grammar, whose rules have names of their own."""

    grammar: Grammar


@dataclass(frozen=True, slots=True)
class Hole:
    """A text that something else than the grammar sees to (`holes.py`): the hole's number, and its fewest bytes."""

    number: int
    min_bytes: int


Expression: TypeAlias = (
    Bytes | ByteRange | Literals | Automaton | Sequence | Alternation | Repeat | Reference | Nested | Hole
)

EMPTY = Bytes(b"")
NOTHING = Alternation(())


def optional(body: Expression) -> Expression:
    """Return `body` or the empty text."""
    return Repeat(body, 0, 1)


@dataclass(slots=True)
class Grammar:
    """Rules by name and the name of the one that a text must match.

    A source fills `rules` and gives the grammar to `lowering.lower`. A rule may be referred to before it is defined.
    `lexemes` are rules without calls that other grammars are likely to have as well, such as numbers, names and
    keywords: what a vocabulary's tokens do in them is worked out once for all of these grammars (`lexemes.py`).
    """

    start: str
    rules: dict[str, Expression] = field(default_factory=dict)
    lexemes: frozenset[str] = frozenset()
