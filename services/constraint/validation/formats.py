r"""Checks `format` by libraries: the format checker of the validator, the same for every draft.

What `jsonschema` checks, and with what, is not exact (releases 4.26; rfc3339-validator 0.1.4, fqdn 1.5, isoduration
20.11, rfc3986-validator 0.1.1, rfc3987-syntax 1.1, uri-template 1.3). These are the differences:

- `date-time`, `time`: leap seconds are known, at 23:59:60 UTC and, with a date, on the last day of a month; no line
  break may follow; an offset is required in every draft.
- `duration`: the grammar of RFC 3339, appendix A: no signs, fractions, or gaps between units.
- `email`, `idn-email`: the grammars of RFC 5321 and 6531, which limit no length; `jsonschema` looks for an `@`.
- `hostname`: without a dot or line break at the end, ASCII only, A-labels decoded by `idna`.
- `idn-hostname`: without a dot at the end, the Bidi rule over all labels, 253 octets at most.
- `uri`, `uri-reference`: addresses in brackets are judged by `ipaddress`, which takes no leading zeros.
- `iri`, `iri-reference`: mapped to URIs as in RFC 3987, section 3.1; rfc3987-syntax refuses all but the first plane.
- `uri-template`: RFC 6570 by hand; the library takes what is none and refuses `{%41}`.
- `relative-json-pointer`: ASCII digits, and 100 is a number without a leading zero.
- `uuid`: hexadecimal digits and dashes only, which `uuid.UUID` is lenient about.
- `regex`: ECMA-262 instead of Python's syntax. There is no library for it: this is the check of the mask's side.
- `byte`, `int32`, `int64` of OpenAPI are checked. `float` and `double` say nothing beyond `number`.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import ipaddress
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Final

from fqdn import FQDN
from jsonschema import FormatChecker
from rfc3986_validator import validate_rfc3986

from services.constraint.sources.json_schema.format_checks import is_ecma_pattern, is_idn_email, is_idn_hostname

_TIME: Final = re.compile(r"(\d\d):(\d\d):(\d\d)(?:\.\d+)?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII)
_UNITS: Final = re.compile(r"(?:\d+[A-Z])*", re.ASCII)
_MAILBOX: Final = re.compile(r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<dotted>[^"@]+))@(?P<domain>[^@]+)', re.DOTALL)
_ATOM: Final = re.compile(r"[^\x00-\x20\x7f()<>\[\]:;@\\,\".]+")
_IP_LITERAL: Final = re.compile(r"((?:[^:/?#]+:)?//(?:[^/?#\[\]]*@)?)\[([^\]]*)\](?=[:/?#]|\Z)")
_FUTURE_ADDRESS: Final = re.compile(r"[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+")
_EXPRESSION: Final = re.compile(r"\{([^{}]*)\}")
_VARIABLE: Final = re.compile(r"((?:\w|%[0-9A-Fa-f]{2}|\.)+)(?:\*|:[1-9]\d{0,3})?", re.ASCII)
_RELATIVE_POINTER: Final = re.compile(r"(0|[1-9]\d*)(#|.*)", re.ASCII | re.DOTALL)
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def is_date(text: str) -> bool:
    """RFC 3339 full-date, as far as `datetime` has years."""
    try:
        return len(text) == 10 and text.isascii() and date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def is_time(text: str) -> bool:
    """RFC 3339 full-time."""
    return _utc_offset(text) is not None


def is_date_time(text: str) -> bool:
    """RFC 3339 date-time."""
    day, separator, time = text[:10], text[10:11], text[11:]
    if separator not in ("T", "t") or not is_date(day) or (offset := _utc_offset(time)) is None:
        return False
    if time[6:8] != "60":
        return True
    try:
        utc = datetime.fromisoformat(f"{day}T{time[:5]}") - offset
    except OverflowError:
        return False
    return utc.day == calendar.monthrange(utc.year, utc.month)[1]


def _utc_offset(text: str) -> timedelta | None:
    """Return the offset of a full-time; None if the text is none."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    hour, minute, second = map(int, found.group(1, 2, 3))
    offset_hour, offset_minute = int(found[5] or 0), int(found[6] or 0)
    if max(hour, offset_hour) > 23 or max(minute, offset_minute) > 59 or second > 60:
        return None
    offset = (60 * offset_hour + offset_minute) * (-1 if found[4] == "-" else 1)
    if second == 60 and (60 * hour + minute - offset) % 1440 != 1439:
        return None
    return timedelta(minutes=offset)


