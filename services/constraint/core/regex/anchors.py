"""Takes `^` and `$` out of a tree, where they stand at the edges, and tells what they said.

An anchor is understood where it can only be first or last in what is matched: `^a|b$`, `(^|,)x($|,)`, `(?:^a$)`.
Elsewhere (`a^b`, `(^a)+`) it is refused.
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
    Node,
    Repetition,
    choice,
    concatenation,
)
from services.rpckit.status import UnsupportedConstruct

# (bound to the start, bound to the end) -> what is matched between.
Variants: TypeAlias = dict[tuple[bool, bool], list[Node]]

_ANYTHING = Repetition(Characters(charset.EVERYTHING), 0, None)


def full_match(node: Node, pattern: str) -> Node:
    """Return the tree without anchors that matches what `node` matches when it must take the whole text."""
    if not _has_anchor(node):
        return node
    return choice([option for options in _variants(node, pattern).values() for option in options])


def search(node: Node, pattern: str) -> Node:
    """Return the tree without anchors of all texts in which `node` matches somewhere."""
    if not _has_anchor(node):
        return concatenation([_ANYTHING, node, _ANYTHING])
    options = []
    for (at_start, at_end), variants in _variants(node, pattern).items():
        body = choice(variants)
        options.append(concatenation([*([] if at_start else [_ANYTHING]), body, *([] if at_end else [_ANYTHING])]))
    return choice(options)


def refuse(node: Node, pattern: str) -> None:
    """Raise UnsupportedConstruct if the tree has an anchor."""
    if isinstance(node, Anchor):
        _refuse(node, pattern)
    for child in _children(node):
        refuse(child, pattern)


def _refuse(anchor: Anchor, pattern: str) -> None:
    name = "^" if anchor.kind == "start" else "$"
    raise UnsupportedConstruct(
        f"pattern {pattern[:60]!r}: the anchor {name} at character {anchor.position} is not at the "
        "edge of the pattern; "
        "^ is understood where nothing can come before it, $ where nothing can come after it",
        name=name,
        position=anchor.position,
        pattern=pattern[:200],
    )


def _children(node: Node) -> tuple[Node, ...]:
    match node:
        case Concatenation(parts):
            return parts
        case Choice(options):
            return options
        case Repetition(body):
            return (body,)
    return ()


def _has_anchor(node: Node) -> bool:
    return isinstance(node, Anchor) or any(map(_has_anchor, _children(node)))


def _variants(node: Node, pattern: str) -> Variants:
    match node:
        case Anchor(kind):
            return {(kind == "start", kind == "end"): [EMPTY]}
        case Choice(options):
            result: Variants = {}
            for option in options:
                for key, nodes in _variants(option, pattern).items():
                    result.setdefault(key, []).extend(nodes)
            return result
        case Repetition(body, minimum, 1) if _has_anchor(body):
            result = _variants(body, pattern)
            if minimum == 0:
                result.setdefault((False, False), []).append(EMPTY)
            return result
        case Concatenation(parts) if _has_anchor(node):
            return _concatenation_variants(list(parts), pattern)
    refuse(node, pattern)
    return {(False, False): [node]}


def _concatenation_variants(parts: list[Node], pattern: str) -> Variants:
    first, last = 0, len(parts)
    while first < last and _only_anchors(parts[first], "start"):
        first += 1
    while last > first and _only_anchors(parts[last - 1], "end"):
        last -= 1
    outer = (first > 0, last < len(parts))
    inner = parts[first:last]
    if not inner:
        return {outer: [EMPTY]}
    if len(inner) == 1:
        result: Variants = {}
        for (at_start, at_end), nodes in _variants(inner[0], pattern).items():
            result.setdefault((at_start or outer[0], at_end or outer[1]), []).extend(nodes)
        return result
    for part in inner[1:-1]:
        refuse(part, pattern)
    result = {}
    for (starts, ends_early), heads in _variants(inner[0], pattern).items():
        for (starts_late, ends), tails in _variants(inner[-1], pattern).items():
            if ends_early or starts_late:
                refuse(inner[0] if ends_early else inner[-1], pattern)
            node = concatenation([choice(heads), *inner[1:-1], choice(tails)])
            result.setdefault((starts or outer[0], ends or outer[1]), []).append(node)
    return result


def _only_anchors(node: Node, kind: str) -> bool:
    match node:
        case Anchor():
            return node.kind == kind
        case Concatenation(parts):
            return bool(parts) and all(_only_anchors(part, kind) for part in parts)
    return False
