r"""Writes an ECMA-262 pattern in Python's `re` syntax, for the validator.

Independent of `core/regex`, whose work it judges: that one makes automata, this one goes through the pattern once and
replaces what means something else in Python: `\s`, `.`, `$`, `\u{...}` and surrogate pairs, named groups, classes,
braces that are not counts. `\d`, `\w` and `\b` get their ASCII meaning from the flag around the whole.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import lru_cache

_SPACES = "\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_NOT_SPACES = (
    "\x00-\x08\x0e-\x1f!-\x9f\xa1-\u167f\u1681-\u1fff\u200b-\u2027\u202a-\u202e"
    "\u2030-\u205e\u2060-\u2fff\u3001-\ufefe\uff00-\U0010ffff"
)
_COUNT = re.compile(r"\{\d+(,\d*)?\}")
_LONG_CATEGORIES = {
    "Letter": "L",
    "Lowercase_Letter": "Ll",
    "Uppercase_Letter": "Lu",
    "Number": "N",
    "Decimal_Number": "Nd",
    "digit": "Nd",
    "Punctuation": "P",
    "punct": "P",
    "Symbol": "S",
    "Separator": "Z",
    "Mark": "M",
    "Other": "C",
}


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> re.Pattern[str]:
    """Return the pattern as Python matches it; to be searched for."""
    return re.compile(to_python(pattern), re.ASCII)


def to_python(pattern: str) -> str:
    r"""Return the pattern in Python's syntax, to be compiled with `re.ASCII`.

    Not as `(?a:...)`: in that, Python's `\W` does not find `é`.
    It is one that `core/regex/parse.py` takes; others may raise re.error or mean something else.
    """
    out = []
    at = 0
    in_class = False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            piece, at = _escape(pattern, at, in_class=in_class)
            out.append(piece)
            continue
        at += 1
        if in_class:
            in_class = char != "]"
            # Python reserves doubled signs and a bracket in a class for set operations.
            out.append("\\" + char if char in "[&~|" else char)
        elif char == "[":
            if pattern.startswith("[]", at - 1) or pattern.startswith("[^]", at - 1):
                is_empty = pattern[at] == "]"
                out.append("(?!)" if is_empty else "[\\s\\S]")
                at += 1 if is_empty else 2
                continue
            in_class = True
            out.append("[")
        elif char == ".":
            out.append("[^\n\r\u2028\u2029]")
        elif char == "$":
            out.append("\\Z")
        elif char == "{" and not _COUNT.match(pattern, at - 1):
            out.append("\\{")
        elif char == "(" and pattern.startswith("?<", at) and pattern[at + 2 : at + 3] not in ("=", "!"):
            out.append("(?P<")
            at += 2
        else:
            out.append(char)
    return "".join(out)


def _escape(pattern: str, at: int, *, in_class: bool) -> tuple[str, int]:
    letter = pattern[at + 1 : at + 2]
    if letter == "s":
        return (_SPACES if in_class else f"[{_SPACES}]"), at + 2
    if letter == "S":
        return (_NOT_SPACES if in_class else f"[{_NOT_SPACES}]"), at + 2
    if letter == "u":
        if match := re.compile(r"\\u\{([0-9a-fA-F]+)\}").match(pattern, at):
            return _literal(int(match[1], 16)), match.end()
        if match := re.compile(r"\\u([dD][89abAB]..)\\u([dD][c-fC-F]..)").match(pattern, at):
            return _literal(0x10000 + ((int(match[1], 16) - 0xD800) << 10) + int(match[2], 16) - 0xDC00), match.end()
    if letter == "c":
        return _literal(ord(pattern[at + 2]) % 32), at + 3
    if letter == "0":
        return "\\x00", at + 2
    if letter == "k" and (match := re.compile(r"\\k<([^>]*)>").match(pattern, at)):
        return f"(?P={match[1]})", match.end()
    if letter and letter in "pP":
        match = re.compile(r"\\[pP]\{([^}]*)\}").match(pattern, at)
        assert match is not None
        ranges = _property(match[1], is_negated=letter == "P")
        return (ranges if in_class else f"[{ranges}]"), match.end()
    return "\\" + letter, at + 2


def _literal(code_point: int) -> str:
    return f"\\U{code_point:08x}"


@lru_cache(maxsize=64)
def _property(name: str, *, is_negated: bool) -> str:
    category = name.rpartition("=")[2]
    category = _LONG_CATEGORIES.get(category, category)

    def has(code_point: int) -> bool:
        if category in ("Any", "ASCII"):
            return category == "Any" or code_point < 0x80
        return unicodedata.category(chr(code_point)).startswith(category)

    out = []
    start = None
    for code_point in range(sys.maxunicode + 2):
        is_in = code_point <= sys.maxunicode and has(code_point) != is_negated
        if is_in and start is None:
            start = code_point
        elif not is_in and start is not None:
            out.append(f"{_literal(start)}-{_literal(code_point - 1)}")
            start = None
    return "".join(out)
