"""What may follow in a JSON text, as far as its checks tell without looking at a token.

Of a place in a text one knows what is open and what must hold of it; of the string or number that is being read there,
only that it will be one. What follows from that is an `Outlook`, remembered with the container.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Final, NamedTuple

from services.constraint.checks.progress import (
    SCALAR_BODY,
    STRING_BODY,
    Frame,
    JsonChecks,
    Place,
    Progress,
    identities_in,
    scalar_of,
    string_of,
)
from services.constraint.sources.json_schema.evaluate import (
    SOME_NUMBER,
    SOME_STRING,
    Open,
    Value,
    identity,
    is_part_unknown,
)
from services.constraint.sources.json_schema.nodes import Constants, Node
from services.constraint.sources.json_schema.obligations import Obligations


class Outlook(NamedTuple):
    """What may come behind a value, or before the first: True, False, or None where each token must be looked at.

    `outer` ones are of what is around the container, once that is closed.
    """

    may_close: bool | None = True
    may_go_on: bool | None = True
    may_close_outer: bool | None = True
    may_go_on_outer: bool | None = True
    may_refuse_outer: bool = False


FREE: Final = Outlook()
UNKNOWN: Final = Outlook(None, None, None, None, may_refuse_outer=True)


class _Met(NamedTuple):
    """The nodes that a string or number is one of or not: lists of values, all of these, and others."""

    constants: tuple[Constants, ...]
    values: frozenset[object]
    others: tuple[Node, ...]

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> _Met:
        """Part nodes."""
        constants = tuple(node for node in nodes if isinstance(node, Constants))
        values = frozenset(identity(value) for node in constants for value in node.values)
        return cls(constants, values, tuple(node for node in nodes if not isinstance(node, Constants)))


class Lookout:
    """Tells outlooks of one schema's texts."""

    def __init__(self, obligations: Obligations, checks: JsonChecks) -> None:
        self._obligations = obligations
        self._evaluator = obligations.evaluator
        self._checks = checks

    def value_ended_by(self, progress: Progress, data: bytes) -> str | int | Decimal | None:
        """Return the string or number that is being read as a token ends it, or the string that it begins with.

        None where that is judged by itself, and for other values.
        """
        if progress.place is Place.VALUE:
            if self._obligations.of_kind(progress.nodes, str):
                return None
            return string_of(STRING_BODY.match(data, data.index(b'"') + 1).group())  # type: ignore[union-attr]
        if progress.nodes:
            return None
        if progress.place is Place.IN_STRING:
            return string_of(STRING_BODY.match(progress.text + data).group())  # type: ignore[union-attr]
        value = scalar_of(SCALAR_BODY.match(progress.text + data).group())  # type: ignore[union-attr]
        return value if isinstance(value, int | Decimal) and not isinstance(value, bool) else None

    def behind_some(self, progress: Progress) -> tuple[bool | None, Outlook]:
        """Tell whether what is being read may end, whatever it becomes, and what may follow then."""
        frame = progress.frame
        if progress.nodes and progress.place is not Place.VALUE:
            return None, UNKNOWN
        if frame is None or not frame.container.may_refuse:
            return True, FREE
        container = frame.container
        is_number = progress.place is Place.IN_SCALAR
        if container.wholes and is_number and progress.text[:1] not in b"-0123456789":
            return None, UNKNOWN  # true, false and null are few, and short
        some = SOME_NUMBER if is_number else SOME_STRING
        key = (some, progress.key)
        known: tuple[bool | None, Outlook] | None = frame.remembered.get(key)
        if known is None:
            behind = frame.with_value(some, progress.key if container.is_object else None)
            self._evaluator.met.clear()
            self._evaluator.has_met_part = False
            may_end = None if container.is_unique else self._holds_so_far(behind, frame)
            known = frame.remembered[key] = may_end, self.of(behind)
            if not self._evaluator.has_met_part:
                frame.remembered["met", some, progress.key] = _Met.of(self._evaluator.met.values())
        return known

    def behind(self, progress: Progress, value: str | int | Decimal) -> tuple[bool, Outlook] | None:
        """Tell as `behind_some` of the value that is being read or comes next, where it is `value`.

        All that the checks of the container know of a scalar is which of a few nodes it is one of, so that values of
        which the same is true have the same outlook. None where each value is a case of its own.
        """
        frame = progress.frame
        if frame is None:
            return None
        some = SOME_STRING if isinstance(value, str) else SOME_NUMBER
        met: _Met | None = frame.remembered.get(("met", some, progress.key))
        if met is None:
            return None
        if frame.container.is_unique and identity(value) in identities_in(frame):
            return False, FREE
        holds = self._evaluator.holds
        known_values = tuple(holds(node, value) for node in met.constants) if value in met.values else ()
        signature = (some, progress.key, known_values, *(holds(node, value) for node in met.others))
        known: tuple[bool, Outlook] | None = frame.remembered.get(signature)
        if known is None:
            behind = frame.with_value(value, progress.key if frame.container.is_object else None)
            may_end = self._holds_so_far(behind, frame) is not False
            outlook = self.of(behind) if may_end else FREE
            outer = frame.container.parent
            if outer is not None and (outer.container.is_judged or outer.container.wholes):
                outlook = outlook._replace(may_close_outer=None, may_go_on_outer=None)
            known = frame.remembered[signature] = may_end, outlook
        return known

    def of(self, frame: Frame | None) -> Outlook:
        """Return what may follow in a container, where no value is being read."""
        if frame is None or not frame.container.may_refuse:
            return FREE
        known: Outlook | None = frame.remembered.get("outlook")
        if known is None:
            known = frame.remembered["outlook"] = self._look_out(frame)
        return known

    def _look_out(self, frame: Frame) -> Outlook:
        container, parent = frame.container, frame.container.parent
        only = container.only_names
        may_go_on = only is None or len(frame.members) < len(only)
        may_close: bool | None = False
        if container.required <= frame.members.keys():
            may_close = self._holds(container.wholes, frame.contents)
        if parent is None or may_close is False or not parent.container.may_refuse:
            return Outlook(may_close, may_go_on)
        outer = parent.container
        if not outer.is_judged and not outer.wholes:
            num_members = len(parent.members) + 1
            may_close_outer: bool | None = all(
                name in parent.members or name == container.key for name in outer.required
            )
            if may_close_outer and outer.parent is not None and outer.parent.container.is_judged:
                may_close_outer = None
            may_go_on_outer = outer.only_names is None or num_members < len(outer.only_names)
            return Outlook(may_close, may_go_on, may_close_outer, may_go_on_outer, may_refuse_outer=True)
        if may_close is None or is_part_unknown(frame.contents):
            return Outlook(None, may_go_on, None, None, may_refuse_outer=True)
        closed = self._checks.added(parent, container.key, frame.contents)
        if closed is None:
            return Outlook(False, may_go_on)
        around = self.of(closed.frame)
        return Outlook(may_close, may_go_on, around.may_close, around.may_go_on, may_refuse_outer=True)

    def judged_kinds(self, nodes: tuple[Node, ...], frame: Frame | None) -> str:
        """Return which of the values that may begin here are judged when they end.

        `s` stands for strings, `n` for other scalars, `{` for containers.
        """
        if frame is not None and frame.container.is_judged:
            return "sn{"
        if not nodes:
            return ""
        of_kind = self._obligations.of_kind
        found = "s" if of_kind(nodes, str) else ""
        found += "n" if any(of_kind(nodes, kind) for kind in (float, bool, None)) else ""
        return found + ("{" if any(of_kind(nodes, kind) for kind in (dict, list)) else "")

    def next_item_nodes(self, frame: Frame | None) -> tuple[Node, ...]:
        """Return what the item behind the next comma of a list must satisfy."""
        return () if frame is None else self._obligations.of_item(frame.container.arrays, frame.num_items + 1)

    def _holds_so_far(self, frame: Frame, before: Frame) -> bool | None:
        """Tell whether a container with one more value than before may still become what it must be."""
        evaluator, num_met = self._evaluator, len(self._evaluator.met)
        verdict = self._holds(frame.container.early_wholes, Open(frame.contents, before.contents))
        is_open = verdict is None and len(evaluator.met) == num_met and not evaluator.has_met_part
        return True if is_open else verdict

    def _holds(self, nodes: tuple[Node, ...], value: Value) -> bool | None:
        result: bool | None = True
        for node in nodes:
            verdict = self._evaluator.holds(node, value)
            if verdict is False:
                return False
            result = result and verdict
        return result
