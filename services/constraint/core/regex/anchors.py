"""Takes `^` and `$` out of a tree, where they stand at the edges, and tells what they said.

An anchor is understood where it can only be first or last in what is matched: `^a|b$`, `(^|,)x($|,)`, `(?:^a$)`. What
is left is a plain tree, which keeps its shape and its counts in the grammar. A tree with an anchor elsewhere (`a^b`,
`(^a)+`) or with look-around has no such form: `lookaround.py` makes an automaton of it.
"""

from __future__ import annotations

from typing import TypeAlias

from services.constraint.core.regex import charset
from services.constraint.core.regex.ast import (
    EMPTY,
    Anchor,
    Characters,
    Choice,
    Concatenation,
    Look,
    Node,
    Repetition,
    choice,
    concatenation,
)

# (bound to the start, bound to the end) -> what is matched between.
Variants: TypeAlias = dict[tuple[bool, bool], list[Node]]

ANYTHING = Repetition(Characters(charset.EVERYTHING), 0, None)


class _NotAtTheEdgeError(Exception):
    """An anchor stands where it is neither first nor last."""


def is_plain(node: Node) -> bool:
    """Tell whether a tree has neither anchors nor look-around."""
    return not isinstance(node, Anchor | Look) and all(map(is_plain, _children(node)))


def full_match(node: Node) -> Node | None:
    """Return the plain tree of all texts that `node` matches as a whole; None if there is none."""
    if is_plain(node):
        return node
    try:
        return choice([option for options in _variants(node).values() for option in options])
    except _NotAtTheEdgeError:
        return None


def search(node: Node) -> Node | None:
    """Return the plain tree of all texts in which `node` matches somewhere; None if there is none."""
    if is_plain(node):
        return concatenation([ANYTHING, node, ANYTHING])
    if _has_last_line(node):
        return None
    options = []
    try:
        for (at_start, at_end), variants in _variants(node).items():
            body = choice(variants)
            options.append(concatenation([*([] if at_start else [ANYTHING]), body, *([] if at_end else [ANYTHING])]))
    except _NotAtTheEdgeError:
        return None
    return choice(options)


def _children(node: Node) -> tuple[Node, ...]:
    match node:
        case Concatenation(parts):
            return parts
        case Choice(options):
            return options
        case Repetition(body) | Look(body):
            return (body,)
    return ()


def _has_last_line(node: Node) -> bool:
    """Tell whether a search for the tree may end before a line feed that it does not take."""
    return (isinstance(node, Anchor) and node.kind == "last line") or any(map(_has_last_line, _children(node)))


def _variants(node: Node) -> Variants:
    match node:
        case Anchor(kind):
            # Where nothing of the match is behind it, a full match ends there.
            return {(kind == "start", kind != "start"): [EMPTY]}
        case Choice(options):
            result: Variants = {}
            for option in options:
                for key, nodes in _variants(option).items():
                    result.setdefault(key, []).extend(nodes)
            return result
        case Repetition(body, minimum, 1) if not is_plain(body):
            result = _variants(body)
            if minimum == 0:
                result.setdefault((False, False), []).append(EMPTY)
            return result
        case Concatenation(parts) if not is_plain(node):
            return _concatenation_variants(list(parts))
    if not is_plain(node):
        raise _NotAtTheEdgeError
    return {(False, False): [node]}


def _concatenation_variants(parts: list[Node]) -> Variants:
    first, last = 0, len(parts)
    while first < last and _only_anchors(parts[first], is_start=True):
        first += 1
    while last > first and _only_anchors(parts[last - 1], is_start=False):
        last -= 1
    outer = (first > 0, last < len(parts))
    inner = parts[first:last]
    if not inner:
        return {outer: [EMPTY]}
    if len(inner) == 1:
        result: Variants = {}
        for (at_start, at_end), nodes in _variants(inner[0]).items():
            result.setdefault((at_start or outer[0], at_end or outer[1]), []).extend(nodes)
        return result
    if not all(map(is_plain, inner[1:-1])):
        raise _NotAtTheEdgeError
    result = {}
    for (starts, ends_early), heads in _variants(inner[0]).items():
        for (starts_late, ends), tails in _variants(inner[-1]).items():
            if ends_early or starts_late:
                raise _NotAtTheEdgeError
            node = concatenation([choice(heads), *inner[1:-1], choice(tails)])
            result.setdefault((starts or outer[0], ends or outer[1]), []).append(node)
    return result


def _only_anchors(node: Node, *, is_start: bool) -> bool:
    match node:
        case Anchor(kind):
            return (kind == "start") == is_start
        case Concatenation(parts):
            return bool(parts) and all(_only_anchors(part, is_start=is_start) for part in parts)
    return False
