"""Merges the parts of `allOf` and of keywords that stand beside each other, and proves the options of `oneOf` disjoint.

A node is first spread into *leaves*, one type each; two nodes' values in common are then those that pairs of leaves
have in common. Values within values stay unmerged until they are asked for, and one combination of nodes is one node,
so that recursive schemas merge into recursive ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from math import lcm

from services.constraint.sources.json_schema.nodes import (
    ANY,
    EVERY_TYPE,
    NONE,
    AllOf,
    AnyOf,
    AnyValue,
    Array,
    Boolean,
    Constants,
    Json,
    Leaf,
    Node,
    NoValue,
    Null,
    Number,
    Object,
    OneOf,
    Ref,
    String,
)
from services.constraint.sources.json_schema.numeric import Bound
from services.constraint.sources.json_schema.strings import matches
from services.rpckit.status import GrammarTooLarge, UnsupportedConstruct

# Pairs of leaves that one combination may give; each costs about 5 us.
MAX_LEAVES = 512
# How deep values within values are looked at to prove that two objects have nothing in common.
_MAX_PROOF_DEPTH = 3


class Combiner:
    """Merges nodes; `targets` are the nodes that references name."""

    def __init__(self, targets: Mapping[str, Node]) -> None:
        self._targets = targets
        self._combined: dict[tuple[int, ...], Node] = {}
        self._leaves: dict[int, tuple[Leaf | AnyValue, ...]] = {}
        self._kept: list[Node] = []  # ids are keys, so what they name must live

    def leaves(self, node: Node) -> tuple[Leaf | AnyValue, ...]:
        """Return leaves that together have exactly the node's values.

        Raises:
            UnsupportedConstruct: a `oneOf` whose options may overlap.
            GrammarTooLarge: more than MAX_LEAVES.
        """
        return self._spread(node, ())

    def _spread(self, node: Node, within: tuple[str, ...]) -> tuple[Leaf | AnyValue, ...]:
        if not isinstance(node, AnyOf | OneOf | AllOf | Ref):
            return () if isinstance(node, NoValue) else (node,)
        known = self._leaves.get(id(node))
        if known is not None:
            return known
        result: tuple[Leaf | AnyValue, ...]
        if isinstance(node, Ref):
            # A definition that is itself without anything around it has no value of its own: the least fixed point.
            result = () if node.target in within else self._spread(self._targets[node.target], (*within, node.target))
        elif isinstance(node, AllOf):
            result = (ANY,)
            for part in node.parts:
                result = self._common_leaves(result, self._spread(part, within), node.pointer)
        else:
            if isinstance(node, OneOf):
                self.check_disjoint(node)
            result = tuple(leaf for option in node.options for leaf in self._spread(option, within))
            if any(isinstance(leaf, AnyValue) for leaf in result):
                result = (ANY,)
        if not within:
            self._leaves[id(node)] = result
            self._kept.append(node)
        return result

    def _common_leaves(
        self, left: tuple[Leaf | AnyValue, ...], right: tuple[Leaf | AnyValue, ...], pointer: str
    ) -> tuple[Leaf | AnyValue, ...]:
        if len(left) * len(right) > MAX_LEAVES:
            raise GrammarTooLarge(
                f"{pointer or 'the schema'}: combining its parts gives more than {MAX_LEAVES} cases "
                "(limit max_combined_cases); "
                "write the cases out, or split the schema",
                limit="max_combined_cases",
                value=MAX_LEAVES,
                pointer=pointer,
            )
        return tuple(leaf for a in left for b in right for leaf in self._common(a, b))

    def check_disjoint(self, node: OneOf) -> None:
        """Raise UnsupportedConstruct unless no two options of a `oneOf` have a value in common."""
        spread = [self.leaves(option) for option in node.options]
        for i, left in enumerate(spread):
            for j in range(i + 1, len(spread)):
                if any(not self._is_empty(leaf, 0) for a in left for b in spread[j] for leaf in self._common(a, b)):
                    raise UnsupportedConstruct(
                        f"{node.pointer}: options {i} and {j} may both hold for one value, and oneOf "
                        "is enforced only where no two can; "
                        "use anyOf, or tell them apart by type, or by a required property with a const in each",
                        name="oneOf",
                        keyword="oneOf",
                        pointer=node.pointer,
                    )

    def all_of(self, *nodes: Node) -> Node:
        """Return the node of the values that all have; the same nodes give the same node."""
        parts: dict[int, Node] = {}
        for node in nodes:
            for part in self._parts(node):
                parts[id(part)] = part
        if any(isinstance(part, NoValue) for part in parts.values()):
            return NONE
        if not parts:
            return ANY
        if len(parts) == 1:
            return next(iter(parts.values()))
        key = tuple(sorted(parts))
        combined = self._combined.get(key)
        if combined is None:
            combined = self._combined[key] = AllOf(tuple(parts.values()), "")
        return combined

    def _parts(self, node: Node) -> Iterator[Node]:
        for _ in range(len(self._targets) + 1):
            if not isinstance(node, Ref):
                break
            node = self._targets[node.target]
        if isinstance(node, AllOf):
            for part in node.parts:
                yield from self._parts(part)
        elif not isinstance(node, AnyValue):
            yield node

    def _common(self, a: Leaf | AnyValue, b: Leaf | AnyValue) -> tuple[Leaf | AnyValue, ...]:
        """Return the values that two leaves have in common: one leaf, or none."""
        if isinstance(a, AnyValue):
            return (b,)
        if isinstance(b, AnyValue) or a is b:
            return (a,)
        result: Leaf
        if isinstance(a, Constants) or isinstance(b, Constants):
            constants, other = (a, b) if isinstance(a, Constants) else (b, a)
            assert isinstance(constants, Constants)
            result = Constants(tuple(value for value in constants.values if self.accepts(other, value)))
        elif isinstance(a, Number) and isinstance(b, Number):
            result = _common_number(a, b)
        elif isinstance(a, String) and isinstance(b, String):
            result = String(
                max(a.min_length, b.min_length),
                _least(a.max_length, b.max_length),
                tuple(dict.fromkeys((*a.patterns, *b.patterns))),
                tuple(dict.fromkeys((*a.formats, *b.formats))),
                a.pointer,
            )
        elif isinstance(a, Array) and isinstance(b, Array):
            result = self._common_array(a, b)
        elif isinstance(a, Object) and isinstance(b, Object):
            result = self._common_object(a, b)
        elif type(a) is type(b):
            result = a
        else:
            return ()
        return () if _is_plainly_empty(result) else (result,)

    def _common_array(self, a: Array, b: Array) -> Array:
        length = max(len(a.prefix), len(b.prefix))
        prefix = tuple(
            self.all_of(a.prefix[i] if i < len(a.prefix) else a.rest, b.prefix[i] if i < len(b.prefix) else b.rest)
            for i in range(length)
        )
        return Array(
            prefix, self.all_of(a.rest, b.rest), max(a.min_items, b.min_items), _least(a.max_items, b.max_items)
        )

    def _common_object(self, a: Object, b: Object) -> Object:
        properties = {
            name: self.all_of(a.properties.get(name, a.additional), b.properties.get(name, b.additional))
            for name in dict.fromkeys((*a.properties, *b.properties))
        }
        return Object(
            properties,
            a.required | b.required,
            self.all_of(a.additional, b.additional),
            max(a.min_properties, b.min_properties),
            _least(a.max_properties, b.max_properties),
            a.pointer,
        )

    def _is_empty(self, leaf: Leaf | AnyValue, depth: int) -> bool:
        """Tell whether a leaf provably has no value; False means only that no proof was found."""
        if isinstance(leaf, AnyValue):
            return False
        if _is_plainly_empty(leaf):
            return True
        if depth >= _MAX_PROOF_DEPTH:
            return False
        inner: list[Node] = []
        if isinstance(leaf, Object):
            inner = [leaf.properties[name] for name in leaf.required]
        elif isinstance(leaf, Array):
            inner = [
                leaf.prefix[i] if i < len(leaf.prefix) else leaf.rest
                for i in range(min(leaf.min_items, len(leaf.prefix) + 1))
            ]
        return any(all(self._is_empty(part, depth + 1) for part in self.leaves(node)) for node in inner)

    def accepts(self, node: Node, value: Json) -> bool:
        """Tell whether a value is one of the node's."""
        match node:
            case AnyValue():
                return True
            case NoValue():
                return False
            case AnyOf() | OneOf() | AllOf() | Ref():
                return any(self.accepts(leaf, value) for leaf in self.leaves(node))
            case Null():
                return value is None
            case Boolean():
                return isinstance(value, bool)
            case Number():
                return isinstance(value, int | Decimal) and not isinstance(value, bool) and _is_within(node, value)
            case String():
                return isinstance(value, str) and matches(node, value)
            case Constants(values):
                wanted = identity(value)
                return any(identity(other) == wanted for other in values)
            case Array():
                return isinstance(value, list) and self._accepts_list(node, value)
            case Object():
                return isinstance(value, dict) and self._accepts_dict(node, value)

    def _accepts_list(self, node: Array, value: list[Json]) -> bool:
        if len(value) < node.min_items or (node.max_items is not None and len(value) > node.max_items):
            return False
        return all(
            self.accepts(node.prefix[i] if i < len(node.prefix) else node.rest, item) for i, item in enumerate(value)
        )

    def _accepts_dict(self, node: Object, value: dict[str, Json]) -> bool:
        if len(value) < node.min_properties or (node.max_properties is not None and len(value) > node.max_properties):
            return False
        if not node.required <= value.keys():
            return False
        return all(self.accepts(node.properties.get(name, node.additional), member) for name, member in value.items())


