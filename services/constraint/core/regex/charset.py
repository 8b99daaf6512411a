"""Sets of characters as sorted ranges of code points.

A set is a tuple of (first, last), both included, without overlap, without neighbours that touch, and without
surrogates: those are not characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]

MAX_CODE_POINT = 0x10FFFF
EVERYTHING: Ranges = ((0, 0xD7FF), (0xE000, MAX_CODE_POINT))
NOTHING: Ranges = ()

ASCII: Ranges = ((0, 0x7F),)
LINE_FEED: Ranges = ((0x0A, 0x0A),)
ASCII_DIGITS: Ranges = ((0x30, 0x39),)
ASCII_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
# ECMA-262, 12.2 White Space and 12.3 Line Terminators.
ECMA_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
ECMA_SPACE: Ranges = (
    (0x09, 0x0D),
    (0x20, 0x20),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
)


def normalise(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return the set of all characters in the ranges, which may overlap and stand in any order."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1] + 1:
            if high > result[-1][1]:
                result[-1] = (result[-1][0], high)
        else:
            result.append((low, high))
    if any(low <= 0xDFFF and high >= 0xD800 for low, high in result):
        return intersect(tuple(result), EVERYTHING)
    return tuple(result)


def complement(ranges: Ranges) -> Ranges:
    """Return all characters that are not in the set."""
    result = []
    start = 0
    for low, high in ranges:
        if start < low:
            result.append((start, low - 1))
        start = high + 1
    if start <= MAX_CODE_POINT:
        result.append((start, MAX_CODE_POINT))
    return intersect(tuple(result), EVERYTHING)


def intersect(a: Ranges, b: Ranges) -> Ranges:
    """Return the characters in both sets."""
    result = []
    i = j = 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            result.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(result)


def subtract(a: Ranges, b: Ranges) -> Ranges:
    """Return the characters of `a` that are not in `b`."""
    return intersect(a, complement(b))


def size(ranges: Ranges) -> int:
    """Return how many characters a set has."""
    return sum(high - low + 1 for low, high in ranges)


@cache
def python_class(escape: str, *, is_ascii: bool) -> Ranges:
    r"""Return what Python's own `re` takes for `\d`, `\w` or `\s` in a `str` pattern, under the ASCII flag or not."""
    every_character = "".join(map(chr, range(0xD800))) + "".join(map(chr, range(0xE000, MAX_CODE_POINT + 1)))
    result = []
    for match in re.finditer(f"{escape}+", every_character, re.ASCII if is_ascii else re.UNICODE):
        first, last = ord(match[0][0]), ord(match[0][-1])
        result.append((first, last))
    return normalise(result)


@cache
def _cased_characters() -> str:
    # No character beyond the first two planes has a case.
    return "".join(
        char
        for char in map(chr, range(0x20000))
        if not "\ud800" <= char <= "\udfff" and (char.lower() != char or char.upper() != char)
    )


@lru_cache(maxsize=256)
def python_ignore_case(ranges: Ranges, *, is_ascii: bool) -> Ranges:
    """Return the set with whatever Python's `re` takes for equal to one of its characters under IGNORECASE."""
    if not ranges:
        return ranges
    pattern = "[" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges) + "]"
    flags = re.IGNORECASE | (re.ASCII if is_ascii else re.UNICODE)
    more = [(ord(char), ord(char)) for char in re.findall(pattern, _cased_characters(), flags)]
    return normalise([*ranges, *more])


@cache
def _simple_foldings() -> dict[int, int]:
    """Return the simple case folding (statuses C and S of CaseFolding.txt) of each character that has a case."""
    foldings = {}
    for char in _cased_characters():
        # Python has full foldings only. Where one is longer than a character, the simple one is the lower case, if any.
        folded = char.casefold() if len(char.casefold()) == 1 else char.lower()
        foldings[ord(char)] = ord(folded) if len(folded) == 1 else ord(char)
    return foldings


@lru_cache(maxsize=256)
def ecma_ignore_case(ranges: Ranges) -> Ranges:
    """Return the set with whatever ECMA-262 takes for equal to one of its characters under the flags `i` and `u`."""
    foldings = _simple_foldings()
    cased = normalise((code_point, code_point) for code_point in foldings)
    members = [code_point for low, high in intersect(ranges, cased) for code_point in range(low, high + 1)]
    folded = {foldings[code_point] for code_point in members}
    return normalise([*ranges, *((char, char) for char, folding in foldings.items() if folding in folded)])
