"""How far a JSON text has come, as an immutable value, and what its checks say of it.

The text is one that a JSON grammar lets pass, so that nothing here looks for mistakes of syntax. A `Progress` is made
from the one before and the bytes of a token; it is None where a check refuses what has come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, auto
from itertools import count
from typing import Any, Final

from services.constraint.sources.json_schema.evaluate import (
    Open,
    Value,
    identity,
)
from services.constraint.sources.json_schema.nodes import Array, Json, Node, NoValue, Object
from services.constraint.sources.json_schema.obligations import Kind, Obligations, bounded_strings
from services.constraint.sources.json_schema.strings import has_room

_SPACE: Final = b" \t\n\r"
# A string's body that is not inside an escape.
ENDS_WHOLE: Final = re.compile(rb"(?:[^\\]|\\u[0-9A-Fa-f]{4}|\\[^u])*", re.DOTALL)
STRING_BODY: Final = re.compile(rb'(?:[^"\\]|\\.)*', re.DOTALL)
SCALAR_BODY: Final = re.compile(rb"[^,\]} \t\n\r]*")
_LITERALS: Final[dict[bytes, Json]] = {b"true": True, b"false": False, b"null": None}
# Items or members of a container up to which it is judged again with each one; beyond it, when it is closed.
_MAX_EARLY: Final = 256
_MAX_INTEGER_DIGITS: Final = 4000


class Place(Enum):
    """What comes next."""

    VALUE = auto()  # or, in an empty list, its end
    KEY = auto()  # or, in an empty object, its end
    IN_KEY = auto()
    COLON = auto()
    IN_STRING = auto()
    IN_SCALAR = auto()  # a number, true, false or null
    AFTER = auto()  # a comma or the end of the container


@dataclass(frozen=True, slots=True, eq=False)
class Container:
    """What an open object or list must satisfy, from the moment it is opened.

    `key` is its name in `parent`, where that is an object. `wholes` are judged when it is closed, `early_wholes` among
    them with each of its values too; `only_names` are the names that its members may have, None where that is no list.
    `is_checked` tells whether something in it or around it is judged that may have to be taken back.
    """

    parent: Frame | None
    key: str | None
    is_object: bool
    objects: tuple[Object, ...] = ()
    arrays: tuple[Array, ...] = ()
    wholes: tuple[Node, ...] = ()
    early_wholes: tuple[Node, ...] = ()
    required: frozenset[str] = frozenset()
    only_names: frozenset[str] | None = None
    is_unique: bool = False
    keeps_values: bool = False
    is_checked: bool = False
    has_judged_names: bool = False
    may_refuse: bool = False
    """Whether anything in it or around it may be refused but for a name that comes twice."""

    @property
    def is_judged(self) -> bool:
        """Whether each of its values is judged when it ends."""
        return bool(self.early_wholes) or self.is_unique


class Frame:
    """A container and what is in it so far: `members` or `values`, which are whole only where it keeps values."""

    __slots__ = ("container", "members", "num_items", "number", "remembered", "values")

    def __init__(
        self, container: Container, members: dict[str, Value], values: list[Value], num_items: int, number: int
    ) -> None:
        """Take the contents; frames that are equal, and in the same place, have the same `number`."""
        self.number = number
        self.container = container
        self.members = members
        self.values = values
        self.num_items = num_items
        self.remembered: dict[object, Any] = {}

    def with_value(self, value: Value, key: str | None, number: int = 0) -> Frame:
        """Return the frame with one more item, or a member where `key` is given."""
        container, num_items = self.container, self.num_items + 1
        if key is not None:
            return Frame(container, {**self.members, key: value}, self.values, num_items, number)
        values = [*self.values, value] if container.keeps_values else []
        return Frame(container, self.members, values, num_items, number)

    @property
    def contents(self) -> dict[str, Value] | list[Value]:
        """What is in it."""
        return self.members if self.container.is_object else self.values


@dataclass(frozen=True, slots=True)
class Progress:
    """A place in a text.

    `text` is what has come of the key, string or scalar that is being read, as far as it matters; `key` the latest key
    of an object; `nodes` what the value that comes next, or is being read, must satisfy.
    """

    frame: Frame | None
    place: Place
    text: bytes = b""
    key: str | None = None
    nodes: tuple[Node, ...] = ()


class JsonChecks:
    """Follows texts of one schema. Immutable but for what it remembers; not thread-safe."""

    def __init__(self, obligations: Obligations) -> None:
        self._obligations = obligations
        self._evaluator = obligations.evaluator
        self._numbers: dict[tuple[object, ...], int] = {}
        self._next_number = count(1)
        self.start: Final = Progress(None, Place.VALUE, nodes=obligations.of_root())

    def feed(self, progress: Progress, data: bytes) -> Progress | None:
        """Return where bytes lead, or None where a check refuses them."""
        at = 0
        now: Progress | None = progress
        while at < len(data):
            assert now is not None
            if now.place is Place.IN_STRING or now.place is Place.IN_KEY:
                at, now = self._read_string(now, data, at)
            elif now.place is Place.IN_SCALAR:
                at, now = self._read_scalar(now, data, at)
            elif data[at] in _SPACE:
                at += 1
            else:
                now = self._read_sign(now, data[at])
                at += 1 if now is None or now.place is not Place.IN_SCALAR else 0
            if now is None:
                return None
        return now

    def may_end(self, progress: Progress) -> bool:
        """Tell whether the text may end where the grammar lets it."""
        if progress.place is Place.IN_SCALAR and progress.nodes:
            return self._holds_all(progress.nodes, scalar_of(progress.text))
        return True

    def is_settled(self, progress: Progress) -> bool:
        """Tell whether no check is pending: nothing of the text will have to be taken back.

        A member that was begun may turn out to have no value, so its key is pending already.
        """
        if progress.nodes:
            return False
        if progress.frame is None:
            return True
        container = progress.frame.container
        is_begun = progress.place in (Place.KEY, Place.IN_KEY, Place.COLON)
        return not container.is_checked and not (is_begun and container.objects)

    def value_of(self, progress: Progress) -> tuple[object, ...]:
        """Return what is equal for places of which the same may follow."""
        frame = progress.frame
        number = 0 if frame is None else frame.number
        return progress.place, progress.text, progress.key, number, tuple(map(id, progress.nodes))

    def forget(self) -> None:
        """Let go of the numbers given so far; equal frames get other ones from now on."""
        self._numbers.clear()

    def ended(self, progress: Progress) -> Progress | None:
        """Return the place behind the string or scalar that is being read, as it is; None where a check refuses it."""
        text = progress.text
        if progress.place is Place.IN_KEY:
            return self._end_key(progress, string_of(text))
        if not self._needs_value(progress):
            return self._end_value(progress, None)
        return self._end_value(progress, string_of(text) if progress.place is Place.IN_STRING else scalar_of(text))

    def _read_string(self, progress: Progress, data: bytes, at: int) -> tuple[int, Progress | None]:
        is_kept = progress.place is Place.IN_KEY or self._needs_value(progress)
        text = progress.text + data[at:] if progress.text else data[at:]
        end = STRING_BODY.match(text).end()  # type: ignore[union-attr]
        if end == len(text) or text[end] != 0x22:
            # All of it is inside; a lone backslash at the end waits for what it escapes.
            is_bounded = progress.nodes and progress.place is Place.IN_STRING
            if is_bounded and not _has_room(progress.nodes, text):
                return len(data), None
            rest = text if is_kept else text[end:]
            return len(data), Progress(progress.frame, progress.place, rest, progress.key, progress.nodes)
        at += end + 1 - len(progress.text)
        if progress.place is Place.IN_KEY:
            return at, self._end_key(progress, string_of(text[:end]))
        return at, self._end_value(progress, string_of(text[:end]) if is_kept else "")

    def _read_scalar(self, progress: Progress, data: bytes, at: int) -> tuple[int, Progress | None]:
        end = SCALAR_BODY.match(data, at).end()  # type: ignore[union-attr]
        text = progress.text + data[at:end]
        if end == len(data):
            return end, Progress(progress.frame, progress.place, text, progress.key, progress.nodes)
        return end, self._end_value(progress, scalar_of(text) if self._needs_value(progress) else None)

    def _needs_value(self, progress: Progress) -> bool:
        return bool(progress.nodes) or (progress.frame is not None and progress.frame.container.keeps_values)

    def _read_sign(self, progress: Progress, byte: int) -> Progress | None:
        frame = progress.frame
        if byte == 0x22:
            if progress.place is Place.KEY:
                return Progress(frame, Place.IN_KEY)
            nodes = self._obligations.of_kind(progress.nodes, str)
            return Progress(frame, Place.IN_STRING, b"", progress.key, nodes)
        if byte in b"{[":
            return self._open(progress, is_object=byte == 0x7B)
        if byte in b"}]":
            assert frame is not None
            return self._close(frame)
        if byte == 0x2C:
            assert frame is not None
            only = frame.container.only_names
            if only is not None and len(frame.members) >= len(only):
                return None
            if frame.container.is_object:
                return Progress(frame, Place.KEY)
            nodes = self._obligations.of_item(frame.container.arrays, frame.num_items)
            return Progress(frame, Place.VALUE, nodes=nodes)
        if byte == 0x3A:
            return Progress(frame, Place.VALUE, b"", progress.key, progress.nodes)
        kind: Kind = float if byte in b"-0123456789" else None if byte == 0x6E else bool
        nodes = self._obligations.of_kind(progress.nodes, kind)
        return Progress(frame, Place.IN_SCALAR, b"", progress.key, nodes)

    def _end_key(self, progress: Progress, name: str) -> Progress | None:
        frame = progress.frame
        assert frame is not None
        container = frame.container
        if name in frame.members or (container.only_names is not None and name not in container.only_names):
            return None
        for node in container.objects:
            if self._obligations.has_judged_names(node) and self._evaluator.holds(node.names, name) is not True:
                return None
        nodes = self._obligations.of_member(container.objects, name)
        return Progress(frame, Place.COLON, b"", name, nodes)

    def _end_value(self, progress: Progress, value: Value) -> Progress | None:
        """Return the place behind a scalar."""
        if progress.nodes and not self._holds_all(progress.nodes, value):
            return None
        return self.added(progress.frame, progress.key, value)

    def added(self, frame: Frame | None, key: str | None, value: Value) -> Progress | None:
        """Return the place behind a value that is right on its own."""
        if frame is None:
            return Progress(None, Place.AFTER)
        container = frame.container
        if container.is_unique and identity(value) in identities_in(frame):
            return None
        name = key if container.is_object else None
        kept = identity(value) if container.keeps_values else None
        behind = frame.with_value(value, name, self._number((frame.number, name, kept)))
        if container.early_wholes and behind.num_items <= _MAX_EARLY:
            contents = Open(behind.contents, frame.contents)
            if any(self._evaluator.holds(node, contents) is False for node in container.early_wholes):
                return None
        return Progress(behind, Place.AFTER)

    def _open(self, progress: Progress, *, is_object: bool) -> Progress:
        nodes = self._obligations.of_kind(progress.nodes, dict if is_object else list)
        container = self._container(progress.frame, progress.key, nodes, is_object=is_object)
        outer = 0 if progress.frame is None else progress.frame.number
        number = self._number((outer, progress.key, is_object, tuple(map(id, nodes))))
        frame = Frame(container, {}, [], 0, number)
        if is_object:
            return Progress(frame, Place.KEY)
        return Progress(frame, Place.VALUE, nodes=self._obligations.of_item(container.arrays, 0))

    def _number(self, value: tuple[object, ...]) -> int:
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = next(self._next_number)
        return number

    def _container(
        self, parent: Frame | None, key: str | None, nodes: tuple[Node, ...], *, is_object: bool
    ) -> Container:
        has = self._obligations.is_inexact
        objects = tuple(node for node in nodes if isinstance(node, Object) and not has(node, "patternProperties"))
        arrays = tuple(node for node in nodes if isinstance(node, Array))
        only_names: frozenset[str] | None = None
        for only in map(_only_names, objects):
            if only is not None:
                only_names = only if only_names is None else only_names & only
        wholes = tuple(
            node
            for node in nodes
            if node not in objects and (not isinstance(node, Array) or (node.contains and has(node, "contains")))
        )
        is_unique = any(node.is_unique and has(node, "uniqueItems") for node in arrays)
        is_judged = bool(wholes) or is_unique
        required = frozenset[str]().union(*(node.required for node in objects if has(node, "required")))
        has_names = any(map(self._obligations.has_judged_names, objects))
        return Container(
            parent,
            key,
            is_object,
            objects,
            arrays,
            wholes,
            tuple(filter(self._obligations.may_fail_early, wholes)),
            required,
            only_names,
            is_unique,
            keeps_values=is_judged or (parent is not None and parent.container.keeps_values),
            is_checked=is_judged or has_names or (parent is not None and parent.container.is_checked),
            has_judged_names=has_names,
            may_refuse=is_judged
            or bool(required)
            or only_names is not None
            or (parent is not None and parent.container.may_refuse)
            or bool(nodes),
        )

    def _close(self, frame: Frame) -> Progress | None:
        container = frame.container
        if not container.required <= frame.members.keys() or not self._holds_all(container.wholes, frame.contents):
            return None
        return self.added(container.parent, container.key, frame.contents)

    def _holds_all(self, nodes: tuple[Node, ...], value: Value) -> bool:
        return all(self._evaluator.holds(node, value) is True for node in nodes)


def identities_in(frame: Frame) -> frozenset[object]:
    """Return what an item of a list must not be equal to, where items are unique."""
    if "identities" not in frame.remembered:
        frame.remembered["identities"] = frozenset(map(identity, frame.values))
    found: frozenset[object] = frame.remembered["identities"]
    return found


def _only_names(node: Object) -> frozenset[str] | None:
    """Return the names that an object's members may have, or None where that is no list."""
    only: frozenset[str] | None = None
    for members in node.members:
        if isinstance(members.additional, NoValue) and not members.patterns:
            names = frozenset(members.properties)
            only = names if only is None else only & names
    return only


