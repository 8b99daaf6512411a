r"""What no automaton tells of a format: judged on the finished string."""

from __future__ import annotations

import re
import unicodedata

import idna

from services.constraint.core.regex.parse import parse
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, UnsupportedConstruct

_MAX_HOST_CHARACTERS = 253
_LABEL_ENDS = re.compile("[.\u3002\uff0e\uff61]")


def is_idn_hostname(text: str) -> bool:
    """Tell whether a text is a host name of IDNA 2008: U-labels, A-labels and ASCII ones."""
    try:
        encoded = idna.encode(text)
        labels = [idna.ulabel(label) for label in _LABEL_ENDS.split(text)]
        # RFC 5893: one label from right to left binds all others.
        if any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for label in labels for char in label):
            for label in labels:
                idna.check_bidi(label, check_ltr=True)
    except UnicodeError:
        return False
    return len(encoded) <= _MAX_HOST_CHARACTERS and not encoded.endswith(b".")


def is_idn_email(text: str) -> bool:
    """Tell whether a text that has the form of a mail address has a domain of IDNA 2008, or an address literal."""
    domain = text.rpartition("@")[2]
    return domain.startswith("[") or is_idn_hostname(unicodedata.normalize("NFC", domain))


_CLASS_ESCAPE = r"\\(?:[dDsSwW]|[pP]\{[^}]*\})"
_CHARACTER_ESCAPE = r"\\(?:[fnrtv^$\\.*+?()[\]{}|/]|c[A-Za-z]|0(?![0-9])|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|u\{[^}]*\})"
_MEMBER = rf"(?:[^\\\]]|{_CHARACTER_ESCAPE}|\\[b-])"
_NAME = r"[^\W0-9][\w$]*|\$[\w$]*"
# A pattern with the flag `u`, token by token. A dash beside a class such as `\d` is an error, if it is not the last.
_TOKEN = re.compile(
    rf"""
      \\k<(?P<named>{_NAME})> | \\(?P<numbered>[1-9][0-9]*)
    | \(\?<(?P<name>{_NAME})> | (?P<group>\((?!\?)) | \((?:\?(?:[:=!]|<[=!])) | [)|^$.*+?]
    | \{{[0-9]+(?:,[0-9]*)?\}}
    | \[\^?(?>{_MEMBER}-{_MEMBER}|(?:{_CLASS_ESCAPE}|{_MEMBER})(?!-[^\]]))*\]
    | {_CLASS_ESCAPE} | {_CHARACTER_ESCAPE} | \\[bB]
    | [^\\\[\](){{}}|^$.*+?]
    """,
    re.VERBOSE | re.DOTALL,
)


def is_ecma_pattern(text: str) -> bool:
    """Tell whether a text is a pattern of ECMA-262 with the flag `u`.

    False for the few that `parse.py` does not know, such as those with names of scripts.
    """
    parts: list[str] = []
    names: list[str] = []
    references: list[str] = []
    num_groups = at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return False
        at = token.end()
        if token["name"]:
            names.append(token["name"])
        num_groups += bool(token["name"] or token["group"])
        reference = token["named"] or token["numbered"]
        if reference:
            references.append(reference)
        parts.append("(?:)" if reference else token[0])  # the parser has no form for what is matched again
    if len(set(names)) < len(names):
        return False
    if not all(int(name) <= num_groups if name[0].isdigit() else name in names for name in references):
        return False
    try:
        parse("".join(parts), "ecma")
    except (GrammarSyntax, UnsupportedConstruct, GrammarTooLarge):
        return False
    return True
