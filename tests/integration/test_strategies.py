"""Every way to write a text, over the network: a real worker (toy model), the real constraint service, gRPC."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import pytest
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import gateway_pb2_grpc, types_pb2

from gateway.cli.model_info import describe_model
from tests.integration.test_gateway import RECORD, generate, generation, no_open_sequences, refused, schema
from tests.support.stack import TestStack, running_stack

CHOICES = types_pb2.Constraint(choices=types_pb2.Choices(values=["red", "reddish", "green", "blue", "한국"]))


@pytest.fixture(scope="module")
def stack() -> Iterator[TestStack]:
    with TemporaryDirectory(prefix="esp") as directory, running_stack(Path(directory)) as running:
        running.start_gateway("gateway", "--max-running", "8")
        for process in running.processes.values():
            process.wait_until_serving()
        yield running


@pytest.fixture
async def stub(stack: TestStack) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(stack.processes["gateway"].address) as channel:
        yield gateway_pb2_grpc.GatewayServiceStub(channel)
    assert await no_open_sequences(stack.processes["worker"])


async def score(stub: Any, **fields: Any) -> pb.ScoreResponse:
    response: pb.ScoreResponse = await stub.Score(pb.ScoreRequest(**({"prompt": "Write."} | fields)), timeout=60)
    return response


async def stream(stub: Any, **fields: Any) -> list[pb.GenerateStreamResponse]:
    request = pb.GenerateStreamRequest(generation=generation(**fields))
    return [piece async for piece in stub.GenerateStream(request, timeout=60)]


async def test_several_texts_are_drawn_each_by_itself(stub: Any) -> None:
    sampling = pb.Sampling(temperature=1, seed=7)
    reply = await generate(stub, n=4, sampling=sampling, max_tokens=12)
    alone = await generate(stub, sampling=sampling, max_tokens=12)
    texts = [reply.text, *(choice.text for choice in reply.others)]
    assert len(set(texts)) == 4
    assert texts[0] == alone.text  # the first is what a request for one gets
    pieces = await stream(stub, n=4, sampling=sampling, max_tokens=12)
    for number, text in enumerate(texts):
        mine = [piece for piece in pieces if piece.choice == number]
        assert "".join(piece.delta for piece in mine) == text
        assert [piece.HasField("result") for piece in mine] == [False] * (len(mine) - 1) + [True]


async def test_the_best_of_several_are_those_that_the_model_finds_likeliest(stub: Any) -> None:
    sampling = pb.Sampling(temperature=2, seed=3)
    everything = await generate(stub, n=6, sampling=sampling, max_tokens=8, logprobs=pb.Logprobs())
    drawn = [(everything.text, everything.result), *((choice.text, choice.result) for choice in everything.others)]
    expected = sorted(drawn, key=lambda item: -item[1].logprob / len(item[1].token_ids))
    best = await generate(stub, n=2, best_of=6, sampling=sampling, max_tokens=8)
    assert [best.text, best.others[0].text] == [text for text, _ in expected[:2]]
    assert best.result.score == pytest.approx(expected[0][1].logprob / len(expected[0][1].token_ids), abs=1e-4)
    pieces = await stream(stub, n=2, best_of=6, sampling=sampling, max_tokens=8)
    assert [(piece.choice, piece.delta) for piece in pieces if piece.delta] == [
        (0, best.text),
        (1, best.others[0].text),
    ]


@pytest.mark.parametrize("constraint", [CHOICES, schema(RECORD), None], ids=["choices", "schema", "free"])
async def test_a_beam_over_the_network(stub: Any, constraint: Any) -> None:
    fields = {"constraint": constraint} if constraint is not None else {}
    reply = await generate(stub, beam=pb.Beam(width=4), n=3, max_tokens=120 if constraint else 10, **fields)
    results = [reply.result, *(choice.result for choice in reply.others)]
    texts = [reply.text, *(choice.text for choice in reply.others)]
    assert len(set(texts)) == len(texts)
    assert [result.score for result in results] == sorted((result.score for result in results), reverse=True)
    for text, result in zip(texts, results, strict=True):
        assert result.is_validated == (constraint is not None)
        if constraint is CHOICES:
            assert text in CHOICES.choices.values
        # What the model thinks of the text by one pass over it, its end included where it has one.
        said = await score(stub, text_token_ids=pb.TokenIds(ids=result.token_ids))
        assert result.logprob == pytest.approx(said.logprob, abs=1e-3)


async def test_log_probabilities_add_up(stub: Any) -> None:
    reply = await generate(
        stub, constraint=schema(RECORD), sampling=pb.Sampling(temperature=1, seed=2), logprobs=pb.Logprobs(num_top=5)
    )
    tokens = reply.result.logprobs
    assert [token.token.id for token in tokens] == list(reply.result.token_ids)
    assert b"".join(token.token.spelling for token in tokens).decode() == reply.text
    said = await score(stub, text_token_ids=pb.TokenIds(ids=reply.result.token_ids), num_top=5)
    for token, expected in zip(tokens, said.tokens, strict=True):
        assert token.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert [top.token.id for top in token.top] == [top.token.id for top in expected.top]
        # A mask takes mass away and leaves the rest its proportions.
        assert token.masked_logprob == pytest.approx(token.logprob - math.log1p(-token.removed_mass), abs=1e-3)
        assert token.masked_logprob <= 0 <= token.removed_mass <= 1
        assert 1 <= token.num_allowed <= 282
        assert not expected.HasField("masked_logprob")
        assert not expected.HasField("num_allowed")
        assert all(math.isfinite(top.logprob) for top in token.top)
    num_certain = sum(token.masked_logprob == 0 for token in tokens)
    num_without_choice = sum(token.num_allowed == 1 for token in tokens)
    assert num_certain >= num_without_choice >= reply.result.usage.num_forced_tokens > 0
    assert reply.result.logprob == pytest.approx(sum(token.logprob for token in tokens), abs=1e-3)


async def test_tokens_of_a_prompt_and_back(stub: Any) -> None:
    text = "Write 한국 😀."
    said = await stub.Tokenize(pb.TokenizeRequest(prompt=text))
    assert b"".join(token.spelling for token in said.tokens).decode() == text
    reply = await generate(stub, prompt=text, max_tokens=1)
    assert reply.result.usage.num_prompt_tokens == len(said.tokens)
    ids = [token.id for token in said.tokens]
    back = await stub.Detokenize(pb.DetokenizeRequest(token_ids=pb.TokenIds(ids=ids)))
    assert back.text == text
    error = await refused(stub.Detokenize(pb.DetokenizeRequest(token_ids=pb.TokenIds(ids=[1, 300]))))
    assert "`token_ids.ids[1]` is 300" in error.message


async def test_scores_are_refused_with_numbers(stub: Any) -> None:
    error = await refused(score(stub, text="x y" * 4096))
    assert error.reason == "CONTEXT_EXCEEDED"
    assert error.metadata["context_length"] == "4096"
    error = await refused(score(stub))
    assert "nothing to score" in error.message
    end = await score(stub, with_end=True)
    assert end.logprob == end.end_logprob < 0


@pytest.mark.parametrize("constraint", [schema(RECORD), None], ids=["schema", "free"])
async def test_a_prompt_that_ends_inside_a_token_is_healed(stub: Any, constraint: Any) -> None:
    fields = {"constraint": constraint} if constraint is not None else {}
    reply = await generate(stub, prompt="Write the ab", heals_prompt=True, max_tokens=150, **fields)
    ids = list(reply.result.token_ids)
    written = (await stub.Detokenize(pb.DetokenizeRequest(token_ids=pb.TokenIds(ids=ids)))).text
    cut = (await stub.Tokenize(pb.TokenizeRequest(prompt="Write the ab"))).tokens
    healed = cut[-1].spelling.decode()
    assert reply.result.usage.num_prompt_tokens == len(cut) - 1
    assert written == healed + reply.text  # the beginning of what was written is not part of the answer
    assert reply.result.is_validated == (constraint is not None)


async def test_reasoning_comes_first_and_ends_in_time(stub: Any) -> None:
    fields: dict[str, Any] = {
        "constraint": schema(RECORD),
        "reasoning": pb.Reasoning(end="</think>", max_tokens=20),
        "max_tokens": 200,
        "sampling": pb.Sampling(temperature=1, seed=5),
    }
    reply = await generate(stub, **fields)
    json.loads(reply.text)
    assert reply.result.is_validated
    assert reply.result.reasoning
    assert "</think>" not in reply.result.reasoning + reply.text
    pieces = await stream(stub, **fields)
    assert "".join(piece.delta for piece in pieces) == reply.text
    assert "".join(piece.reasoning_delta for piece in pieces) == reply.result.reasoning
    ids = list(reply.result.token_ids)
    written = (await stub.Detokenize(pb.DetokenizeRequest(token_ids=pb.TokenIds(ids=ids)))).text
    assert written == f"{reply.result.reasoning}</think>{reply.text}"
    num_reasoning = len((await stub.Tokenize(pb.TokenizeRequest(prompt=reply.result.reasoning))).tokens)
    assert num_reasoning <= 21


async def test_values_are_told_as_they_become_whole(stub: Any) -> None:
    pieces = await stream(
        stub, constraint=schema(RECORD), value_events=True, sampling=pb.Sampling(temperature=1, seed=1)
    )
    text = "".join(piece.delta for piece in pieces)
    told, seen = {}, ""
    for piece in pieces:
        seen += piece.delta
        for value in piece.values:
            assert value.json in seen
            assert value.pointer not in told
            told[value.pointer] = json.loads(value.json)
    assert told[""] == json.loads(text)
    for name, value in json.loads(text).items():
        assert told[f"/{name}"] == value
    whole = await stream(stub, constraint=schema(RECORD), value_events=True, beam=pb.Beam(width=2), max_tokens=150)
    assert json.loads(whole[0].values[-1].json) == json.loads(whole[0].delta)
    plain = types_pb2.CompileOptions(integers=types_pb2.SPELLING_PLAIN)
    number = await stream(stub, constraint=schema({"enum": [12]}), compile_options=plain, value_events=True)
    assert [(value.pointer, value.json) for piece in number for value in piece.values] == [("", "12")]


async def test_strategies_side_by_side_get_what_they_get_alone(stub: Any) -> None:
    requests: list[dict[str, Any]] = [
        {"constraint": schema(RECORD), "sampling": pb.Sampling(temperature=1, seed=1), "n": 2},
        {"constraint": CHOICES, "beam": pb.Beam(width=3), "n": 2},
        {"beam": pb.Beam(width=2), "max_tokens": 12},
        {"max_tokens": 12, "sampling": pb.Sampling(repetition_penalty=1.3, min_p=0.1, temperature=0.8, seed=4)},
        {"max_tokens": 12, "logprobs": pb.Logprobs(num_top=2), "best_of": 3, "sampling": pb.Sampling(seed=9)},
    ]
    alone = [await generate(stub, **fields) for fields in requests]
    together = await asyncio.gather(*(generate(stub, **fields) for fields in requests))
    for one, other in zip(alone, together, strict=True):
        assert one.text == other.text
        assert [choice.text for choice in one.others] == [choice.text for choice in other.others]


async def test_the_model_is_told_with_what_a_token_costs(stub: Any) -> None:
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (info.num_experts, info.num_experts_per_tok, info.num_layers, info.device) == (4, 2, 2, "cpu")
    assert info.num_active_parameters < info.num_parameters
    assert 0 < info.flops_per_token < info.dense_flops_per_token
    text = describe_model(info)
    assert "4 experts, 2 of them for each token" in text
    assert "with all experts" in text
