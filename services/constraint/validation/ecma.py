r"""Writes an ECMA-262 pattern (flag `u`) in the syntax of the `regex` library, for the validator.

Independent of `core/regex`, whose work it judges: that one makes automata, this one cuts the pattern into tokens and
replaces each that means something else there. The library does what Python's `re` cannot: look-behind of any width and
`\p{...}`. There are no back-references, so it does not matter what a group captures, and none does.
"""

from __future__ import annotations

import re
from functools import lru_cache

import regex

_ATOM = r"\\(?:[pP]\{[^}]*\}|u\{[^}]*\}|u[dD][89abAB]..\\u[dD][c-fC-F]..|u....|x..|c.|.)|."
# Braces that are no count are literal, as in Annex B; to `regex` they could be fuzzy matching.
_TOKEN = re.compile(
    rf"""
      (?P<kept> \(\?(?:[:=!]|<[=!]) | [)|*+?] | \{{[0-9]+(?:,[0-9]*)?\}} )
    | (?P<group> \((?:\?<[^>]*>)? )
    | \[ (?P<negation>\^?) (?P<members>(?:\\.|[^\]\\])*) \]
    | (?P<atom> {_ATOM} )
    """,
    re.VERBOSE | re.DOTALL,
)
_MEMBER = re.compile(rf"(?P<low>{_ATOM})(?:-(?P<high>{_ATOM}))?", re.DOTALL)

_WORD = "[0-9A-Z_a-z]"
_SETS = {
    "d": "[0-9]",
    "w": _WORD,
    # 12.2 White Space and 12.3 Line Terminators.
    "s": "[\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]",
}
_ASSERTIONS = {
    "^": r"\A",
    "$": r"\Z",
    r"\b": f"(?:(?<={_WORD})(?!{_WORD})|(?<!{_WORD})(?={_WORD}))",
    r"\B": f"(?:(?<={_WORD})(?={_WORD})|(?<!{_WORD})(?!{_WORD}))",
}
_ANY = r"\U00000000-\U0010ffff"
_CONTROLS = {"0": 0x00, "b": 0x08, "t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D}


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> regex.Pattern[str]:
    """Return the pattern, to be searched for.

    It is one that `core/regex/parse.py` takes; others may raise regex.error or mean something else.
    """
    return regex.compile(to_regex(pattern), regex.VERSION1)


def to_regex(pattern: str) -> str:
    """Return the pattern in the syntax of `regex`, version 1 (sets in sets)."""
    return _TOKEN.sub(_translated, pattern)


def _translated(token: re.Match[str]) -> str:
    if token["kept"]:
        return token["kept"]
    if token["group"]:
        return "(?:"
    if token["members"] is not None:
        return _class(token["negation"], token["members"])
    atom = token["atom"]
    if atom == ".":
        return "[^\n\r\u2028\u2029]"
    if atom in _ASSERTIONS:
        return _ASSERTIONS[atom]
    return _member(atom)


def _class(negation: str, members: str) -> str:
    if not members:
        return f"[{_ANY}]" if negation else "(?!)"
    out = []
    for member in _MEMBER.finditer(members):
        low, high = member["low"], member["high"]
        out.append(_member(low))
        if high is not None:
            # Annex B: beside a class such as `\d` the dash is literal.
            out.append("-" if isinstance(_meaning(low), int) and isinstance(_meaning(high), int) else r"\-")
            out.append(_member(high))
    union = f"[{''.join(out)}]"
    # Not [^...]: regex 2026.11.19 finds everything with [^\p{L}\P{L}].
    return f"[{_ANY}--{union}]" if negation else union


def _member(atom: str) -> str:
    meaning = _meaning(atom)
    return meaning if isinstance(meaning, str) else f"\\U{meaning:08x}"


def _meaning(atom: str) -> int | str:
    """Return the code point that an atom stands for, or the set of them."""
    if atom[0] != "\\":
        return ord(atom)
    letter, rest = atom[1], atom[2:]
    if letter.lower() in _SETS:
        characters = _SETS[letter.lower()]
        return characters if letter.islower() else f"[^{characters[1:]}"
    if letter in "pP":
        return _property(letter, rest[1:-1])
    if letter in _CONTROLS:
        return _CONTROLS[letter]
    if letter == "c":
        return ord(rest) % 32
    if letter in "ux" and r"\u" in rest:
        high, low = rest.split(r"\u")
        return 0x10000 + (int(high, 16) - 0xD800 << 10) + int(low, 16) - 0xDC00
    return int(rest.strip("{}"), 16) if letter in "ux" else ord(letter)


def _property(letter: str, name: str) -> str:
    # To `regex`, which knows more names, some general categories are also the name of something else (`punct`).
    characters = f"\\p{{gc={name.rpartition('=')[2]}}}"
    try:
        regex.compile(characters)
    except regex.error:
        characters = f"\\p{{{name}}}"
    return characters if letter == "p" else f"[^{characters}]"
