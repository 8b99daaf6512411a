"""Merges the parts of `allOf` and of keywords that stand beside each other into what a grammar can say.

A node is first spread into *leaves*, one type each; two nodes' values in common are then those that pairs of leaves
have in common. Values within values stay unmerged until they are asked for, and one combination of nodes is one node,
so that recursive schemas merge into recursive ones.

Where a grammar cannot say all of a node, its leaves have some values too many, never one too few, and the pointer of
the keyword that is to blame goes to `inexact`: a check decides those values while they are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.constraint.sources.json_schema.complement import complement, outside
from services.constraint.sources.json_schema.evaluate import Evaluator, parts_of
from services.constraint.sources.json_schema.nodes import (
    ANY,
    BOOLEAN,
    NONE,
    NULL,
    NUMBER,
    STRING,
    AllOf,
    AnyOf,
    AnyValue,
    Array,
    Conditional,
    Constants,
    Leaf,
    Members,
    Node,
    Not,
    NoValue,
    Number,
    Object,
    OneOf,
    Ref,
    String,
    Unevaluated,
)
from services.constraint.sources.json_schema.numeric import Bound

# Pairs of leaves that one combination may give; each costs about 5 us.
MAX_LEAVES = 512
EVERYWHERE = "*"
"""In place of a pointer: what a grammar cannot say is not known of one part of the schema, so all of it is checked."""
# Of a `oneOf`: other options that are taken off one, and the leaves that are left of it.
MAX_TAKEN_OFF = 4
MAX_PARTS = 24
# How deep values within values are looked at to prove that two objects have nothing in common.
_MAX_PROOF_DEPTH = 3
_COMPOUND = AnyOf | OneOf | AllOf | Not | Conditional | Unevaluated | Ref

Leaves = tuple[Leaf | AnyValue, ...]


class Combiner:
    """Merges nodes; `targets` are the nodes that references name."""

    def __init__(self, targets: Mapping[str, Node]) -> None:
        self._targets = targets
        self._evaluator = Evaluator(targets)
        self._combined: dict[tuple[int, ...], Node] = {}
        self._leaves: dict[int, Leaves] = {}
        self._replaced: dict[int, Node] = {}  # what stands for a `not`, a condition or unevaluated members
        self._makers: set[str] = set()  # pointers of the keywords for which leaves were made that no schema has
        self._disjoint: dict[int, bool] = {}
        self._alternatives: dict[int, tuple[Node, ...]] = {}  # of a `oneOf`
        self._parents: dict[int, tuple[Leaf, Leaf]] = {}  # of merged leaves
        self._kept: list[Node] = []  # ids are keys, so what they name must live
        self.inexact: set[str] = set()
        """Pointers of the keywords whose leaves have values too many; `/*` behind a schema's stands for all of its."""

    def leaves(self, node: Node) -> Leaves:
        """Return leaves that together have the node's values, and others only where `inexact` says so."""
        return self._spread(node, ())

    def alternatives(self, node: OneOf) -> tuple[Node, ...]:
        """Return nodes that together have the values of a `oneOf`, and others only where `inexact` says so.

        An option's values that are another's as well are taken off it, as far as that other one has a complement.
        """
        if self._are_disjoint(node):
            return node.options
        known = self._alternatives.get(id(node))
        if known is None:
            self._alternatives[id(node)] = ()  # what it takes itself to find is left to a check
            self._kept.append(node)
            known = self._alternatives[id(node)] = self._find_alternatives(node)
        elif not known:
            self.inexact.add(node.pointer)
            return node.options
        return known

    def _find_alternatives(self, node: OneOf) -> tuple[Node, ...]:
        spread = [self.leaves(option) for option in node.options]
        found: list[Node] = []
        for i, option in enumerate(node.options):
            others = [other for j, other in enumerate(node.options) if j != i and self._meet(spread[i], spread[j])]
            if len(others) > MAX_TAKEN_OFF:
                self.inexact.add(node.pointer)
            taken_off = tuple(self._outside(other, node.pointer) for other in others[:MAX_TAKEN_OFF])
            alone = AllOf((option, *taken_off), node.pointer) if taken_off else option
            if len(self.leaves(alone)) > max(MAX_PARTS, len(spread[i])):
                self.inexact.add(node.pointer)
                alone = option
            found.append(alone)
        return tuple(found)

    def blame(self, leaf: Leaf, keyword: str) -> None:
        """Note that a grammar cannot say what this keyword does to a leaf, in all schemas that it was merged from."""
        todo: list[Leaf] = [leaf]
        while todo:
            at = todo.pop()
            parents = self._parents.get(id(at))
            if parents is not None:
                todo.extend(parents)
            elif isinstance(at, Number | String | Array | Object):
                self.inexact.add(at.pointer if at.pointer in self._makers else f"{at.pointer}/{keyword}")

    def _spread(self, node: Node, within: tuple[str, ...]) -> Leaves:
        if not isinstance(node, _COMPOUND):
            return () if isinstance(node, NoValue) else (node,)
        known = self._leaves.get(id(node))
        if known is not None:
            return known
        result: Leaves
        match node:
            case Ref(target):
                # A definition that is itself without anything around it has no value: the least fixed point.
                result = () if target in within else self._spread(self._targets[target], (*within, target))
            case AllOf(parts):
                result = (ANY,)
                for part in parts:
                    result = self._common_leaves(result, self._spread(part, within), node.pointer)
            case AnyOf(options):
                result = self._union(options, within)
            case OneOf():
                result = self._union(self.alternatives(node), within)
            case Not() | Conditional() | Unevaluated():
                if id(node) not in self._replaced:
                    self._replaced[id(node)] = self._replacement(node)
                    self._kept.append(node)
                result = self._spread(self._replaced[id(node)], within)
        if not within:
            self._leaves[id(node)] = result
            self._kept.append(node)
        return result

    def _union(self, options: tuple[Node, ...], within: tuple[str, ...]) -> Leaves:
        result = tuple(leaf for option in options for leaf in self._spread(option, within))
        return (ANY,) if any(isinstance(leaf, AnyValue) for leaf in result) else result

    def _replacement(self, node: Not | Conditional | Unevaluated) -> Node:
        """Return a node of other kinds with the same values, or more."""
        match node:
            case Not(inner, pointer):
                return self._complement(inner, pointer)
            case Conditional(condition, then, otherwise, pointer):
                other = self._complement(condition, pointer)
                return AnyOf((AllOf((condition, then), pointer), AllOf((other, otherwise), pointer)))
            case Unevaluated():
                return self._without_unevaluated(node)

    def _outside(self, node: Node, pointer: str) -> Node:
        """Return the node of all other values, and some more where only a check can tell."""
        self._makers.add(pointer)
        if complement(node, self._targets, pointer) is None:
            self.inexact.add(pointer)
        return outside(node, self._targets, pointer)

    def _complement(self, node: Node, pointer: str) -> Node:
        """Return the node of all other values; of every value, where only a check can tell."""
        self._makers.add(pointer)
        other = complement(node, self._targets, pointer)
        if other is None:
            self.inexact.add(pointer)
        return ANY if other is None else other

    def _common_leaves(self, left: Leaves, right: Leaves, pointer: str) -> Leaves:
        if len(left) * len(right) > MAX_LEAVES:
            self.inexact.add(pointer)
            return min(left, right, key=len)
        return tuple(leaf for a in left for b in right for leaf in self._common(a, b))

    def _are_disjoint(self, node: OneOf) -> bool:
        """Tell whether provably no two options of a `oneOf` have a value in common."""
        known = self._disjoint.get(id(node))
        if known is None:
            self._disjoint[id(node)] = False  # what it takes itself to prove is not proved
            self._kept.append(node)
            known = self._disjoint[id(node)] = self._find_disjoint(node)
        return known

    def _find_disjoint(self, node: OneOf) -> bool:
        spread = [self.leaves(option) for option in node.options]
        return not any(self._meet(left, right) for i, left in enumerate(spread) for right in spread[i + 1 :])

    def _meet(self, left: Leaves, right: Leaves) -> bool:
        """Tell whether two unions of leaves may have a value in common."""
        return any(not self._is_empty(leaf, 0) for a in left for b in right for leaf in self._common(a, b))

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
            combined = self._combined[key] = AllOf(tuple(parts.values()), EVERYWHERE)
            self._kept.extend(parts.values())
        return combined

    def member(self, node: Object, name: str) -> Node:
        """Return the node of an object's member of this name."""
        return self.all_of(*parts_of(node, name))

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

    def _common(self, a: Leaf | AnyValue, b: Leaf | AnyValue) -> Leaves:
        """Return the values that two leaves have in common: one leaf, or none."""
        if isinstance(a, AnyValue):
            return (b,)
        if isinstance(b, AnyValue) or a is b:
            return (a,)
        result: Leaf
        if isinstance(a, Constants) or isinstance(b, Constants):
            constants, other = (a, b) if isinstance(a, Constants) else (b, a)
            assert isinstance(constants, Constants)
            result = Constants(tuple(value for value in constants.values if self._evaluator.holds(other, value)))
        elif isinstance(a, Number) and isinstance(b, Number):
            result = common_number(a, b)
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
            result = Object(
                (*a.members, *b.members),
                a.required | b.required,
                max(a.min_properties, b.min_properties),
                _least(a.max_properties, b.max_properties),
                self.all_of(a.names, b.names),
                a.pointer,
            )
        elif type(a) is type(b):
            return (a,)
        else:
            return ()
        self._parents[id(result)] = (a, b)
        self._kept.append(result)
        return () if self._is_plainly_empty(result) else (result,)

    def _common_array(self, a: Array, b: Array) -> Array:
        length = max(len(a.prefix), len(b.prefix))
        prefix = tuple(
            self.all_of(a.prefix[i] if i < len(a.prefix) else a.rest, b.prefix[i] if i < len(b.prefix) else b.rest)
            for i in range(length)
        )
        return Array(
            prefix,
            self.all_of(a.rest, b.rest),
            max(a.min_items, b.min_items),
            _least(a.max_items, b.max_items),
            (*a.contains, *b.contains),
            a.is_unique or b.is_unique,
            pointer=a.pointer,
        )

    def _is_empty(self, leaf: Leaf | AnyValue, depth: int) -> bool:
        if isinstance(leaf, AnyValue):
            return False
        if self._is_plainly_empty(leaf):
            return True
        if depth >= _MAX_PROOF_DEPTH:
            return False
        inner: list[Node] = []
        if isinstance(leaf, Object):
            inner = [self.member(leaf, name) for name in leaf.required]
        elif isinstance(leaf, Array):
            inner = [
                leaf.prefix[i] if i < len(leaf.prefix) else leaf.rest
                for i in range(min(leaf.min_items, len(leaf.prefix) + 1))
            ]
        return any(all(self._is_empty(part, depth + 1) for part in self.leaves(node)) for node in inner)

    def _is_plainly_empty(self, leaf: Leaf) -> bool:
        match leaf:
            case Constants(values):
                return not values
            case Number(_, low, high):
                return (
                    low is not None
                    and high is not None
                    and (
                        low.value > high.value or (low.value == high.value and (low.is_exclusive or high.is_exclusive))
                    )
                )
            case String(low_length, high_length):
                return high_length is not None and low_length > high_length
            case Array():
                return leaf.max_items is not None and leaf.min_items > leaf.max_items
            case Object():
                maximum = leaf.max_properties
                if maximum is not None and max(leaf.min_properties, len(leaf.required)) > maximum:
                    return True
                return any(isinstance(part, NoValue) for name in leaf.required for part in parts_of(leaf, name))
        return False

    # Unevaluated members and items

    def _without_unevaluated(self, node: Unevaluated) -> Node:
        parts: list[Node] = [node.node]
        if node.members is not None:
            looked = self._looked_at(node.node, set())
            if not looked.is_sure:
                self.inexact.add(f"{node.pointer}/unevaluatedProperties")
            if not looked.has_rest:
                members = Members(
                    dict.fromkeys(looked.names, ANY), node.members, tuple((pattern, ANY) for pattern in looked.patterns)
                )
                pointer = f"{node.pointer}/unevaluatedProperties"
                self._makers.add(pointer)
                parts.append(AnyOf((NULL, BOOLEAN, NUMBER, STRING, Array(), Object((members,), pointer=pointer))))
        if node.items is not None:
            looked = self._looked_at(node.node, set())
            if not looked.is_sure:
                self.inexact.add(f"{node.pointer}/unevaluatedItems")
            if not looked.has_rest_items:
                items = Array((ANY,) * looked.num_items, node.items)
                parts.append(AnyOf((NULL, BOOLEAN, NUMBER, STRING, items, Object())))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts), EVERYWHERE)

    def _looked_at(self, node: Node, visited: set[str]) -> _LookedAt:
        """Return what the parts of a node may look at."""
        match node:
            case Object():
                names: dict[str, None] = {}
                patterns: dict[str, None] = {}
                for members in node.members:
                    names.update(dict.fromkeys(members.properties))
                    patterns.update(dict.fromkeys(pattern for pattern, _ in members.patterns))
                has_rest = any(members.evaluates_rest for members in node.members)
                return _LookedAt(tuple(names), tuple(patterns), has_rest)
            case Array():
                is_contained = node.evaluates_contained and bool(node.contains)
                return _LookedAt(
                    num_items=len(node.prefix),
                    has_rest_items=node.evaluates_rest or is_contained,
                    is_sure=not is_contained or node.evaluates_rest,
                )
            case Ref(target):
                if target in visited:
                    return _LookedAt()
                return self._looked_at(self._targets[target], visited | {target})
            case AllOf(parts):
                return _looked_at_by_all([self._looked_at(part, visited) for part in parts])
            case Unevaluated():
                found = self._looked_at(node.node, visited)
                return _LookedAt(
                    found.names,
                    found.patterns,
                    found.has_rest or node.members is not None,
                    found.num_items,
                    found.has_rest_items or node.items is not None,
                    found.is_sure,
                )
            case AnyOf(options) | OneOf(options):
                found = _looked_at_by_all([self._looked_at(option, visited) for option in options])
                # Options of one type each do not come together, and the others say nothing of its members.
                kinds = [type(option) for option in options]
                is_by_type = len(set(kinds)) == len(kinds) and not any(issubclass(kind, _COMPOUND) for kind in kinds)
                return found if is_by_type else found.unsure()
            case Conditional():
                inner = (node.condition, node.then, node.otherwise)
                return _looked_at_by_all([self._looked_at(part, visited) for part in inner]).unsure()
        return _LookedAt()


