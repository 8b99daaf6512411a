"""Constraints that were refused, remembered for a while: who sends one again gets the same answer without a compile."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter

from services.rpckit.status import (
    GrammarSyntax,
    GrammarTooLarge,
    InvalidRequest,
    ServiceError,
    UnsatisfiableGrammar,
    UnsupportedConstruct,
)

# Those that a source deserves, whoever compiles it under the same limits.
_CLASSES: Final[dict[str, type[ServiceError]]] = {
    error.reason: error
    for error in (InvalidRequest, GrammarSyntax, UnsupportedConstruct, UnsatisfiableGrammar, GrammarTooLarge)
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """What there is to a `ServiceError`."""

    reason: str
    message: str
    field: str | None
    metadata: dict[str, str]

    @classmethod
    def of(cls, error: ServiceError) -> Refusal | None:
        """Take an error apart, unless it says nothing about the source."""
        if _CLASSES.get(error.reason) is not type(error):
            return None
        return cls(error.reason, error.message, error.field, error.metadata)

    @classmethod
    def from_bytes(cls, data: bytes) -> Refusal:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is something else.
        """
        refusal = _ADAPTER.validate_json(data, strict=True)
        if refusal.reason not in _CLASSES:
            raise ValueError(f"no constraint is refused for {refusal.reason!r}")
        return refusal

    def to_bytes(self) -> bytes:
        """Return it as JSON."""
        return _ADAPTER.dump_json(self)

    def to_error(self) -> ServiceError:
        """Make the error anew."""
        error = _CLASSES[self.reason](self.message, field=self.field)
        error.metadata = dict(self.metadata)
        return error


_ADAPTER: Final = TypeAdapter(Refusal)


class RecentRefusals:
    """The latest refusals by digest, at most `max_items`, each for `ttl_s` seconds."""

    def __init__(self, ttl_s: float, *, max_items: int = 1024) -> None:
        self._ttl_s = ttl_s
        self._max_items = max_items
        self._items: OrderedDict[str, tuple[float, Refusal]] = OrderedDict()

    def get(self, digest: str) -> Refusal | None:
        """Find a refusal."""
        until, refusal = self._items.get(digest, (0.0, None))
        return refusal if time.monotonic() < until else None

    def add(self, digest: str, refusal: Refusal) -> None:
        """Remember a refusal; the oldest goes where there are too many."""
        self._items[digest] = time.monotonic() + self._ttl_s, refusal
        self._items.move_to_end(digest)
        while len(self._items) > self._max_items:
            self._items.popitem(last=False)
