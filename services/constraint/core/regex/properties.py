r"""What `\p{...}` means: general categories, and some binary properties.

The names are those of ECMA-262, tables 67 to 69 ("Binary Unicode property aliases", "Value aliases for
General_Category"). The characters are those that the library `regex` knows: it brings a current version of Unicode,
where Python has that of its own release, and the validator judges by it too. Scripts are not here.
"""

from __future__ import annotations

from functools import cache

import regex

from services.constraint.core.regex import charset
from services.constraint.core.regex.charset import Ranges

# Each general category with its long names; of one letter: all that begin with it.
_CATEGORY_NAMES = """
    C Other|Cc Control cntrl|Cf Format|Cn Unassigned|Co Private_Use|Cs Surrogate
    L Letter|LC Cased_Letter|Ll Lowercase_Letter|Lm Modifier_Letter|Lo Other_Letter|Lt Titlecase_Letter
    Lu Uppercase_Letter
    M Mark Combining_Mark|Mc Spacing_Mark|Me Enclosing_Mark|Mn Nonspacing_Mark
    N Number|Nd Decimal_Number digit|Nl Letter_Number|No Other_Number
    P Punctuation punct|Pc Connector_Punctuation|Pd Dash_Punctuation|Pe Close_Punctuation|Pf Final_Punctuation
    Pi Initial_Punctuation|Po Other_Punctuation|Ps Open_Punctuation
    S Symbol|Sc Currency_Symbol|Sk Modifier_Symbol|Sm Math_Symbol|So Other_Symbol
    Z Separator|Zl Line_Separator|Zp Paragraph_Separator|Zs Space_Separator
"""
_CATEGORIES = {
    name: names.split()[0] for names in _CATEGORY_NAMES.replace("\n", "|").split("|") for name in names.split()
}
_ASCII_HEX = ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66))
_BINARY_SETS: dict[str, Ranges] = {
    "Any": charset.EVERYTHING,
    "ASCII": charset.ASCII,
    "ASCII_Hex_Digit": _ASCII_HEX,
    "Hex_Digit": (*_ASCII_HEX, (0xFF10, 0xFF19), (0xFF21, 0xFF26), (0xFF41, 0xFF46)),
    # PropList.txt. Python's own isspace() has four control characters more.
    "White_Space": (
        (0x09, 0x0D),
        (0x20, 0x20),
        (0x85, 0x85),
        (0xA0, 0xA0),
        (0x1680, 0x1680),
        (0x2000, 0x200A),
        (0x2028, 0x2029),
        (0x202F, 0x202F),
        (0x205F, 0x205F),
        (0x3000, 0x3000),
    ),
}
_BINARY_PROPERTIES = frozenset(("Lowercase", "Uppercase", "XID_Start", "XID_Continue"))
_BINARY_ALIASES = {
    "AHex": "ASCII_Hex_Digit",
    "Hex": "Hex_Digit",
    "Lower": "Lowercase",
    "Upper": "Uppercase",
    "XIDC": "XID_Continue",
    "XIDS": "XID_Start",
    "space": "White_Space",
}


@cache
def property_ranges(name: str) -> Ranges | None:
    r"""Return the characters of what stands between the braces of `\p{...}`; None if it is not known here."""
    for prefix in ("General_Category=", "gc="):
        if name.startswith(prefix):
            category = _CATEGORIES.get(name.removeprefix(prefix))
            return None if category is None else _category(category)
    if name in _CATEGORIES:
        return _category(_CATEGORIES[name])
    name = _BINARY_ALIASES.get(name, name)
    if name in _BINARY_SETS:
        return _BINARY_SETS[name]
    if name == "Assigned":
        return charset.complement(_category("Cn"))
    return _found(rf"\p{{{name}}}") if name in _BINARY_PROPERTIES else None


@cache
def _category(name: str) -> Ranges:
    if name == "LC":
        return charset.normalise(range_ for part in ("Ll", "Lt", "Lu") for range_ in _category(part))
    return _found(rf"\p{{gc={name}}}")


def _found(pattern: str) -> Ranges:
    """Return the characters that a pattern of one character matches."""
    runs = regex.compile(f"(?:{pattern})+", regex.VERSION1)
    return charset.normalise(
        (ord(run[0][0]), ord(run[0][-1])) for characters in _characters() for run in runs.finditer(characters)
    )


@cache
def _characters() -> tuple[str, str]:
    """Return all characters below the surrogates and all above."""
    return "".join(map(chr, range(0xD800))), "".join(map(chr, range(0xE000, 0x110000)))
