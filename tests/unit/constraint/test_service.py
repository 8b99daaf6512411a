"""The constraint service over real gRPC, on a vocabulary of bytes and a few longer tokens, without a worker."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from espalier.v1 import constraint_pb2 as pb
from espalier.v1 import constraint_pb2_grpc, types_pb2

from services.constraint.service import ConstraintService
from services.constraint.servicer import ConstraintServicer
from services.constraint.settings import ConstraintSettings
from services.rpckit.interceptors import CallInterceptor
from services.rpckit.rich_status import from_item_status, from_rpc_error
from services.rpckit.status import (
    GrammarSyntax,
    GrammarTooLarge,
    InvalidRequest,
    LeaseExpired,
    ServiceError,
    TokenRejected,
    UnknownGrammar,
    UnsatisfiableGrammar,
    UnsupportedConstruct,
    VocabularyMismatch,
)
from services.vocabulary import Vocabulary
from tests.support.grammars import vocabulary
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCHEMA = {
    "type": "object",
    "properties": {"이름": {"enum": ["김", "이"]}},
    "required": ["이름"],
    "additionalProperties": False,
}


class Worker:
    """Stands for the model worker: a vocabulary that a test may replace, or take away."""

    def __init__(self) -> None:
        self.vocabulary: Vocabulary | None = vocabulary()
        self.num_calls = 0

    async def fetch(self, _: str | None) -> Vocabulary:
        self.num_calls += 1
        if self.vocabulary is None:
            raise ConnectionError
        return self.vocabulary


class Served:
    """A running service and a stub for it."""

    def __init__(self, settings: ConstraintSettings, worker: Worker) -> None:
        self.worker = worker
        self.service = ConstraintService(settings, worker.fetch)
        self._server = grpc.aio.server(interceptors=[CallInterceptor("constraint", lambda: True)])
        constraint_pb2_grpc.add_ConstraintServiceServicer_to_server(ConstraintServicer(self.service), self._server)

    async def __aenter__(self) -> "Served":
        await self.service.start()
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub: Any = constraint_pb2_grpc.ConstraintServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()
        await self._server.stop(None)
        await self.service.stop()

    async def compile(self, constraint: Any = None, **changes: Any) -> pb.CompileResponse:
        assert self.worker.vocabulary is not None
        request = pb.CompileRequest(
            constraint=constraint or types_pb2.Constraint(json_schema=json.dumps(SCHEMA)),
            vocabulary_digest=changes.pop("vocabulary_digest", self.worker.vocabulary.digest),
            **changes,
        )
        return await self.stub.Compile(request)

    async def advance(self, *items: pb.AdvanceItem) -> list[pb.AdvanceResult]:
        return list((await self.stub.Advance(pb.AdvanceRequest(items=items))).results)

    async def write(self, constraint: Any, rng: np.random.Generator) -> bytes:
        """Take a random way through the masks to the end."""
        assert self.worker.vocabulary is not None
        known = self.worker.vocabulary
        compiled = await self.compile(constraint)
        guidance = compiled.start
        text = b""
        for _ in range(2000):
            text += b"".join(known.token_bytes[i] or b"" for i in guidance.forced_token_ids)
            words = np.frombuffer(guidance.bitmask, "<u4")
            allowed = [i for i in range(known.vocab_size) if words[i // 32] >> (i % 32) & 1]
            assert len(allowed) == guidance.num_allowed > 0
            token_id = int(rng.choice(allowed))
            if token_id in known.eos_token_ids:
                assert guidance.is_accepting
                return text
            text += known.token_bytes[token_id] or b""
            item = pb.AdvanceItem(grammar_id=compiled.grammar_id, state=guidance.after_forced, token_ids=[token_id])
            (result,) = await self.advance(item)
            guidance = result.guidance
        raise AssertionError("no end")


def _settings(**changes: Any) -> ConstraintSettings:
    values: dict[str, Any] = {"num_compile_processes": 1, "num_validate_processes": 1, "num_mask_threads": 2}
    return ConstraintSettings(**(values | changes))


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = RedisServer(tmp_path_factory.mktemp("r"))
    yield server
    server.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(redis_server: RedisServer) -> AsyncIterator[Served]:
    async with Served(_settings(redis_url=redis_server.url), Worker()) as served:
        yield served


async def _error_of(call: Any) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_a_compile_and_where_it_is_found_afterwards(served: Served, redis_server: RedisServer) -> None:
    schema = types_pb2.Constraint(json_schema='{"enum": ["unique to this test", 1]}')
    first = await served.compile(schema)
    assert first.cache_level == pb.CACHE_LEVEL_COMPILED
    assert [(k.pointer, k.enforcement) for k in first.keywords] == [("/enum", types_pb2.ENFORCEMENT_MASKED)]
    assert first.min_bytes == 1
    again = await served.compile(types_pb2.Constraint(json_schema='{"enum":["unique to this test",1]}'))
    assert (again.grammar_id, again.cache_level) == (first.grammar_id, pb.CACHE_LEVEL_MEMORY)
    assert again.start.state == first.start.state
    async with Served(_settings(redis_url=redis_server.url), Worker()) as other:
        found = await other.compile(schema)
    assert (found.grammar_id, found.cache_level) == (first.grammar_id, pb.CACHE_LEVEL_REDIS)
    assert found.keywords == first.keywords
    assert found.start.bitmask == first.start.bitmask
    assert found.start.state.epoch != first.start.state.epoch


async def test_parts_are_grammars_of_their_own(served: Served, redis_server: RedisServer) -> None:
    checked = types_pb2.Constraint(json_schema='{"type": "array", "items": {"type": "boolean"}, "uniqueItems": true}')
    parts = [types_pb2.Constraint(until="=>"), checked, types_pb2.Constraint(literal="!")]
    constraint = types_pb2.Constraint(sequence=types_pb2.Parts(parts=parts))
    first = await served.compile(constraint)
    assert first.cache_level == pb.CACHE_LEVEL_COMPILED
    assert [(k.pointer, k.enforcement) for k in first.keywords] == [
        ("/sequence/1/type", types_pb2.ENFORCEMENT_MASKED),
        ("/sequence/1/items", types_pb2.ENFORCEMENT_MASKED),
        ("/sequence/1/items/type", types_pb2.ENFORCEMENT_MASKED),
        ("/sequence/1/uniqueItems", types_pb2.ENFORCEMENT_CHECKED),
    ]
    assert first.min_bytes == len("=>1!")
    assert (await served.compile(checked)).cache_level == pb.CACHE_LEVEL_MEMORY
    tokens = vocabulary().encode("hm=>[true,false]!")
    (result,) = await served.advance(pb.AdvanceItem(grammar_id=first.grammar_id, token_ids=tokens))
    assert result.guidance.is_accepting
    (result,) = await served.advance(
        pb.AdvanceItem(grammar_id=first.grammar_id, token_ids=vocabulary().encode("hm=>[true,true]"))
    )
    assert from_item_status(result.error).reason == "TOKEN_REJECTED"
    async with Served(_settings(redis_url=redis_server.url), Worker()) as other:
        found = await other.compile(constraint)
        assert (found.grammar_id, found.cache_level) == (first.grammar_id, pb.CACHE_LEVEL_REDIS)
        assert found.start.bitmask == first.start.bitmask
        assert found.min_bytes == first.min_bytes


async def test_a_part_that_is_refused_is_named(served: Served) -> None:
    parts = [types_pb2.Constraint(regex="a"), types_pb2.Constraint(special_token="<|nobody|>")]
    constraint = types_pb2.Constraint(any_of=types_pb2.Parts(parts=parts))
    error = await _error_of(served.compile(constraint))
    assert isinstance(error, UnsupportedConstruct)
    assert error.metadata["token"] == "<|nobody|>"
    parts[1] = types_pb2.Constraint(regex="(")
    error = await _error_of(served.compile(types_pb2.Constraint(any_of=types_pb2.Parts(parts=parts))))
    assert isinstance(error, GrammarSyntax)
    assert error.metadata["part"] == "/any_of/1"
    error = await _error_of(served.compile(types_pb2.Constraint(sequence=types_pb2.Parts())))
    assert (error.reason, error.field) == ("INVALID_REQUEST", "sequence.parts")


async def test_random_ways_through_the_masks_end_in_valid_texts(served: Served) -> None:
    rng = np.random.default_rng(7)
    for _ in range(5):
        text = await served.write(types_pb2.Constraint(json_schema=json.dumps(SCHEMA, ensure_ascii=False)), rng)
        assert json.loads(text)["이름"] in ("김", "이")
    for _ in range(5):
        text = await served.write(types_pb2.Constraint(regex="(한|ab){2,3}"), rng)
        assert re.fullmatch("(한|ab){2,3}", text.decode())
    for _ in range(5):
        text = await served.write(types_pb2.Constraint(choices=types_pb2.Choices(values=["네", "아니요"])), rng)
        assert text.decode() in ("네", "아니요")


async def test_many_compiles_of_one_grammar_at_once_are_one(served: Served) -> None:
    regex = types_pb2.Constraint(regex="(only|once)[0-9]{1,20}")
    answers = await asyncio.gather(*(served.compile(regex) for _ in range(8)))
    assert len({answer.start.state.epoch for answer in answers}) == 1


async def test_options_make_other_grammars(served: Served) -> None:
    ids = {
        (await served.compile(options=types_pb2.CompileOptions(whitespace=whitespace, forcing=forcing))).grammar_id
        for whitespace in (types_pb2.WHITESPACE_BOUNDED, types_pb2.WHITESPACE_COMPACT, types_pb2.WHITESPACE_SPACED)
        for forcing in (types_pb2.FORCING_CANONICAL, types_pb2.FORCING_OFF)
    }
    assert len(ids) == 6
    assert (await served.compile()).grammar_id in ids


async def test_forced_tokens_and_the_end(served: Served) -> None:
    answer = await served.compile(types_pb2.Constraint(choices=types_pb2.Choices(values=["abc"])))
    start = answer.start
    assert len(start.forced_token_ids) == 3
    assert (start.is_accepting, start.num_allowed) == (True, 1)
    assert not start.HasField("witness_token_id")
    eos = served.worker.vocabulary.eos_token_ids  # type: ignore[union-attr]
    item = pb.AdvanceItem(grammar_id=answer.grammar_id, state=start.after_forced, token_ids=list(eos)[:1])
    (ended,) = await served.advance(item)
    assert ended.guidance.state.is_terminated
    assert ended.guidance.bitmask == b""
    (refused,) = await served.advance(
        pb.AdvanceItem(grammar_id=answer.grammar_id, state=ended.guidance.state, token_ids=[97])
    )
    assert isinstance(from_item_status(refused.error), TokenRejected)


async def test_items_fail_alone(served: Served) -> None:
    compiled = await served.compile()
    good = pb.AdvanceItem(grammar_id=compiled.grammar_id)
    results = await served.advance(
        good,
        pb.AdvanceItem(grammar_id="unknown"),
        pb.AdvanceItem(grammar_id=compiled.grammar_id, state=pb.MatcherState(epoch=1, configuration_id=1)),
        pb.AdvanceItem(
            grammar_id=compiled.grammar_id,
            state=pb.MatcherState(epoch=compiled.start.state.epoch, configuration_id=123456),
        ),
        pb.AdvanceItem(grammar_id=compiled.grammar_id, token_ids=[0]),
        pb.AdvanceItem(grammar_id=compiled.grammar_id, token_ids=[4_000_000_000]),
        good,
    )
    kinds = [type(from_item_status(r.error)) if r.HasField("error") else None for r in results]
    assert kinds == [None, LeaseExpired, LeaseExpired, LeaseExpired, TokenRejected, TokenRejected, None]
    assert from_item_status(results[4].error).metadata == {"index": "0", "token_id": "0"}


async def test_a_stream_answers_in_order(served: Served) -> None:
    compiled = await served.compile()

    async def requests() -> AsyncIterator[pb.StreamAdvanceRequest]:
        for request_id in range(20):
            yield pb.StreamAdvanceRequest(request_id=request_id, items=[pb.AdvanceItem(grammar_id=compiled.grammar_id)])

    answers = [answer async for answer in served.stub.StreamAdvance(requests())]
    assert [answer.request_id for answer in answers] == list(range(20))
    assert all(answer.results[0].guidance.state == compiled.start.state for answer in answers)


C = types_pb2.Constraint


@pytest.mark.parametrize(
    ("constraint", "kind"),
    [
        (C(json_schema="{"), GrammarSyntax),
        (C(json_schema='{"$ref": "urn:other"}'), UnsupportedConstruct),
        (C(json_schema="false"), UnsatisfiableGrammar),
        (C(lark="start: nothing"), GrammarSyntax),
        (C(regex="("), GrammarSyntax),
        (C(regex=r"(a)\1"), UnsupportedConstruct),
        (C(regex="a(?=b)"), UnsatisfiableGrammar),
        (C(choices=types_pb2.Choices()), InvalidRequest),
        (C(grammar_name="no such grammar"), UnknownGrammar),
        (C(grammar_name="../../etc/passwd"), UnknownGrammar),
    ],
)
async def test_bad_constraints(served: Served, constraint: Any, kind: type[ServiceError]) -> None:
    assert type(await _error_of(served.compile(constraint))) is kind


async def test_limits_on_a_compile_are_named() -> None:
    async with Served(_settings(max_source_bytes=1500, max_compile_s=0.01), Worker()) as served:
        error = await _error_of(served.compile(types_pb2.Constraint(regex="x" * 2000)))
        assert isinstance(error, GrammarTooLarge)
        assert error.metadata == {"limit": "max_source_bytes", "value": "1500"}
        documents = types_pb2.CompileOptions(documents={"urn:a": json.dumps("x" * 1500)})
        error = await _error_of(served.compile(types_pb2.Constraint(json_schema="{}"), options=documents))
        assert isinstance(error, GrammarTooLarge)
        assert error.metadata == {"limit": "max_source_bytes", "value": "1500"}
        error = await _error_of(served.compile(types_pb2.Constraint(regex="([a-z]{1,200}|[0-9]{1,300}){1,500}")))
        assert isinstance(error, GrammarTooLarge)
        assert error.metadata == {"limit": "max_compile_s", "value": "0.01"}


async def test_no_constraint_at_all(served: Served) -> None:
    error = await _error_of(served.stub.Compile(pb.CompileRequest(vocabulary_digest="x")))
    assert isinstance(error, InvalidRequest)
    assert error.field == "constraint"


@pytest.mark.parametrize("options", [{"whitespace": 99}, {"forcing": 99}])
async def test_options_of_the_future_are_refused(served: Served, options: dict[str, int]) -> None:
    error = await _error_of(served.compile(options=types_pb2.CompileOptions(**options)))  # type: ignore[arg-type]
    assert isinstance(error, InvalidRequest)
    assert "not known here" in error.message


async def test_named_grammars(served: Served) -> None:
    names = [grammar.name for grammar in (await served.stub.ListGrammars(pb.ListGrammarsRequest())).grammars]
    assert "json" in names
    for name in names:
        assert (await served.compile(types_pb2.Constraint(grammar_name=name))).start.num_allowed > 0


async def test_a_batch_that_is_too_large() -> None:
    async with Served(_settings(max_batch_items=2), Worker()) as served:
        item = pb.AdvanceItem(grammar_id="g")
        error = await _error_of(served.advance(item, item, item))
        assert isinstance(error, InvalidRequest)
        assert error.metadata == {"limit": "2"}


async def test_validation(served: Served) -> None:
    async def validate(text: bytes) -> pb.ValidateResponse:
        constraint = types_pb2.Constraint(json_schema=json.dumps(SCHEMA))
        return await served.stub.Validate(pb.ValidateRequest(constraint=constraint, text=text))

    assert await validate('{"이름": "김"}'.encode()) == pb.ValidateResponse(is_valid=True)
    answer = await validate('{"이름": "박"}'.encode())
    assert not answer.is_valid
    assert answer.violations[0].instance_pointer == "/이름"
    assert not (await validate(b"{")).is_valid
    assert not (await validate(b"\xff")).is_valid


async def test_validation_takes_the_options(served: Served) -> None:
    constraint = types_pb2.Constraint(json_schema='{"type": "string", "format": "date"}')
    for mode, is_valid in ((types_pb2.FORMAT_ASSERT, False), (types_pb2.FORMAT_ANNOTATION, True)):
        options = types_pb2.CompileOptions(format=mode)
        request = pb.ValidateRequest(constraint=constraint, options=options, text=b'"x"')
        assert (await served.stub.Validate(request)).is_valid == is_valid


async def test_a_text_that_is_too_large() -> None:
    async with Served(_settings(max_text_bytes=3), Worker()) as served:
        request = pb.ValidateRequest(constraint=types_pb2.Constraint(regex="a*"), text=b"aaaa")
        assert isinstance(await _error_of(served.stub.Validate(request)), InvalidRequest)


async def test_another_vocabulary_is_refused_until_the_worker_has_it() -> None:
    async with Served(_settings(), Worker()) as served:
        old = await served.compile()
        old_vocabulary = served.worker.vocabulary
        new = vocabulary(padding=40)
        served.service._fetched_at = float("-inf")
        assert isinstance(await _error_of(served.compile(vocabulary_digest=new.digest)), VocabularyMismatch)

        served.worker.vocabulary = new
        served.service._fetched_at = float("-inf")
        moved = await served.compile(vocabulary_digest=new.digest)
        assert moved.grammar_id != old.grammar_id
        (gone,) = await served.advance(pb.AdvanceItem(grammar_id=old.grammar_id, state=old.start.state))
        assert isinstance(from_item_status(gone.error), LeaseExpired)
        assert old_vocabulary is not None
        mismatch = await _error_of(served.compile(vocabulary_digest=old_vocabulary.digest))
        assert mismatch.metadata == {"expected": new.digest, "actual": old_vocabulary.digest}


async def test_mismatches_do_not_make_it_ask_the_worker_all_the_time() -> None:
    async with Served(_settings(), Worker()) as served:
        for _ in range(5):
            await _error_of(served.compile(vocabulary_digest="other"))
        assert served.worker.num_calls <= 2


async def test_eviction_is_lease_expired() -> None:
    async with Served(_settings(max_grammar_memory_bytes=1 << 20), Worker()) as served:
        first = await served.compile()
        for i in range(30):
            await served.compile(types_pb2.Constraint(regex=f"[a-z]{{1,5}}{i}"))
        (result,) = await served.advance(pb.AdvanceItem(grammar_id=first.grammar_id, state=first.start.state))
        assert isinstance(from_item_status(result.error), LeaseExpired)
        assert (await served.compile()).grammar_id == first.grammar_id


@pytest.mark.parametrize("url", ["unix:///nowhere/at/all.sock", "redis://127.0.0.1:9"])
async def test_without_its_redis_everything_works(url: str) -> None:
    async with Served(_settings(redis_url=url), Worker()) as served:
        assert (await served.compile()).cache_level == pb.CACHE_LEVEL_COMPILED
        assert (await served.compile()).cache_level == pb.CACHE_LEVEL_MEMORY


async def test_redis_that_dies_and_returns(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    async with Served(_settings(redis_url=server.url), Worker()) as served:
        await served.compile(types_pb2.Constraint(regex="a"))
        server.kill()
        assert (await served.compile(types_pb2.Constraint(regex="b"))).cache_level == pb.CACHE_LEVEL_COMPILED
        server.start()
        assert (await served.compile(types_pb2.Constraint(regex="c"))).cache_level == pb.CACHE_LEVEL_COMPILED
    server.kill()
