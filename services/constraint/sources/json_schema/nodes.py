"""What a schema says, as a small closed set of node types.

Nodes are compared by identity, so that shared ones stay shared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeAlias

from services.constraint.sources.json_schema.numeric import Bound

# A JSON value as the schema text has it: numbers with a point or an exponent are Decimals.
Json: TypeAlias = "bool | int | Decimal | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True, eq=False)
class AnyValue:
    """Every JSON value."""


@dataclass(frozen=True, slots=True, eq=False)
class NoValue:
    """None."""


@dataclass(frozen=True, slots=True, eq=False)
class Null:
    """`null`."""


@dataclass(frozen=True, slots=True, eq=False)
class Boolean:
    """`true` or `false`."""


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """A number within bounds that is a multiple of each of `multiples_of`. `pointer` is the schema's, for messages.

    An integer that `is_plain` is one only in digits alone: 1.0 is none in draft 4.
    """

    is_integer: bool = False
    low: Bound | None = None
    high: Bound | None = None
    multiples_of: tuple[Decimal, ...] = ()
    is_plain: bool = False
    pointer: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class String:
    """A string by its number of code points, by patterns that are found in it and formats that it has."""

    min_length: int = 0
    max_length: int | None = None
    patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    pointer: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Contains:
    """How many values of a list are a node's."""

    node: Node
    minimum: int
    maximum: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """A list: the first values by `prefix`, the others by `rest`.

    `evaluates_rest` and `evaluates_contained` tell whether `unevaluatedItems` takes the others, and the contained ones,
    for evaluated.
    """

    prefix: tuple[Node, ...] = ()
    rest: Node = AnyValue()
    min_items: int = 0
    max_items: int | None = None
    contains: tuple[Contains, ...] = ()
    is_unique: bool = False
    evaluates_rest: bool = False
    evaluates_contained: bool = False
    pointer: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """What one schema says of an object's members.

    Each is by its name in `properties` and by all `patterns` that are found in its name; what neither has is by
    `additional`. `evaluates_rest` tells whether `unevaluatedProperties` takes those for evaluated.
    """

    properties: dict[str, Node] = field(default_factory=dict)
    additional: Node = AnyValue()
    patterns: tuple[tuple[str, Node], ...] = ()
    evaluates_rest: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Object:
    """An object: what each of several schemas says of its members, which must be there, how many there are.

    The names themselves are by `names`.
    """

    members: tuple[Members, ...] = ()
    required: frozenset[str] = frozenset()
    min_properties: int = 0
    max_properties: int | None = None
    names: Node = AnyValue()
    pointer: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """One of these values."""

    values: tuple[Json, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AnyOf:
    """A value of at least one option."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class OneOf:
    """A value of exactly one option. `pointer` is the keyword's."""

    options: tuple[Node, ...]
    pointer: str


@dataclass(frozen=True, slots=True, eq=False)
class AllOf:
    """A value of every part. `pointer` is that of the schema, and `/*`: all keywords in it together."""

    parts: tuple[Node, ...]
    pointer: str


@dataclass(frozen=True, slots=True, eq=False)
class Not:
    """Every value but those of a node. `pointer` is the keyword's."""

    node: Node
    pointer: str


@dataclass(frozen=True, slots=True, eq=False)
class Conditional:
    """A value of `then` where it is one of `condition`, else one of `otherwise`. `pointer` is the keyword's."""

    condition: Node
    then: Node
    otherwise: Node
    pointer: str


@dataclass(frozen=True, slots=True, eq=False)
class Unevaluated:
    """A value of `node` whose members and items that no part of `node` has looked at are by `members` and `items`.

    `pointer` is the schema's.
    """

    node: Node
    members: Node | None
    items: Node | None
    pointer: str


@dataclass(frozen=True, slots=True, eq=False)
class Ref:
    """The node of the schema at a place (see `document.py`)."""

    target: str


# What combines other nodes.
Compound: TypeAlias = AnyOf | OneOf | AllOf | Not | Conditional | Unevaluated | Ref
# The nodes that say something of one type, or list values.
Leaf: TypeAlias = Null | Boolean | Number | String | Array | Object | Constants
Node: TypeAlias = AnyValue | NoValue | Leaf | Compound

ANY = AnyValue()
NONE = NoValue()
NULL = Null()
BOOLEAN = Boolean()
NUMBER = Number()
INTEGER = Number(is_integer=True)
PLAIN_INTEGER = Number(is_integer=True, is_plain=True)
STRING = String()
ARRAY = Array()
OBJECT = Object()
EVERY_TYPE: tuple[Leaf, ...] = (NULL, BOOLEAN, NUMBER, STRING, ARRAY, OBJECT)
