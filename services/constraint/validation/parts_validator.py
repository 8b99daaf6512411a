"""Judges texts of constraints made of parts: finds where each part may end.

A special token is judged by its name, which is how it is written in a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

from services.constraint.sources import ConstraintSource

IsValid: TypeAlias = Callable[[ConstraintSource, str], bool]
"""Judges a whole text by a constraint of a simple kind."""

_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def ends(source: ConstraintSource, text: str, start: int, is_valid: IsValid, *, is_last: bool) -> set[int]:
    """Return where a part that begins at `start` may end; the end of the text or nowhere where it `is_last`."""
    match source.kind:
        case "sequence":
            return ends_of_all(source.parts, text, start, is_valid, is_last=is_last)
        case "any_of":
            return {end for part in source.parts for end in ends(part, text, start, is_valid, is_last=is_last)}
    if is_last and source.kind in ("json_schema", "lark", "regex"):
        found: Iterable[int] = [len(text)] if is_valid(source, text[start:]) else []
    else:
        found = _ends_of_simple(source, text, start, is_valid)
    return {end for end in found if end == len(text) or not is_last}


def ends_of_all(
    parts: Iterable[ConstraintSource], text: str, start: int, is_valid: IsValid, *, is_last: bool
) -> set[int]:
    """As `ends`, of parts one after another."""
    remaining = list(parts)
    starts = {start}
    for number, part in enumerate(remaining, 1):
        is_end = is_last and number == len(remaining)
        starts = {end for at in starts for end in ends(part, text, at, is_valid, is_last=is_end)}
    return starts


def _ends_of_simple(source: ConstraintSource, text: str, start: int, is_valid: IsValid) -> Iterator[int]:
    match source.kind:
        case "until":
            delimiter = source.text or ""
            at = text.find(delimiter, start)
            if at >= 0:
                yield at + len(delimiter)
        case "literal" | "special_token" | "choices":
            for value in source.choices or (source.text or "",):
                if text.startswith(value, start):
                    yield start + len(value)
        case "json_schema":
            for end in json_ends(text, start):
                if is_valid(source, text[start:end]):
                    yield end
        case _:
            for end in range(start, len(text) + 1):
                if is_valid(source, text[start:end]):
                    yield end


def json_ends(text: str, start: int) -> Iterator[int]:
    """Yield where a JSON value that begins at `start` may end, the furthest first: only numbers have several ends."""
    if number := _NUMBER.match(text, start):
        for end in range(number.end(), start, -1):
            if _NUMBER.fullmatch(text, start, end):
                yield end
        return
    try:
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return
    # Names that Python reads but JSON does not have.
    if not text.startswith(("NaN", "Infinity", "-Infinity"), start):
        yield end
