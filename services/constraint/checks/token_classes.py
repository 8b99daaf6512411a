"""What the tokens of a vocabulary do to a JSON text, by where they begin: what they end, close and go on with.

Made from the vocabulary alone. All tokens that do the same are one class. A check refuses a class as a whole, lets it
pass, or has its tokens looked at one by one, which is needed only where the answer depends on each.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from enum import Enum, IntEnum, auto
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiling import compiled
from services.constraint.core.engine import TokenTrie
from services.vocabulary import pack_bool_mask

Int32s = npt.NDArray[np.int32]
Actions = npt.NDArray[np.uint8]

_SPACE: Final = frozenset(b" \t\n\r")
_DELIMITERS: Final = frozenset(b",]} \t\n\r")
_MARKS: Final = frozenset(b'",]}')
# What stands between any two quotes: more than are ever read as strings.
_WHOLE_STRING: Final = re.compile(rb'(?=(?<!\\)"((?:[^"\\]|\\.)*)")', re.DOTALL)


class Start(Enum):
    """Where a token begins: in or before what, and in what kind of container."""

    IN_KEY = auto()
    IN_ESCAPE = auto()  # in any string, behind a backslash
    IN_MEMBER_STRING = auto()
    IN_ITEM_STRING = auto()
    IN_MEMBER_SCALAR = auto()
    IN_ITEM_SCALAR = auto()
    KEY = auto()
    VALUE = auto()
    AFTER_MEMBER = auto()
    AFTER_ITEM = auto()


_STRINGS: Final = (Start.IN_KEY, Start.IN_MEMBER_STRING, Start.IN_ITEM_STRING)
_SCALARS: Final = (Start.IN_MEMBER_SCALAR, Start.IN_ITEM_SCALAR)
_LISTS: Final = (Start.IN_ITEM_STRING, Start.IN_ITEM_SCALAR, Start.AFTER_ITEM)


class Action(IntEnum):
    """What a check does with a class of tokens."""

    PASS = 0
    REFUSE = 1
    LOOK = 2  # at each


class TokenClass(NamedTuple):
    """What some tokens do.

    `has_ended` tells whether the string, key or scalar ends in which they begin, `is_prompt` whether nothing comes
    before the first of the events: what they begin in ends as it is. `events` are, in order: `k` ends a key that the
    token began itself, `s` such a string, `n` such a number or literal; `{` opens a container; `,` goes on; `}`
    closes a container.
    """

    has_ended: bool
    is_prompt: bool
    events: str

    def ends_value(self, start: Start) -> bool:
        """Tell whether the tokens end a string or scalar that they begin in, or a string that they begin with."""
        if start is Start.VALUE:
            return self.events[:1] == "s"
        return self.has_ended and start not in (Start.IN_KEY, Start.IN_ESCAPE)


class TokenClasses:
    """The classes of a vocabulary's tokens, made for each start when it is first asked for."""

    def __init__(self, trie: TokenTrie) -> None:
        self._token_bytes = trie.vocabulary.token_bytes
        self._tables: dict[Start, ClassTable] = {}
        self._found = _Found(len(self._token_bytes))

    def warm_up(self) -> None:
        """Make all classes, so that no mask waits for it."""
        for start in Start:
            self.of(start)
            self.of(start).sift(np.zeros(0, np.uint8), np.zeros(1, np.int32))
        _ = self.whole_strings, self.spaces, self.most_bytes, self._by_length

    def of(self, start: Start) -> ClassTable:
        """Return the classes of the tokens that begin at a place."""
        table = self._tables.get(start)
        if table is None:
            texts = self._texts if start not in _SCALARS else [*self._texts, *self._spaces_behind_scalars]
            table = self._tables[start] = ClassTable(texts, start, self._found)
        return table

    @cached_property
    def spaces(self) -> Int32s:
        """The bitmask (words,) of the tokens that are white space alone."""
        return pack_bool_mask(np.array([bool(text) and _SPACE.issuperset(text or b"") for text in self._token_bytes]))

    @cached_property
    def most_bytes(self) -> int:
        """How many bytes the longest token has."""
        return max(len(text or b"") for text in self._token_bytes)

    def longer_than(self, num_bytes: int) -> Int32s:
        """Return the tokens that have more bytes than this, in order of their length."""
        ids, lengths = self._by_length
        return ids[np.searchsorted(lengths, np.int32(num_bytes), side="right") :]

    @cached_property
    def _by_length(self) -> tuple[Int32s, Int32s]:
        """The tokens with bytes, and how many each has, shortest first."""
        lengths = np.array([len(text or b"") for text in self._token_bytes], np.int32)
        ids = np.argsort(lengths, kind="stable").astype(np.int32)
        first = int((lengths == 0).sum())
        return ids[first:], lengths[ids[first:]]

    @cached_property
    def _spaces_behind_scalars(self) -> list[tuple[int, bytes]]:
        """The tokens that end a number or a literal by white space."""
        pattern = re.compile(rb"[-+.0-9A-Za-z]*[ \t\n\r]+")
        return [(i, text) for i, text in enumerate(self._token_bytes) if text and pattern.fullmatch(text)]

    @cached_property
    def whole_strings(self) -> frozenset[str]:
        """The strings that tokens begin and end."""
        found = (match for _, text in self._texts for match in _WHOLE_STRING.findall(text))
        return frozenset(text.decode(errors="replace") for text in found)

    @cached_property
    def _texts(self) -> list[tuple[int, bytes]]:
        return [(i, text) for i, text in enumerate(self._token_bytes) if text and not _MARKS.isdisjoint(text)]


