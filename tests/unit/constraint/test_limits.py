"""Each limit of the constraint service: it has one default everywhere, can be set, and names itself when it is hit."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from services.constraint import compiling
from services.constraint.compiling import DEFAULT_LIMITS, CompileLimits, compile_source
from services.constraint.core.engine import MatcherLimits
from services.constraint.service import ConstraintService, Move
from services.constraint.settings import ConstraintSettings
from services.constraint.sources import ConstraintSource, SourceOptions
from services.rpckit.status import GrammarTooLarge, OutOfCapacity, OutOfFuel, ServiceError
from services.vocabulary import Vocabulary
from tests.support.grammars import vocabulary

VOCABULARY = vocabulary()
(A,) = VOCABULARY.encode("a")


def schema(value: Any) -> ConstraintSource:
    return ConstraintSource("json_schema", json.dumps(value))


def nested(depth: int) -> ConstraintSource:
    return ConstraintSource("json_schema", '{"properties": {"a": ' * depth + "{}" + "}}" * depth)


def regex(pattern: str) -> ConstraintSource:
    return ConstraintSource("regex", pattern)


def choices(*texts: str) -> ConstraintSource:
    return ConstraintSource("choices", choices=texts)


# Of each limit a value that a source passes, and that source.
HIT = [
    ("max_states", 100, choices("x" * 500)),
    ("max_schema_bytes", 20, schema({"type": "integer", "description": "long"})),
    ("max_schema_depth", 5, nested(6)),
    (
        "max_counted_properties",
        1,
        schema({"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2}),
    ),
    ("max_grammar_characters", 10, ConstraintSource("lark", 'start: "a" "b"')),
    ("max_lexer_variants", 1, ConstraintSource("lark", 'start: a a\na: "a"')),
    ("max_choices_bytes", 3, choices("ab", "cd")),
    ("max_pattern_characters", 3, regex("abcd")),
    ("max_group_depth", 2, regex("(((a)))")),
    ("max_nfa_states", 30, regex("(?=a{20}b{20}).*")),
    ("max_dfa_states", 10, regex("(?=.*ab)(?=.*cd)(?=.*ef).*")),
    ("max_formula_nodes", 3, regex("(?=.*a)(?=.*b)(?=.*c)(?!.*d).*")),
    ("max_formula_depth", 1, regex("(?=.*a)(?=.*b)(?=.*c)(?!.*d).*")),
]


@pytest.fixture
def _default_limits() -> Iterator[None]:
    recursion_limit = sys.getrecursionlimit()
    yield
    compiling.put_in_force(DEFAULT_LIMITS)
    sys.setrecursionlimit(recursion_limit)


def test_each_limit_has_one_default() -> None:
    settings = ConstraintSettings()
    assert CompileLimits.of(settings) == DEFAULT_LIMITS
    assert {name: getattr(settings, name) for name in (field.name for field in fields(MatcherLimits))} == {
        field.name: field.default for field in fields(MatcherLimits)
    }
    for name, home in compiling._HOMES.items():
        module, _, constant = home.partition(":")
        loaded = __import__(f"services.constraint.{module}", fromlist=[constant])
        assert getattr(loaded, constant) == getattr(settings, name), name


def test_each_limit_of_a_source_is_tried() -> None:
    names = [field.name for field in fields(CompileLimits)]
    names.remove("max_combined_cases")  # beyond it, a check decides
    assert [name for name, _, _ in HIT] == names


@pytest.mark.usefixtures("_default_limits")
@pytest.mark.parametrize(("name", "value", "source"), HIT, ids=[name for name, _, _ in HIT])
def test_a_limit_of_a_source_names_itself(name: str, value: int, source: ConstraintSource) -> None:
    compile_source(source, SourceOptions())
    with pytest.raises(GrammarTooLarge) as caught:
        compile_source(source, SourceOptions(), replace(DEFAULT_LIMITS, **{name: value}))
    assert caught.value.metadata["limit"] == name
    assert caught.value.metadata["value"] == str(value)
    assert name in caught.value.message


@pytest.mark.usefixtures("_default_limits")
def test_cases_beyond_the_limit_are_checked() -> None:
    source = schema(
        {"allOf": [{"anyOf": [{"pattern": p} for p in "abcd"]}, {"anyOf": [{"minLength": 1}, {"const": 1}]}]}
    )
    assert "checked" not in {line.enforcement for line in compile_source(source, SourceOptions()).report.keywords}
    stored = compile_source(source, SourceOptions(), replace(DEFAULT_LIMITS, max_combined_cases=3))
    assert "checked" in {line.enforcement for line in stored.report.keywords}


@pytest.mark.usefixtures("_default_limits")
def test_nesting_may_be_allowed_to_go_deeper() -> None:
    source = nested(150)
    with pytest.raises(GrammarTooLarge):
        compile_source(source, SourceOptions())
    assert compile_source(source, SourceOptions(), replace(DEFAULT_LIMITS, max_schema_depth=500)).compiled
    assert compile_source(
        regex("(" * 300 + "a" + "|b)*" * 300), SourceOptions(), replace(DEFAULT_LIMITS, max_group_depth=500)
    ).compiled


def test_a_bug_is_not_the_fault_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(compiling, "build", broken)
    with pytest.raises(ServiceError) as caught:
        compile_source(regex("a"), SourceOptions())
    assert (caught.value.reason, "KeyError" in caught.value.message) == ("INTERNAL", True)


@asynccontextmanager
async def running(**changes: Any) -> AsyncIterator[ConstraintService]:
    async def fetch(_: str | None) -> Vocabulary:
        return VOCABULARY

    values: dict[str, Any] = {"num_compile_processes": 1, "num_validate_processes": 1, "num_mask_threads": 2}
    service = ConstraintService(ConstraintSettings(**(values | changes)), fetch)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def compiled(service: ConstraintService, source: ConstraintSource) -> Any:
    return await service.compile(source, SourceOptions(), "canonical", VOCABULARY.digest)


async def test_settings_reach_the_processes_that_compile() -> None:
    chosen = [hit for hit in HIT if hit[0] in ("max_states", "max_schema_depth", "max_dfa_states", "max_group_depth")]
    async with running(**{name: value for name, value, _ in chosen}) as service:
        for name, value, source in chosen:
            with pytest.raises(GrammarTooLarge) as caught:
                await compiled(service, source)
            assert caught.value.metadata == caught.value.metadata | {"limit": name, "value": str(value)}
        await compiled(service, regex("(a|b)*"))


async def test_the_memory_of_a_compile() -> None:
    rng = np.random.default_rng(1)
    long = choices(*("".join(map(chr, rng.integers(97, 123, 2000))) for _ in range(499)))
    async with running(max_compile_memory_bytes=256 << 20, max_states=20_000_000) as service:
        with pytest.raises(GrammarTooLarge) as caught:
            await compiled(service, long)
        assert caught.value.metadata == {"limit": "max_compile_memory_bytes", "value": str(256 << 20)}
        await compiled(service, regex("a"))


async def test_waiting_for_a_process_is_not_the_time_of_a_compile() -> None:
    slow = ConstraintSource(
        "lark", "start: r0\n" + "".join(f'r{i}: r{i + 1} "x"\n' for i in range(3000)) + 'r3000: "y"'
    )
    async with running(max_compile_s=2, max_compile_wait_s=0.3) as service:
        running_one = asyncio.create_task(compiled(service, slow))
        await asyncio.sleep(0.2)
        with pytest.raises(OutOfCapacity) as refused:
            await compiled(service, regex("waits"))
        assert refused.value.metadata == {"limit": "max_compile_wait_s", "value": "0.3"}
        assert refused.value.retry_after_s is not None
        with pytest.raises(GrammarTooLarge) as ended:
            await running_one
        assert ended.value.metadata == {"limit": "max_compile_s", "value": "2.0"}
        await compiled(service, regex("waits"))


async def test_the_fuel_of_a_mask() -> None:
    async with running(max_mask_fuel=1000) as service:
        found, _ = await compiled(service, regex("((a{1,90}){1,90}){1,90}"))
        (outcome,) = await service.advance([Move(found.grammar_id, [A] * 40)])
        assert isinstance(outcome, OutOfFuel)
        assert outcome.metadata == {"limit": "max_mask_fuel", "value": "1000"}
        assert "max_mask_fuel" in outcome.message
        _, moved = await compiled(service, regex("abc"))
        assert moved.guidance.num_allowed == 1


async def test_the_memory_of_a_grammar_in_use() -> None:
    async with running(max_grammar_bytes=1 << 20) as service:
        with pytest.raises(OutOfFuel) as caught:
            await compiled(service, regex("[ab]{20000}c"))
        assert caught.value.metadata == {"limit": "max_grammar_bytes", "value": str(1 << 20)}
        assert "max_grammar_bytes" in caught.value.message
        _, moved = await compiled(service, regex("abc"))
        assert moved.guidance.num_allowed == 1


async def test_masks_of_a_grammar_are_forgotten_beyond_their_limit() -> None:
    async def masks(**changes: Any) -> tuple[list[bytes], int]:
        async with running(**changes) as service:
            found, _ = await compiled(service, regex("[a-z]{0,300}"))
            moves = [Move(found.grammar_id, [A] * length) for length in range(200)]
            outcomes = await service.advance(moves)
            lease = await service._ready_compiler().lease(found.grammar_id)
            return [outcome.guidance.bitmask.tobytes() for outcome in outcomes], lease.matcher.num_bytes  # type: ignore[union-attr]

    many, num_bytes = await masks()
    few, fewer_bytes = await masks(max_mask_bytes=500)
    assert many == few
    assert fewer_bytes < num_bytes
