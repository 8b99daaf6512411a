"""What no mask from a grammar can see to, decided while a JSON text is written. docs/checks.md has the reasoning."""

from __future__ import annotations

from services.constraint.checks.checked_matcher import CheckedMatcher
from services.constraint.checks.token_classes import TokenClasses
from services.constraint.core.engine import Matcher
from services.constraint.sources.json_schema import Obligations, Schema


def checked(matcher: Matcher, schema: Schema, inexact: frozenset[str], classes: TokenClasses) -> CheckedMatcher:
    """Return a matcher that sees to what the grammar of `matcher` does not; `inexact` is as in `BuiltSource`."""
    return CheckedMatcher(matcher, Obligations(schema, inexact), classes)


__all__ = ["CheckedMatcher", "TokenClasses", "checked"]
