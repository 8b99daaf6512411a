"""Judges texts by Lark's own parsers, of grammars with parts that Lark knows nothing of too (docs/lark.md)."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator
from copy import copy
from functools import lru_cache
from typing import Any, Final

from lark.exceptions import UnexpectedInput, UnexpectedToken
from lark.lexer import PatternStr, TerminalDef, Token
from lark.parsers.lalr_parser_state import ParserState
from lark.utils import TextSlice

from services.constraint.sources import ConstraintSource
from services.constraint.sources.lark import LoadedGrammar, load
from services.constraint.sources.source import LarkLexer
from services.constraint.validation.parts_validator import IsValid, ends

_MAX_MESSAGE_CHARACTERS: Final = 1000


def violation(grammar: str, lexer: LarkLexer, text: str, is_valid: IsValid) -> str | None:
    """Return why Lark does not parse a text, None where it does; `is_valid` judges the parts.

    Raises:
        GrammarSyntax, UnsupportedConstruct, GrammarTooLarge: as `load` does.
    """
    loaded = _loaded(grammar, lexer)
    if loaded.parts and lexer == "contextual":
        return None if _Reader(loaded, text, is_valid).reads_all() else "no reading of the text is one of the grammar"
    if loaded.parts:
        _take_parts(loaded, is_valid)
    try:
        loaded.lark.parse(text)
    except UnexpectedInput as error:
        return str(error).strip()[:_MAX_MESSAGE_CHARACTERS]
    except RuntimeError as error:
        # A bug of Lark's Earley parser: it has parsed the text in more than one way, as nothing and as ignored text.
        if "multiple start symbol items" not in str(error):
            raise
    return None


@lru_cache(maxsize=16)
def _loaded(grammar: str, lexer: LarkLexer) -> LoadedGrammar:
    return load(grammar, lexer)


def _ends(part: ConstraintSource, text: str, start: int, is_valid: IsValid) -> set[int]:
    return ends(part, text, start, is_valid, is_last=False)


def _take_parts(loaded: LoadedGrammar, is_valid: IsValid) -> None:
    """Let Lark's Earley parser ask for the longest text of a part where it asks for the match of a terminal."""
    parser: Any = loaded.lark.parser.parser
    matcher = parser.term_matcher if not hasattr(parser, "lark_matcher") else parser.lark_matcher
    parser.lark_matcher = matcher

    def match(terminal: Any, text: str, start: int = 0) -> re.Match[str] | None:
        part = loaded.parts.get(terminal.name)
        if part is None:
            found: re.Match[str] | None = matcher(terminal, text, start)
            return found
        longest = max(_ends(part, text, start, is_valid), default=None)
        return None if longest is None else re.compile("(?s:.)*").match(text, start, longest)

    parser.term_matcher = match
    for name in loaded.parts:
        parser.lexer_conf.terminals_by_name[name] = TerminalDef(name, PatternStr(name))


class _Reader:
    """All readings of a text by the LALR parser with its contextual lexer.

    A part may begin in place of what the lexer would find. The lexer sees the text up to the name of the next special
    token that the grammar has.
    """

    def __init__(self, loaded: LoadedGrammar, text: str, is_valid: IsValid) -> None:
        self._parts = loaded.parts
        self._lexers: Any = loaded.lark.parser.lexer.lexers  # type: ignore[union-attr]
        self._start: ParserState[Any] = loaded.lark.parse_interactive("").parser_state
        self._start.parse_conf = copy(self._start.parse_conf)
        self._start.parse_conf.callbacks = {}  # no tree is built
        self._text = text
        self._is_valid = is_valid
        names = [part.text or "" for part in loaded.parts.values() if part.kind == "special_token"]
        found = {match.start() for name in names for match in re.finditer(re.escape(name), text)}
        self._borders = (*sorted(found), len(text))

    def reads_all(self) -> bool:
        """Tell whether some reading parses."""
        todo: list[tuple[int, ParserState[Any]]] = [(0, self._start)]
        seen: set[tuple[int, tuple[Any, ...]]] = set()
        while todo:
            at, state = todo.pop()
            key = (at, tuple(state.state_stack))
            if key in seen:
                continue
            seen.add(key)
            if at == len(self._text) and self._fed(state, "$END") is not None:
                return True
            todo += self._following(at, state)
        return False

    def _following(self, at: int, state: ParserState[Any]) -> Iterator[tuple[int, ParserState[Any]]]:
        for name, part in self._parts.items():
            behind = self._fed(state, name)
            if behind is not None:
                yield from ((end, behind) for end in _ends(part, self._text, at, self._is_valid))
        if at in self._borders:
            return
        lexer = self._lexers[state.position]
        border = self._borders[bisect(self._borders, at)]
        found = lexer.match(TextSlice(self._text, 0, border), at)
        if not found:
            return
        value, name = found
        end = at + len(value)
        if name in lexer.ignore_types:
            yield end, state
            return
        token = Token(name, value)
        if callback := lexer.callback.get(name):
            token = callback(token)
        behind = self._fed(state, token.type)
        if behind is not None:
            yield end, behind

    def _fed(self, state: ParserState[Any], name: str) -> ParserState[Any] | None:
        behind = state.copy(deepcopy_values=False)
        try:
            behind.feed_token(Token(name, ""), is_end=name == "$END")
        except UnexpectedToken:
            return None
        return behind
