"""Patterns under `minLength` and `maxLength`: as a tree with other counts where that is exact, else as a product."""

from __future__ import annotations

from typing import TypeAlias

from services.constraint.core.grammar import NOTHING, Automaton, Expression
from services.constraint.core.regex import charset
from services.constraint.core.regex.ast import EMPTY, Characters, Choice, Concatenation, Node, Repetition, concatenation
from services.constraint.core.regex.automaton import MAX_DFA_STATES, Dfa, byte_edges
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.encoding import Encoding
from services.constraint.core.regex.widths import lengths
from services.rpckit.status import GrammarTooLarge

Edge: TypeAlias = tuple[int, int, int, int]
"""Source, lowest and highest byte, target."""

_NO_TEXT = Choice(())


def simplified(tree: Node) -> Node:
    """Return a plain tree of the same texts without what a loop beside it takes anyway.

    `[a-z]?.*` is `.*`, and `.*[0-9]+.*` is `.*[0-9].*`.
    """
    match tree:
        case Choice(options):
            return Choice(tuple(map(simplified, options)))
        case Concatenation(parts):
            return _simplified_sequence([*parts])
    return tree


def _simplified_sequence(parts: list[Node]) -> Node:
    index = 0
    while index < len(parts):
        loop = parts[index]
        if not (isinstance(loop, Repetition) and isinstance(loop.body, Characters) and loop.maximum is None):
            index += 1
            continue
        # What the loop takes on either side is cut to its minimum, again and again: the next part may then be at its
        # side.
        for side in (-1, 1):
            while 0 <= (other := index + side) < len(parts):
                least = _least(parts[other], loop.body.ranges)
                if least is None or least == parts[other]:
                    break
                parts[other : other + 1] = [] if least == EMPTY else [least]
                index -= side < 0 and least == EMPTY
        index += 1
    return concatenation(parts)


def _least(node: Node, ranges: Ranges) -> Node | None:
    """Return what is left of a part beside a loop over these characters; None if it has others."""
    if not _consists_of(node, ranges):
        return None
    if lengths(node)[0] == 0:
        return EMPTY
    if isinstance(node, Repetition) and node.minimum != node.maximum:
        return node.body if node.minimum == 1 else Repetition(node.body, node.minimum, node.minimum)
    return node


def _consists_of(node: Node, ranges: Ranges) -> bool:
    """Tell whether all characters of a plain tree are among these."""
    if ranges == charset.EVERYTHING:
        return True
    match node:
        case Characters(own):
            return charset.intersect(own, ranges) == own
        case Concatenation(parts) | Choice(parts):
            return all(_consists_of(part, ranges) for part in parts)
        case Repetition(body):
            return _consists_of(body, ranges)
    return False