def is_duration(text: str) -> bool:
    """RFC 3339, appendix A."""
    days, separator, time = text[1:].partition("T")
    if text[:1] != "P" or not all(_UNITS.fullmatch(part) for part in (days, time)):
        return False
    day_units, time_units = ("".join(filter(str.isalpha, part)) for part in (days, time))
    if separator:
        return time_units != "" and time_units in "HMS" and day_units in "YMD"
    return day_units != "" and (day_units in "YMD" or day_units == "W")


def is_email(text: str) -> bool:
    """RFC 5321 Mailbox, without general address literals."""
    return text.isascii() and _is_mailbox(text, _is_domain)


def is_internationalized_email(text: str) -> bool:
    """RFC 6531 Mailbox."""
    return _is_mailbox(text, lambda domain: is_idn_email(f"@{domain}"))


def _is_mailbox(text: str, is_domain: Callable[[str], bool]) -> bool:
    found = _MAILBOX.fullmatch(text)
    if found is None:
        return False
    if (quoted := found["quoted"]) is not None:
        if any(char < " " or char == "\x7f" for char in quoted):
            return False
    elif not all(_ATOM.fullmatch(atom) for atom in found["dotted"].split(".")):
        return False
    domain = found["domain"]
    if not domain.startswith("["):
        return is_domain(domain)
    if not domain.endswith("]"):
        return False
    literal = domain[1:-1]
    return is_ipv6(literal[5:]) if literal[:5].lower() == "ipv6:" else is_ipv4(literal)


def _is_domain(text: str) -> bool:
    return all(label.replace("-", "0").isalnum() and "-" not in label[:1] + label[-1:] for label in text.split("."))


def is_hostname(text: str) -> bool:
    """RFC 1123 and RFC 5891, section 4.4."""
    is_fqdn = text.isascii() and text[-1:].isalnum() and FQDN(text, min_labels=1).is_valid
    return is_fqdn and is_idn_hostname(text)


def is_ipv4(text: str) -> bool:
    """Dotted decimal."""
    try:
        return ipaddress.IPv4Address(text) is not None
    except ValueError:
        return False


def is_ipv6(text: str) -> bool:
    """RFC 4291, without zone."""
    try:
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False


def is_uri(text: str) -> bool:
    """RFC 3986 URI."""
    return _is_identifier(text, "URI")


def is_uri_reference(text: str) -> bool:
    """RFC 3986 URI-reference."""
    return _is_identifier(text, "URI_reference")


def is_iri(text: str) -> bool:
    """RFC 3987 IRI."""
    uri = _mapped_to_uri(text)
    return uri is not None and is_uri(uri)


def is_iri_reference(text: str) -> bool:
    """RFC 3987 IRI-reference."""
    uri = _mapped_to_uri(text)
    return uri is not None and is_uri_reference(uri)


def _is_identifier(text: str, rule: str) -> bool:
    if not text.isascii() or "\n" in text:
        return False
    literal = _IP_LITERAL.match(text)
    if literal is not None:
        if not (is_ipv6(literal[2]) or _FUTURE_ADDRESS.fullmatch(literal[2])):
            return False
        text = f"{literal[1]}host{text[literal.end() :]}"
    return bool(validate_rfc3986(text, rule=rule))


