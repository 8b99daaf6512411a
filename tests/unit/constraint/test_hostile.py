"""Hostile sources: each ends in a mask or in an error that names what is wrong, within a budget of processor time.

Twice: through build, compile and the first masks in this process, and through a service whose compiles can be killed.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from services.constraint.core.engine import CompiledGrammar, Matcher, TokenTrie, compile_grammar, warm_up
from services.constraint.service import ConstraintService, Move
from services.constraint.settings import ConstraintSettings
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.source import LarkLexer
from services.rpckit.status import DeadlineExceeded, ServiceError
from services.vocabulary import Vocabulary, allowed_token_ids, bitmask_words
from tests.support.grammars import vocabulary

VOCABULARY = vocabulary((("a", "a"), ("aa", "aa"), ("b", "b")))
# Seconds of processor time that a case may take in this process, and of time in the service's. The largest cases take
# two to seven, as fast as the processor is.
BUDGET_S = 10.0
# One mask or one move, which `max_mask_fuel` bounds.
MASK_S = 1.0
# How an answer may say no: a limit by name, or what is wrong with the source.
REASONS = {
    "GRAMMAR_TOO_LARGE",
    "FUEL",
    "GRAMMAR_SYNTAX",
    "UNSUPPORTED_CONSTRUCT",
    "UNSATISFIABLE_GRAMMAR",
    "INVALID_REQUEST",
}

Case = tuple[str, ConstraintSource]


def schema(value: Any) -> ConstraintSource:
    return ConstraintSource("json_schema", value if isinstance(value, str) else json.dumps(value))


def regex(pattern: str) -> ConstraintSource:
    return ConstraintSource("regex", pattern)


def lark(text: str) -> ConstraintSource:
    return ConstraintSource("lark", text)


def doubled(depth: int) -> str:
    text = '{"type": "integer"}'
    for _ in range(depth):
        text = f'{{"anyOf": [{text}, {text}]}}'
    return text


def rules(count: int, body: str, end: str = 'r{0}: "y"\n') -> str:
    """Rules r0 to r`count` - 1 with `body`, where {0} is the rule's number and {1} the next one's."""
    return "start: r0\n" + "".join(f"r{i}: " + body.format(i, i + 1) + "\n" for i in range(count)) + end.format(count)


def definitions(count: int, make: Any) -> dict[str, Any]:
    """Definitions d0 to d`count` - 1 in a circle; `make` is given two references that go on."""

    def reference(i: int) -> dict[str, str]:
        return {"$ref": f"#/$defs/d{i % count}"}

    return {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{i}": make(reference(i + 1), reference(7 * i + 3)) for i in range(count)},
    }


NUMBERED = {f"key{i}": {"type": "integer"} for i in range(10_000)}

CASES: list[Case] = [
    # Nesting
    ("properties 10,000 deep", schema('{"properties": {"a": ' * 10_000 + "{}" + "}}" * 10_000)),
    ("items 10,000 deep", schema('{"items": ' * 10_000 + "{}" + "}" * 10_000)),
    ("anyOf 10,000 deep", schema('{"anyOf": [' * 10_000 + "{}" + "]}" * 10_000)),
    ("not 10,000 deep", schema('{"not": ' * 10_000 + "{}" + "}" * 10_000)),
    ("a constant 10,000 deep", schema('{"const": ' + "[" * 10_000 + "]" * 10_000 + "}")),
    ("a constant 900 deep", schema('{"const": ' + "[" * 900 + "]" * 900 + "}")),
    ("properties just deep enough", schema('{"properties": {"a": ' * 75 + "{}" + "}}" * 75)),
    ("groups 10,000 deep", regex("(" * 5000 + ")" * 5000)),
    ("Lark parentheses 10,000 deep", lark("start: " + "(" * 10_000 + '"a"' + ")" * 10_000)),
    ("Lark brackets 3,000 deep", lark("start: " + "[" * 3000 + '"a"' + "]" * 3000)),
    ("Lark optional parts nested", lark("start: " + '("x"? ' * 30 + '"a"' + ")?" * 30)),
    ("Lark arrays", lark('start: a\na: "[" [a ("," a)*] "]" | "1"\n')),
    # Enums and literals
    ("100,000 integers", schema({"enum": list(range(100_000))})),
    ("100,000 short strings", schema({"enum": [f"v{i}" for i in range(100_000)]})),
    ("30,000 long strings", schema({"enum": [f"value number {i} of many" for i in range(30_000)]})),
    ("10,000 objects", schema({"enum": [{"a": i, "b": [i]} for i in range(10_000)]})),
    ("1,000 prefixes", schema({"enum": ["x" * i for i in range(1000)]})),
    ("100,000 choices", ConstraintSource("choices", choices=tuple(f"v{i}" for i in range(100_000)))),
    ("a constant of 1,000,000 bytes", schema({"const": "x" * 1_000_000})),
    ("a constant of 450,000 bytes", schema({"const": "한" * 150_000})),
    ("a pattern of 19,000 characters", regex("x" * 19_000)),
    ("a pattern of 1,000,000 characters", regex("x" * 1_000_000)),
    ("a Lark literal of 100,000 bytes", lark(f'start: "{"x" * 100_000}"')),
    ("3,000 alternatives", regex("|".join(f"w{i}" for i in range(3000)))),
    ("a class of 9,000 characters", regex("[" + "".join(chr(0x4E00 + 2 * i) for i in range(9000)) + "]{1,1000}")),
    # Counts
    ("maxItems 1,000,000", schema({"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000})),
    ("minItems 1,000,000", schema({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000})),
    ("minItems 10**9", schema({"type": "array", "minItems": 10**9, "maxItems": 10**9})),
    ("maxItems 10**30", schema({"type": "array", "maxItems": 10**30})),
    ("maxLength 1,000,000", schema({"type": "string", "maxLength": 1_000_000})),
    ("minLength 1,000,000", schema({"type": "string", "minLength": 1_000_000})),
    ("minLength 100,000", schema({"type": "string", "minLength": 100_000})),
    ("maxLength with a pattern", schema({"type": "string", "maxLength": 10**6, "pattern": "^[a-z]+( [a-z]+)*$"})),
    ("length and counts", schema({"type": "string", "maxLength": 5000, "pattern": "^([a-z]+[0-9]){3,1000}$"})),
    ("maxProperties 1,000,000", schema({"type": "object", "maxProperties": 1_000_000})),
    ("minProperties 1,000,000", schema({"type": "object", "minProperties": 1_000_000})),
    ("a{1000000}", regex("a{1000000}")),
    ("a count of 20 digits", regex("a{0,99999999999999999999}")),
    ("{5,0}", regex("{5,0}")),
    ("a{5,0}", regex("a{5,0}")),
    ("a{5,0} in a schema", schema({"pattern": "a{5,0}"})),
    ("~5..0", lark('start: "a"~5..0')),
    ("/a{5,0}/", lark("start: /a{5,0}/")),
    ("~0..1000000", lark('start: "a"~0..1000000')),
    ("nested counts", regex("((a{1,1000}){1,1000}){1,1000}")),
    ("nested counts with ends", regex("(((a|b){1,1000}c){1,1000}d){1,1000}")),
    ("50 counts in a row", regex("[ab]{0,1000}" * 50)),
    ("a number with 100,000 digits", schema('{"minimum": ' + "9" * 100_000 + "}")),
    ("a number with a huge exponent", schema('{"minimum": 1e999999999}')),
    # Alternations and ambiguity
    ("(a*)*b", regex("(a*)*b")),
    ("(a*)*b nested", regex("(" * 90 + "a*" + ")*" * 90 + "b")),
    ("(a|a)* 50 times", regex("(a|a)*" * 50 + "b")),
    ("(a|a)* nested", regex("(" * 90 + "a" + "|a)*" * 90)),
    ("(a|b)*a(a|b){60}", regex("(a|b)*a(a|b){60}")),
    ("(a|b)*a(a|b){1000}", regex("(a|b)*a(a|b){1000}")),
    ("a? 500 times", regex("a?" * 500 + "a" * 500)),
    ("(a?){1000}a{1000}", regex("(a?){1000}a{1000}")),
    ("20 look-aheads", regex("".join(f"(?=.*{chr(97 + i)})" for i in range(20)) + ".*")),
    ("a look-ahead to forbid", regex("(?!.*(a|b)*a(a|b){20}).*")),
    ("20 patterns at once", schema({"allOf": [{"pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(20)]})),
    ("anyOf doubled 12 times", schema(doubled(12))),
    ("anyOf of 2,000 objects", schema({"anyOf": [{"required": [f"k{i}"], "type": "object"} for i in range(2000)]})),
    ("allOf of anyOf", schema({"allOf": [{"anyOf": [{"pattern": f"{i}{j}"} for j in range(4)]} for i in range(20)]})),
    ("ambiguous Lark", lark('start: "a" | start start | start start start')),
    ("Lark that is exponentially long", lark(rules(60, "r{1} r{1}"))),
    # Empty
    ("the empty pattern", regex("")),
    ("(|||)*", regex("(|||)*")),
    ("(a{0})*b", regex("(a{0})*b")),
    ("(^$)*", regex("(^$)*")),
    (r"(\b)*x", regex(r"(\b)*x")),
    ("an empty terminal", lark("start: A\nA: //\n")),
    ("a terminal that may be empty", lark('start: A "b"\nA: /a*/\n')),
    ("an empty pattern in a schema", schema({"type": "string", "pattern": ""})),
    ("a pattern of nothing", schema({"type": "string", "pattern": "^(|a?|())*$"})),
    # Bytes that are no text
    ("half a surrogate pair", schema(r'{"const": "\ud800"}')),
    ("half a pair, raw", schema('{"const": "\udc80"}')),
    ("half a pair as a key", schema(r'{"properties": {"\udfff": {}}}')),
    ("no escape of JSON", schema(r'{"const": "\xff"}')),
    ("half a pair in a pattern", schema(r'{"type": "string", "pattern": "\\ud800"}')),
    ("half pairs in a regex", regex(r"[\ud800-\udfff]+")),
    ("half a pair in a regex, raw", regex("\udc80")),
    ("half a pair in a choice", ConstraintSource("choices", choices=("\udc80",))),
    ("half a pair in Lark", lark('start: "\udc80"')),
    ("high bytes in Lark", lark(r'start: "\xff\xfe" | /\xff[\x80-\xff]/')),
    # Keys and references
    ("10,000 properties", schema({"type": "object", "properties": NUMBERED})),
    ("10,000 properties, closed", schema({"properties": NUMBERED, "additionalProperties": False})),
    ("10,000 required", schema({"properties": NUMBERED, "required": list(NUMBERED), "additionalProperties": False})),
    ("1,000 required and not listed", schema({"type": "object", "required": [f"key{i}" for i in range(1000)]})),
    ("10,000 prefix items", schema({"type": "array", "prefixItems": [{"const": i} for i in range(10_000)]})),
    ("1,000 references in a circle", schema(definitions(1000, lambda one, _: one))),
    (
        "1,000 objects in circles",
        schema(definitions(1000, lambda a, b: {"type": "object", "properties": {"a": a, "b": b}})),
    ),
    ("1,000 options in a circle", schema(definitions(1000, lambda a, _: {"anyOf": [{"type": "null"}, a]}))),
    (
        "1,000 circles",
        schema(
            {
                "anyOf": [{"$ref": f"#/$defs/{i}"} for i in range(1000)],
                "$defs": {f"{i}": {"$ref": f"#/$defs/{i}"} for i in range(1000)},
            }
        ),
    ),
    (
        "allOf doubled 40 times",
        schema(
            {
                "$ref": "#/$defs/0",
                "$defs": {f"{i}": {"allOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} if i < 40 else {} for i in range(41)},
            }
        ),
    ),
    # Rules
    ("a cycle of 300 left calls", lark(rules(299, 'r{1} "x" | "y{0}"', 'r{0}: r0 "x" | "y"\n'))),
    ("the same behind an empty rule", lark(rules(299, 'e r{1} "x" | "y{0}" |', 'r{0}: r0 "x" | "y"\n') + 'e: | "e"\n')),
    ("2,000 rules in a row", lark(rules(2000, 'r{1} "x"'))),
    ("300 rules that may be empty", lark(rules(300, 'r{1} r{1} | "x{0}" |', 'r{0}: "y" |\n'))),
    ("a template without end", lark('start: t{"a"}\nt{x}: t{u{x}}\nu{x}: x x\n')),
    ("nothing but recursion", lark('start: start "a" | b\nb: c\nc: b "x"\n')),
]

# With both lexers.
LARK_CASES: list[tuple[str, str]] = [
    ("60,000 groups in a terminal", "start: A\nA: /" + "(" * 60_000 + "a" + ")" * 60_000 + "/\n"),
    ("/a{1000000}/", "start: /a{1000000}/"),
    ("nested counts in a terminal", "start: /(a{1,1000}){1,1000}/"),
    ("~1..1000000", 'start: "a"~1..1000000'),
    ("~1000000", 'start: "a"~1000000'),
    ("~1..100 three times", 'start: (("a"~1..100)~1..100)~1..100'),
    ("/(a*)*b/", "start: A\nA: /(a*)*b/\n"),
    ("/(a|a)*b/", "start: A\nA: /(a|a)*b/\n"),
    ("a terminal of 2**20 states", "start: A\nA: /(a|b)*a(a|b){20}/\n"),
    ("any cut", "start: A*\nA: /a+/\n"),
    ("every sum of sums", 'start: "a" | start start | start start start'),
    ("eight optional parts", "start: " + " ".join(f'["p{i}"]' for i in range(8))),
]
# What takes Lark longer than the budget to load, or memory without bound: two to the number of optional parts.
LARK_CASES_FOR_A_PROCESS: list[tuple[str, str]] = [
    (
        "10,000 rules",
        "start: "
        + " | ".join(f"r{i}" for i in range(10_000))
        + "\n"
        + "".join(f'r{i}: "x{i}"\n' for i in range(10_000)),
    ),
    (
        "10,000 rules in circles",
        "start: r0\n" + "".join(f'r{i}: "a" r{(7 * i + 1) % 10_000} | "b"\n' for i in range(10_000)),
    ),
    ("60,000 groups", "start: " + "(" * 60_000 + '"a"' + ")" * 60_000),
    (
        "templates that double",
        'start: t0{"a"}\n'
        + "".join(f"t{i}{{x}}: t{i + 1}{{x}} t{i + 1}{{t{i + 1}{{x}}}}\n" for i in range(20))
        + "t20{x}: x x\n",
    ),
    (
        "3,000 terminals in one state",
        "start: ("
        + " | ".join(f"T{i}" for i in range(3000))
        + ")*\n"
        + "".join(f'T{i}: "t{i}"\n' for i in range(3000)),
    ),
    (
        "2,000 words that are names",
        "start: (NAME | " + " | ".join(f'"w{i}"' for i in range(2000)) + ')*\nNAME: /[a-z0-9]+/\n%ignore " "\n',
    ),
    (
        "rules inlined 2,000 deep",
        "start: _r0\n" + "".join(f'_r{i}: _r{i + 1} | "x{i}"\n' for i in range(2000)) + '_r2000: "y"\n',
    ),
    ("30 optional parts", "start: " + '"a"? ' * 30),
]
LEXERS: tuple[LarkLexer, ...] = ("dynamic_complete", "contextual")

# What takes more than BUDGET_S to build or compile: a compile's process and `max_compile_s` alone bound it.
NEEDS_A_PROCESS = {
    "10,000 properties",
    "10,000 properties, closed",
    "10,000 required",
    "1,000 references in a circle",
    "1,000 options in a circle",
    "allOf doubled 40 times",
    "a cycle of 300 left calls",
    "the same behind an empty rule",
    "2,000 rules in a row",
    "300 rules that may be empty",
    "a template without end",
}


@pytest.fixture(scope="module")
def trie() -> TokenTrie:
    made = TokenTrie(VOCABULARY)
    warm_up(made)  # as the service does: otherwise the first mask compiles kernels
    return made


def check(error: ServiceError) -> None:
    """See that an error is an answer, and names its limit where there is one."""
    is_limit = error.reason in ("GRAMMAR_TOO_LARGE", "FUEL")
    assert error.reason in REASONS, error.message
    assert not is_limit or "limit" in error.metadata, error.message


@pytest.mark.parametrize(
    ("source", "options"),
    [
        *(pytest.param(s, SourceOptions(), id=name) for name, s in CASES if name not in NEEDS_A_PROCESS),
        *(
            pytest.param(lark(text), SourceOptions(lexer=lexer), id=f"{name}, {lexer}")
            for name, text in LARK_CASES
            for lexer in LEXERS
        ),
    ],
)
def test_a_mask_or_an_error_within_the_budget(
    source: ConstraintSource, options: SourceOptions, trie: TokenTrie
) -> None:
    started = time.process_time()
    try:
        walk(source, options, trie)
    except ServiceError as error:
        check(error)
    assert time.process_time() - started < BUDGET_S


def walk(source: ConstraintSource, options: SourceOptions, trie: TokenTrie) -> None:
    """Compile, and take ten tokens, each the longest allowed; every token that a mask allows must be accepted."""
    compiled = compile_grammar(build(source, options).grammar)
    matcher = Matcher(CompiledGrammar.from_bytes(compiled.to_bytes()), trie)
    row = np.zeros(bitmask_words(VOCABULARY.vocab_size), np.int32)
    state = matcher.start
    for _ in range(10):
        started = time.process_time()
        matcher.fill_bitmask(state, row)
        assert time.process_time() - started < MASK_S
        allowed = allowed_token_ids(row, VOCABULARY.vocab_size).tolist()
        assert allowed
        behind = {token_id: matcher.accept(state, [token_id]) for token_id in allowed}
        state = behind[max(allowed, key=lambda token_id: len(VOCABULARY.token_bytes[token_id] or b""))]
        if matcher.is_accepting(state) and len(allowed) == 1:
            break


def test_an_instance_10_000_deep(trie: TokenTrie) -> None:
    compiled = compile_grammar(build(schema({"type": "array", "items": {"$ref": "#"}}), SourceOptions()).grammar)
    matcher = Matcher(compiled, trie)
    started = time.process_time()
    opening, closing = VOCABULARY.encode("[")[0], VOCABULARY.encode("]")[0]
    state = matcher.accept(matcher.start, [opening] * 10_000)
    assert closing in allowed_token_ids(matcher.guidance(state).bitmask, VOCABULARY.vocab_size)
    assert matcher.guidance(state).witness_num_tokens <= 10_000
    state = matcher.accept(state, [closing] * 10_000)
    assert matcher.is_accepting(state)
    assert time.process_time() - started < BUDGET_S


@asynccontextmanager
async def started_service(max_compile_s: float, max_validate_s: float = 10.0) -> AsyncIterator[ConstraintService]:
    async def fetch(_: str | None) -> Vocabulary:
        return VOCABULARY

    settings = ConstraintSettings(
        num_compile_processes=2,
        num_validate_processes=1,
        num_mask_threads=2,
        max_compile_s=max_compile_s,
        max_compile_wait_s=600,
        max_validate_s=max_validate_s,
    )
    service = ConstraintService(settings, fetch)
    await service.start()
    yield service
    await service.stop()


@pytest_asyncio.fixture
async def service() -> AsyncIterator[ConstraintService]:
    async with started_service(BUDGET_S) as service:
        yield service


async def through(service: ConstraintService, source: ConstraintSource, lexer: LarkLexer = "dynamic_complete") -> str:
    """Return how a source ended in the service: `mask`, or the error's reason and limit."""
    try:
        options = SourceOptions(lexer=lexer)
        found, moved = await service.compile(source, options, "canonical", VOCABULARY.digest)
        allowed = allowed_token_ids(moved.guidance.bitmask, VOCABULARY.vocab_size).tolist()
        move = Move(found.grammar_id, allowed[:1], moved.epoch, moved.guidance.after_forced)
        (outcome,) = await service.advance([move])
        if isinstance(outcome, ServiceError):
            raise outcome
    except ServiceError as error:
        check(error)
        return f"{error.reason} {error.metadata.get('limit')}"
    return "mask"


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_through_the_service() -> None:
    # Less time than in other tests: what takes too long takes all of it, and none of these need be a mask.
    async with started_service(max_compile_s=1.0) as service:
        lexed = [
            through(service, lark(text), LEXERS[number % 2])
            for number, (_, text) in enumerate(LARK_CASES_FOR_A_PROCESS)
        ]
        await asyncio.gather(*(through(service, source) for _, source in CASES), *lexed)
    async with started_service(BUDGET_S) as service:
        assert await through(service, regex("still here")) == "mask"


