"""Lark's Earley parser with the lexer `dynamic_complete`: any cut of the text into terminals will do.

A terminal takes any beginning of the text that its pattern matches when it is given no more than that. Ignored
terminals may stand before, between and behind terminals, never inside; each is matched once, as far as it goes, so that
its match must not go on with what follows.
"""

from __future__ import annotations

from collections.abc import Mapping

import lark

from services.constraint.sources.lark.embedded import Embedded
from services.constraint.sources.lark.lexing import Route
from services.constraint.sources.lark.terminals import Terminal, union
from services.constraint.sources.lark.token_grammar import Production, Rule, Scanner, Token, TokenGrammar
from services.rpckit.status import UnsupportedConstruct


def token_grammar(loaded: lark.Lark, start: str, embedded: Mapping[str, Embedded]) -> TokenGrammar:
    """Return the grammar that Lark's parser follows, with its one lexer.

    Raises:
        UnsupportedConstruct, GrammarTooLarge: as `Terminal.dfa` does; a terminal without text.
    """
    terminals = [Terminal(definition.name, definition) for definition in loaded.terminals]
    scanner = Scanner(
        routes={terminal.name: frozenset({Route(terminal, terminal, is_greedy=False)}) for terminal in terminals},
        ignored=frozenset(Route(terminal, terminal) for terminal in terminals if terminal.name in loaded.ignore_tokens),
        next_characters=union(
            [*(terminal.firsts for terminal in terminals), *(part.firsts for part in embedded.values())]
        ),
    )
    used = {symbol.name for rule in loaded.rules for symbol in rule.expansion if symbol.is_term}
    for terminal in terminals:
        if terminal.name in used:
            # What is behind a text counts for the longest match alone: the shorter ones are tried without it.
            terminal.refuse_look_ahead()
    for rule in loaded.rules:
        for symbol in rule.expansion:
            if symbol.is_term and symbol.name not in scanner.routes and symbol.name not in embedded:
                raise UnsupportedConstruct(
                    f"terminal {symbol.name} is declared with %declare, so it has no text; define it by a string or a "
                    "regex (Lark's Earley parser fails on it too; its LALR parser, lexer contextual, never finds it)",
                    name="%declare",
                    terminal=symbol.name,
                )
    names = dict.fromkeys(rule.origin.name for rule in loaded.rules)
    numbers: dict[str, Rule] = {name: number for number, name in enumerate(names)}
    productions: list[list[Production]] = [[] for _ in numbers]
    for rule in loaded.rules:
        symbols = tuple(
            Token(symbol.name, scanner=0) if symbol.is_term else numbers[symbol.name] for symbol in rule.expansion
        )
        productions[numbers[rule.origin.name]].append(Production(symbols))
    return TokenGrammar(numbers[start], tuple(numbers), tuple(map(tuple, productions)), (scanner,), 0)
