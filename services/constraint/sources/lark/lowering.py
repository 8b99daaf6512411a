"""From a grammar over tokens and its lexers to the core's grammar over bytes.

Between two tokens stands a *place*: the scanner that finds the next token, what is watched (`lexing.Watch`), and the
terminals that the next token must not be. A token leads from place to place, by as many ways as there are texts that
leave different things to be watched; so does a rule, through its tokens. The core knows no places. So there is a rule
for each rule and pair of places that it leads between: the product of a context-free grammar with a finite automaton
(Y. Bar-Hillel, M. Perles, E. Shamir, "On formal properties of simple phrase structure grammars", 1961), of which only
what the start reaches is made. Mostly nothing is watched behind a token, because nothing that can follow goes on with
it; then a rule has one pair of places and the product is the grammar itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

from services.constraint.core.grammar import EMPTY, Alternation, Automaton, Expression, Grammar, Reference, Sequence
from services.constraint.core.regex import encoding
from services.constraint.core.regex.automaton import Dfa, explore_states, partition
from services.constraint.core.regex.charset import Ranges
from services.constraint.sources.lark.embedded import Embedded
from services.constraint.sources.lark.forms import FormId, Forms
from services.constraint.sources.lark.lexing import NOTHING, Route, Watch, lex, may_end, relevant
from services.constraint.sources.lark.token_grammar import END, Rule, Token, TokenGrammar
from services.rpckit.status import GrammarTooLarge, UnsupportedConstruct

MAX_VARIANTS: Final = 50_000
"""Rules with a place before and one behind; about 20 us each."""

_START: Final = "whole text"
_MAX_DEPTH: Final = 20


@dataclass(frozen=True, slots=True)
class Place:
    """What a lexer and a parser carry from one token to the next."""

    scanner: int
    watch: Watch = NOTHING
    not_before: frozenset[str] = frozenset()


def lower(grammar: TokenGrammar, embedded: Mapping[str, Embedded]) -> Grammar:
    """Return the grammar of the texts that the lexers cut into the grammar's tokens.

    Raises:
        UnsupportedConstruct, GrammarTooLarge: as `Terminal.dfa` and `lex` do; beyond MAX_VARIANTS.
    """
    first = Place(grammar.first_scanner)
    forms, tokens = Forms(grammar.productions), _Tokens(grammar, embedded)
    exits = _Exits(forms, tokens)
    exits.explore(forms.of_rule[grammar.start], first)
    rules = _Rules(grammar, forms, tokens, exits)
    options = []
    for last in exits.of(grammar.start, first):
        if END not in last.not_before:
            body = rules.reference(grammar.start, first, last)
            gaps = tokens.gaps(last.scanner, last.watch)
            options += [Sequence((body, gap)) for behind, gap in gaps if may_end(behind)]
    return Grammar(
        _START, {**rules.run(), **tokens.rules, _START: Alternation(tuple(options))}, frozenset(tokens.lexemes)
    )


class _Tokens:
    """The texts of tokens and of what is skipped before them, by the places that they lead between."""

    def __init__(self, grammar: TokenGrammar, embedded: Mapping[str, Embedded]) -> None:
        self.rules: dict[str, Expression] = {name: part.expression for name, part in embedded.items()}
        self._embedded = embedded
        self.lexemes: list[str] = []  # those rules that are of one automaton
        self._scanners = grammar.scanners
        self._lex = cache(lex)
        self._exits: dict[tuple[Token, Place], dict[Place, Reference]] = {}
        self._lexemes: dict[tuple[Route, Watch, Watch], Reference] = {}
        self._gaps: dict[tuple[int, Watch], list[tuple[Watch, Expression]]] = {}

    def exits(self, token: Token, place: Place) -> dict[Place, Reference]:
        """Return the places behind a token, each with the token's texts that lead there."""
        key = (token, place)
        if key not in self._exits:
            options: dict[Place, list[Expression]] = {}
            if token.terminal not in place.not_before:
                for watch, gap in self.gaps(place.scanner, place.watch):
                    for behind, text in self._ways(token, place.scanner, watch):
                        options.setdefault(Place(token.scanner, behind - token.settled), []).append(
                            text if gap is EMPTY else Sequence((gap, text))
                        )
            self._exits[key] = {
                behind: self._rule(f"token {token.terminal}", Alternation(tuple(texts)))
                for behind, texts in options.items()
            }
        return self._exits[key]

    def _ways(self, token: Token, scanner: int, watch: Watch) -> Iterator[tuple[Watch, Reference]]:
        """Yield the texts of a token, without what is skipped before it, each with what is watched behind them."""
        if token.terminal in self._embedded:
            firsts = self._embedded[token.terminal].firsts
            if not firsts:  # a special token, which is the end of the text to a lexer
                if may_end(watch):
                    yield NOTHING, Reference(token.terminal)
                return
            if relevant(watch, firsts):
                names = ", ".join(sorted({terminal.name for terminal, _ in watch}))
                raise UnsupportedConstruct(
                    f"a schema stands where Lark's lexer could still go on with {names}: put a text between them with "
                    "which neither goes on",
                    name="%json",
                )
            yield NOTHING, Reference(token.terminal)
            return
        for route in self._scanners[scanner].routes.get(token.terminal, ()):
            for behind, _ in self._lex(route, watch).exits:
                yield behind, self._lexeme(route, watch, behind)

    def gaps(self, scanner: int, watch: Watch) -> list[tuple[Watch, Expression]]:
        """Return what may be skipped before a token, nothing at all included, and what is watched behind it."""
        key = (scanner, watch)
        if key not in self._gaps:
            dfa, states = explore_states(
                _Gap(frozenset((watch,))), lambda gap: self._skip(scanner, gap), lambda gap: bool(gap.inside)
            )
            exits: dict[Watch, set[int]] = {}
            for number in dfa.accepting:
                for behind in states[number].ends:
                    exits.setdefault(behind, set()).add(number)
            self._gaps[key] = [
                (watch, EMPTY),
                *(
                    (behind, self._rule("gap", Dfa(dfa.edges, frozenset(numbers)).to_automaton(encoding.utf8)))
                    for behind, numbers in exits.items()
                ),
            ]
        return self._gaps[key]

    def _skip(self, scanner: int, gap: _Gap) -> list[tuple[Ranges, _Gap]]:
        ignored = self._scanners[scanner].ignored
        at = [*gap.inside, *((route, watch, 0) for route in ignored for watch in gap.ends)]
        moves = [
            (ranges, (route, watch, target))
            for route, watch, state in at
            for ranges, target in self._lex(route, watch).dfa.edges[state]
        ]
        return [
            (ranges, self._gap(scanner, frozenset(moves[index][1] for index in indices)))
            for ranges, indices in partition([ranges for ranges, _ in moves])
        ]

    def _gap(self, scanner: int, inside: frozenset[_Inside]) -> _Gap:
        next_characters = self._scanners[scanner].next_characters
        ends = {
            relevant(behind, next_characters)
            for route, watch, state in inside
            for behind, accepting in self._lex(route, watch).exits
            if state in accepting
        }
        return _Gap(frozenset(ends), inside)

    def _lexeme(self, route: Route, watch: Watch, behind: Watch) -> Reference:
        key = (route, watch, behind)
        if key not in self._lexemes:
            expression = self._lex(route, watch).expression(behind)
            self._lexemes[key] = self._rule(f"terminal {route.target.name}", expression)
        return self._lexemes[key]

    def _rule(self, name: str, expression: Expression) -> Reference:
        name = f"{name} {len(self.rules)}"
        self.rules[name] = expression
        if isinstance(expression, Automaton):
            self.lexemes.append(name)
        return Reference(name)


