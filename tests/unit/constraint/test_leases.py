from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from services.constraint.core.engine import Guidance
from services.constraint.leases import GrammarTable, Lease
from services.rpckit.status import LeaseExpired


@dataclass
class FakeMatcher:
    num_bytes: int


def _lease(name: str, num_bytes: int) -> Lease:
    matcher: Any = FakeMatcher(num_bytes)
    return Lease(name, matcher, Guidance(0, (), 0, np.empty(0, np.int32), 0, True, 0, None))


def test_the_least_recently_used_goes_first() -> None:
    table = GrammarTable(100)
    for name in "abc":
        table.add(_lease(name, 30))
    table.get("a")
    table.add(_lease("d", 30))
    assert table.find("b") is None
    assert [table.get(name).grammar_id for name in "acd"] == ["a", "c", "d"]
    assert table.num_bytes == 90


def test_a_grammar_that_grows_pushes_others_out_but_not_itself() -> None:
    table = GrammarTable(100)
    table.add(_lease("a", 30))
    grown = _lease("b", 30)
    table.add(grown)
    grown.matcher.num_bytes = 500  # type: ignore[misc]
    table.measure(grown)
    assert (len(table), table.num_bytes) == (1, 500)
    assert table.get("b") is grown


def test_measuring_what_is_gone_changes_nothing() -> None:
    table = GrammarTable(100)
    gone = _lease("a", 30)
    table.add(gone)
    table.add(_lease("a", 40))
    table.measure(gone)
    assert table.num_bytes == 40
    table.clear()
    assert (len(table), table.num_bytes) == (0, 0)


def test_an_unknown_grammar() -> None:
    with pytest.raises(LeaseExpired) as caught:
        GrammarTable(100).get("nope")
    assert caught.value.metadata == {"grammar_id": "nope"}
