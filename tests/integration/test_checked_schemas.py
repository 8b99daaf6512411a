"""Schemas that masks alone cannot enforce, end to end on the toy model: texts are valid, failures documented ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import jsonschema
import pytest
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import gateway_pb2_grpc, types_pb2
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from services.model_worker.toy import CONFIG, toy_tokenizer
from services.rpckit.rich_status import from_rpc_error
from services.vocabulary import Vocabulary
from tests.support.stack import TestStack, running_stack

NUM_SEEDS = 2
CONCURRENCY = 8
MAX_TOKENS = 160
LIMIT_S = 120.0  # a dead end may take a thousand tries
# docs/decoding.md: with checks, a text may not be found within the limits.
DOCUMENTED = {"DEAD_END", "BUDGET_TOO_SMALL", "UNSATISFIABLE_GRAMMAR"}

NAME = {"type": "string", "maxLength": 6}
RECORD = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog", "bird"]}, "name": NAME, "age": {"type": "integer"}},
}
PERSON = "https://example.org/person.json"
DOCUMENTS = {
    PERSON: {"type": "object", "properties": {"name": NAME}, "required": ["name"], "additionalProperties": False}
}

SCHEMAS: dict[str, Any] = {
    "uniqueItems of an enum": {
        "type": "array",
        "items": {"enum": ["a", "b", "c", "d"]},
        "uniqueItems": True,
        "minItems": 3,
    },
    "uniqueItems of objects": {
        "type": "array",
        "items": {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False},
        "uniqueItems": True,
        "minItems": 2,
        "maxItems": 3,
    },
    "oneOf that overlaps": {
        "oneOf": [
            {"type": "integer", "minimum": 0, "maximum": 60},
            {"type": "integer", "minimum": 40, "maximum": 99},
        ]
    },
    "oneOf of objects that overlap": {
        **RECORD,
        "additionalProperties": False,
        "oneOf": [{"required": ["kind"]}, {"required": ["name"]}],
    },
    "not a value of a member": {
        **RECORD,
        "required": ["kind"],
        "additionalProperties": False,
        "not": {"properties": {"kind": {"enum": ["cat", "dog"]}}},
    },
    "not a type": {"not": {"type": ["object", "array", "string"]}},
    "if, then, else": {
        **RECORD,
        "required": ["kind"],
        "additionalProperties": False,
        "if": {"properties": {"kind": {"const": "cat"}}},
        "then": {"required": ["name"]},
        "else": {"required": ["age"], "not": {"required": ["name"]}},
    },
    "contains with counts": {
        "type": "array",
        "items": {"enum": [1, 2, "x"]},
        "contains": {"type": "string"},
        "minContains": 2,
        "maxContains": 3,
        "maxItems": 6,
    },
    "dependentSchemas": {
        **RECORD,
        "required": ["kind"],
        "additionalProperties": False,
        "dependentSchemas": {"name": {"required": ["age"]}, "age": {"properties": {"kind": {"const": "dog"}}}},
    },
    "unevaluatedProperties": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "anyOf": [
            {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
            {"properties": {"c": NAME}, "required": ["c"]},
        ],
        "unevaluatedProperties": False,
    },
    "propertyNames": {
        "type": "object",
        "propertyNames": {"enum": ["a", "b", "ab", "c"]},
        "additionalProperties": {"type": "boolean"},
        "minProperties": 2,
        "maxProperties": 4,
    },
    "names of their own": {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 4},
    "a document": {"type": "array", "items": {"$ref": PERSON}, "uniqueItems": True, "minItems": 1, "maxItems": 2},
}


UNSATISFIABLE = {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 3}

_VOCABULARY = Vocabulary(toy_tokenizer().tokenizer_json, CONFIG.vocab_size, toy_tokenizer().eos_token_ids)
_REGISTRY: Registry[Any] = Registry().with_resources(
    (uri, DRAFT202012.create_resource(document)) for uri, document in DOCUMENTS.items()
)


@dataclass
class Outcome:
    """What became of one request: a text with its result, or the reason of an error."""

    text: str = ""
    result: pb.GenerationResult | None = None
    reason: str = ""


@pytest.fixture(scope="module")
def stack() -> Iterator[TestStack]:
    with TemporaryDirectory(prefix="esp") as directory, running_stack(Path(directory)) as running:
        running.start_gateway("gateway", f"--max-running={CONCURRENCY}", "--max-rollbacks=200")
        running.start_gateway("strict", "--max-rollbacks=0")
        for process in running.processes.values():
            process.wait_until_serving()
        yield running


def generation(schema: Any, seed: int, max_tokens: int = MAX_TOKENS, **options: Any) -> pb.Generation:
    documents = {uri: json.dumps(document) for uri, document in DOCUMENTS.items()}
    return pb.Generation(
        prompt=f"record {seed}",
        constraint=types_pb2.Constraint(json_schema=json.dumps(schema)),
        # A float that Python reads as infinite is an integer that `jsonschema` does not know.
        compile_options=types_pb2.CompileOptions(documents=documents, integers=types_pb2.SPELLING_PLAIN, **options),
        sampling=pb.Sampling(temperature=1, seed=seed),
        max_tokens=max_tokens,
    )


async def stream(stub: Any, request: pb.Generation) -> Outcome:
    """Have a text written, and look at its deltas."""
    messages = []
    try:
        async for message in stub.GenerateStream(pb.GenerateStreamRequest(generation=request), timeout=LIMIT_S):
            messages.append(message)
    except grpc.aio.AioRpcError as error:
        return Outcome(reason=from_rpc_error(error).reason)
    result = messages[-1].result
    text = "".join(message.delta for message in messages)
    assert text.encode() == _VOCABULARY.decode(result.token_ids)
    assert sum(message.num_tokens for message in messages) == result.usage.num_completion_tokens
    assert len(result.token_ids) == result.usage.num_completion_tokens <= request.max_tokens
    assert result.is_validated
    assert result.is_complete
    return Outcome(text, result)


@pytest.mark.slow
async def test_what_is_written_is_valid_and_what_fails_says_why(stack: TestStack) -> None:
    turns = asyncio.Semaphore(CONCURRENCY)
    async with grpc.aio.insecure_channel(stack.processes["gateway"].address) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)

        async def one(schema: Any, seed: int, order: Any) -> Outcome:
            async with turns:
                return await stream(stub, generation(schema, seed, property_order=order))

        orders = (types_pb2.PROPERTY_ORDER_SCHEMA, types_pb2.PROPERTY_ORDER_ANY)
        names = [name for name in SCHEMAS for _ in range(NUM_SEEDS * len(orders))]
        outcomes = await asyncio.gather(
            *(one(schema, seed, order) for schema in SCHEMAS.values() for seed in range(NUM_SEEDS) for order in orders)
        )

    invalid = []
    num_written = dict.fromkeys(SCHEMAS, 0)
    for name, outcome in zip(names, outcomes, strict=True):
        if outcome.result is None:
            continue
        num_written[name] += 1
        if not jsonschema.Draft202012Validator(SCHEMAS[name], registry=_REGISTRY).is_valid(json.loads(outcome.text)):
            invalid.append((name, outcome.text))
    assert invalid == []
    assert {outcome.reason for outcome in outcomes if outcome.result is None} <= DOCUMENTED
    assert all(num_written.values()), num_written
    usages = [outcome.result.usage for outcome in outcomes if outcome.result is not None]
    assert any(usage.num_dead_ends for usage in usages)
    gateway = stack.processes["gateway"]
    assert gateway.metric("espalier_gateway_dead_ends_total") >= sum(usage.num_dead_ends for usage in usages)
    assert gateway.metric("espalier_gateway_validation_failures_total") == 0


async def test_a_schema_without_a_text_is_unsatisfiable(stack: TestStack) -> None:
    request = generation(UNSATISFIABLE, 1, whitespace=types_pb2.WHITESPACE_COMPACT)
    async with grpc.aio.insecure_channel(stack.processes["gateway"].address) as channel:
        outcome = await stream(gateway_pb2_grpc.GatewayServiceStub(channel), request)
    assert outcome.reason == "UNSATISFIABLE_GRAMMAR"


async def test_a_text_that_checks_make_longer_than_max_tokens_is_refused(stack: TestStack) -> None:
    schema = {"type": "array", "items": {"enum": ["x", "a long one", "another long one"]}, "uniqueItems": True}
    request = generation(schema | {"minItems": 3}, 1, max_tokens=16)
    async with grpc.aio.insecure_channel(stack.processes["gateway"].address) as channel:
        outcome = await stream(gateway_pb2_grpc.GatewayServiceStub(channel), request)
    assert outcome.reason == "BUDGET_TOO_SMALL"


async def test_dead_ends_beyond_the_limit_are_an_error(stack: TestStack) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "contains": {"const": 4}}
    async with grpc.aio.insecure_channel(stack.processes["strict"].address) as channel:
        outcome = await stream(gateway_pb2_grpc.GatewayServiceStub(channel), generation(schema, 1))
    assert outcome.reason == "DEAD_END"
