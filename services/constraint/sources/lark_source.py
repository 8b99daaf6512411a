"""Lark grammars, with the meaning of `parser="earley", lexer="dynamic_complete"`.

Lark reads the language (imports, templates, EBNF, aliases, priorities); nothing of that is parsed here. What is left
to do is to say exactly which texts Lark's own parser would take, because the finished text is given to it:

- A *terminal* is tried by Python's `re` at a position, and again on every shorter piece of what it matched. So it
  takes the texts on which a backtracking matcher stops at the very end (`automaton.to_early_dfa`): a lazy comment
  never runs past its first end, and `a|ab` never takes `ab`.
- *Ignored* terminals may stand before, between and behind terminals, never inside. Each is matched once, as far as it
  goes. An ignored piece therefore ends only where no character follows that it could go on with: that is one
  character's look-ahead, and it refuses a few texts that Lark would take after stepping back.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import lark
from lark.exceptions import GrammarError, UnexpectedInput

from services.constraint.core.grammar import (
    NOTHING,
    Alternation,
    Automaton,
    Bytes,
    Expression,
    Grammar,
    Reference,
    Sequence,
    optional,
)
from services.constraint.core.regex import anchors, automaton, charset, encoding, lookaround
from services.constraint.core.regex.automaton import Dfa
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.parse import parse
from services.constraint.core.regex.widths import refuse_outside
from services.constraint.sources.source import BuiltSource
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, ServiceError, UnsupportedConstruct

MAX_GRAMMAR_CHARACTERS = 500_000
START = "start"
_BUNDLED = frozenset(("common.lark", "python.lark", "unicode.lark", "lark.lark"))


def build(text: str) -> BuiltSource:
    """Build the grammar of a Lark grammar's text.

    Raises:
        GrammarSyntax: Lark refuses it; its message is passed on, with line and column where it has them.
        UnsupportedConstruct: look-around at a terminal's edge, or another construct without an automaton; `%declare`;
        an import from a file.
        GrammarTooLarge: beyond MAX_GRAMMAR_CHARACTERS or a limit of a terminal's automaton.
    """
    loaded = load(text)
    return BuiltSource(_Lowering(loaded).run())


def load(text: str) -> lark.Lark:
    """Let Lark load a grammar: nothing but its own bundled grammars can be imported."""
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise GrammarTooLarge(
            f"the grammar has {len(text)} characters; the limit max_grammar_characters is {MAX_GRAMMAR_CHARACTERS}",
            limit="max_grammar_characters",
            value=MAX_GRAMMAR_CHARACTERS,
        )
    # Lark asks a callable in import_paths first; whatever it does not refuse goes on to Lark's own loader.
    try:
        return lark.Lark(
            text,
            parser="earley",
            lexer="dynamic_complete",
            start=START,
            import_paths=[_allow_bundled],  # type: ignore[list-item]
        )
    except UnexpectedInput as error:
        raise GrammarSyntax(
            f"the Lark grammar does not parse: {_message(error)}", line=error.line, column=error.column
        ) from None
    except GrammarError as error:
        raise _grammar_error(error) from None
    except RecursionError:
        raise GrammarTooLarge(
            "the Lark grammar is nested deeper than Lark takes (limit max_nesting)",
            limit="max_nesting",
            value="Python's recursion limit",
        ) from None
    except ServiceError:
        raise
    except Exception as error:
        # Lark has no error of its own for much of what can be wrong with a grammar: a bad regex raises whatever the
        # regex compiler raises.
        raise GrammarSyntax(f"the Lark grammar does not load: {type(error).__name__}: {_message(error)}") from None


def _allow_bundled(base_path: object, grammar_path: str) -> tuple[Any, str]:
    # A grammar that came with Lark imports from its own directory; one from the wire has no directory.
    if grammar_path in _BUNDLED and (base_path is None or isinstance(base_path, tuple)):
        raise FileNotFoundError  # for Lark: go on to the next loader
    name = grammar_path.removesuffix(".lark").replace("/", ".")
    raise UnsupportedConstruct(
        f"%import of {name}: a grammar can import only what comes with Lark (common, unicode, python, "
        "lark); put the rules into the grammar",
        name="%import",
        module=name,
    )


def _message(error: BaseException) -> str:
    return str(error).strip()[:2000]


def _grammar_error(error: GrammarError) -> GrammarSyntax:
    message = _message(error)
    if message == f"Using an undefined rule: NonTerminal('{START}')":
        return GrammarSyntax(
            f"the Lark grammar has no rule named {START}, with which every text begins: {message}", rule=START
        )
    place = error.__context__
    if isinstance(place, UnexpectedInput):
        return GrammarSyntax(f"the Lark grammar does not parse: {message}", line=place.line, column=place.column)
    return GrammarSyntax(f"the Lark grammar does not load: {message}")


class _Terminal:
    """A terminal's texts, each as a literal or an automaton over characters."""

    def __init__(self, definition: lark.lexer.TerminalDef) -> None:
        self.name = definition.name
        pattern = definition.pattern
        self.literal = pattern.value if pattern.type == "str" and not pattern.flags else None
        self._regexp = pattern.to_regexp()
        self._dfa: Dfa | None = None

    @property
    def dfa(self) -> Dfa:
        if self._dfa is None:
            try:
                tree = parse(self._regexp, "python")
                refuse_outside(tree, self._regexp)
                self._dfa = automaton.to_early_dfa(tree) if anchors.is_plain(tree) else lookaround.early_match(tree)
            except (UnsupportedConstruct, GrammarSyntax, GrammarTooLarge) as error:
                error.metadata["terminal"] = self.name
                error.message = f"terminal {self.name}: {error.message}"
                error.args = (error.message,)
                raise
        return self._dfa

    def expression(self) -> Expression:
        if self.literal is not None:
            try:
                return Bytes(self.literal.encode())
            except UnicodeEncodeError:
                return NOTHING
        return self.dfa.to_automaton(encoding.utf8)

    def first(self) -> Ranges:
        """Return the characters that its texts begin with."""
        if self.literal is not None:
            return charset.normalise([(ord(self.literal[0]), ord(self.literal[0]))])
        return charset.normalise(range_ for ranges, _ in self.dfa.edges[0] for range_ in ranges)


