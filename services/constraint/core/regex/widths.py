"""How many characters a tree takes, and how many it sees of what stands before and behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from services.constraint.core.regex.ast import Anchor, Characters, Choice, Concatenation, Look, Node, Repetition
from services.rpckit.status import UnsupportedConstruct


def lengths(node: Node) -> tuple[int, int | None]:
    """Return the fewest and the most characters of what a tree matches (None: no bound)."""
    match node:
        case Characters():
            return 1, 1
        case Concatenation(parts):
            bounds = [lengths(part) for part in parts]
            longest = [high for _, high in bounds if high is not None]
            return sum(low for low, _ in bounds), sum(longest) if len(longest) == len(bounds) else None
        case Choice(options) if options:
            bounds = [lengths(option) for option in options]
            longest = [high for _, high in bounds if high is not None]
            return min(low for low, _ in bounds), max(longest) if len(longest) == len(bounds) else None
        case Repetition(body, minimum, maximum):
            low, high = lengths(body)
            return low * minimum, 0 if high == 0 else None if high is None or maximum is None else high * maximum
    return 0, 0


def refuse_outside(node: Node, pattern: str, *, may_look_ahead: bool = False) -> bool:
    """Raise UnsupportedConstruct if what a tree matches may depend on the text around the match.

    Lengths alone decide: a look-behind of two characters is inside where every match has two characters before it.
    With `may_look_ahead`, look-ahead may see the text behind the match, an anchor may not; returns whether one does.
    """
    looks_ahead = False
    for look, sees_before in _outsiders(node, 0, 0):
        if sees_before or not may_look_ahead or _has_anchor(look):
            raise UnsupportedConstruct(
                f"pattern {pattern[:60]!r}: {look.name} at character {look.position} may see beyond what the "
                "pattern itself takes; let the pattern take all that it looks at, or leave this to the grammar",
                name=look.name,
                position=look.position,
                pattern=pattern[:200],
            )
        looks_ahead = True
    return looks_ahead


def _outsiders(node: Node, before: int, behind: int) -> Iterator[tuple[Anchor | Look, bool]]:
    """Yield what may see outside of a tree beside which every match has so many characters, and whether before it."""
    match node:
        case Anchor() | Look():
            seen = _seen(node)
            sees_before = seen.before is None or seen.before > before
            if sees_before or seen.behind is None or seen.behind > behind:
                yield node, sees_before
        case Concatenation(parts):
            fewest = [lengths(part)[0] for part in parts]
            passed, total = 0, sum(fewest)
            for part, low in zip(parts, fewest, strict=True):
                yield from _outsiders(part, before + passed, behind + total - passed - low)
                passed += low
        case Choice(options):
            for option in options:
                yield from _outsiders(option, before, behind)
        case Repetition(body):
            # The first time has no other time before it, the last has none behind.
            yield from _outsiders(body, before, behind)


def _has_anchor(node: Node) -> bool:
    match node:
        case Anchor():
            return True
        case Concatenation(parts) | Choice(parts):
            return any(map(_has_anchor, parts))
        case Repetition(body) | Look(body):
            return _has_anchor(body)
    return False


@dataclass(frozen=True, slots=True)
class _Seen:
    """The most characters that are seen before a tree's start and behind its end (None: no bound)."""

    before: int | None
    behind: int | None


def _seen(node: Node) -> _Seen:
    match node:
        case Anchor(kind):
            return {"start": _Seen(1, 0), "end": _Seen(0, 1), "last line": _Seen(0, 2)}[kind]
        case Look(body, is_ahead):
            inner, (_, longest) = _seen(body), lengths(body)
            if is_ahead:
                return _Seen(inner.before, _sum(longest, inner.behind))
            return _Seen(_sum(longest, inner.before), inner.behind)
        case Concatenation(parts) | Choice(parts):
            # In a sequence the neighbours take some of it, which is not counted: it may be too much, never too little.
            every = [_seen(part) for part in parts]
            return _Seen(_most(seen.before for seen in every), _most(seen.behind for seen in every))
        case Repetition(body):
            return _seen(body)
    return _Seen(0, 0)


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _most(counts: Iterable[int | None]) -> int | None:
    most = 0
    for count in counts:
        if count is None:
            return None
        most = max(most, count)
    return most