def identity(value: Json) -> object:
    """Return something that is equal for equal JSON values.

    1 and 1.0 are, 1 and true are not, and the order of keys does not matter.
    """
    if isinstance(value, bool) or value is None:
        return ("literal", value)
    if isinstance(value, list):
        return ("list", tuple(map(identity, value)))
    if isinstance(value, dict):
        return ("object", frozenset((key, identity(member)) for key, member in value.items()))
    return value


def _is_plainly_empty(leaf: Leaf) -> bool:
    match leaf:
        case Constants(values):
            return not values
        case Number(_, low, high):
            return (
                low is not None
                and high is not None
                and (low.value > high.value or (low.value == high.value and (low.is_exclusive or high.is_exclusive)))
            )
        case String(low_length, high_length):
            return high_length is not None and low_length > high_length
        case Array():
            return leaf.max_items is not None and leaf.min_items > leaf.max_items
        case Object():
            if leaf.max_properties is not None and max(leaf.min_properties, len(leaf.required)) > leaf.max_properties:
                return True
            return any(isinstance(leaf.properties[name], NoValue) for name in leaf.required)
    return False


def _common_number(a: Number, b: Number) -> Number:
    multiple_of = a.multiple_of if b.multiple_of is None else b.multiple_of
    if a.multiple_of is not None and b.multiple_of is not None and a.multiple_of != b.multiple_of:
        if a.multiple_of != int(a.multiple_of) or b.multiple_of != int(b.multiple_of):
            raise UnsupportedConstruct(
                f"{a.pointer}: two values of multipleOf for one number are enforced only where both are whole",
                name="multipleOf",
                keyword="multipleOf",
                pointer=f"{a.pointer}/multipleOf",
            )
        multiple_of = Decimal(lcm(int(a.multiple_of), int(b.multiple_of)))
    return Number(
        a.is_integer or b.is_integer, _tighter(a.low, b.low, 1), _tighter(a.high, b.high, -1), multiple_of, a.pointer
    )