def within(tree: Node, minimum: int, maximum: int | None) -> Node | None:
    """Return the plain tree of a tree's texts of `minimum` to `maximum` characters (None: no bound).

    None where no tree of about the same size has exactly these.
    """
    shortest, longest = lengths(tree)
    if minimum <= shortest and (maximum is None or (longest is not None and longest <= maximum)):
        return tree
    if (maximum is not None and shortest > maximum) or (longest is not None and longest < minimum):
        return _NO_TEXT
    match tree:
        case Choice(options):
            bounded = [within(option, minimum, maximum) for option in options]
            kept = [option for option in bounded if option is not None]
            return Choice(tuple(option for option in kept if option != _NO_TEXT)) if len(kept) == len(bounded) else None
        case Concatenation(parts):
            return _sequence_within(parts, minimum, maximum)
        case Repetition(body, low, high):
            width, widest = lengths(body)
            if width != widest or width == 0:
                return None
            low = max(low, -(-minimum // width))
            highs = [bound for bound in (high, None if maximum is None else maximum // width) if bound is not None]
            high = min(highs) if highs else None
            return Repetition(body, low, high) if high is None or low <= high else _NO_TEXT
    return None


def _sequence_within(parts: tuple[Node, ...], minimum: int, maximum: int | None) -> Node | None:
    """Bound the one part whose length is not fixed, or all where each must be as short as it can be."""
    bounds = [lengths(part) for part in parts]
    shortest = sum(low for low, _ in bounds)
    free = [index for index, (low, high) in enumerate(bounds) if low != high]
    if maximum != shortest and len(free) != 1:
        return None
    result = [*parts]
    for index in free:
        rest = shortest - bounds[index][0]
        part = within(parts[index], max(0, minimum - rest), None if maximum is None else maximum - rest)
        if part is None or part == _NO_TEXT:
            return part
        result[index] = part
    return concatenation(result)


def product(dfa: Dfa, minimum: int, maximum: int | None, encode: Encoding) -> Expression:
    """Return the automaton over bytes of the texts of `dfa` that have from `minimum` to `maximum` characters.

    It is written in layers, one for each count: copies of one another, but for states that no text of the length leads
    to, or from which no text leads to an end in time. Without a maximum, the last layer goes on in itself.

    Raises:
        GrammarTooLarge: beyond MAX_DFA_STATES.
    """
    # Sets of states are integers, one bit each.
    followers = [sum(1 << target for target in {target for _, target in out}) for out in dfa.edges]
    accepting = sum(1 << state for state in dfa.accepting)
    reached = _layers(followers, minimum, maximum)
    live = [0] * len(reached)
    for count in range(len(reached) - 1, -1, -1):
        ends = accepting if count >= minimum else 0
        if count + 1 < len(reached):
            ends |= sum(1 << state for state, targets in enumerate(followers) if targets & live[count + 1])
        elif maximum is None:
            ends = -1
        live[count] = reached[count] & ends
    out = _byte_edges_by_source(dfa, encode)
    num_states = len(out)
    edges: list[Edge] = []
    known: dict[tuple[int, int], list[Edge]] = {}
    for count, states in enumerate(live):
        is_loop = maximum is None and count == minimum
        targets = states if is_loop else live[count + 1] if count + 1 < len(live) else 0
        layer = known.get((states, targets))
        if layer is None:
            layer = known[states, targets] = _layer(out, len(dfa.edges), states, targets)
        if is_loop:
            layer = [(a, low, high, b - num_states if b >= num_states else b) for a, low, high, b in layer]
        first = count * num_states
        edges.extend([(first + a, low, high, first + b) for a, low, high, b in layer])
    ends_in = [
        count * num_states + state
        for count, states in enumerate(live)
        if count >= minimum
        for state in dfa.accepting
        if states >> state & 1
    ]
    return Automaton(0, tuple(sorted(ends_in)), tuple(edges)) if ends_in else NOTHING


def _layers(followers: list[int], minimum: int, maximum: int | None) -> list[int]:
    """Return the states after 0, 1, 2, ... characters, as far as there are any.

    Without a maximum, the last are those after `minimum` characters or more.
    """
    layers = [1]
    last = minimum if maximum is None else maximum
    num_states = 1
    while len(layers) <= last and (states := _union(followers, layers[-1])):
        if maximum is None and len(layers) == last:
            while (more := states | _union(followers, states)) != states:
                states = more
        layers.append(states)
        num_states += states.bit_count()
        if num_states > MAX_DFA_STATES:
            raise GrammarTooLarge(
                f"the automaton of a pattern, or of patterns and lengths together, needs more than {MAX_DFA_STATES} "
                "states (limit max_dfa_states); ask for less of the same text",
                limit="max_dfa_states",
                value=MAX_DFA_STATES,
            )
    return layers


def _union(sets: list[int], states: int) -> int:
    union = 0
    while states:
        least = states & -states
        union |= sets[least.bit_length() - 1]
        states ^= least
    return union


def _byte_edges_by_source(dfa: Dfa, encode: Encoding) -> list[list[Edge]]:
    edges = byte_edges(dfa, encode)
    out: list[list[Edge]] = [[] for _ in range(max([len(dfa.edges), *(1 + edge[3] for edge in edges)]))]
    for edge in edges:
        out[edge[0]].append(edge)
    return out


def _layer(out: list[list[Edge]], num_outer: int, sources: int, targets: int) -> list[Edge]:
    """Return the edges of one character from these states of a `Dfa` to those, which are of the next layer.

    `out` are the edges over bytes of each state; the first `num_outer` states are the ones of the `Dfa`.
    """
    order = [state for state in range(num_outer) if sources >> state & 1]
    seen = set(order)
    layer: list[Edge] = []
    for state in order:
        for _, low, high, target in out[state]:
            if target >= num_outer:
                layer.append((state, low, high, target))
                if target not in seen:
                    seen.add(target)
                    order.append(target)
            elif targets >> target & 1:
                layer.append((state, low, high, target + len(out)))
    return layer
