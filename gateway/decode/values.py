"""Finds the values of a JSON text as they become whole, by JSON Pointer (RFC 6901)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

_SPACE: Final = frozenset(" \t\n\r")
_ENDS_SCALAR: Final = frozenset(",]} \t\n\r")


@dataclass(frozen=True, slots=True)
class Value:
    """A value that is whole, as it was written."""

    pointer: str
    json: str
    start: int = field(default=0, compare=False)
    """Where it begins in the text, in characters."""


@dataclass(slots=True)
class _Container:
    """An array or object that is not closed yet."""

    start: int
    pointer: str
    is_object: bool
    key: str | None = None
    num_items: int = 0


class ValueScanner:
    """Reads a text that its constraint makes the beginning of a JSON text: it is not checked again."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._open: list[_Container] = []
        self._start: int | None = None
        """Where the string, number or word begins that is being read."""
        self._is_string = False

    def push(self, text: str) -> tuple[Value, ...]:
        """Take the next piece of the text; return the values that it completes, inner ones before outer ones."""
        self._text += text
        found: list[Value] = []
        while self._at < len(self._text):
            if not self._read(self._text[self._at], found):
                break
        return tuple(found)

    def finish(self) -> tuple[Value, ...]:
        """Return the value that only the end of the text completes: a number, or a word, that is all of it."""
        if self._start is None or self._open:
            return ()
        return (Value("", self._text[self._start :].rstrip(), self._start),)

    def _read(self, char: str, found: list[Value]) -> bool:
        """Read on; False where the rest of a string has not come yet."""
        if self._start is not None and self._is_string:
            return self._read_string(found)
        if self._start is not None:
            if char not in _ENDS_SCALAR:
                self._at += 1
                return True
            found.append(Value(self._pointer(), self._text[self._start : self._at], self._start))
            self._start = None
        if char in "{[":
            self._open.append(_Container(self._at, self._pointer(), char == "{"))
        elif char in "}]":
            closed = self._open.pop()
            found.append(Value(closed.pointer, self._text[closed.start : self._at + 1], closed.start))
        elif char == ",":
            self._open[-1].num_items += 1
            self._open[-1].key = None
        elif char not in _SPACE and char != ":":
            self._start, self._is_string = self._at, char == '"'
        self._at += 1
        return True

    def _read_string(self, found: list[Value]) -> bool:
        assert self._start is not None
        end = self._at
        while True:
            end = self._text.find('"', end)
            if end < 0:
                return False
            if not self._is_escaped(end):
                break
            end += 1
        start, text = self._start, self._text[self._start : end + 1]
        self._at, self._start = end + 1, None
        container = self._open[-1] if self._open else None
        if container is not None and container.is_object and container.key is None:
            container.key = json.loads(text)
        else:
            found.append(Value(self._pointer(), text, start))
        return True

    def _is_escaped(self, at: int) -> bool:
        num_backslashes = 0
        while self._text[at - 1 - num_backslashes] == "\\":
            num_backslashes += 1
        return num_backslashes % 2 == 1

    def _pointer(self) -> str:
        """Return where a value stands that is read now."""
        if not self._open:
            return ""
        container = self._open[-1]
        step = container.key if container.is_object else str(container.num_items)
        assert step is not None, "a value of an object has a key"
        return f"{container.pointer}/{step.replace('~', '~0').replace('/', '~1')}"
