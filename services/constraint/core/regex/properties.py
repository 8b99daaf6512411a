r"""What `\p{...}` means: general categories, and the binary properties of which Python has exact data.

The names are those of ECMA-262, tables 67 to 69 ("Binary Unicode property aliases", "Value aliases for
General_Category"); the characters are those of the Unicode version of the running Python. Scripts, and properties
such as Alphabetic that `unicodedata` cannot tell exactly, are not here.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from functools import cache

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
# Properties that CPython's own tables are made from (Tools/unicode/makeunicodedata.py: DerivedCoreProperties).
_BINARY_TESTS: dict[str, Callable[[str], bool]] = {
    "Assigned": lambda char: unicodedata.category(char) != "Cn",
    "Lowercase": str.islower,
    "Uppercase": str.isupper,
    # isidentifier() takes the underscore as a start of its own accord.
    "XID_Start": lambda char: char.isidentifier() and char != "_",
    "XID_Continue": lambda char: ("a" + char).isidentifier(),
}
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
    return _all_that(_BINARY_TESTS[name]) if name in _BINARY_TESTS else None


@cache
def _category(name: str) -> Ranges:
    if name == "LC":
        return charset.normalise(range_ for part in ("Ll", "Lt", "Lu") for range_ in _category(part))
    return _all_that(lambda char: unicodedata.category(char).startswith(name))


def _all_that(test: Callable[[str], bool]) -> Ranges:
    return charset.normalise(
        (code_point, code_point) for code_point in range(sys.maxunicode + 1) if test(chr(code_point))
    )
