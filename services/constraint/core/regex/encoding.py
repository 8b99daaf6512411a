r"""How a character is written as bytes: raw UTF-8, or inside a JSON string.

An `Encoding` turns a set of characters into a *byte set*: sequences of byte classes, all of which the set's
characters are written as. `expression` makes the smallest grammar expression of it. Two JSON encodings exist:

- JSON_ANY accepts every spelling that RFC 8259 allows: raw, `\n`-like, `\uXXXX` in either case, surrogate pairs.
- JSON_PLAIN accepts one spelling, that of `json.dumps(ensure_ascii=False)`: raw where allowed, else the short escape,
  else `\u00XX`. One spelling per character is what lets a grammar force text.

None of them ever writes a lone surrogate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from services.constraint.core.grammar import NOTHING, Automaton, ByteRange, Bytes, Expression
from services.constraint.core.regex import charset
from services.constraint.core.regex.charset import Ranges

ByteClass: TypeAlias = tuple[tuple[int, int], ...]
ByteSequence: TypeAlias = tuple[ByteClass, ...]
Encoding: TypeAlias = Callable[[Ranges], list[ByteSequence]]

_CONTINUATION: ByteClass = ((0x80, 0xBF),)
_LAST_OF_LENGTH = (0x7F, 0x7FF, 0xFFFF, charset.MAX_CODE_POINT)
_SHORT_ESCAPES = {0x08: b"b", 0x09: b"t", 0x0A: b"n", 0x0C: b"f", 0x0D: b"r", 0x22: b'"', 0x5C: b"\\"}
_MUST_ESCAPE: Ranges = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_RAW_IN_JSON = charset.complement(_MUST_ESCAPE)
_BACKSLASH: ByteClass = ((0x5C, 0x5C),)
_U: ByteClass = ((0x75, 0x75),)


def utf8(ranges: Ranges) -> list[ByteSequence]:
    """Write characters as UTF-8."""
    result: list[ByteSequence] = []
    ascii_class = tuple((low, min(high, 0x7F)) for low, high in ranges if low <= 0x7F)
    if ascii_class:
        result.append((ascii_class,))
    for low, high in ranges:
        low = max(low, 0x80)
        for last in _LAST_OF_LENGTH[1:]:
            if low > high:
                break
            if low <= last:
                _split_utf8(chr(low).encode(), chr(min(high, last)).encode(), result, ())
                low = last + 1
    return result


def _split_utf8(low: bytes, high: bytes, result: list[ByteSequence], prefix: ByteSequence) -> None:
    """Append sequences for all characters from low to high, which have the same number of bytes."""
    if len(low) == 1:
        result.append((*prefix, ((low[0], high[0]),)))
        return
    first, last = low[0], high[0]
    if first == last:
        _split_utf8(low[1:], high[1:], result, (*prefix, ((first, first),)))
        return
    rest = len(low) - 1
    if low[1:] != b"\x80" * rest:
        _split_utf8(low[1:], b"\xbf" * rest, result, (*prefix, ((first, first),)))
        first += 1
    is_high_full = high[1:] == b"\xbf" * rest
    if first <= (last if is_high_full else last - 1):
        result.append((*prefix, ((first, last if is_high_full else last - 1),), *(_CONTINUATION,) * rest))
    if not is_high_full:
        _split_utf8(b"\x80" * rest, high[1:], result, (*prefix, ((last, last),)))


def json_plain(ranges: Ranges) -> list[ByteSequence]:
    """Write characters as `json.dumps(ensure_ascii=False)` does."""
    if not ranges or ranges[0][0] > 0x5C:
        return utf8(ranges)
    result = utf8(charset.intersect(ranges, _RAW_IN_JSON))
    for low, high in charset.intersect(ranges, _MUST_ESCAPE):
        for code_point in range(low, high + 1):
            if (short := _SHORT_ESCAPES.get(code_point)) is not None:
                result.append((_BACKSLASH, ((short[0], short[0]),)))
            else:
                result.append((_BACKSLASH, *(((byte, byte),) for byte in b"u%04x" % code_point)))
    return result


def json_any(ranges: Ranges) -> list[ByteSequence]:
    """Write characters in every way that JSON allows inside a string."""
    result = utf8(charset.intersect(ranges, _RAW_IN_JSON))
    short = [
        (escape[0], escape[0])
        for code_point, escape in {**_SHORT_ESCAPES, 0x2F: b"/"}.items()
        if _contains(ranges, code_point)
    ]
    if short:
        result.append((_BACKSLASH, tuple(sorted(short))))
    for low, high in ranges:
        if low <= 0xFFFF:
            result.extend((_BACKSLASH, _U, *digits) for digits in _hex_range(low, min(high, 0xFFFF), 4))
        if high > 0xFFFF:
            result.extend(_surrogate_pairs(max(low, 0x10000), high))
    return result


def _contains(ranges: Ranges, code_point: int) -> bool:
    return any(low <= code_point <= high for low, high in ranges)


def _surrogate_pairs(low: int, high: int) -> list[ByteSequence]:
    result: list[ByteSequence] = []
    first, last = (low - 0x10000) >> 10, (high - 0x10000) >> 10
    low_tail, high_tail = (low - 0x10000) & 0x3FF, (high - 0x10000) & 0x3FF

    def add(first_head: int, last_head: int, first_tail: int, last_tail: int) -> None:
        for head in _hex_range(0xD800 + first_head, 0xD800 + last_head, 4):
            result.extend(
                (_BACKSLASH, _U, *head, _BACKSLASH, _U, *tail)
                for tail in _hex_range(0xDC00 + first_tail, 0xDC00 + last_tail, 4)
            )

    if first == last:
        add(first, last, low_tail, high_tail)
        return result
    if low_tail > 0:
        add(first, first, low_tail, 0x3FF)
        first += 1
    if high_tail < 0x3FF:
        add(last, last, 0, high_tail)
        last -= 1
    if first <= last:
        add(first, last, 0, 0x3FF)
    return result


def _hex_class(low: int, high: int) -> ByteClass:
    """Return the bytes of one hexadecimal digit from low to high, in either case."""
    result = []
    if low <= 9:
        result.append((0x30 + low, 0x30 + min(high, 9)))
    if high >= 10:
        first = max(low, 10) - 10
        result += [(0x41 + first, 0x41 + high - 10), (0x61 + first, 0x61 + high - 10)]
    return tuple(result)


def _hex_range(low: int, high: int, length: int) -> list[ByteSequence]:
    """Return the sequences of `length` hexadecimal digits whose values go from low to high."""
    if length == 0:
        return [()]
    rest_bits = 4 * (length - 1)
    first, last = low >> rest_bits, high >> rest_bits
    low_rest, high_rest = low & ((1 << rest_bits) - 1), high & ((1 << rest_bits) - 1)
    full = (1 << rest_bits) - 1
    if first == last:
        return [(_hex_class(first, first), *rest) for rest in _hex_range(low_rest, high_rest, length - 1)]
    result: list[ByteSequence] = []
    if low_rest > 0:
        result += [(_hex_class(first, first), *rest) for rest in _hex_range(low_rest, full, length - 1)]
        first += 1
    if high_rest < full:
        result += [(_hex_class(last, last), *rest) for rest in _hex_range(0, high_rest, length - 1)]
        last -= 1
    if first <= last:
        result.append((_hex_class(first, last), *(_hex_class(0, 15),) * (length - 1)))
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """What may follow at a place inside a character: bytes, each with what may follow then; none at its end.

    Compared by identity; those with the same edges are nearly always the same object.
    """

    edges: tuple[tuple[ByteClass, Rest], ...]


@lru_cache(maxsize=4096)
def rest(ranges: Ranges, encoding: Encoding) -> Rest:
    """Return what may follow where one character of the set begins."""
    return _rest(encoding(ranges))


def _rest(sequences: list[ByteSequence]) -> Rest:
    following: dict[ByteClass, list[ByteSequence]] = {}
    for sequence in sequences:
        if sequence:
            following.setdefault(sequence[0], []).append(sequence[1:])
    return _interned(tuple((byte_class, _rest(behind)) for byte_class, behind in following.items()))


@lru_cache(maxsize=65536)
def _interned(edges: tuple[tuple[ByteClass, Rest], ...]) -> Rest:
    return Rest(edges)


@lru_cache(maxsize=4096)
def characters(ranges: Ranges, encoding: Encoding) -> Expression:
    """Return an expression for one character of the set; the same object for the same set."""
    return expression(encoding(ranges))


def expression(sequences: list[ByteSequence]) -> Expression:
    """Return an expression for any one of the sequences."""
    if not sequences:
        return NOTHING
    if len(sequences) == 1:
        sequence = sequences[0]
        if all(len(bytes_) == 1 and bytes_[0][0] == bytes_[0][1] for bytes_ in sequence):
            return Bytes(bytes(bytes_[0][0] for bytes_ in sequence))
        if len(sequence) == 1 and len(sequence[0]) == 1:
            return ByteRange(*sequence[0][0])
    edges: list[tuple[int, int, int, int]] = []
    end = frozenset(((),))
    numbers: dict[frozenset[ByteSequence], int] = {frozenset(sequences): 0, end: 1}
    order = [*numbers]
    accepting = []
    for rest in order:
        state = numbers[rest]
        by_first: dict[ByteClass, set[ByteSequence]] = {}
        for sequence in rest:
            if sequence:
                by_first.setdefault(sequence[0], set()).add(sequence[1:])
            else:
                accepting.append(state)
        for first, following in by_first.items():
            key = frozenset(following)
            target = numbers.get(key)
            if target is None:
                target = numbers[key] = len(order)
                order.append(key)
            edges.extend((state, low, high, target) for low, high in first)
    return Automaton(0, tuple(accepting), tuple(sorted(edges)))