def _mapped_to_uri(iri: str) -> str | None:
    """Return the URI of an IRI (RFC 3987, section 3.1); None if it has a character that no IRI has there."""
    before, mark, query = iri.partition("#")[0].partition("?")
    in_query = range(len(before) + len(mark), len(before) + len(mark) + len(query))
    parts = []
    for index, char in enumerate(iri):
        if char.isascii():
            parts.append(char)
        elif _is_ucschar(char) or (index in in_query and _is_private(char)):
            parts.append("".join(f"%{byte:02X}" for byte in char.encode(errors="surrogatepass")))
        else:
            return None
    return "".join(parts)


def _is_ucschar(char: str) -> bool:
    plane, place = divmod(ord(char), 0x10000)
    if plane == 0:
        return 0xA0 <= place <= 0xD7FF or 0xF900 <= place <= 0xFDCF or 0xFDF0 <= place <= 0xFFEF
    return place <= 0xFFFD and (plane <= 13 or (plane == 14 and place >= 0x1000))


def _is_private(char: str) -> bool:
    plane, place = divmod(ord(char), 0x10000)
    return 0xE000 <= place <= 0xF8FF if plane == 0 else plane >= 15 and place <= 0xFFFD


def is_uri_template(text: str) -> bool:
    """RFC 6570, operators that are reserved included."""
    literals = _EXPRESSION.sub("", text)
    if any(char <= " " or char in '"<>\\^`{|}\x7f' for char in literals):
        return False
    if not all(char.isascii() or _is_ucschar(char) or _is_private(char) for char in literals):
        return False
    # Expressions stand between literals, so an escape never goes across one.
    if re.search(r"%(?![0-9A-Fa-f]{2})", _EXPRESSION.sub("|", text)):
        return False
    for expression in _EXPRESSION.findall(text):
        for variable in re.sub(r"^[+#./;?&=,!@|]", "", expression).split(","):
            found = _VARIABLE.fullmatch(variable)
            if found is None or not all(found[1].split(".")):
                return False
    return True


def is_json_pointer(text: str) -> bool:
    """RFC 6901."""
    return FormatChecker(["json-pointer"]).conforms(text, "json-pointer")


def is_relative_json_pointer(text: str) -> bool:
    """Relative JSON Pointer, without index manipulation."""
    found = _RELATIVE_POINTER.fullmatch(text)
    return found is not None and (found[2] == "#" or is_json_pointer(found[2]))


def is_uuid(text: str) -> bool:
    """RFC 4122 in its text form."""
    return _UUID.fullmatch(text) is not None


def is_byte(text: str) -> bool:
    """RFC 4648, section 4, with padding."""
    try:
        return base64.b64encode(base64.b64decode(text, validate=True)).decode() == text
    except (binascii.Error, ValueError):
        return False


STRING_FORMATS: Final[dict[str, Callable[[str], bool]]] = {
    "date": is_date,
    "time": is_time,
    "date-time": is_date_time,
    "duration": is_duration,
    "email": is_email,
    "idn-email": is_internationalized_email,
    "hostname": is_hostname,
    "idn-hostname": is_idn_hostname,
    "ipv4": is_ipv4,
    "ipv6": is_ipv6,
    "uri": is_uri,
    "uri-reference": is_uri_reference,
    "iri": is_iri,
    "iri-reference": is_iri_reference,
    "uri-template": is_uri_template,
    "uuid": is_uuid,
    "json-pointer": is_json_pointer,
    "relative-json-pointer": is_relative_json_pointer,
    "regex": is_ecma_pattern,
    "byte": is_byte,
}
_INTEGER_BITS: Final = {"int32": 32, "int64": 64}


def format_checker() -> FormatChecker:
    """Return what `jsonschema` asks about formats."""
    checker = FormatChecker([])
    for name, is_valid in STRING_FORMATS.items():
        checker.checks(name)(lambda value, is_valid=is_valid: not isinstance(value, str) or is_valid(value))
    for name, bits in _INTEGER_BITS.items():
        checker.checks(name)(lambda value, bits=bits: _is_within(value, bits))
    return checker


def _is_within(value: object, bits: int) -> bool:
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        return True
    return -(1 << bits - 1) <= value < 1 << bits - 1 and value == int(value)
