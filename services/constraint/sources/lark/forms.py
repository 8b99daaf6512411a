"""What may still come of a rule, each written once.

Lark writes optional parts out: a rule with six of them has 64 productions, which begin and end alike. A *form* is a set
of ways in which a rule may go on. Joining productions that begin alike makes a tree of forms, and making equal forms
one leaves an acyclic automaton over symbols with the fewest states, as for the words of a dictionary (J. Daciuk et al.,
"Incremental construction of minimal acyclic finite-state automata", Computational Linguistics 26(1), 2000; here the
whole tree is there first).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from services.constraint.sources.lark.token_grammar import Production, Rule, Token

FormId: TypeAlias = int


@dataclass(frozen=True, slots=True)
class Form:
    """The next symbols, each with the form behind it; `ends` are the `not_before` of productions that are done here."""

    edges: tuple[tuple[Rule | Token, FormId], ...]
    ends: tuple[frozenset[str], ...]


class Forms:
    """The forms of all rules of a grammar; rules with the same productions have the same form."""

    def __init__(self, rules: Sequence[Sequence[Production]]) -> None:
        self.forms: list[Form] = []
        self._numbers: dict[object, FormId] = {}
        self.of_rule: list[FormId] = [self._form(productions) for productions in rules]

    def _form(self, productions: Sequence[Production]) -> FormId:
        edges: list[dict[Rule | Token, int]] = [{}]
        ends: list[dict[frozenset[str], None]] = [{}]
        for production in productions:
            node = 0
            for symbol in production.symbols:
                child = edges[node].setdefault(symbol, len(edges))
                if child == len(edges):
                    edges.append({})
                    ends.append({})
                node = child
            ends[node][production.not_before] = None
        # Children come behind their parents.
        made = [0] * len(edges)
        for node in reversed(range(len(edges))):
            form = Form(tuple((symbol, made[child]) for symbol, child in edges[node].items()), tuple(ends[node]))
            key = frozenset(form.edges), frozenset(form.ends)
            made[node] = self._numbers.setdefault(key, len(self.forms))
            if made[node] == len(self.forms):
                self.forms.append(form)
        return made[0]
