"""What is left to check of a value: the nodes that it must satisfy and of which a grammar takes values too many.

A schema is a conjunction for as long as nothing but `properties`, `items`, `allOf` and `$ref` is met: what these say of
a value is decided where the value ends, on its own. An `anyOf`, `oneOf`, `not` or `if` is judged as a whole, unless the
type of the value leaves one option.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from services.constraint.sources.json_schema.combine import EVERYWHERE
from services.constraint.sources.json_schema.evaluate import Evaluator, parts_of
from services.constraint.sources.json_schema.nodes import (
    AllOf,
    AnyOf,
    AnyValue,
    Array,
    Boolean,
    Conditional,
    Constants,
    Node,
    Not,
    NoValue,
    Null,
    Number,
    Object,
    OneOf,
    Ref,
    String,
    Unevaluated,
)
from services.constraint.sources.json_schema.schema import Schema

Kind = type[object] | None
"""Of a value: dict, list, str, float for any number, bool, or None for null."""

KINDS: Final[frozenset[Kind]] = frozenset((dict, list, str, float, bool, None))
_KIND_OF: Final[dict[type, Kind]] = {
    Object: dict,
    Array: list,
    String: str,
    Number: float,
    Boolean: bool,
    Null: None,
}


def kind_of(value: object) -> Kind:
    """Return the kind of a whole value."""
    if value is None:
        return None
    return next((kind for kind in (bool, str, list, dict) if isinstance(value, kind)), float)


def bounded_strings(nodes: Iterable[Node]) -> list[String]:
    """Return the nodes that say how long a string may be."""
    return [node for node in nodes if isinstance(node, String) and node.max_length is not None]


def may_repeat_names(schema: Schema) -> bool:
    """Tell whether a grammar of the schema takes objects that have one name twice."""
    return any(
        isinstance(node, AnyValue)
        or (
            isinstance(node, Object)
            and any(members.patterns or not isinstance(members.additional, NoValue) for members in node.members)
        )
        for node in _reachable([schema.root], schema.targets)
    )


def _parts(node: Node, targets: Mapping[str, Node]) -> Iterator[Node]:
    match node:
        case Object():
            for members in node.members:
                yield from members.properties.values()
                yield from (part for _, part in members.patterns)
                yield members.additional
            yield node.names
        case Array():
            yield from node.prefix
            yield node.rest
            yield from (contains.node for contains in node.contains)
        case AnyOf(options) | OneOf(options):
            yield from options
        case AllOf(parts):
            yield from parts
        case Not(inner, _):
            yield inner
        case Conditional():
            yield from (node.condition, node.then, node.otherwise)
        case Unevaluated():
            yield node.node
            yield from (part for part in (node.members, node.items) if part is not None)
        case Ref(target):
            yield targets[target]


def _reachable(roots: Iterable[Node], targets: Mapping[str, Node]) -> list[Node]:
    """Return the nodes and all that they are made of, each once."""
    todo, seen = list(roots), {}
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            todo += _parts(node, targets)
    return list(seen.values())


class Obligations:
    """The nodes of a schema that need a check, by the pointers in `inexact` (see `combine.py`)."""

    def __init__(self, schema: Schema, inexact: frozenset[str]) -> None:
        self.evaluator: Final = Evaluator(schema.targets)
        self.needs_no_space: Final = schema.needs_no_space
        self._root = schema.root
        self._targets = schema.targets
        self._inexact = inexact
        nodes = _reachable([self._root], self._targets)
        self._needing = self._find_needing(nodes, is_early=False)
        self._needing_early = self._find_needing(nodes, is_early=True)
        self.bounded_strings: Final = [node for node in bounded_strings(nodes) if self._is_inexact_itself(node)]
        self._resolved: dict[tuple[int, Kind], tuple[Node, ...]] = {}
        self._kinds: dict[int, frozenset[Kind]] = {}

    def of_root(self) -> tuple[Node, ...]:
        """Return the nodes that the whole text must satisfy and that need a check."""
        return (self._root,) if id(self._root) in self._needing else ()

    def of_kind(self, nodes: Iterable[Node], kind: Kind) -> tuple[Node, ...]:
        """Return what nodes come to for a value of a kind: nodes that are judged each on its own."""
        found = [part for node in nodes for part in self._resolve(node, kind, ())]
        return tuple({id(part): part for part in found}.values())

    def of_member(self, objects: Iterable[Object], name: str) -> tuple[Node, ...]:
        """Return the nodes that objects' members of a name must satisfy and that need a check."""
        return tuple(part for node in objects for part in parts_of(node, name) if id(part) in self._needing)

    def of_item(self, arrays: Iterable[Array], index: int) -> tuple[Node, ...]:
        """Return the nodes that arrays' items at an index must satisfy and that need a check."""
        items = (node.prefix[index] if index < len(node.prefix) else node.rest for node in arrays)
        return tuple(item for item in items if id(item) in self._needing)

    def is_inexact(self, node: Object | Array, *keywords: str) -> bool:
        """Tell whether a grammar leaves a keyword of a leaf to a check."""
        return any(f"{node.pointer}/{keyword}" in self._inexact for keyword in keywords)

    def has_judged_names(self, node: Object) -> bool:
        """Tell whether a grammar takes names that an object's members must not have."""
        return id(node.names) in self._needing or self.is_inexact(node, "propertyNames")

    def may_fail_early(self, node: Node) -> bool:
        """Tell whether a node may turn out not to hold before its value is closed.

        Where all that a grammar leaves out are required members, the grammar itself sees to the others.
        """
        return id(node) in self._needing_early

    def _find_needing(self, nodes: list[Node], *, is_early: bool) -> set[int]:
        users: dict[int, list[Node]] = {}
        for node in nodes:
            for part in _parts(node, self._targets):
                users.setdefault(id(part), []).append(node)
        needing: set[int] = set()
        todo = [node for node in nodes if self._is_inexact_itself(node, is_early=is_early)]
        while todo:
            node = todo.pop()
            if id(node) not in needing:
                needing.add(id(node))
                todo += users.get(id(node), ())
        return needing

    def _is_inexact_itself(self, node: Node, *, is_early: bool = False) -> bool:
        if EVERYWHERE in self._inexact:
            return True
        match node:
            case OneOf() | Not() | Conditional() | AllOf():
                return node.pointer in self._inexact
            case Unevaluated():
                names = ("unevaluatedProperties", "unevaluatedItems")
                return any(f"{node.pointer}/{name}" in self._inexact for name in names)
            case Number():
                return f"{node.pointer}/multipleOf" in self._inexact
            case String():
                return any(f"{node.pointer}/{name}" in self._inexact for name in ("format", "minLength", "maxLength"))
            case Array():
                return self.is_inexact(node, "uniqueItems", "contains")
            case Object():
                late = () if is_early else ("required",)
                return self.is_inexact(node, "propertyNames", "patternProperties", *late)
        return False

    def _resolve(self, node: Node, kind: Kind, within: tuple[str, ...]) -> tuple[Node, ...]:
        if id(node) not in self._needing:
            return ()
        known = self._resolved.get((id(node), kind))
        if known is not None:
            return known
        result: tuple[Node, ...]
        match node:
            case Ref(target):
                result = () if target in within else self._resolve(self._targets[target], kind, (*within, target))
            case AllOf(parts) if not self._is_inexact_itself(node):
                result = tuple(inner for part in parts for inner in self._resolve(part, kind, within))
            case AnyOf(options) | OneOf(options):
                left = [option for option in options if kind in self._kinds_of(option, ())]
                result = self._resolve(left[0], kind, within) if len(left) == 1 else (node,)
            case AnyValue() | NoValue() | Null() | Boolean() | Number() | String() | Array() | Object():
                result = (node,) if _KIND_OF.get(type(node)) == kind else ()
            case _:
                result = (node,)
        if not within:
            self._resolved[id(node), kind] = result
        return result

    def _kinds_of(self, node: Node, within: tuple[str, ...]) -> frozenset[Kind]:
        """Return the kinds that a node's values may have."""
        known = self._kinds.get(id(node))
        if known is not None:
            return known
        match node:
            case NoValue():
                result: frozenset[Kind] = frozenset()
            case Null() | Boolean() | Number() | String() | Array() | Object():
                result = frozenset([_KIND_OF[type(node)]])
            case Constants(values):
                result = frozenset(map(kind_of, values))
            case Ref(target):
                if target in within:
                    return frozenset()
                result = self._kinds_of(self._targets[target], (*within, target))
            case AnyOf(options) | OneOf(options):
                result = frozenset().union(*(self._kinds_of(option, within) for option in options))
            case AllOf(parts):
                result = KINDS.intersection(*(self._kinds_of(part, within) for part in parts))
            case Conditional():
                result = self._kinds_of(node.then, within) | self._kinds_of(node.otherwise, within)
            case Unevaluated():
                result = self._kinds_of(node.node, within)
            case _:
                result = KINDS
        if not within:
            self._kinds[id(node)] = result
        return result
