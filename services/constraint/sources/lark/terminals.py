"""Terminals as automata over characters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from lark.lexer import TerminalDef

from services.constraint.core.regex import anchors, automaton, charset, lookaround
from services.constraint.core.regex.automaton import Dfa
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.lookaround import PrefixMatch
from services.constraint.core.regex.minimise import minimise
from services.constraint.core.regex.parse import parse
from services.constraint.core.regex.widths import refuse_outside
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, UnsupportedConstruct


@dataclass(frozen=True, eq=False)
class Terminal:
    """A terminal of a grammar, told apart from others by its name."""

    name: str
    definition: TerminalDef = field(repr=False)

    @property
    def dfa(self) -> Dfa:
        """The texts on which `re`, matching the terminal's pattern from their start, may stop at their very end.

        So a match of the pattern at a place of any text is the longest beginning of the rest that this automaton
        accepts, and whose look-ahead the rest behind it fits: whatever `re` would have tried only after a match is cut
        off. Raises as `match` does.
        """
        return self.match.dfa

    @cached_property
    def match(self) -> PrefixMatch:
        """What `re` takes, and what it asks of the text behind.

        Raises:
            UnsupportedConstruct, GrammarSyntax, GrammarTooLarge: as the regex front end does; metadata name the
            terminal.
        """
        literal = self.literal
        if literal is not None:
            return lookaround.plain_prefix_match(_literal(literal))
        return self._of_pattern(may_look_ahead=True)

    def refuse_look_ahead(self) -> None:
        """Raise UnsupportedConstruct where the text behind a match counts."""
        if self.literal is None:
            self._of_pattern(may_look_ahead=False)

    def _of_pattern(self, *, may_look_ahead: bool) -> PrefixMatch:
        pattern = self.definition.pattern.to_regexp()
        try:
            tree = parse(pattern, "python")
            if refuse_outside(tree, pattern, may_look_ahead=may_look_ahead):
                return lookaround.prefix_match(tree)
            if anchors.is_plain(tree):
                return lookaround.plain_prefix_match(minimise(automaton.to_early_dfa(tree)))
            return lookaround.plain_prefix_match(lookaround.early_match(tree))
        except (UnsupportedConstruct, GrammarSyntax, GrammarTooLarge) as error:
            error.metadata["terminal"] = self.name
            error.message = f"terminal {self.name}: {error.message}"
            error.args = (error.message,)
            raise

    @property
    def literal(self) -> str | None:
        """The only text, where there is but one."""
        pattern = self.definition.pattern
        return pattern.value if pattern.type == "str" and not pattern.flags else None

    @cached_property
    def firsts(self) -> Ranges:
        """The characters that its texts begin with."""
        return union(ranges for ranges, _ in self.dfa.edges[0])


def union(sets: Iterable[Ranges]) -> Ranges:
    """Return the characters of all the sets."""
    return charset.normalise(range_ for ranges in sets for range_ in ranges)


def _literal(text: str) -> Dfa:
    if any("\ud800" <= char <= "\udfff" for char in text):  # no text that is UTF-8 has it
        return Dfa(((),), frozenset())
    steps = [((((ord(char), ord(char)),), state + 1),) for state, char in enumerate(text)]
    return Dfa((*steps, ()), frozenset((len(text),)))