def _tighter(a: Bound | None, b: Bound | None, sign: int) -> Bound | None:
    if a is None or b is None:
        return a or b
    if a.value == b.value:
        return a if a.is_exclusive else b
    return a if (a.value > b.value) == (sign > 0) else b


def _is_within(node: Number, value: int | Decimal) -> bool:
    if node.is_integer and isinstance(value, Decimal) and value != value.to_integral_value():
        return False
    if node.low is not None and (value < node.low.value or (node.low.is_exclusive and value == node.low.value)):
        return False
    if node.high is not None and (value > node.high.value or (node.high.is_exclusive and value == node.high.value)):
        return False
    return node.multiple_of is None or is_multiple(value, node.multiple_of)


def is_multiple(value: int | Decimal, divisor: Decimal) -> bool:
    """Tell whether a number is a multiple of another, exactly."""
    (top, bottom), (divisor_top, divisor_bottom) = Decimal(value).as_integer_ratio(), divisor.as_integer_ratio()
    return (top * divisor_bottom) % (bottom * divisor_top) == 0


def _least(a: int | None, b: int | None) -> int | None:
    if a is None or b is None:
        return a if b is None else b
    return min(a, b)


__all__ = ["EVERY_TYPE", "MAX_LEAVES", "Combiner", "identity", "is_multiple"]
