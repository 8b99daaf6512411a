"""The smallest deterministic automaton of the same texts."""

from __future__ import annotations

from services.constraint.core.regex import charset
from services.constraint.core.regex.automaton import Dfa, partition


def minimise(dfa: Dfa) -> Dfa:
    """Merge the states behind which the same texts are accepted.

    Hopcroft's algorithm ("An n log n algorithm for minimizing states in a finite automaton", 1971): a set of states is
    split by which of them a character leads into another set; of two halves, only the smaller splits others again.
    Every state of `dfa` must reach an accepting one; so a missing edge needs no state of its own, if all sets split
    others at first (A. Valmari, P. Lehtinen, "Efficient Minimization of DFAs with Partial Transition Functions", 2008).
    """
    distinct = list(dict.fromkeys(ranges for out in dfa.edges for ranges, _ in out))
    letters_of: dict[charset.Ranges, list[int]] = {ranges: [] for ranges in distinct}
    for letter, (_, indices) in enumerate(partition(distinct)):
        for index in indices:
            letters_of[distinct[index]].append(letter)
    # The states from which a letter leads to a state.
    sources: list[dict[int, list[int]]] = [{} for _ in dfa.edges]
    for source, out in enumerate(dfa.edges):
        for ranges, target in out:
            for letter in letters_of[ranges]:
                sources[target].setdefault(letter, []).append(source)

    blocks = [block for block in (set(dfa.accepting), set(range(len(dfa.edges))) - dfa.accepting) if block]
    block_of = {state: number for number, block in enumerate(blocks) for state in block}
    todo = set(range(len(blocks)))
    while todo:
        splitter = list(blocks[todo.pop()])
        by_letter: dict[int, list[int]] = {}
        for target in splitter:
            for letter, states in sources[target].items():
                by_letter.setdefault(letter, []).extend(states)
        for states in by_letter.values():
            touched: dict[int, list[int]] = {}
            for state in states:
                touched.setdefault(block_of[state], []).append(state)
            for number, inside in touched.items():
                if len(inside) == len(blocks[number]):
                    continue
                new = len(blocks)
                blocks[number].difference_update(inside)
                blocks.append(set(inside))
                for state in inside:
                    block_of[state] = new
                if number in todo or len(blocks[new]) <= len(blocks[number]):
                    todo.add(new)
                else:
                    todo.add(number)
    return _merged(dfa, block_of)


def _merged(dfa: Dfa, block_of: dict[int, int]) -> Dfa:
    """Return the automaton of the blocks, numbered in the order of their first states."""
    numbers: dict[int, int] = {}
    first: list[int] = []
    for state in range(len(dfa.edges)):
        if block_of[state] not in numbers:
            numbers[block_of[state]] = len(first)
            first.append(state)
    edges = []
    for state in first:
        by_target: dict[int, list[tuple[int, int]]] = {}
        for ranges, target in dfa.edges[state]:
            by_target.setdefault(numbers[block_of[target]], []).extend(ranges)
        edges.append(tuple((charset.normalise(ranges), target) for target, ranges in by_target.items()))
    return Dfa(tuple(edges), frozenset(numbers[block_of[state]] for state in dfa.accepting))
