"""What the gateway's span says of a request, by the conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gateway.decode.beam import BeamSettings
from gateway.decode.interfaces import Constraint
from gateway.decode.sampler import Sampling
from gateway.genai_span import describe_request
from gateway.request import ChatPrompt, GenerationRequest, Message, TextPrompt


class Recorder:
    """Stands for a span."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.attributes: dict[str, Any] = {}

    def describe(self, attributes: Mapping[str, Any], *, name: str | None = None) -> None:
        self.attributes |= attributes
        self.name = name


def described(request: GenerationRequest) -> Recorder:
    span: Any = Recorder()
    describe_request(span, request, "toy")
    recorder: Recorder = span
    return recorder


def test_a_conversation_is_a_chat_and_a_prompt_a_completion() -> None:
    chat = described(GenerationRequest(ChatPrompt((Message("user", "a secret"),))))
    assert (chat.name, chat.attributes["gen_ai.operation.name"]) == ("chat toy", "chat")
    assert described(GenerationRequest(TextPrompt("a secret"))).name == "text_completion toy"
    assert "a secret" not in str(chat.attributes)


def test_what_is_not_said_is_not_there() -> None:
    attributes = described(GenerationRequest(TextPrompt("x"))).attributes
    assert not {"gen_ai.request.max_tokens", "gen_ai.request.top_k", "gen_ai.request.stop_sequences"} & set(attributes)
    assert attributes["espalier.constraint.kind"] == "none"
    assert attributes["gen_ai.output.type"] == "text"


def test_what_is_said_is() -> None:
    sampling = Sampling(temperature=0.5, top_k=7, top_p=0.9, presence_penalty=1.0, frequency_penalty=0.5, seed=3)
    request = GenerationRequest(TextPrompt("x"), sampling=sampling, max_tokens=9, stops=("\n",), n=2)
    expected = {
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 7.0,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.presence_penalty": 1.0,
        "gen_ai.request.frequency_penalty": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.stop_sequences": ("\n",),
        "gen_ai.request.choice.count": 2,
    }
    attributes = described(request).attributes
    assert {key: attributes[key] for key in expected} == expected


@pytest.mark.parametrize(("kind", "output"), [("json_schema", "json"), ("regex", "text")])
def test_the_constraint_says_what_comes_out(kind: Any, output: str) -> None:
    request = GenerationRequest(TextPrompt("x"), constraint=Constraint(kind, text="{}"), beam=BeamSettings(4))
    attributes = described(request).attributes
    assert (attributes["gen_ai.output.type"], attributes["espalier.constraint.kind"]) == (output, kind)
    assert attributes["espalier.beam.width"] == 4


def test_a_seed_that_no_attribute_holds_is_left_out() -> None:
    request = GenerationRequest(TextPrompt("x"), sampling=Sampling(seed=2**63))
    assert "gen_ai.request.seed" not in described(request).attributes
