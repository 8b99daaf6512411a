"""Tells whether a value is one of a node's: by the definition of each keyword, for values that may not be whole yet.

The logic has three values (Kleene, "Introduction to Metamathematics", 1952, section 64): True and False stand whatever
is still to come, None is not decided. What is not whole is an `Open` container, to which more may be added, or a
`Scalar`, of which only the type is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, Final, TypeAlias

from services.constraint.sources.json_schema.nodes import (
    AllOf,
    AnyOf,
    AnyValue,
    Array,
    Boolean,
    Conditional,
    Constants,
    Json,
    Members,
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
from services.constraint.sources.json_schema.strings import found_in, matches

Verdict: TypeAlias = bool | None


@dataclass(frozen=True, slots=True)
class Open:
    """A list or an object of which this much is known; `before` is the same without its latest value."""

    value: list[Value] | dict[str, Value]
    before: list[Value] | dict[str, Value] | None = None


@dataclass(frozen=True, slots=True)
class Scalar:
    """A string or a number of which nothing but the type is known."""

    kind: type


# Json, in which an Open or a Scalar may stand. (That cannot be said exactly: a list[Json] is no list[Value].)
Value: TypeAlias = Any

SOME_STRING = Scalar(str)
SOME_NUMBER = Scalar(Decimal)

_Contents: TypeAlias = list[Value] | dict[str, Value]
# What is worth remembering of whole lists and objects: what takes looking into them.
_REMEMBERED: Final = AllOf | AnyOf | OneOf | Not | Conditional | Unevaluated | Ref | Array | Object | Constants
# Verdicts on lists and objects that are remembered; beyond it the older half is forgotten.
_MAX_REMEMBERED = 20_000


class Evaluator:
    """Judges values; `targets` are the nodes that references name.

    Lists and objects that were judged must not be changed afterwards.
    """

    def __init__(self, targets: Mapping[str, Node]) -> None:
        self._targets = targets
        self._running: set[tuple[str, int]] = set()  # (target, id of the value) of the references that are followed
        self._num_cuts = 0  # references that led to themselves
        # (id of a value, id of a node) -> verdict; (id of an array or object, id of its parts) -> verdict on the parts
        self._remembered: dict[tuple[int, int], tuple[object, object, Verdict]] = {}
        self._identities: dict[int, frozenset[object]] = {}  # of the values of constants
        self._kept: list[Node] = []  # ids are keys, so what they name must live
        self.met: dict[int, Node] = {}
        """The nodes by id that a `Scalar` is one of or not, which is not known; never cleared here."""
        self.has_met_part = False
        """Set where a container decides, of which a `Scalar` is a part; never cleared here."""

    def holds(self, node: Node, value: Value) -> Verdict:
        """Tell whether a value is one of the node's."""
        if not isinstance(value, list | dict) or not isinstance(node, _REMEMBERED):
            return self._judge(node, value)
        key = (id(value), id(node))
        known = self._remembered.get(key)
        if known is not None:
            return known[2]
        num_cuts = self._num_cuts
        verdict = self._judge(node, value)
        if verdict is not None and num_cuts == self._num_cuts:
            self._remember(key, node, value, verdict)
        return verdict

    def _judge(self, node: Node, value: Value) -> Verdict:
        match node:
            case AnyValue():
                return True
            case NoValue():
                return False
            case Object():
                inner, before = (value.value, value.before) if isinstance(value, Open) else (value, None)
                return isinstance(inner, dict) and self._object(node, inner, isinstance(value, Open), before)
            case String():
                return self._string(node, value)
            case Array():
                inner, before = (value.value, value.before) if isinstance(value, Open) else (value, None)
                return isinstance(inner, list) and self._array(node, inner, isinstance(value, Open), before)
            case Number():
                return self._number(node, value)
            case Constants(values):
                return self._constants(node, values, value)
            case Null():
                return value is None
            case Boolean():
                return isinstance(value, bool)
            case Ref(target):
                return self._reference(target, value)
            case AllOf(parts):
                return _all(self.holds(part, value) for part in parts)
            case AnyOf(options):
                return _any(self.holds(option, value) for option in options)
            case OneOf(options):
                return self._one_of(options, value)
            case Not(inner_node):
                return _not(self.holds(inner_node, value))
            case Conditional():
                return self._conditional(node, value)
            case Unevaluated():
                return self._unevaluated(node, value)

    def _reference(self, target: str, value: Value) -> Verdict:
        key = (target, id(value))
        if key in self._running:
            # A definition that is itself, with nothing around it, has no value: the least fixed point.
            self._num_cuts += 1
            return False
        self._running.add(key)
        try:
            return self.holds(self._targets[target], value)
        finally:
            self._running.discard(key)

    def _one_of(self, options: tuple[Node, ...], value: Value) -> Verdict:
        num_true, is_open = 0, False
        for option in options:
            verdict = self.holds(option, value)
            num_true += verdict is True
            is_open = is_open or verdict is None
            if num_true > 1:
                return False
        return None if is_open else num_true == 1

    def _conditional(self, node: Conditional, value: Value) -> Verdict:
        condition = self.holds(node.condition, value)
        if condition is not None:
            return self.holds(node.then if condition else node.otherwise, value)
        then = self.holds(node.then, value)
        return then if then is not None and then == self.holds(node.otherwise, value) else None

    # One type each

    def _string(self, node: String, value: Value) -> Verdict:
        if value is SOME_STRING:
            if not node.patterns and not node.formats and node.min_length == 0 and node.max_length is None:
                return True
            return self._meet(node)
        if not isinstance(value, str):
            return False
        return matches(node, value)

    def _number(self, node: Number, value: Value) -> Verdict:
        if value is SOME_NUMBER:
            if not node.is_integer and node.low is None and node.high is None and not node.multiples_of:
                return True
            return self._meet(node)
        return isinstance(value, int | Decimal) and not isinstance(value, bool) and is_within(node, value)

    def _meet(self, node: Node) -> Verdict:
        self.met[id(node)] = node
        return None

    def _constants(self, node: Constants, values: tuple[Json, ...], value: Value) -> Verdict:
        if isinstance(value, Scalar):
            kinds = (int, Decimal) if value is SOME_NUMBER else (str,)
            if not any(isinstance(other, kinds) and not isinstance(other, bool) for other in values):
                return False
            return self._meet(node)
        if isinstance(value, Open):
            wanted = list if isinstance(value.value, list) else dict
            return None if any(isinstance(other, wanted) for other in values) else False
        if isinstance(value, list | dict) and is_part_unknown(value):
            if any(type(other) is type(value) for other in values):
                self.has_met_part = True
                return None
            return False
        known = self._identities.get(id(node))
        if known is None:
            known = self._identities[id(node)] = frozenset(map(identity, values))
            self._kept.append(node)
        return identity(value) in known

    def _array(self, node: Array, items: list[Value], is_open: bool, before: _Contents | None) -> Verdict:
        if node.max_items is not None and len(items) > node.max_items:
            return False
        result = self._parts_hold(node, items, before)
        if result is False:
            return False
        if node.is_unique:
            unique = are_unique(items)
            if unique is False:
                return False
            # Whether what is not known is equal to another item is no question of a node.
            self.has_met_part = self.has_met_part or unique is None
            result = result and unique
        for contains in node.contains:
            found = self._contains(contains.node, items)
            if contains.maximum is not None and found[0] > contains.maximum:
                return False
            is_decided = found[1] == 0 and not is_open
            if found[0] < contains.minimum:
                if is_decided:
                    return False
                result = None
            elif contains.maximum is not None and not is_decided:
                result = None
        if is_open:
            return None
        return result if len(items) >= node.min_items else False

    def _parts_hold(self, node: Array | Object, parts: _Contents, before: _Contents | None) -> Verdict:
        """Tell whether each item or member is what it must be; only the latest is looked at where `before` is known."""
        key = (id(node), id(parts))
        known = self._remembered.get(key)
        if known is not None:
            return known[2]
        verdict: Verdict = True
        if before is not None:
            verdict = self._parts_hold(node, before, None)
            latest = next(reversed(parts)) if isinstance(parts, dict) else len(parts) - 1
            if verdict is not False:
                verdict = _both(verdict, self._part_holds(node, parts, latest))
        else:
            for name in parts if isinstance(parts, dict) else range(len(parts)):
                verdict = _both(verdict, self._part_holds(node, parts, name))
                if verdict is False:
                    break
        if not is_part_unknown(parts):
            self._remember(key, node, parts, verdict)
        return verdict

    def _part_holds(self, node: Array | Object, parts: Any, name: Any) -> Verdict:
        if isinstance(node, Array):
            return self.holds(node.prefix[name] if name < len(node.prefix) else node.rest, parts[name])
        value = parts[name]
        verdict = _all(self.holds(part, value) for part in parts_of(node, name))
        if verdict is False or isinstance(node.names, AnyValue):
            return verdict
        return _both(verdict, self.holds(node.names, name))

    def _remember(self, key: tuple[int, int], node: object, value: object, verdict: Verdict) -> None:
        if len(self._remembered) >= _MAX_REMEMBERED:
            for oldest in list(islice(self._remembered, _MAX_REMEMBERED // 2)):
                del self._remembered[oldest]
        self._remembered[key] = node, value, verdict  # they live as long as their ids are keys

    def _contains(self, node: Node, items: list[Value]) -> tuple[int, int]:
        """Return how many items are a node's, and of how many that is not known."""
        verdicts = [self.holds(node, item) for item in items]
        return verdicts.count(True), verdicts.count(None)

    def _object(self, node: Object, members: dict[str, Value], is_open: bool, before: _Contents | None) -> Verdict:
        if node.max_properties is not None and len(members) > node.max_properties:
            return False
        result = self._parts_hold(node, members, before)
        if result is False:
            return False
        if is_open:
            return None
        if len(members) < node.min_properties or not node.required <= members.keys():
            return False
        return result

    # Unevaluated members and items

    def _unevaluated(self, node: Unevaluated, value: Value) -> Verdict:
        verdict = self.holds(node.node, value)
        inner = value.value if isinstance(value, Open) else value
        rest: Verdict = True
        if isinstance(inner, dict) and node.members is not None:
            names = self._evaluated_names(node.node, value)
            rest = _all(self.holds(node.members, member) for name, member in inner.items() if name not in names)
        elif isinstance(inner, list) and node.items is not None:
            places = self._evaluated_places(node.node, value)
            rest = _all(self.holds(node.items, item) for place, item in enumerate(inner) if place not in places)
        else:
            return verdict
        if verdict is not False and rest is not False and inner is value and is_part_unknown(inner):
            self.has_met_part = True  # what may have been evaluated is not what was
            return None
        return _both(_both(verdict, rest), None if isinstance(value, Open) else True)

    # What may have been evaluated, whatever is still to come; of a whole value, what was.

    def _evaluated_names(self, node: Node, value: Value) -> set[str]:
        if isinstance(node, Object):
            inner = value.value if isinstance(value, Open) else value
            return {name for name in inner if any(_is_evaluated(members, name) for members in node.members)}
        if isinstance(node, Unevaluated) and node.members is not None:
            return set(value.value if isinstance(value, Open) else value)
        return set().union(*(self._evaluated_names(part, value) for part in self._annotating(node, value)))

    def _evaluated_places(self, node: Node, value: Value) -> set[int]:
        inner = value.value if isinstance(value, Open) else value
        if isinstance(node, Array):
            places = set(range(len(inner) if node.evaluates_rest else min(len(inner), len(node.prefix))))
            if node.evaluates_contained:
                for contains in node.contains:
                    places.update(i for i, item in enumerate(inner) if self.holds(contains.node, item) is not False)
            return places
        if isinstance(node, Unevaluated) and node.items is not None:
            return set(range(len(inner)))
        return set().union(*(self._evaluated_places(part, value) for part in self._annotating(node, value)))

    def _annotating(self, node: Node, value: Value) -> Iterable[Node]:
        """Return the parts of a node that may hold whose looking at members and items counts."""
        match node:
            case Ref(target):
                return (self._targets[target],)
            case AllOf(parts):
                return parts
            case AnyOf(options) | OneOf(options):
                return [option for option in options if self.holds(option, value) is not False]
            case Conditional():
                condition = self.holds(node.condition, value)
                if condition is None:
                    return (node.condition, node.then, node.otherwise)
                return (node.condition, node.then) if condition else (node.otherwise,)
            case Unevaluated():
                return (node.node,)
        return ()


def parts_of(node: Object, name: str) -> Iterator[Node]:
    """Yield the nodes that an object's member of this name must have."""
    for members in node.members:
        is_named = name in members.properties
        if is_named:
            yield members.properties[name]
        for pattern, part in members.patterns:
            if found_in(pattern, name):
                is_named = True
                yield part
        if not is_named and not isinstance(members.additional, AnyValue):
            yield members.additional


def _is_evaluated(members: Members, name: str) -> bool:
    return (
        members.evaluates_rest
        or name in members.properties
        or any(found_in(pattern, name) for pattern, _ in members.patterns)
    )


def _all(verdicts: Iterable[Verdict]) -> Verdict:
    result: Verdict = True
    for verdict in verdicts:
        if verdict is False:
            return False
        result = result and verdict
    return result


def _both(a: Verdict, b: Verdict) -> Verdict:
    return False if a is False or b is False else a and b


def _any(verdicts: Iterable[Verdict]) -> Verdict:
    result: Verdict = False
    for verdict in verdicts:
        if verdict is True:
            return True
        result = None if verdict is None else result
    return result


def _not(verdict: Verdict) -> Verdict:
    return None if verdict is None else not verdict


def is_part_unknown(value: list[Value] | dict[str, Value]) -> bool:
    """Tell whether the latest part of a container is not whole; only that one can be."""
    parts = list(value.values()) if isinstance(value, dict) else value
    return bool(parts) and isinstance(parts[-1], Open | Scalar)


def are_unique(items: list[Value]) -> Verdict:
    """Tell whether no two items are equal; items that are not whole are left out, and make it None at best."""
    seen: set[object] = set()
    result: Verdict = True
    for item in items:
        if isinstance(item, Open | Scalar):
            result = None
            continue
        identified = identity(item)
        if identified in seen:
            return False
        seen.add(identified)
    return result


def identity(value: Value) -> object:
    """Return something hashable that is equal for equal JSON values.

    1 and 1.0 are, 1 and true are not, and the order of keys does not matter.
    """
    if isinstance(value, bool) or value is None:
        return ("literal", value)
    if isinstance(value, list):
        return ("list", tuple(map(identity, value)))
    if isinstance(value, dict):
        return ("object", frozenset((key, identity(member)) for key, member in value.items()))
    return value


def is_within(node: Number, value: int | Decimal) -> bool:
    """Tell whether a number is one of the node's."""
    if node.is_integer and isinstance(value, Decimal) and (node.is_plain or value != value.to_integral_value()):
        return False
    if node.low is not None and (value < node.low.value or (node.low.is_exclusive and value == node.low.value)):
        return False
    if node.high is not None and (value > node.high.value or (node.high.is_exclusive and value == node.high.value)):
        return False
    return all(is_multiple(value, divisor) for divisor in node.multiples_of)


def is_multiple(value: int | Decimal, divisor: Decimal) -> bool:
    """Tell whether a number is a multiple of another, exactly."""
    (top, bottom), (divisor_top, divisor_bottom) = Decimal(value).as_integer_ratio(), divisor.as_integer_ratio()
    return (top * divisor_bottom) % (bottom * divisor_top) == 0
