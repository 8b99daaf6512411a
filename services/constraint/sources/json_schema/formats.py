"""The values of `format` that are enforced, each as an ECMA-262 pattern of the whole string.

Where a pattern takes less than the format's own definition, the note says so: a model loses a spelling, but no wrong
one passes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """A format: its pattern and what there is to say about it in the report."""

    pattern: str
    note: str = ""


_YEAR = r"(?:000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8])"
_DATE = f"(?:{_YEAR}-(?:{_DAY})|{_LEAP_YEAR}-02-29)"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_HEX = "[0-9a-fA-F]"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_TIME_NOTE = "RFC 3339 with capital T and Z, without leap seconds"

FORMATS: dict[str, Format] = {
    "date": Format(f"^{_DATE}$", "RFC 3339, years 0001 to 9999"),
    "time": Format(f"^{_TIME}$", _TIME_NOTE),
    "date-time": Format(f"^{_DATE}T{_TIME}$", f"{_TIME_NOTE}, years 0001 to 9999"),
    "uuid": Format(f"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$"),
    "ipv4": Format(rf"^(?:{_BYTE}\.){{3}}{_BYTE}$"),
    "email": Format(
        rf"^{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})+$",
        "ASCII, no quoted local part, no address literal, at least two labels",
    ),
}
