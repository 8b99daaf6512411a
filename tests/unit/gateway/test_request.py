from __future__ import annotations

import math
from typing import Any

import pytest
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import types_pb2

from gateway.contract import read_generation
from gateway.decode.interfaces import Constraint
from gateway.request import ChatPrompt, GenerationRequest, TextPrompt, TokenPrompt
from services.rpckit.status import InvalidRequest


def read(**fields: Any) -> GenerationRequest:
    request = pb.GenerateRequest(generation=pb.Generation(**({"prompt": "hi"} | fields)))
    # As it would arrive: through the wire format.
    request = pb.GenerateRequest.FromString(request.SerializeToString())
    return read_generation(request, request.generation)


def chat(*messages: tuple[str, str]) -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role=role, content=content) for role, content in messages])


SCHEMA = types_pb2.Constraint(json_schema="{}")
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no input": ({"prompt": None}, "generation.prompt", "nothing to read"),
    "empty prompt": ({"prompt": ""}, "generation.prompt", "must not be empty"),
    "no messages": ({"prompt": None, "chat": pb.Chat()}, "generation.chat.messages", "at least one message"),
    "unknown role": (
        {"prompt": None, "chat": chat(("user", "x"), ("tool", "y"))},
        "generation.chat.messages[1].role",
        "'tool'; it must be one of system, user, assistant",
    ),
    "no tokens": ({"prompt": None, "token_ids": pb.TokenIds()}, "generation.token_ids", "must not be empty"),
    "max_tokens 0": ({"max_tokens": 0}, "generation.max_tokens", "at least 1"),
    "negative temperature": (
        {"sampling": pb.Sampling(temperature=-0.5)},
        "generation.sampling.temperature",
        "-0.5; it",
    ),
    "hot": ({"sampling": pb.Sampling(temperature=100.5)}, "generation.sampling.temperature", "from 0 to 100"),
    "NaN": ({"sampling": pb.Sampling(temperature=math.nan)}, "generation.sampling.temperature", "not a number"),
    "infinite": ({"sampling": pb.Sampling(temperature=math.inf)}, "generation.sampling.temperature", "inf"),
    "top_p 0": ({"sampling": pb.Sampling(top_p=0)}, "generation.sampling.top_p", "over 0 and at most 1"),
    "top_p over 1": ({"sampling": pb.Sampling(top_p=1.01)}, "generation.sampling.top_p", "over 0 and at most 1"),
    "top_p NaN": ({"sampling": pb.Sampling(top_p=math.nan)}, "generation.sampling.top_p", "not a number"),
    "min_p over 1": ({"sampling": pb.Sampling(min_p=1.5)}, "generation.sampling.min_p", "from 0 to 1"),
    "repetition_penalty 0": (
        {"sampling": pb.Sampling(repetition_penalty=0)},
        "generation.sampling.repetition_penalty",
        "over 0 and at most 100",
    ),
    "presence NaN": (
        {"sampling": pb.Sampling(presence_penalty=math.nan)},
        "generation.sampling.presence_penalty",
        "not a number",
    ),
    "frequency": (
        {"sampling": pb.Sampling(frequency_penalty=101)},
        "generation.sampling.frequency_penalty",
        "from -100 to 100",
    ),
    "bias": ({"sampling": pb.Sampling(logit_bias={7: 101})}, "generation.sampling.logit_bias[7]", "from -100 to 100"),
    "1025 biases": (
        {"sampling": pb.Sampling(logit_bias=dict.fromkeys(range(1025), 1.0))},
        "generation.sampling.logit_bias",
        "at most 1024",
    ),
    "no such preset": ({"sampling": pb.Sampling(preset=99)}, "generation.sampling.preset", "99 is not known"),  # type: ignore[arg-type]
    "min_tokens": ({"min_tokens": 6, "max_tokens": 5}, "generation.min_tokens", "at most max_tokens, 5"),
    "n 0": ({"n": 0}, "generation.n", "from 1 to 16"),
    "n 17": ({"n": 17}, "generation.n", "from 1 to 16"),
    "best_of under n": ({"n": 3, "best_of": 2}, "generation.best_of", "from n, 3, to 16"),
    "65 stop tokens": ({"stop_token_ids": range(65)}, "generation.stop_token_ids", "at most 64"),
    "stop token with constraint": (
        {"stop_token_ids": [5], "constraint": SCHEMA},
        "generation.stop_token_ids",
        "cannot be combined",
    ),
    "too many alternatives": ({"logprobs": pb.Logprobs(num_top=21)}, "generation.logprobs.num_top", "at most 20"),
    "beam without width": ({"beam": pb.Beam()}, "generation.beam.width", "from 1 to 16"),
    "length penalty": (
        {"beam": pb.Beam(width=2, length_penalty=math.nan)},
        "generation.beam.length_penalty",
        "not a number",
    ),
    "warm beam": (
        {"beam": pb.Beam(width=2), "sampling": pb.Sampling(temperature=1)},
        "generation.sampling.temperature",
        "cannot be combined",
    ),
    "beam with stop": ({"beam": pb.Beam(width=2), "stop": ["x"]}, "generation.stop", "cannot be combined"),
    "narrow beam": ({"beam": pb.Beam(width=2), "n": 3}, "generation.n", "no more texts than that"),
    "beam with best_of": ({"beam": pb.Beam(width=2), "best_of": 2}, "generation.best_of", "cannot be combined"),
    "stop with constraint": ({"stop": ["x"], "constraint": SCHEMA}, "generation.stop", "cannot be combined"),
    "17 stops": ({"stop": ["x"] * 17}, "generation.stop", "at most 16"),
    "empty stop": ({"stop": ["x", ""]}, "generation.stop[1]", "1 to 1000"),
    "long stop": ({"stop": ["x" * 1001]}, "generation.stop[0]", "1001 characters"),
    "empty constraint": ({"constraint": types_pb2.Constraint()}, "generation.constraint", "is empty"),
    "empty schema": (
        {"constraint": types_pb2.Constraint(json_schema="")},
        "generation.constraint.json_schema",
        "must not be empty",
    ),
    "no choices": (
        {"constraint": types_pb2.Constraint(choices=types_pb2.Choices())},
        "generation.constraint.choices",
        "at least one",
    ),
    "empty choice": (
        {"constraint": types_pb2.Constraint(choices=types_pb2.Choices(values=["a", ""]))},
        "generation.constraint.choices.values[1]",
        "must not be empty",
    ),
    "options without constraint": (
        {"compile_options": types_pb2.CompileOptions(whitespace=types_pb2.WHITESPACE_COMPACT)},
        "generation.compile_options",
        "no `constraint`",
    ),
    "unknown white space": (
        {"constraint": SCHEMA, "compile_options": types_pb2.CompileOptions(whitespace=9)},  # type: ignore[arg-type]
        "generation.compile_options.whitespace",
        "9 is not known",
    ),
    "unknown forcing": (
        {"constraint": SCHEMA, "compile_options": types_pb2.CompileOptions(forcing=9)},  # type: ignore[arg-type]
        "generation.compile_options.forcing",
        "9 is not known",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_named_with_its_range(name: str) -> None:
    fields, field, message = BAD[name]
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.field == field
    assert message in caught.value.message


@pytest.mark.parametrize("path", ["", "generation", "generation.sampling", "generation.chat.messages[1]"])
def test_unknown_fields_are_refused_wherever_they_are(path: str) -> None:
    request = pb.GenerateRequest(
        generation=pb.Generation(chat=chat(("system", "x"), ("user", "y")), sampling=pb.Sampling(top_k=3))
    )
    generation = request.generation
    inner = {
        "": request,
        "generation": generation,
        "generation.sampling": generation.sampling,
        "generation.chat.messages[1]": generation.chat.messages[1],
    }[path]
    inner.MergeFromString(b"\xc2\x3e\x03abc")  # field 1000, length-delimited
    with pytest.raises(InvalidRequest, match="field 1000") as caught:
        read_generation(request, generation)
    assert (caught.value.field or "").startswith(path)


def test_defaults_are_greedy_and_unbounded() -> None:
    request = read()
    assert request.prompt == TextPrompt("hi")
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (0, 0, 1)
    assert request.max_tokens is None
    assert request.constraint is None


def test_a_seed_is_kept_and_otherwise_drawn() -> None:
    assert read(sampling=pb.Sampling(seed=0)).sampling.seed == 0
    assert read(sampling=pb.Sampling(seed=2**64 - 1)).sampling.seed == 2**64 - 1
    assert read().sampling.seed != read().sampling.seed


def test_every_kind_of_input_and_constraint_arrives() -> None:
    assert read(prompt=None, token_ids=pb.TokenIds(ids=[5, 6])).prompt == TokenPrompt((5, 6))
    assert isinstance(read(prompt=None, chat=chat(("user", "안녕 😀"))).prompt, ChatPrompt)
    for kind in ("json_schema", "lark", "regex", "grammar_name", "literal", "until", "special_token"):
        constraint = read(constraint=types_pb2.Constraint(**{kind: "x"})).constraint  # type: ignore[arg-type]
        assert constraint is not None
        assert (constraint.kind, constraint.text) == (kind, "x")
    choices = read(constraint=types_pb2.Constraint(choices=types_pb2.Choices(values=["예", "no"]))).constraint
    assert choices is not None
    assert choices.choices == ("예", "no")
    alternatives = types_pb2.Constraint(any_of=types_pb2.Parts(parts=[types_pb2.Constraint(regex="a")]))
    parts = [types_pb2.Constraint(until="."), alternatives]
    sequence = read(constraint=types_pb2.Constraint(sequence=types_pb2.Parts(parts=parts))).constraint
    assert sequence == Constraint(
        "sequence",
        parts=(Constraint("until", "."), Constraint("any_of", parts=(Constraint("regex", "a"),))),
    )


def test_an_empty_part_is_named() -> None:
    parts = [types_pb2.Constraint(until="."), types_pb2.Constraint(literal="")]
    sequence = types_pb2.Constraint(sequence=types_pb2.Parts(parts=parts))
    with pytest.raises(InvalidRequest, match="must not be empty") as caught:
        read(constraint=sequence)
    assert caught.value.field == "generation.constraint.sequence.parts[1].literal"
    with pytest.raises(InvalidRequest, match="must have at least one part"):
        read(constraint=types_pb2.Constraint(any_of=types_pb2.Parts()))


def test_tokens_beyond_the_vocabulary_are_named() -> None:
    with pytest.raises(InvalidRequest, match="is 300; the model's tokens go from 0 to 299") as caught:
        GenerationRequest(TokenPrompt((1, 300))).check_tokens(300)
    assert caught.value.field == "generation.token_ids.ids[1]"
    for fields, field in (
        ({"stop_token_ids": [5, 300]}, "generation.stop_token_ids[1]"),
        ({"sampling": pb.Sampling(logit_bias={300: 1})}, "generation.sampling.logit_bias[0]"),
    ):
        with pytest.raises(InvalidRequest, match="is 300") as caught:
            read(**fields).check_tokens(300)
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("preset", "temperature", "top_p", "top_k"),
    [
        (pb.PRESET_BALANCED, 0.7, 0.9, 50),
        (pb.PRESET_CREATIVE, 1.2, 0.95, 100),
        (pb.PRESET_SAFE, 0.3, 0.8, 10),
        (pb.PRESET_DETERMINISTIC, 0.0, 1.0, 0),
    ],
)
def test_presets_are_for_what_is_not_set(preset: Any, temperature: float, top_p: float, top_k: int) -> None:
    sampling = read(sampling=pb.Sampling(preset=preset)).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (temperature, top_p, top_k)
    sampling = read(sampling=pb.Sampling(preset=preset, top_k=3, seed=7)).sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (temperature, 3, 7)
