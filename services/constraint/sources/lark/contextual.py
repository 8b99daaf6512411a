"""Lark's LALR(1) parser with the lexer `contextual`: the parser's state says which terminals are looked for.

What the parser does is decided by its tables, not by the grammar alone, in two ways.

- *Which lexer finds the next token* depends on the state behind the token before. So rules are told apart by the state
  in which they begin: then the state behind each of their tokens is known. Rules that do the same in several states
  are made one again (`TokenGrammar.merged`), and so are lexers that find the same tokens the same way (`_Scanners`).
- *Conflicts*: where Lark shifts though it could reduce, or reduces by the rule of higher priority, it refuses some
  texts of the grammar. So a production is not followed by a terminal on which Lark does something else at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cache
from typing import Any

import lark
from lark import grammar as lark_grammar
from lark.lexer import BasicLexer, UnlessCallback
from lark.parsers.grammar_analysis import LR0ItemSet
from lark.parsers.lalr_analysis import LALR_Analyzer, Reduce

from services.constraint.core.regex import automaton
from services.constraint.core.regex.charset import Ranges
from services.constraint.sources.lark.embedded import Embedded
from services.constraint.sources.lark.lexing import NOTHING, Route, Watch, interfere, lex, relevant
from services.constraint.sources.lark.terminals import Terminal, union
from services.constraint.sources.lark.token_grammar import Production, Rule, Scanner, Token, TokenGrammar


def token_grammar(loaded: lark.Lark, start: str, embedded: Mapping[str, Embedded]) -> TokenGrammar:
    """Return the grammar that Lark's parser follows, with all its lexers.

    Raises:
        UnsupportedConstruct, GrammarTooLarge: as `Terminal.dfa` does.
    """
    analysis = LALR_Analyzer(loaded.parser.parser_conf, debug=True)
    analysis.compute_lalr()  # type: ignore[no-untyped-call]
    first = analysis.lr0_start_states[start]
    scanners = _Scanners(loaded, embedded)
    states = {itemset: _State(itemset, analysis, scanners) for itemset in _reachable(first)}
    annotation = _Annotation(analysis, states, scanners)
    root = annotation.rule(first, lark_grammar.NonTerminal(start))
    annotation.run()
    return TokenGrammar(
        root,
        tuple(annotation.names),
        tuple(map(tuple, annotation.productions)),
        tuple(scanners.merged),
        states[first].scanner,
    ).merged()


def _reachable(start: LR0ItemSet) -> list[LR0ItemSet]:
    order = dict.fromkeys([start])
    todo = [start]
    while todo:
        for target in todo.pop().transitions.values():
            if target not in order:
                order[target] = None
                todo.append(target)
    return list(order)


class _State:
    """A state of the parser: the scanner that finds the next token, and what that token can begin with."""

    def __init__(self, itemset: LR0ItemSet, analysis: LALR_Analyzer, scanners: _Scanners) -> None:
        self._itemset = itemset
        self._actions = analysis.parse_table.states[itemset.closure]
        accepts = frozenset(self._actions)
        self.scanner = scanners.number(accepts)
        self.next_characters = scanners.next_characters(accepts)

    def not_reducing(self, rule: lark_grammar.Rule) -> frozenset[str]:
        """Return the terminals that may follow a rule which is complete here, but on which Lark does not reduce it."""
        return frozenset(
            terminal.name
            for terminal, rules in self._itemset.lookaheads.items()
            if rule in rules and self._actions.get(terminal.name) != (Reduce, rule)
        )


class _Annotation:
    """Rules by the state in which they begin."""

    def __init__(self, analysis: LALR_Analyzer, states: Mapping[LR0ItemSet, _State], scanners: _Scanners) -> None:
        self.names: list[str] = []
        self.productions: list[list[Production]] = []
        self._analysis = analysis
        self._states = states
        self._scanners = scanners
        self._numbers: dict[tuple[LR0ItemSet, lark_grammar.NonTerminal], Rule] = {}
        self._waiting: list[tuple[LR0ItemSet, lark_grammar.NonTerminal]] = []

    def rule(self, itemset: LR0ItemSet, nonterminal: lark_grammar.NonTerminal) -> Rule:
        """Return the number of a rule that begins in a state; `run` writes its productions."""
        key = (itemset, nonterminal)
        if key not in self._numbers:
            self._numbers[key] = len(self.names)
            self.names.append(nonterminal.name)
            self._waiting.append(key)
        return self._numbers[key]

    def run(self) -> None:
        """Write the productions of all rules that were asked for."""
        for itemset, nonterminal in self._waiting:
            self.productions.append(
                [self._production(itemset, rule) for rule in self._analysis.lr0_rules_by_origin[nonterminal]]
            )

    def _production(self, itemset: LR0ItemSet, rule: lark_grammar.Rule) -> Production:
        symbols: list[Rule | Token] = []
        for symbol in rule.expansion:
            behind = itemset.transitions[symbol]
            if isinstance(symbol, lark_grammar.Terminal):
                state = self._states[behind]
                symbols.append(
                    Token(symbol.name, state.scanner, self._scanners.settled(symbol.name, state.next_characters))
                )
            elif isinstance(symbol, lark_grammar.NonTerminal):
                symbols.append(self.rule(itemset, symbol))
            itemset = behind
        return Production(tuple(symbols), self._states[itemset].not_reducing(rule))


class _Scanners:
    """Lark's lexers for the sets of terminals that states look for.

    Two are one where they find each terminal that both are asked for in the same way. What only one is asked for,
    the grammar never lets follow where the other stands.
    """

    def __init__(self, loaded: lark.Lark, embedded: Mapping[str, Embedded]) -> None:
        self.merged: list[Scanner] = []
        self._loaded = loaded
        self._terminals = {item.name: Terminal(item.name, item) for item in loaded.terminals}
        self._can_begin: Mapping[str, Terminal | Embedded] = {**embedded, **self._terminals}
        self._numbers: dict[frozenset[str], int] = {}
        self._interfere = cache(interfere)
        self._residues = cache(self._find_residues)

    def number(self, accepts: frozenset[str]) -> int:
        """Return the number of the lexer that looks for these terminals."""
        if accepts not in self._numbers:
            scanner = self._scanner(accepts)
            for number, other in enumerate(self.merged):
                shared = scanner.routes.keys() & other.routes.keys()
                if scanner.ignored == other.ignored and all(scanner.routes[n] == other.routes[n] for n in shared):
                    self.merged[number] = Scanner(
                        {**other.routes, **scanner.routes},
                        other.ignored,
                        union((other.next_characters, scanner.next_characters)),
                    )
                    break
            else:
                number = len(self.merged)
                self.merged.append(scanner)
            self._numbers[accepts] = number
        return self._numbers[accepts]

    def next_characters(self, accepts: frozenset[str]) -> Ranges:
        """Return the characters with which a terminal of these, or something ignored, begins."""
        names = accepts.union(self._loaded.ignore_tokens)
        return union(self._can_begin[name].firsts for name in sorted(names) if name in self._can_begin)

    def settled(self, terminal: str, next_characters: Ranges) -> Watch:
        """Return what a token of this terminal leaves to be watched in vain where only these characters follow."""
        residues = self._residues(terminal)
        return residues - relevant(residues, next_characters)

    def _find_residues(self, terminal: str) -> Watch:
        routes = {route for scanner in self.merged for route in scanner.routes.get(terminal, ())}
        return NOTHING.union(*(behind for route in routes for behind, _ in lex(route, NOTHING).exits))

    def _scanner(self, accepts: frozenset[str]) -> Scanner:
        """Return what Lark's own lexer for these terminals does."""
        config = copy(self._loaded.lexer_conf)
        config.terminals = [
            config.terminals_by_name[name]
            for name in accepts.union(config.ignore)
            if name in config.terminals_by_name  # a declared terminal has no text
        ]
        config.skip_validation = True
        lexer = BasicLexer(config)
        scanned = [self._terminals[item.name] for item in lexer.scanner.terminals]
        routes: dict[str, set[Route]] = {}
        ignored = set()
        for index, terminal in enumerate(scanned):
            rivals = frozenset(rival for rival in scanned[:index] if self._interfere(rival, terminal))
            if terminal.name in lexer.ignore_types:
                ignored.add(Route(terminal, terminal, rivals))
                continue
            names = self._names(lexer.callback.get(terminal.name))
            for position, name in enumerate(names):
                before = tuple(other for other in names[:position] if _overlap(other, name))
                routes.setdefault(name.name, set()).add(Route(terminal, name, rivals, (*before, name)))
            routes.setdefault(terminal.name, set()).add(Route(terminal, terminal, rivals, names))
        return Scanner(
            {name: frozenset(routes.get(name, ())) for name in accepts},
            frozenset(ignored),
            self.next_characters(accepts),
        )

    def _names(self, callback: Any) -> tuple[Terminal, ...]:
        if not isinstance(callback, UnlessCallback):
            return ()
        return tuple(self._terminals[item.name] for item in callback.scanner.terminals)


def _overlap(one: Terminal, other: Terminal) -> bool:
    if one.literal is not None and other.literal is not None:
        return one.literal == other.literal
    return not automaton.intersect(one.dfa, other.dfa).is_empty()