@dataclass(frozen=True, slots=True)
class _LookedAt:
    """The members and items that some part of a node may look at; `is_sure` where it does so in every value."""

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    has_rest: bool = False
    num_items: int = 0
    has_rest_items: bool = False
    is_sure: bool = True

    def unsure(self) -> _LookedAt:
        is_nothing = not self.names and not self.patterns and not self.has_rest
        if is_nothing and not self.num_items and not self.has_rest_items:
            return self
        return _LookedAt(self.names, self.patterns, self.has_rest, self.num_items, self.has_rest_items, False)


def _looked_at_by_all(parts: list[_LookedAt]) -> _LookedAt:
    return _LookedAt(
        tuple(dict.fromkeys(name for part in parts for name in part.names)),
        tuple(dict.fromkeys(pattern for part in parts for pattern in part.patterns)),
        any(part.has_rest for part in parts),
        max((part.num_items for part in parts), default=0),
        any(part.has_rest_items for part in parts),
        all(part.is_sure for part in parts),
    )


def common_number(a: Number, b: Number) -> Number:
    """Return the numbers of both."""
    return Number(
        a.is_integer or b.is_integer,
        _tighter(a.low, b.low, 1),
        _tighter(a.high, b.high, -1),
        tuple(dict.fromkeys((*a.multiples_of, *b.multiples_of))),
        a.is_plain or b.is_plain,
        a.pointer,
    )


def _tighter(a: Bound | None, b: Bound | None, sign: int) -> Bound | None:
    if a is None or b is None:
        return a or b
    if a.value == b.value:
        return a if a.is_exclusive else b
    return a if (a.value > b.value) == (sign > 0) else b


def _least(a: int | None, b: int | None) -> int | None:
    if a is None or b is None:
        return a if b is None else b
    return min(a, b)


__all__ = ["EVERYWHERE", "MAX_LEAVES", "Combiner", "common_number"]
