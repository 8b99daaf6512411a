"""A grammar over tokens: what a parser sees, and by which lexer each token is found.

`dynamic.py` and `contextual.py` make it, one for each of Lark's lexers that are known here; `lowering.py` joins it with
the lexers' automata.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from services.constraint.core.regex.charset import Ranges
from services.constraint.sources.lark.lexing import NOTHING, Route, Watch

Rule: TypeAlias = int

END: Final = "$END"
"""Lark's name of the terminal that is the end of the text."""


@dataclass(frozen=True, slots=True)
class Scanner:
    """One lexer: how it comes to a token of each terminal, and what it skips.

    `next_characters` are those that any of it can begin with.
    """

    routes: Mapping[str, frozenset[Route]]
    ignored: frozenset[Route]
    next_characters: Ranges


@dataclass(frozen=True, slots=True)
class Token:
    """A terminal or a part in a production, and the number of the scanner that goes on behind it.

    `settled` need not be watched behind it: nothing that can follow goes on with it.
    """

    terminal: str
    scanner: int
    settled: Watch = NOTHING


@dataclass(frozen=True, slots=True)
class Production:
    """One way to make a rule. The next token behind it is not of a terminal in `not_before`."""

    symbols: tuple[Rule | Token, ...]
    not_before: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TokenGrammar:
    """Rules by number, each with a name for people and its productions."""

    start: Rule
    names: tuple[str, ...]
    productions: tuple[tuple[Production, ...], ...]
    scanners: tuple[Scanner, ...]
    first_scanner: int

    def merged(self) -> TokenGrammar:
        """Return the grammar in which rules that say the same are one: the coarsest partition, by refinement."""
        blocks = _numbered(self.names)
        num_blocks = 0
        while len(set(blocks)) > num_blocks:
            num_blocks = len(set(blocks))
            blocks = _numbered(
                [(blocks[rule], _renamed(productions, blocks)) for rule, productions in enumerate(self.productions)]
            )
        members = {block: rule for rule, block in reversed(list(enumerate(blocks)))}
        kept = [members[block] for block in range(num_blocks)]
        return TokenGrammar(
            blocks[self.start],
            tuple(self.names[rule] for rule in kept),
            tuple(tuple(_renamed(self.productions[rule], blocks)) for rule in kept),
            self.scanners,
            self.first_scanner,
        )


def _renamed(productions: tuple[Production, ...], blocks: list[int]) -> frozenset[Production]:
    return frozenset(
        Production(
            tuple(blocks[symbol] if isinstance(symbol, int) else symbol for symbol in production.symbols),
            production.not_before,
        )
        for production in productions
    )


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
