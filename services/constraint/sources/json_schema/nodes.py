"""What a schema says, as a small closed set of node types.

Nodes are compared by identity, so that shared ones stay shared.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """A number within bounds that is a multiple of `multiple_of`, where there is one. `pointer` is for messages."""

    is_integer: bool = False
    low: Bound | None = None
    high: Bound | None = None
    multiple_of: Decimal | None = None
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
class Array:
    """A list: the first values by `prefix`, the others by `rest`."""

    prefix: tuple[Node, ...] = ()
    rest: Node = AnyValue()
    min_items: int = 0
    max_items: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Object:
    """An object: declared properties in the order in which they are written, then additional ones."""

    properties: dict[str, Node]
    required: frozenset[str]
    additional: Node
    min_properties: int = 0
    max_properties: int | None = None
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
    """A value of exactly one option; only options that exclude each other can be lowered."""

    options: tuple[Node, ...]
    pointer: str


@dataclass(frozen=True, slots=True, eq=False)
class AllOf:
    """A value of every part."""

    parts: tuple[Node, ...]
    pointer: str


@dataclass(frozen=True, slots=True, eq=False)
class Ref:
    """The node of the schema at a JSON Pointer."""

    target: str


Node: TypeAlias = (
    AnyValue | NoValue | Null | Boolean | Number | String | Array | Object | Constants | AnyOf | OneOf | AllOf | Ref
)
# The nodes that say something of one type, or list values.
Leaf: TypeAlias = Null | Boolean | Number | String | Array | Object | Constants

ANY = AnyValue()
NONE = NoValue()
NULL = Null()
BOOLEAN = Boolean()
NUMBER = Number()
INTEGER = Number(is_integer=True)
STRING = String()
ARRAY = Array()
OBJECT = Object({}, frozenset(), ANY)
EVERY_TYPE: tuple[Leaf, ...] = (NULL, BOOLEAN, NUMBER, STRING, ARRAY, OBJECT)
