"""Texts of a deterministic automaton, drawn at random."""

from __future__ import annotations

import random
from functools import lru_cache

from services.constraint.core.regex.automaton import Dfa


@lru_cache(maxsize=64)
def distances(dfa: Dfa) -> tuple[int, ...]:
    """Return the fewest characters from each state to an accepting one."""
    far = len(dfa.edges)
    found = [0 if state in dfa.accepting else far for state in range(far)]
    while True:
        nearer = [
            min([own, *(1 + found[target] for _, target in out)]) for own, out in zip(found, dfa.edges, strict=True)
        ]
        if nearer == found:
            return tuple(found)
        found = nearer


def random_text(dfa: Dfa, rng: random.Random, num_characters: int) -> str:
    """Return a text of `dfa`: so many characters at random, and from there the shortest way to an end."""
    state, text = 0, ""
    while True:
        out = dfa.edges[state]
        if state in dfa.accepting and (len(text) >= num_characters or not out or rng.random() < 0.05):
            return text
        if len(text) < num_characters:
            ranges, state = rng.choice(out)
        else:
            ranges, state = min(out, key=lambda edge: distances(dfa)[edge[1]])
        low, high = rng.choice(ranges)
        text += chr(rng.randint(low, high))
