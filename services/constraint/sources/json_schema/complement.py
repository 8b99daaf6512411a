"""The values that are not a node's, as a node of the same kind: what makes a `not` a part of the mask.

Only what needs no new kind of node has a complement here. `not` of anything else is left to a check.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.constraint.sources.json_schema.nodes import (
    ANY,
    BOOLEAN,
    EVERY_TYPE,
    NONE,
    NULL,
    AllOf,
    AnyOf,
    AnyValue,
    Array,
    Boolean,
    Constants,
    Json,
    Leaf,
    Members,
    Node,
    Not,
    NoValue,
    Null,
    Number,
    Object,
    Ref,
    String,
)
from services.constraint.sources.json_schema.numeric import Bound

# References that are followed one within another.
_MAX_REFERENCES = 8
# Of the texts that a string must not be, all together.
_MAX_EXCLUDED_CHARACTERS = 2000


def complement(node: Node, targets: Mapping[str, Node], pointer: str, num_references: int = 0) -> Node | None:
    """Return the node of all other values, or None where no node is exactly that.

    `pointer` is that of the keyword which asks for it: what a grammar cannot say of these values is to blame on it.
    """

    def of(part: Node) -> Node | None:
        return complement(part, targets, pointer, num_references)

    match node:
        case AnyValue():
            return NONE
        case NoValue():
            return ANY
        case Not(inner):
            return inner
        case Ref(target):
            if num_references >= _MAX_REFERENCES:
                return None
            return complement(targets[target], targets, pointer, num_references + 1)
        case AnyOf(options):
            found = [of(option) for option in options]
            return None if None in found else AllOf(tuple(part for part in found if part is not None), pointer)
        case AllOf(parts):
            found = [of(part) for part in parts]
            return None if None in found else AnyOf(tuple(part for part in found if part is not None))
        case Null() | Boolean() | Number() | String() | Array() | Object():
            within = _within_type(node, targets, pointer, num_references)
            others = tuple(leaf for leaf in EVERY_TYPE if type(leaf) is not type(node))
            return None if within is None else AnyOf((*others, *within))
        case Constants(values):
            return _but(values, pointer)
    return None


def outside(node: Node, targets: Mapping[str, Node], pointer: str, num_references: int = 0) -> Node:
    """Return a node of all other values, and of few of the node's: none where it has a complement."""
    exact = complement(node, targets, pointer)
    if exact is not None:
        return exact
    match node:
        case Ref(target) if num_references < _MAX_REFERENCES:
            return outside(targets[target], targets, pointer, num_references + 1)
        case AnyOf(options):
            return AllOf(tuple(outside(option, targets, pointer, num_references) for option in options), pointer)
        case AllOf(parts):
            return AnyOf(tuple(outside(part, targets, pointer, num_references) for part in parts))
    return ANY


def _within_type(node: Leaf, targets: Mapping[str, Node], pointer: str, num_references: int) -> tuple[Node, ...] | None:
    """Return the values of a leaf's own type that are not the leaf's."""
    match node:
        case Number():
            if node.is_integer or node.multiples_of:
                return None
            low, high = node.low, node.high
            return (
                *(() if low is None else (Number(high=Bound(low.value, not low.is_exclusive), pointer=pointer),)),
                *(() if high is None else (Number(low=Bound(high.value, not high.is_exclusive), pointer=pointer),)),
            )
        case String():
            if node.formats:
                return None
            return (
                *(() if node.min_length == 0 else (String(max_length=node.min_length - 1, pointer=pointer),)),
                *(() if node.max_length is None else (String(min_length=node.max_length + 1, pointer=pointer),)),
                *(String(patterns=(f"^(?![^]*?(?:{pattern}))",), pointer=pointer) for pattern in node.patterns),
            )
        case Array():
            if node.prefix or not isinstance(node.rest, AnyValue) or node.contains or node.is_unique:
                return None
            return (
                *(() if node.min_items == 0 else (Array(max_items=node.min_items - 1, pointer=pointer),)),
                *(() if node.max_items is None else (Array(min_items=node.max_items + 1, pointer=pointer),)),
            )
        case Object():
            return _objects_but(node, targets, pointer, num_references)
    return ()


def _objects_but(
    node: Object, targets: Mapping[str, Node], pointer: str, num_references: int
) -> tuple[Node, ...] | None:
    if not isinstance(node.names, AnyValue):
        return None
    options: list[Node] = [Object((Members({name: NONE}),), pointer=pointer) for name in sorted(node.required)]
    for members in node.members:
        if members.patterns or not isinstance(members.additional, AnyValue):
            return None
        for name, member in members.properties.items():
            other = complement(member, targets, pointer, num_references)
            if other is None:
                return None
            if not isinstance(other, NoValue):
                options.append(Object((Members({name: other}),), frozenset([name]), pointer=pointer))
    if node.min_properties:
        options.append(Object(max_properties=node.min_properties - 1, pointer=pointer))
    if node.max_properties is not None:
        options.append(Object(min_properties=node.max_properties + 1, pointer=pointer))
    return tuple(options)


def _but(values: tuple[Json, ...], pointer: str) -> Node | None:
    """Return all values but these, where they are strings, true, false and null."""
    if not all(value is None or isinstance(value, str | bool) for value in values):
        return None
    options: list[Node] = [leaf for leaf in EVERY_TYPE if leaf not in (NULL, BOOLEAN) and not isinstance(leaf, String)]
    if None not in values:
        options.append(NULL)
    literals = tuple(value for value in (True, False) if not any(value is other for other in values))
    if literals:
        options.append(Constants(literals))
    texts = [value for value in values if isinstance(value, str)]
    if sum(map(len, texts)) > _MAX_EXCLUDED_CHARACTERS:
        return None
    options.append(
        String(patterns=(f"^(?!(?:{'|'.join(map(_quoted, texts))})$)",), pointer=pointer) if texts else String()
    )
    return AnyOf(tuple(options))


def _quoted(text: str) -> str:
    """Return the ECMA-262 pattern of a text."""
    return "".join(f"\\u{{{ord(character):x}}}" if not character.isalnum() else character for character in text)
