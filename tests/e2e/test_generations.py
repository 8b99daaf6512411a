"""20 texts by the real model through all three services, under random schemas and other constraints: all valid."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import grpc
import jsonschema
import pytest
from espalier.v1 import gateway_pb2, types_pb2

from tests.support.real_model import real_model_path
from tests.support.schemas import random_schema
from tests.support.up import Up, espalier, gateway_stub

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

KOREAN = {
    "type": "object",
    "properties": {"이름": {"enum": ["김치 🌶️", "불고기"]}, "설명": {"type": "string", "maxLength": 12}},
    "required": ["이름", "설명"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    up = Up(tmp_path_factory.mktemp("e"), model=str(real_model_path()))
    up.wait_until_ready()
    with grpc.insecure_channel(up.addresses["gateway"]) as channel:
        yield gateway_stub(channel)
    assert up.stop() == 0


def _ask(constraint: types_pb2.Constraint, number: int) -> gateway_pb2.Generation:
    text = "서울에 대해 쓰시오. Write a short record about Seoul 🙂."
    return gateway_pb2.Generation(
        chat=gateway_pb2.Chat(messages=[gateway_pb2.ChatMessage(role="user", content=text)]),
        constraint=constraint,
        max_tokens=64,
        sampling=gateway_pb2.Sampling(temperature=1.0, top_p=0.95, seed=number),
    )


def test_16_texts_under_random_schemas_are_valid(stub: Any) -> None:
    rng = random.Random(16)
    for number in range(16):
        schema = random_schema(rng, 2)
        constraint = types_pb2.Constraint(json_schema=json.dumps(schema, ensure_ascii=False))
        reply = stub.Generate(gateway_pb2.GenerateRequest(generation=_ask(constraint, number)), timeout=120)
        jsonschema.Draft202012Validator(schema).validate(json.loads(reply.text))
        assert (reply.result.is_validated, reply.result.is_complete) == (True, True)


def test_a_stream_in_korean_is_whole_characters_and_the_same_text(stub: Any) -> None:
    generation = _ask(types_pb2.Constraint(json_schema=json.dumps(KOREAN, ensure_ascii=False)), 17)
    pieces = list(stub.GenerateStream(gateway_pb2.GenerateStreamRequest(generation=generation), timeout=120))
    text = "".join(piece.delta for piece in pieces)
    jsonschema.Draft202012Validator(KOREAN).validate(json.loads(text))
    assert "�" not in text
    assert pieces[-1].result.is_validated
    assert sum(piece.num_tokens for piece in pieces) == pieces[-1].result.usage.num_completion_tokens
    assert stub.Generate(gateway_pb2.GenerateRequest(generation=generation), timeout=120).text == text


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (types_pb2.Constraint(regex="(봄|여름|가을|겨울): [a-z]{3,8}"), "(봄|여름|가을|겨울): [a-z]{3,8}"),
        (types_pb2.Constraint(choices=types_pb2.Choices(values=["yes", "아니요"])), "yes|아니요"),
        (types_pb2.Constraint(lark='start: "-" (" " WORD)+\nWORD: /[a-z]{2,6}/'), "-( [a-z]{2,6})+"),
    ],
)
def test_other_constraints(stub: Any, constraint: types_pb2.Constraint, pattern: str) -> None:
    reply = stub.Generate(gateway_pb2.GenerateRequest(generation=_ask(constraint, 18)), timeout=120)
    assert re.fullmatch(pattern, reply.text)
    assert reply.result.is_validated


def test_the_demo_works() -> None:
    done = espalier("demo", timeout_s=280, ESPALIER_MODEL=str(real_model_path()))
    assert done.returncode == 0, done.stderr
    assert "4 of 4 results validated" in done.stdout
