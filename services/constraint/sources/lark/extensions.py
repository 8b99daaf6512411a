"""What Espalier adds to Lark's language: schemas, special tokens and free text in a rule.

    %json {"type": "object", ...}    a value of a JSON Schema
    <|im_start|>  %special "[INST]"  a special token, by its name
    %until "</think>"                any text up to, and with, the first `</think>`
    %until <|tool_call|>             any text, then the special token

None of it is Lark, so Lark's own texts mean what they mean to Lark. Each of the first two becomes a declared terminal,
whose texts are those of a part (`parts.py`); the last two are written out in Lark. Lines and columns stay where they
are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lark.exceptions import GrammarError
from lark.load_grammar import TERMINALS, eval_escaping

from services.constraint.sources.source import ConstraintSource
from services.rpckit.status import GrammarSyntax

_STRING: Final = TERMINALS["STRING"]
_SPECIAL: Final = r"<[^\s<>\"']+>"
# In this order: what is inside a string, a regex or a comment is none of ours.
_SCAN: Final = re.compile(
    rf"{_STRING}|{TERMINALS['REGEXP']}|//[^\n]*|\#[^\n]*"
    rf"|(?P<json>%json\b\s*)|(?P<special>{_SPECIAL}|%special\s+(?P<name>{_STRING}))"
    rf"|%until\s+(?:(?P<until>{_STRING})|(?P<until_special>{_SPECIAL}))"
)


@dataclass(frozen=True, slots=True)
class Extended:
    """A grammar as Lark reads it, and the parts that its terminals without a text stand for, by their names."""

    text: str
    parts: dict[str, ConstraintSource]
    spellings: dict[str, str]
    """How each such terminal is written in the grammar, for messages."""


def read(text: str) -> Extended:
    """Write a grammar's additions out for Lark.

    Raises:
        GrammarSyntax: no JSON value stands behind `%json`, or a string cannot be read.
    """
    names = _free_names(text)
    parts: dict[str, ConstraintSource] = {}
    spellings: dict[str, str] = {}
    known: dict[ConstraintSource, str] = {}

    def terminal(source: ConstraintSource, spelling: str) -> str:
        if source not in known:
            known[source] = next(names)
            parts[known[source]], spellings[known[source]] = source, spelling
        return known[source]

    written: list[str] = []
    at = 0
    while match := _SCAN.search(text, at):
        end = match.end()
        written.append(text[at : match.start()])
        if match["json"]:
            end = _end_of_json(text, match.end())
            instead = terminal(ConstraintSource("json_schema", text[match.end() : end]), "%json")
        elif match["special"]:
            name = match["special"] if match["name"] is None else _string(text, match.start("name"), match["name"])
            instead = terminal(ConstraintSource("special_token", name), match["special"])
        elif match["until"]:
            delimiter = _string(text, match.start("until"), match["until"])
            instead = f"/(?s:.*?){_as_regex(delimiter)}/"
        elif match["until_special"]:
            name = match["until_special"]
            instead = f"(/(?s:.+)/)? {terminal(ConstraintSource('special_token', name), name)}"
        else:
            instead = match[0]
        written.append(_in_the_place_of(text[match.start() : end], instead))
        at = end
    written.append(text[at:])
    declared = f"\n%declare {' '.join(parts)}\n" if parts else ""
    return Extended("".join(written) + declared, parts, spellings)


def _free_names(text: str) -> Iterator[str]:
    """Names of terminals that the text does not have, short ones, so that columns seldom move."""
    number = 0
    while True:
        name = f"X{number}"
        if name not in text:
            yield name
        number += 1


def _in_the_place_of(original: str, instead: str) -> str:
    """Fill up to the lines and, where it is short enough, the columns of the original."""
    num_lines = original.count("\n")
    if num_lines:
        # Lark goes on over a line's end behind a backslash.
        last = original[original.rindex("\n") + 1 :]
        return instead + " \\\n" * num_lines + " " * len(last)
    return instead.ljust(len(original))


def _end_of_json(text: str, start: int) -> int:
    try:
        _, end = json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _syntax_error(text, error.pos, f"behind %json stands no JSON value: {error.msg}") from None
    except RecursionError:
        raise _syntax_error(text, start, "the schema behind %json is nested deeper than is read") from None
    return end


def _string(text: str, start: int, literal: str) -> str:
    """Read a string as Lark does."""
    if not literal.endswith('"'):
        raise _syntax_error(text, start, "the flag i has no meaning for this string")
    try:
        value = str(eval_escaping(literal[1:-1])).replace("\\\\", "\\")  # type: ignore[no-untyped-call]
    except (GrammarError, ValueError) as error:
        raise _syntax_error(text, start, f"the string cannot be read: {error}") from None
    if not value:
        raise _syntax_error(text, start, "the string must not be empty")
    return value


def _as_regex(text: str) -> str:
    """Write the regex of a text as it stands in a grammar."""
    control = {"\n": r"\n", "\r": r"\r", "\t": r"\t", "\f": r"\f"}
    return "".join(
        control.get(char)
        or (f"\\x{ord(char):02x}" if char < " " else char if char.isalnum() or char > "~" else f"\\{char}")
        for char in text
    )


def _syntax_error(text: str, at: int, message: str) -> GrammarSyntax:
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return GrammarSyntax(f"the Lark grammar does not parse: {message}", line=line, column=column)
