r"""The values of `format` that are enforced.

Each format of strings has an ECMA-262 pattern of the whole string. It takes exactly the format's strings, or some of
them, which the note tells: a model loses a spelling, but no wrong one passes. Where no automaton tells them from
others, it takes more, and `check` judges the finished string.

All of them hold in every draft, whichever drafts define them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from services.constraint.sources.json_schema import format_checks
from services.constraint.sources.json_schema.numeric import Bound


@dataclass(frozen=True, slots=True)
class Format:
    """A format of strings: its pattern, what there is to say about it in the report, and what a mask cannot tell."""

    pattern: str
    note: str = ""
    check: Callable[[str], bool] | None = None


class NumberFormat(NamedTuple):
    """A format of numbers."""

    low: Bound | None = None
    high: Bound | None = None
    is_integer: bool = False
    note: str = "of OpenAPI, in no draft"


# RFC 3339: dates and times

_YEAR = r"(?:000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8])"
_DATE = f"(?:{_YEAR}-(?:{_DAY})|{_LEAP_YEAR}-02-29)"
_HOUR = r"(?:[01]\d|2[0-3])"
_FRACTION = r"(?:\.\d+)?"
_TIME = rf"{_HOUR}:[0-5]\d:[0-5]\d{_FRACTION}(?:[Zz]|[+-]{_HOUR}:[0-5]\d)"
# A leap second is at 23:59:60 UTC, whatever the time is locally. West of Greenwich the date is then the same.
_LEAP_SECOND = "|".join(
    [rf"23:59:60{_FRACTION}(?:[Zz]|\+00:00)"]
    + [f"{23 - hours:02}:59:60{_FRACTION}-{hours:02}:00" for hours in range(13)]
)
_LEAP_NOTE = "leap seconds with Z or an offset of -00:00, -01:00, ... -12:00"
_TIME_UNITS = r"T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_DATE_UNITS = r"(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)"

# RFC 1123, RFC 5890: host names

_LETTER = "[A-Za-z0-9]"
_LETTER_OR_DASH = "[A-Za-z0-9-]"


def _label(longest: int) -> str:
    """Return the pattern of labels that have no `--` in their third and fourth place, as A-labels (`xn--`) have."""
    long = f"{_LETTER_OR_DASH}(?:{_LETTER}{_LETTER_OR_DASH}|-{_LETTER}){_LETTER_OR_DASH}{{0,{longest - 5}}}{_LETTER}"
    return f"{_LETTER}(?:{_LETTER_OR_DASH}{{0,2}}{_LETTER}|{long})?"


# 2 * 64 and 7 * 18 - 1 characters are 253, the most that a name may have.
_HOST = rf"(?:{_label(63)}\.){{0,2}}(?:{_label(63)}|(?:{_label(17)}\.){{1,6}}{_label(17)})"
_HOST_NOTE = (
    "RFC 1123; no A-labels (xn--); of more than three labels, those from the third on have at most 17 characters, and "
    "there are at most nine"
)
_IDN_LABEL = r"[A-Za-z0-9\x80-\u3001\u3003-\uff0d\uff0f-\uff60\uff62-\u{10ffff}-]+"
_IDN_DOT = r"[.\u3002\uff0e\uff61]"

# RFC 3986, RFC 3987: addresses and identifiers

_HEX = "[0-9A-Fa-f]"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_GROUP = f"{_HEX}{{1,4}}"


def _ipv6(most_groups: int) -> str:
    """Return the pattern of addresses of eight groups, or of at most so many with `::` among them."""

    def after_gap(room: int) -> str:
        if room == 0:
            return ""
        with_ipv4 = f"|(?:{_GROUP}:){{0,{room - 2}}}{_IPV4}" if room >= 2 else ""
        return f"(?:(?:{_GROUP}:){{0,{room - 1}}}{_GROUP}{with_ipv4})?"

    options = [f"(?:{_GROUP}:){{6}}(?:{_GROUP}:{_GROUP}|{_IPV4})", f"::{after_gap(most_groups)}"]
    for count in range(1, most_groups + 1):
        options.append(f"(?:{_GROUP}:){{{count}}}:{after_gap(most_groups - count)}")
    return f"(?:{'|'.join(options)})"


_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*"
_NAME = "A-Za-z0-9._~!$&'()*+,;="  # unreserved and sub-delims, but the dash, which comes last in a class
_ESCAPED = f"%{_HEX}{{2}}"
_UCSCHAR = "".join(
    [r"\xa0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\u{e1000}-\u{efffd}"]
    + [rf"\u{{{plane:x}0000}}-\u{{{plane:x}fffd}}" for plane in range(1, 14)]
)
_IPRIVATE = r"\ue000-\uf8ff\u{f0000}-\u{ffffd}\u{100000}-\u{10fffd}"


def _identifiers(letters: str, private: str) -> tuple[str, str]:
    """Return the patterns of URIs and of references, with further letters, and with some of a query only."""

    def some(characters: str, count: str) -> str:
        return f"(?:[{characters}]|{_ESCAPED}){count}"

    name = f"{letters}{_NAME}-"
    segments = some(f"/:@{name}", "*")
    future = rf"[vV]{_HEX}+\.[:{_NAME}-]+"
    host = rf"(?:\[(?:{_ipv6(7)}|{future})\]|{some(name, '*')})"
    authority = rf"(?:{some(f':{name}', '*')}@)?{host}(?::\d*)?"
    # A path of two slashes would be an authority.
    rooted = f"(?://{authority}(?:/{segments})?|/(?:{some(f':@{name}', '')}{segments})?)"
    rootless = f"(?:{some(f':@{name}', '')}{segments})?"
    # What stands before a colon in the first segment would be a scheme.
    relative = f"(?:{some(f'@{name}', '+')}(?:/{segments})?)?"
    end = rf"(?:\?{some(f'/?:@{private}{name}', '*')})?(?:#{some(f'/?:@{name}', '*')})?"
    return (
        f"^{_SCHEME}:(?:{rooted}|{rootless}){end}$",
        f"^(?:(?:{_SCHEME}:)?{rooted}|{_SCHEME}:{rootless}|{relative}){end}$",
    )


_URI, _URI_REFERENCE = _identifiers("", "")
_IRI, _IRI_REFERENCE = _identifiers(_UCSCHAR, _IPRIVATE)

# RFC 6570: templates. Literals as corrected by erratum 6937, which allows the apostrophe.

_VARIABLE = rf"(?:\w|{_ESCAPED})+(?:\.(?:\w|{_ESCAPED})+)*(?::[1-9]\d{{0,3}}|\*)?"
_LITERAL = rf"(?:[!#$&-;=?-\[\]_a-z~{_UCSCHAR}{_IPRIVATE}]|{_ESCAPED})"
_TEMPLATE = rf"(?:{_LITERAL}|\{{[+#./;?&]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"

# RFC 5321, RFC 6531: mail addresses


def _mailbox(letters: str, domain: str) -> str:
    atom = f"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{letters}-]+"
    quoted = rf'"(?:[ !#-\[\]-~{letters}]|\\[ -~])*"'
    return rf"^(?:{atom}(?:\.{atom})*|{quoted})@(?:{domain}|\[(?:{_IPV4}|IPv6:{_ipv6(6)})\])$"


_SUB_DOMAIN = f"{_LETTER}+(?:-+{_LETTER}+)*"

# RFC 6901: pointers

_POINTER = "(?:/(?:[^~/]|~[01])*)*"

_BASE64 = "[A-Za-z0-9+/]"

FORMATS: dict[str, Format] = {
    "date": Format(f"^{_DATE}$", "RFC 3339, years 0001 to 9999"),
    "time": Format(f"^(?:{_TIME}|{_LEAP_SECOND})$", f"RFC 3339; {_LEAP_NOTE}"),
    "date-time": Format(
        f"^(?:{_DATE}[Tt]{_TIME}|{_YEAR}-(?:06-30|12-31)[Tt](?:{_LEAP_SECOND}))$",
        f"RFC 3339, years 0001 to 9999; {_LEAP_NOTE}, at the end of June and December",
    ),
    "duration": Format(f"^P(?:{_DATE_UNITS}(?:{_TIME_UNITS})?|{_TIME_UNITS}|\\d+W)$", "RFC 3339, in capitals"),
    "email": Format(_mailbox("", rf"{_SUB_DOMAIN}(?:\.{_SUB_DOMAIN})*"), "RFC 5321, section 4.1.2"),
    "idn-email": Format(
        _mailbox(r"\x80-\u{10ffff}", rf"{_IDN_LABEL}(?:\.{_IDN_LABEL})*"),
        "RFC 6531; the mask takes any labels, IDNA 2008 is checked",
        format_checks.is_idn_email,
    ),
    "hostname": Format(f"^{_HOST}$", _HOST_NOTE),
    "idn-hostname": Format(
        f"^{_IDN_LABEL}(?:{_IDN_DOT}{_IDN_LABEL})*$",
        "the mask takes any labels, IDNA 2008 is checked",
        format_checks.is_idn_hostname,
    ),
    "ipv4": Format(f"^{_IPV4}$"),
    "ipv6": Format(f"^{_ipv6(7)}$", "RFC 4291, without zone"),
    "uri": Format(_URI, "RFC 3986"),
    "uri-reference": Format(_URI_REFERENCE, "RFC 3986"),
    "iri": Format(_IRI, "RFC 3987"),
    "iri-reference": Format(_IRI_REFERENCE, "RFC 3987"),
    "uri-template": Format(f"^{_TEMPLATE}$", "RFC 6570, without operators that are reserved"),
    "uuid": Format(f"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$"),
    "json-pointer": Format(f"^{_POINTER}$", "RFC 6901"),
    "relative-json-pointer": Format(rf"^(?:0|[1-9]\d*)(?:#|{_POINTER})$"),
    "regex": Format(
        "", "the mask takes any string; ECMA-262 with the u flag is checked", format_checks.is_ecma_pattern
    ),
    "byte": Format(
        f"^(?:{_BASE64}{{4}})*(?:{_BASE64}{{2}}[AEIMQUYcgkosw048]=|{_BASE64}[AQgw]==)?$",
        "base64 with padding (RFC 4648); of OpenAPI, in no draft",
    ),
}


def _integers(bits: int) -> NumberFormat:
    return NumberFormat(Bound(Decimal(-(1 << bits - 1)), False), Bound(Decimal((1 << bits - 1) - 1), False), True)


NUMBER_FORMATS: dict[str, NumberFormat] = {
    "int32": _integers(32),
    "int64": _integers(64),
    "float": NumberFormat(),
    "double": NumberFormat(),
}
