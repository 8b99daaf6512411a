"""The compiled grammars that this process holds: as many as fit, the least recently used go first.

A grammar id is a digest of everything the grammar depends on, so it is the same in every process. A state is not: it
has the epoch of the matcher that numbered it, and no other matcher takes it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.constraint import metrics
from services.constraint.cache.warm import Warmth
from services.constraint.composite_matcher import AnyMatcher
from services.constraint.core.engine import Guidance
from services.constraint.sources import KeywordReport
from services.rpckit.status import LeaseExpired


@dataclass(frozen=True, slots=True)
class Lease:
    """A grammar that is held.

    `start` is what may come first, and `start_seconds` what it took to find that out; `warmth` is of what other
    replicas may learn from it.
    """

    grammar_id: str
    matcher: AnyMatcher
    start: Guidance
    start_seconds: float = 0.0
    keywords: tuple[KeywordReport, ...] = ()
    warmth: Warmth | None = None

    @classmethod
    def of(
        cls,
        grammar_id: str,
        matcher: AnyMatcher,
        keywords: tuple[KeywordReport, ...] = (),
        warmth: Warmth | None = None,
    ) -> Lease:
        """Look at what may come first.

        Raises:
            OutOfFuel: beyond the matcher's limits.
        """
        started = time.perf_counter()
        start = matcher.guidance(matcher.start)
        return cls(grammar_id, matcher, start, time.perf_counter() - started, keywords, warmth)

    @property
    def num_bytes(self) -> int:
        """About how many bytes it holds now."""
        return self.matcher.num_bytes + self.start.bitmask.nbytes


class GrammarTable:
    """Grammars by id, bounded in bytes. Not thread-safe: it belongs to the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes: Final = max_bytes
        self._leases: OrderedDict[str, Lease] = OrderedDict()
        self._num_bytes: dict[str, int] = {}
        self._total_bytes = 0

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def num_bytes(self) -> int:
        """Bytes of all grammars, as of when each was last used."""
        return self._total_bytes

    def warmths(self) -> Iterator[Warmth]:
        """Return what other replicas may learn from."""
        return (lease.warmth for lease in self._leases.values() if lease.warmth is not None)

    def find(self, grammar_id: str) -> Lease | None:
        """Find a grammar, which makes it the most recently used."""
        lease = self._leases.get(grammar_id)
        if lease is not None:
            self._leases.move_to_end(grammar_id)
        return lease

    def get(self, grammar_id: str) -> Lease:
        """Find a grammar as `find` does.

        Raises:
            LeaseExpired: it is not held.
        """
        lease = self.find(grammar_id)
        if lease is None:
            raise LeaseExpired(
                "this grammar is not held here (any more): compile it again and replay the tokens",
                grammar_id=grammar_id,
            )
        return lease

    def add(self, lease: Lease) -> None:
        """Hold a grammar, in the place of one with the same id."""
        self._drop(lease.grammar_id)
        self._leases[lease.grammar_id] = lease
        self._num_bytes[lease.grammar_id] = 0
        self.measure(lease)

    def measure(self, lease: Lease) -> None:
        """Take note of a grammar's size, which grows as it is used, and let the oldest go where all is too much.

        The most recently used grammar stays even where it alone is too much: its matcher has limits of its own.
        """
        if self._leases.get(lease.grammar_id) is not lease:
            return
        num_bytes = lease.num_bytes
        self._total_bytes += num_bytes - self._num_bytes[lease.grammar_id]
        self._num_bytes[lease.grammar_id] = num_bytes
        while self._total_bytes > self._max_bytes and len(self._leases) > 1:
            self._drop(next(iter(self._leases)))
        metrics.GRAMMARS_HELD.set(len(self._leases))
        metrics.GRAMMAR_BYTES.set(self._total_bytes)

    def clear(self) -> None:
        """Let all go: the vocabulary they were made for is not the current one."""
        for grammar_id in list(self._leases):
            self._drop(grammar_id)
        metrics.GRAMMARS_HELD.set(0)
        metrics.GRAMMAR_BYTES.set(0)

    def _drop(self, grammar_id: str) -> None:
        if self._leases.pop(grammar_id, None) is not None:
            self._total_bytes -= self._num_bytes.pop(grammar_id)
