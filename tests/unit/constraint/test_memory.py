"""Many grammars under one byte budget: they stay within it, and what was let go is rebuilt, not confused."""

import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from services.constraint.core.engine import Matcher, TokenTrie, compile_grammar
from services.constraint.leases import GrammarTable, Lease
from services.constraint.service import ConstraintService, Move, Moved
from services.constraint.settings import ConstraintSettings
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.rpckit.status import LeaseExpired, ServiceError
from services.vocabulary import Vocabulary
from tests.support.grammars import vocabulary

VOCABULARY = vocabulary((("a", "b"), ("1", "2")))
BUDGET_BYTES = 48 << 20
# What the process may hold beyond the budget: the allocator's free memory, the grammar that is being made, caches.
SLACK_BYTES = 96 << 20
# Every so many schemas, one is remembered to be asked about after it was evicted.
SAMPLE_EVERY = 100


@dataclass(frozen=True)
class Seen:
    """A state of a grammar: how it was reached, its number and its mask."""

    number: int
    epoch: int
    token_ids: list[int]
    state: int
    bitmask: bytes


def source(number: int) -> ConstraintSource:
    value = {
        "type": "object",
        "properties": {
            f"key {number}": {"type": "string", "maxLength": number % 90 + 4},
            "b": {"enum": [number, None]},
        },
        "required": [f"key {number}", "b"],
        "additionalProperties": False,
    }
    return ConstraintSource("json_schema", json.dumps(value))


def text(number: int) -> str:
    """Return the beginning of a text of the schema, up to inside the string."""
    return f'{{"key {number}": "' + "ab12"[: number % 4 + 1]


@pytest.fixture(scope="module")
def trie() -> TokenTrie:
    return TokenTrie(VOCABULARY)


def lease(number: int, trie: TokenTrie) -> Lease:
    compiled = compile_grammar(build(source(number), SourceOptions()).grammar)
    return Lease.of(str(number), Matcher(compiled, trie, forcing="off"))


def walk(held: Lease, number: int) -> Seen:
    """Ask for each mask on the way, as a generation does."""
    matcher = held.matcher
    state, token_ids = matcher.start, VOCABULARY.encode(text(number))
    row = np.zeros_like(matcher.guidance(state).bitmask)
    for token_id in token_ids:
        matcher.fill_bitmask(state, row)
        state = matcher.accept(state, [token_id])
    return Seen(number, matcher.epoch, token_ids, state, matcher.guidance(state).bitmask.tobytes())


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_grammars_stay_within_the_budget(count: int, trie: TokenTrie) -> None:
    table = GrammarTable(BUDGET_BYTES)
    seen: list[Seen] = []
    resident: list[int] = []
    for number in range(count):
        held = lease(number, trie)
        table.add(held)
        found = walk(held, number)
        table.measure(held)
        assert table.num_bytes <= BUDGET_BYTES
        if number % SAMPLE_EVERY == 0:
            seen.append(found)
        if sys.platform == "linux" and number % (count // 10) == count // 10 - 1:
            resident.append(resident_bytes())
    del held
    assert len(table) < count // 2, "the budget was never reached"
    for found in seen[: -len(table) // SAMPLE_EVERY - 1]:
        with pytest.raises(LeaseExpired):
            table.get(str(found.number))
    for found in seen:
        again = table.find(str(found.number)) or lease(found.number, trie)
        rebuilt = again.matcher.accept(again.matcher.start, found.token_ids)
        assert again.matcher.guidance(rebuilt).bitmask.tobytes() == found.bitmask
    if resident:
        # From when the table is full, which it is after the first tenth at the latest of the long run.
        assert max(resident) - resident[0] < BUDGET_BYTES + SLACK_BYTES
        assert resident[-1] - resident[len(resident) // 2] < SLACK_BYTES // 2, resident


@pytest.fixture
def settings() -> ConstraintSettings:
    return ConstraintSettings(
        num_compile_processes=1, num_validate_processes=1, num_mask_threads=1, max_grammar_memory_bytes=4 << 20
    )


async def test_states_of_an_evicted_grammar_are_not_taken_for_others(settings: ConstraintSettings) -> None:
    async def fetch(_: str | None) -> Vocabulary:
        return VOCABULARY

    async def compiled(number: int) -> tuple[str, Moved]:
        found, moved = await service.compile(source(number), SourceOptions(), "off", VOCABULARY.digest)
        return found.grammar_id, moved

    async def moved_by(move: Move) -> Moved | ServiceError:
        (outcome,) = await service.advance([move])
        return outcome

    service = ConstraintService(settings, fetch)
    await service.start()
    try:
        token_ids = VOCABULARY.encode(text(0))
        grammar_id, start = await compiled(0)
        before = await moved_by(Move(grammar_id, token_ids))
        assert isinstance(before, Moved)
        for number in range(1, 40):
            await compiled(number)
        old = Move(grammar_id, [], before.epoch, before.guidance.state)
        assert isinstance(await moved_by(old), LeaseExpired)
        assert (await compiled(0))[0] == grammar_id
        # The grammar is held again, and its states have numbers that look alike; the epoch tells them apart.
        assert isinstance(await moved_by(old), LeaseExpired)
        again = await moved_by(Move(grammar_id, token_ids))
        assert isinstance(again, Moved)
        assert again.epoch != start.epoch
        assert again.guidance.bitmask.tobytes() == before.guidance.bitmask.tobytes()
    finally:
        await service.stop()