def _has_room(nodes: Iterable[Node], text: bytes) -> bool:
    """Tell whether a string that is written so far as `text` can still end within the lengths that nodes allow.

    Without this a string would be found too long only when its end comes, or the budget's.
    """
    bounded = bounded_strings(nodes)
    if not bounded:
        return True
    begun, next_character = begun_string(text)
    return all(has_room(node, begun, next_character) for node in bounded)


def begun_string(text: bytes) -> tuple[str, tuple[int, int] | None]:
    """Return the whole characters of a string that is written so far as `text`, and what the next one may be.

    That is the lowest and highest code point of a character of which a part is there, None where there is none.
    """
    whole = ENDS_WHOLE.match(text).group()  # type: ignore[union-attr]
    try:
        begun = string_of(whole)
    except UnicodeDecodeError:
        first = max(at for at, byte in enumerate(whole) if byte >= 0xC0)
        return string_of(whole[:first]), _begun_by_bytes(whole[first:])
    if begun and "\ud800" <= begun[-1] <= "\udbff":  # half of two escapes
        low = 0x10000 + (ord(begun[-1]) - 0xD800 << 10)
        return begun[:-1], (low, low + 0x3FF)
    if whole == text:
        return begun, None
    digits = text[len(whole) + 2 :].decode()
    missing = 4 * (4 - len(digits))
    low = int(digits or "0", 16) << missing
    high = low + (1 << missing) - 1
    # What begins as the first of two escapes may become any of the characters that are written so.
    return begun, (low, 0x10FFFF if high >= 0xD800 and low <= 0xDBFF else high)


def _begun_by_bytes(part: bytes) -> tuple[int, int]:
    """Return the code points whose UTF-8 begins so."""
    lead = part[0]
    num_bytes = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    low = lead & (0xFF >> (num_bytes + 1))
    for byte in part[1:]:
        low = low << 6 | byte & 0x3F
    missing = 6 * (num_bytes - len(part))
    return low << missing, (low + 1 << missing) - 1


def string_of(text: bytes) -> str:
    """Return the string that is written between quotes as `text`."""
    if b"\\" not in text:
        return text.decode()
    decoded: str = json.loads(b'"' + text + b'"')
    return decoded


def scalar_of(text: bytes) -> Json:
    """Return the number or literal that is written as `text`."""
    if text in _LITERALS:
        return _LITERALS[text]
    # Python takes no longer integers than 4,300 digits.
    is_integer = len(text) < _MAX_INTEGER_DIGITS and not any(sign in text for sign in b".eE")
    return int(text) if is_integer else Decimal(text.decode())