_Inside: TypeAlias = tuple[Route, Watch, int]
"""In the middle of something ignored: its route, what was watched before it, the state of its automaton."""


@dataclass(frozen=True, slots=True)
class _Gap:
    """While text is skipped: what is watched where a piece may have ended, and the pieces that may go on."""

    ends: frozenset[Watch]
    inside: frozenset[_Inside] = frozenset()


class _Exits:
    """The places behind each form, by the place before it: the least fixed point."""

    def __init__(self, forms: Forms, tokens: _Tokens) -> None:
        self._forms = forms
        self._tokens = tokens
        self._known: dict[tuple[FormId, Place], dict[Place, None]] = {}
        self._users: dict[tuple[FormId, Place], dict[tuple[FormId, Place], None]] = {}
        self._waiting: list[tuple[FormId, Place]] = []
        self._num_variants = 0

    def explore(self, start: FormId, place: Place) -> None:
        """Find the places behind a form and all that it needs."""
        self._ask(start, place)
        while self._waiting:
            user = self._waiting.pop()
            known = self._known[user]
            found = [place for place in dict.fromkeys(self._behind(*user)) if place not in known]
            if found:
                known.update(dict.fromkeys(found))
                self._count(len(found))
                self._waiting.extend(self._users.get(user, ()))

    def behind(self, form: FormId, place: Place) -> Collection[Place]:
        """Return the places behind a form."""
        return self._known[form, place]

    def of(self, symbol: Rule | Token, place: Place) -> Collection[Place]:
        """Return the places behind a symbol."""
        if isinstance(symbol, Token):
            return self._tokens.exits(symbol, place)
        return self._known[self._forms.of_rule[symbol], place]

    def _behind(self, form: FormId, place: Place) -> Iterator[Place]:
        user = form, place
        for not_before in self._forms.forms[form].ends:
            yield completed(not_before, place)
        for symbol, rest in self._forms.forms[form].edges:
            if not isinstance(symbol, Token):
                self._ask(self._forms.of_rule[symbol], place, user)
            for between in tuple(self.of(symbol, place)):
                self._ask(rest, between, user)
                yield from tuple(self._known[rest, between])

    def _ask(self, form: FormId, place: Place, user: tuple[FormId, Place] | None = None) -> None:
        key = form, place
        if key not in self._known:
            self._known[key] = {}
            self._waiting.append(key)
        if user is not None:
            self._users.setdefault(key, {})[user] = None

    def _count(self, num_found: int) -> None:
        self._num_variants += num_found
        if self._num_variants > MAX_VARIANTS:
            raise GrammarTooLarge(
                f"the grammar's rules lead between more than {MAX_VARIANTS} pairs of lexer states "
                "(limit max_lexer_variants); let fewer terminals be the beginning of others",
                limit="max_lexer_variants",
                value=MAX_VARIANTS,
            )


