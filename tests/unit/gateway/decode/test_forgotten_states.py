"""The engine's checks forget states when there are too many: it says so, and the gateway replays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.decode.guided import Guide
from gateway.decode.interfaces import CompileOptions, Constraint, Guidance
from services.constraint.checks import CheckedMatcher
from services.constraint.composite_matcher import AnyMatcher
from services.rpckit.status import LeaseExpired, NotReady
from services.vocabulary import Vocabulary
from tests.support.acceptance import byte_trie, matcher_of
from tests.support.random_decoding import EngineStream

SCHEMA = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
TEXT = '["one","two","three","four","five"]'


@pytest.fixture
def vocabulary() -> Vocabulary:
    return byte_trie().vocabulary


def forget(matcher: AnyMatcher, state: int) -> None:
    """Have states forgotten, as when there are too many, until this one is."""
    assert isinstance(matcher, CheckedMatcher)
    while matcher.has_state(state):
        matcher._forget()


def test_a_state_that_was_forgotten_is_named(vocabulary: Vocabulary) -> None:
    matcher = matcher_of(SCHEMA)
    first, *rest = vocabulary.encode(TEXT)
    state = matcher.accept(matcher.start, [first])
    matcher.accept(state, rest)
    forget(matcher, state)
    with pytest.raises(LeaseExpired, match=f"no state {state} "):
        matcher.guidance(state)
    assert matcher.is_accepting(matcher.accept(matcher.start, [first, *rest]))


async def test_a_gateway_replays_what_leads_to_a_forgotten_state(vocabulary: Vocabulary) -> None:
    matcher = matcher_of(SCHEMA)
    token_ids = vocabulary.encode(TEXT)
    points: list[Guidance] = []
    guide = await started(matcher)
    for token_id in token_ids:
        points.append(guide.guidance)
        guide.take(token_id, await guide.look(token_id))
    forget(matcher, points[3].after_forced.configuration_id)

    guide.back_to(3, points[3])
    (other,) = vocabulary.encode("x")
    again = await guide.look(other)

    expected = await started(matcher_of(SCHEMA))
    for token_id in [*token_ids[:3], other]:
        expected.take(token_id, await expected.look(token_id))
    assert again.bitmask.tolist() == expected.guidance.bitmask.tolist()
    assert again.is_settled == expected.guidance.is_settled


async def test_a_service_that_forgets_at_once_is_not_ready(vocabulary: Vocabulary) -> None:
    class Forgetting(EngineStream):
        def advance(self, *_: Any) -> asyncio.Future[Guidance]:
            future: asyncio.Future[Guidance] = asyncio.get_running_loop().create_future()
            future.set_exception(LeaseExpired("no such state", state=1))
            return future

    guide = Guide(Forgetting(matcher_of(SCHEMA)), Constraint("json_schema"), CompileOptions())
    await guide.start()
    with pytest.raises(NotReady, match="lost the state 3 times"):
        await guide.look(vocabulary.encode("[")[0])


async def started(matcher: AnyMatcher) -> Guide:
    guide = Guide(EngineStream(matcher), Constraint("json_schema"), CompileOptions())
    await guide.start()
    return guide