class _Lowering:
    def __init__(self, loaded: lark.Lark) -> None:
        self._lark = loaded
        self._terminals = {definition.name: _Terminal(definition) for definition in loaded.terminals}
        self._rules: dict[str, Expression] = {}
        ignored = [self._terminals[name] for name in dict.fromkeys(loaded.ignore_tokens)]
        self._gaps = _gaps(ignored)

    def run(self) -> Grammar:
        options: dict[str, list[Expression]] = {}
        for rule in self._lark.rules:
            parts = tuple(
                self._terminal(symbol.name) if symbol.is_term else Reference(_rule_name(symbol.name))
                for symbol in rule.expansion
            )
            options.setdefault(_rule_name(rule.origin.name), []).append(Sequence(parts))
        for name, alternatives in options.items():
            self._rules[name] = Alternation(tuple(alternatives))
        for index, (gap, _) in enumerate(self._gaps):
            self._rules[f"gap {index}"] = gap
        start: Expression = Reference(_rule_name(START))
        if self._gaps:
            start = Sequence(
                (start, optional(Alternation(tuple(Reference(f"gap {index}") for index in range(len(self._gaps))))))
            )
        self._rules["whole text"] = start
        return Grammar("whole text", self._rules)

    def _terminal(self, name: str) -> Reference:
        """Return the rule of a terminal with whatever is ignored before it."""
        rule = f"token {name}"
        if rule in self._rules:
            return Reference(rule)
        terminal = self._terminals.get(name)
        if terminal is None:
            raise UnsupportedConstruct(
                f"terminal {name} is declared with %declare, so it has no text; define it by a string or a regex",
                name="%declare",
                terminal=name,
            )
        options: list[Expression] = [Reference(f"terminal {name}")]
        self._rules[f"terminal {name}"] = terminal.expression()
        for index, (_, goes_on_with) in enumerate(self._gaps):
            if not charset.intersect(terminal.first(), goes_on_with):
                options.append(Sequence((Reference(f"gap {index}"), Reference(f"terminal {name}"))))
            elif terminal.literal is None:
                rest = _not_starting_with(terminal.dfa, goes_on_with)
                if not rest.is_empty():
                    self._rules[f"terminal {name} after gap {index}"] = rest.to_automaton(encoding.utf8)
                    options.append(
                        Sequence((Reference(f"gap {index}"), Reference(f"terminal {name} after gap {index}")))
                    )
        self._rules[rule] = Alternation(tuple(options))
        return Reference(rule)


def _rule_name(name: str) -> str:
    return f"rule {name}"


def _not_starting_with(dfa: Dfa, ranges: Ranges) -> Dfa:
    """Return the automaton without the texts that begin with one of these characters."""
    if not dfa.accepting:
        return dfa
    allowed = charset.complement(ranges)
    # The start may be reached again; so the restricted start is a new state in front of the others.
    start = tuple((kept, target + 1) for old, target in dfa.edges[0] if (kept := charset.intersect(old, allowed)))
    rest = tuple(tuple((old, target + 1) for old, target in out) for out in dfa.edges)
    return Dfa((start, *rest), frozenset(state + 1 for state in dfa.accepting) if start else frozenset())


def _gaps(ignored: Items[_Terminal]) -> list[tuple[Expression, Ranges]]:
    """Return the texts that are skipped in one go, by the characters that the last piece would go on with.

    A piece may be followed by another one only where the next character could not belong to itself.
    """
    edges: list[tuple[int, Ranges, int]] = []
    starts: list[int] = []
    accepting: dict[int, Ranges] = {}
    num_states = 1  # 0 is the start
    for terminal in ignored:
        dfa = terminal.dfa
        starts.append(num_states)
        for state, out in enumerate(dfa.edges):
            edges.extend((num_states + state, ranges, num_states + target) for ranges, target in out)
            if state in dfa.accepting:
                accepting[num_states + state] = charset.normalise(range_ for ranges, _ in out for range_ in ranges)
        num_states += len(dfa.edges)
    firsts = [(ranges, target) for source, ranges, target in edges if source in starts]
    for source, goes_on_with in [(0, charset.NOTHING), *accepting.items()]:
        allowed = charset.complement(goes_on_with)
        edges.extend(
            (source, kept, target) for ranges, target in firsts if (kept := charset.intersect(ranges, allowed))
        )
    by_rest: dict[Ranges, set[int]] = {}
    for state, goes_on_with in accepting.items():
        by_rest.setdefault(goes_on_with, set()).add(state)
    return [
        (_bytes_automaton(edges, num_states, frozenset(states)), goes_on_with)
        for goes_on_with, states in by_rest.items()
    ]


def _bytes_automaton(
    edges: list[tuple[int, Ranges, int]], num_states: int, accepting: frozenset[int]
) -> Automaton | Expression:
    out: list[list[tuple[Ranges, int]]] = [[] for _ in range(num_states)]
    for source, ranges, target in edges:
        out[source].append((ranges, target))
    # The sets of a state may overlap here: `to_automaton` does not mind.
    return Dfa(tuple(map(tuple, out)), accepting).to_automaton(encoding.utf8)


__all__ = ["build", "load"]