async def test_a_validator_without_end_is_ended() -> None:
    """Python's `re` backtracks, and Lark's Earley parser makes all trees of an ambiguous text."""
    hostile: list[tuple[LarkLexer, str, str]] = [
        ("dynamic_complete", "start: A\nA: /(a|a)*b/\n", "a" * 40 + "c"),
        ("contextual", "start: A\nA: /(a|a)*b/\n", "a" * 40 + "c"),
        ("dynamic_complete", 'start: "a" | start start', "a" * 2000),
    ]
    async with started_service(BUDGET_S, max_validate_s=1.0) as service:
        for lexer, grammar, text in hostile:
            with pytest.raises(DeadlineExceeded):
                await service.validate(lark(grammar), SourceOptions(lexer=lexer), text.encode())


async def test_a_few_through_the_service_while_it_is_quick(service: ConstraintService) -> None:
    chosen = dict(CASES)
    expected = {
        "properties 10,000 deep": "GRAMMAR_TOO_LARGE max_schema_depth",
        "maxItems 1,000,000": "mask",
        "minItems 1,000,000": "GRAMMAR_TOO_LARGE max_min_bytes",
        "a constant of 1,000,000 bytes": "GRAMMAR_TOO_LARGE max_states",
        "a template without end": "GRAMMAR_TOO_LARGE max_compile_s",
        "(a*)*b": "mask",
        "a{1000000}": "GRAMMAR_TOO_LARGE max_min_bytes",
        "{5,0}": "GRAMMAR_SYNTAX None",
    }
    outcomes = await asyncio.gather(*(through(service, chosen[name]) for name in expected))
    assert dict(zip(expected, outcomes, strict=True)) == expected