def completed(not_before: frozenset[str], place: Place) -> Place:
    """Return the place behind a production whose last symbol leads to this one."""
    return Place(place.scanner, place.watch, place.not_before | not_before)


_Way: TypeAlias = tuple[FormId, Place, Place]
"""A form, the place before it, the place behind it."""


class _Rules:
    """Writes the rules that are referred to: those of the grammar, and ways that several have in common."""

    def __init__(self, grammar: TokenGrammar, forms: Forms, tokens: _Tokens, exits: _Exits) -> None:
        self._forms = forms
        self._tokens = tokens
        self._exits = exits
        self._label = dict(zip(forms.of_rule, grammar.names, strict=True))
        self._names: dict[_Way, str] = {}
        self._steps: dict[_Way, list[tuple[Reference, _Way]]] = {}

    def reference(self, rule: Rule, before: Place, behind: Place) -> Reference:
        """Return the call of a rule that leads from one place to another."""
        return self._named((self._forms.of_rule[rule], before, behind))

    def run(self) -> dict[str, Expression]:
        """Return all rules that were referred to."""
        num_uses: dict[_Way, int] = {}
        todo = list(self._names)
        while todo:
            way = todo.pop()
            if way not in self._steps:
                num_names = len(self._names)
                steps = self._steps[way] = self._steps_of(way)
                for _, rest in steps:
                    num_uses[rest] = num_uses.get(rest, 0) + 1
                todo.extend(rest for _, rest in steps)
                todo.extend(list(self._names)[num_names:])
        for way, uses in num_uses.items():
            if uses > 1 and self._steps[way]:
                self._named(way)
        rules: dict[str, Expression] = {}
        todo = list(self._names)
        while todo:
            way = todo.pop()
            num_names = len(self._names)
            rules[self._names[way]] = self._expression(way, 0)
            todo.extend(list(self._names)[num_names:])
        return rules

    def _steps_of(self, way: _Way) -> list[tuple[Reference, _Way]]:
        """Return each symbol that may come next, and the way behind it."""
        form, before, behind = way
        return [
            (
                self._tokens.exits(symbol, before)[between]
                if isinstance(symbol, Token)
                else self.reference(symbol, before, between),
                (rest, between, behind),
            )
            for symbol, rest in self._forms.forms[form].edges
            for between in self._exits.of(symbol, before)
            if behind in self._exits.behind(rest, between)
        ]

    def _named(self, way: _Way) -> Reference:
        if way not in self._names:
            self._names[way] = f"rule {self._label.get(way[0], '')} {len(self._names)}"
        return Reference(self._names[way])

    def _expression(self, way: _Way, depth: int) -> Expression:
        """Return the texts of a way; what stands at a greater depth than _MAX_DEPTH is a rule of its own."""
        options: list[Expression] = [EMPTY] if self._may_end(way) else []
        for symbol, rest in self._steps[way]:
            parts: list[Expression] = [symbol]
            while rest not in self._names and len(self._steps[rest]) == 1 and not self._may_end(rest):
                ((symbol, rest),) = self._steps[rest]
                parts.append(symbol)
            if rest in self._names or (self._steps[rest] and depth == _MAX_DEPTH):
                parts.append(self._named(rest))
            elif self._steps[rest]:
                parts.append(self._expression(rest, depth + 1))
            options.append(parts[0] if len(parts) == 1 else Sequence(tuple(parts)))
        return options[0] if len(options) == 1 else Alternation(tuple(options))

    def _may_end(self, way: _Way) -> bool:
        form, before, behind = way
        return any(completed(not_before, before) == behind for not_before in self._forms.forms[form].ends)
