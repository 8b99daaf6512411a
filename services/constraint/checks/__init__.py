"""What no mask from a grammar can see to, decided while a JSON text is written. docs/checks.md has the reasoning."""

from __future__ import annotations

from typing import TypeAlias

from services.constraint.checks.checked_matcher import CheckedMatcher
from services.constraint.checks.progress import JsonChecks
from services.constraint.checks.token_classes import TokenClasses
from services.constraint.core.engine import Matcher
from services.constraint.sources import ConstraintSource, SourceOptions, obligations

AnyMatcher: TypeAlias = Matcher | CheckedMatcher


def checked(
    matcher: Matcher,
    source: ConstraintSource,
    options: SourceOptions,
    inexact: frozenset[str] | None,
    classes: TokenClasses,
) -> AnyMatcher:
    """Return a matcher that sees to what the grammar of `matcher` does not; `inexact` is as in `BuiltSource`."""
    if inexact is None:
        return matcher
    return CheckedMatcher(matcher, JsonChecks(obligations(source, options, inexact)), classes)


__all__ = ["AnyMatcher", "CheckedMatcher", "JsonChecks", "TokenClasses", "checked"]