class _Found(threading.local):
    """Room for what is found: (tokens, 2), one for each thread."""

    def __init__(self, num_tokens: int) -> None:
        self.array = np.empty((num_tokens, 2), np.int32)


class ClassTable:
    """Tokens by class, of those that do something."""

    def __init__(self, texts: list[tuple[int, bytes]], start: Start, found: _Found) -> None:
        members: dict[TokenClass, list[int]] = {}
        for token_id, text in texts:
            key = _described(text, start)
            if key.has_ended or key.events.strip("{"):
                members.setdefault(key, []).append(token_id)
        self.classes: Final = list(members)
        self._token_id = np.array([token_id for group in members.values() for token_id in group], np.int32)
        self._class_start = np.cumsum([0, *map(len, members.values())]).astype(np.int32)
        self._found = found
        self._actions: dict[object, tuple[Actions, bool]] = {}

    def actions(self, situation: object, decide: Callable[[TokenClass], Action]) -> tuple[Actions, bool]:
        """Return what to do with each class, and whether any is not passed; remembered by `situation`."""
        known = self._actions.get(situation)
        if known is None:
            actions = np.array([decide(token_class) for token_class in self.classes], np.uint8)
            known = self._actions[situation] = actions, bool(actions.any())
        return known

    def sift(self, actions: Actions, row: Int32s) -> list[tuple[int, TokenClass]]:
        """Take the refused tokens off a bitmask (words,); return those of its tokens that are to be looked at."""
        found = self._found.array
        num_found = _sift(self._token_id, self._class_start, actions, row, found)
        return [(token_id, self.classes[number]) for token_id, number in found[:num_found].tolist()]


@compiled
def _sift(token_id: Int32s, class_start: Int32s, actions: Actions, row: Int32s, found: Int32s) -> int:
    """Write (token, class) of the tokens to be looked at to `found`; return how many."""
    num_found = 0
    for number in range(len(actions)):
        if actions[number] == 0:
            continue
        for i in range(class_start[number], class_start[number + 1]):
            token = token_id[i]
            bit = np.int32(1) << np.int32(token & 31)
            if row[token >> 5] & bit != 0:
                if actions[number] == 1:
                    row[token >> 5] &= ~bit
                else:
                    found[num_found, 0], found[num_found, 1] = token, number
                    num_found += 1
    return num_found


def _described(text: bytes, start: Start) -> TokenClass:
    """Return the class of a token."""
    at, has_ended = 0, False
    if start is Start.IN_ESCAPE:
        return TokenClass(_string_end(text, 1) >= 0, False, "")
    if start in _STRINGS:
        at = _string_end(text, 0)
        if at < 0:
            return TokenClass(False, False, "")
        has_ended = True
        is_prompt = at == 1
    elif start in _SCALARS:
        while at < len(text) and text[at] not in _DELIMITERS:
            at += 1
        has_ended = at < len(text)
        is_prompt = at == 0
    else:
        is_prompt = text[0] not in _SPACE
    return TokenClass(has_ended, is_prompt, "".join(_events(text, at, start)))


def _events(text: bytes, at: int, start: Start) -> Iterator[str]:
    # Of each container that is open: whether it may be an object.
    objects = [start not in _LISTS]
    is_key = start is Start.KEY
    while at < len(text):
        byte = text[at]
        at += 1
        if byte == 0x22:
            at = _string_end(text, at)
            if at < 0:
                return
            yield "k" if is_key else "s"
            is_key = False
        elif byte == 0x2C:
            yield ","
            is_key = objects[-1] if objects else True
        elif byte in b"}]":
            yield "}"
            if objects:
                objects.pop()
        elif byte in b"{[":
            yield "{"
            objects.append(byte == 0x7B)
            is_key = byte == 0x7B
        elif byte not in _SPACE and byte != 0x3A:
            while at < len(text) and text[at] not in _DELIMITERS:
                at += 1
            if at < len(text):
                yield "n"


def _string_end(text: bytes, at: int) -> int:
    """Return the place behind a string's closing quote, or -1 where it is not there."""
    while at < len(text):
        if text[at] == 0x5C:
            at += 2
        elif text[at] == 0x22:
            return at + 1
        else:
            at += 1
    return -1
