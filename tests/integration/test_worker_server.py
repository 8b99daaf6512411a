"""The worker as its callers see it: gRPC, a real server in this process, the toy model."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import numpy as np
import pytest
from espalier.v1 import model_worker_pb2 as pb
from espalier.v1 import model_worker_pb2_grpc, types_pb2

from services.model_worker.model.kernels import NotDeterministicError
from services.model_worker.sequence import Step
from services.model_worker.service import WorkerService
from services.model_worker.servicer import ModelWorkerServicer
from services.model_worker.settings import WorkerSettings
from services.rpckit.interceptors import CallInterceptor
from services.rpckit.options import CHANNEL_OPTIONS, SERVER_OPTIONS
from services.rpckit.rich_status import from_item_status, from_rpc_error
from services.rpckit.status import InvalidRequest, LeaseExpired
from services.vocabulary.client import fetch_vocabulary
from tests.support.toy_model import TOLERANCE, prefill_logits, random_tokens

TOKENS = random_tokens(200)


class Worker:
    def __init__(self, service: WorkerService, channel: grpc.aio.Channel) -> None:
        self.service = service
        self.channel = channel
        self.stub = model_worker_pb2_grpc.ModelWorkerServiceStub(channel)

    async def num_open_sequences(self) -> int:
        """Count after a round of the engine, which a release starts."""
        await asyncio.wrap_future(self.service.engine.release([]))
        return len(self.service.engine._sequences)


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    service = WorkerService(WorkerSettings.read(["--model", "toy", "--num-threads", "1", "--max-batch-tokens", "16"]))
    await service.start()
    server = grpc.aio.server(interceptors=[CallInterceptor("worker", lambda: True)], options=SERVER_OPTIONS)
    model_worker_pb2_grpc.add_ModelWorkerServiceServicer_to_server(ModelWorkerServicer(service), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
        await channel.channel_ready()
        yield Worker(service, channel)
    await server.stop(0)
    await service.stop()


def rows(result: pb.StepResult) -> np.ndarray:
    assert not result.HasField("error"), result.error
    return np.frombuffer(result.logits, "<f4").reshape(result.num_rows, -1)


def error_of(status: types_pb2.Status) -> Exception:
    return from_item_status(status)


async def test_model_and_tokenizer_agree(worker: Worker) -> None:
    model, vocabulary = await fetch_vocabulary(worker.channel)
    assert (model.name, model.vocab_size, model.context_length) == ("toy", 300, 4096)
    assert list(model.eos_token_ids) == [0, 2]
    assert (model.moe.num_layers, model.moe.num_experts, model.moe.num_experts_per_tok) == (2, 4, 2)
    assert 0 < model.num_active_parameters < model.num_parameters
    assert (model.dtype, model.device, model.HasField("bos_token_id")) == ("float32", "cpu", False)
    assert vocabulary.decode(vocabulary.encode("가 the 😀")) == "가 the 😀".encode()


async def test_the_model_says_what_a_token_costs(worker: Worker) -> None:
    model = await worker.stub.GetModel(pb.GetModelRequest())
    assert 0 < model.flops_per_token < model.dense_flops_per_token
    assert model.flops_per_context_token == 2 * 4 * 4 * 16  # 2 layers, 4 heads of 16
    assert model.weight_bytes == 4 * model.num_parameters


async def test_routing_is_told_layer_by_layer(worker: Worker) -> None:
    nothing = await worker.stub.GetRouting(pb.GetRoutingRequest())
    assert (nothing.num_tokens, [layer.balance for layer in nothing.layers]) == (0, [1, 1])
    step = pb.SequenceStep(sequence_id="a", token_ids=TOKENS[:40])
    await worker.stub.StepLogits(pb.StepLogitsRequest(steps=[step]))
    routing = await worker.stub.GetRouting(pb.GetRoutingRequest())
    assert routing.num_tokens == 40
    for number, layer in enumerate(routing.layers):
        assert layer.layer == number
        assert sum(layer.tokens_per_expert) == 2 * 40
        assert sum(layer.mean_probabilities) == pytest.approx(1)
        assert 0 < layer.mean_entropy < np.log(4)
        assert 1 <= layer.balance + 0.05 <= 2.05
    await worker.stub.ReleaseSequences(pb.ReleaseSequencesRequest(sequence_ids=["a"]))


async def test_a_step_tells_what_the_routers_did_over_its_tokens(worker: Worker) -> None:
    before = pb.SequenceStep(sequence_id="a", token_ids=TOKENS[:40])
    cached = pb.SequenceStep(sequence_id="b", token_ids=TOKENS[:40], wants_experts=True, wants_routing=True)
    whole = pb.SequenceStep(sequence_id="c", token_ids=TOKENS[:40], wants_experts=True, wants_routing=True)
    whole.ignores_cache = True
    results = []
    for step in (before, cached, whole):
        results += (await worker.stub.StepLogits(pb.StepLogitsRequest(steps=[step]))).results
    for result, num_tokens in zip(results, (0, 8, 40), strict=True):
        experts = np.frombuffer(result.expert_ids, "<u2").reshape(num_tokens, 2, 2)
        assert [layer.layer for layer in result.routing] == ([0, 1] if num_tokens else [])
        for number, layer in enumerate(result.routing):
            assert layer.tokens_per_expert == np.bincount(experts[:, number].flatten(), minlength=4).tolist()
            assert 0 < layer.mean_entropy < np.log(4)
    assert [result.num_cached_tokens for result in results] == [0, 32, 0]
    await worker.stub.ReleaseSequences(pb.ReleaseSequencesRequest(sequence_ids=["a", "b", "c"]))
    assert await worker.num_open_sequences() == 0


async def test_a_step_answers_with_logits_and_times(worker: Worker) -> None:
    response = await worker.stub.StepLogits(
        pb.StepLogitsRequest(
            steps=[
                pb.SequenceStep(sequence_id="a", token_ids=TOKENS[:20], logits=pb.LOGITS_SELECTION_ALL),
                pb.SequenceStep(sequence_id="a", position=20, token_ids=TOKENS[20:21]),
                pb.SequenceStep(sequence_id="b", position=10, fork_of="a", token_ids=[5]),
            ]
        )
    )
    whole, last, fork = response.results
    assert [result.position for result in response.results] == [20, 21, 11]
    expected = prefill_logits(TOKENS[:21])
    np.testing.assert_allclose(np.concatenate([rows(whole), rows(last)]), expected, atol=TOLERANCE)
    np.testing.assert_allclose(rows(fork), prefill_logits([*TOKENS[:10], 5])[-1:], atol=TOLERANCE)
    assert whole.forward_us > 0
    released = await worker.stub.ReleaseSequences(pb.ReleaseSequencesRequest(sequence_ids=["a", "b", "c"]))
    assert released.num_released == 2


async def test_a_bad_step_has_its_own_error(worker: Worker) -> None:
    response = await worker.stub.StepLogits(
        pb.StepLogitsRequest(
            steps=[
                pb.SequenceStep(sequence_id="gone", position=3, token_ids=[5]),
                pb.SequenceStep(sequence_id="a", token_ids=[5], logits=99),  # type: ignore[arg-type]
                pb.SequenceStep(sequence_id="good", token_ids=[5]),
            ]
        )
    )
    gone, odd, good = response.results
    assert isinstance(error_of(gone.error), LeaseExpired)
    assert isinstance(error_of(odd.error), InvalidRequest)
    assert rows(good).shape == (1, 300)


async def test_a_batch_without_steps_and_one_with_too_many_rows_are_refused(worker: Worker) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as empty:
        await worker.stub.StepLogits(pb.StepLogitsRequest())
    assert isinstance(from_rpc_error(empty.value), InvalidRequest)
    step = pb.SequenceStep(sequence_id="a", token_ids=[5] * 4000, logits=pb.LOGITS_SELECTION_ALL)
    with pytest.raises(grpc.aio.AioRpcError) as large:
        await worker.stub.StepLogits(pb.StepLogitsRequest(steps=[step] * 14))
    assert from_rpc_error(large.value).metadata["max_rows"] == "52428"
    assert await worker.num_open_sequences() == 0


async def test_a_stream_answers_every_batch_and_survives_bad_ones(worker: Worker) -> None:
    stream = worker.stub.StreamStepLogits()
    too_large = pb.SequenceStep(sequence_id="x", token_ids=[5] * 4000, logits=pb.LOGITS_SELECTION_ALL)
    batches = {
        7: [pb.SequenceStep(sequence_id="long", token_ids=TOKENS)],
        8: [pb.SequenceStep(sequence_id="short", token_ids=[5])],
        9: [],
        10: [too_large] * 14,
        11: [pb.SequenceStep(sequence_id="short", position=1, token_ids=[6])],
    }
    for request_id, steps in batches.items():
        await stream.write(pb.StreamStepLogitsRequest(request_id=request_id, steps=steps))
    await stream.done_writing()
    answers = {answer.request_id: answer.results async for answer in stream}
    assert {request_id: len(results) for request_id, results in answers.items()} == {7: 1, 8: 1, 9: 0, 10: 14, 11: 1}
    assert isinstance(error_of(answers[10][13].error), InvalidRequest)
    np.testing.assert_allclose(rows(answers[7][0]), prefill_logits(TOKENS)[-1:], atol=TOLERANCE)
    np.testing.assert_allclose(rows(answers[11][0]), prefill_logits([5, 6])[-1:], atol=TOLERANCE)
    # Sequences outlive the stream.
    assert await worker.num_open_sequences() == 2


async def test_short_steps_overtake_a_long_prompt(worker: Worker) -> None:
    stream = worker.stub.StreamStepLogits()
    for request_id, token_ids in enumerate(([5] * 3000, [5])):
        step = pb.SequenceStep(sequence_id=str(request_id), token_ids=token_ids)
        await stream.write(pb.StreamStepLogitsRequest(request_id=request_id, steps=[step]))
    await stream.done_writing()
    assert [answer.request_id async for answer in stream] == [1, 0]


async def test_a_caller_that_goes_leaves_nothing_half_done(worker: Worker) -> None:
    long = pb.SequenceStep(sequence_id="long", token_ids=[5] * 4000)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await worker.stub.StepLogits(pb.StepLogitsRequest(steps=[long]), timeout=0.05)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    stream = worker.stub.StreamStepLogits()
    await stream.write(pb.StreamStepLogitsRequest(request_id=1, steps=[long]))
    await asyncio.sleep(0.05)
    stream.cancel()
    for _ in range(100):
        engine = worker.service.engine
        if not engine._running and not engine._waiting and not engine._arrived:
            break
        await asyncio.sleep(0.02)
    assert await worker.num_open_sequences() == 0
    assert engine._cache.num_free_blocks == engine._cache.num_blocks


async def test_streams_are_batched_together_and_stay_apart(worker: Worker) -> None:
    async def decode(name: str, token_ids: tuple[int, ...]) -> np.ndarray:
        stream = worker.stub.StreamStepLogits()
        logits = []
        for position, token_id in enumerate(token_ids):
            step = pb.SequenceStep(sequence_id=name, position=position, token_ids=[token_id])
            await stream.write(pb.StreamStepLogitsRequest(request_id=position, steps=[step]))
            response = await stream.read()
            assert isinstance(response, pb.StreamStepLogitsResponse)
            logits.append(rows(response.results[0]))
        await stream.done_writing()
        return np.concatenate(logits)

    texts = [random_tokens(12, seed=i) for i in range(16)]
    results = await asyncio.gather(*(decode(str(i), text) for i, text in enumerate(texts)))
    for text, logits in zip(texts, results, strict=True):
        np.testing.assert_allclose(logits, prefill_logits(text), atol=TOLERANCE)


async def test_deterministic_mode_is_a_setting() -> None:
    service = WorkerService(WorkerSettings.read(["--model", "toy", "--num-threads", "2", "--deterministic"]))
    await service.start()
    texts = [random_tokens(length, seed=length) for length in (40, 3, 170)]
    together = service.engine.submit(
        [Step(sequence_id=f"together {i}", position=0, token_ids=text) for i, text in enumerate(texts)]
    )
    rows_together = [future.result(timeout=20).logits for future in together]
    for i, text in enumerate(texts):
        _, last = service.engine.submit(
            [
                Step(sequence_id=f"alone {i}", position=0, token_ids=text[:-1]),
                Step(sequence_id=f"alone {i}", position=len(text) - 1, token_ids=text[-1:]),
            ]
        )
        assert np.array_equal(last.result(timeout=20).logits, rows_together[i])
    await service.stop()


async def test_a_machine_without_deterministic_kernels_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def impossible(*_: object) -> None:
        raise NotDeterministicError("rows differ here")

    monkeypatch.setattr("services.model_worker.service.deterministic_kernels", impossible)
    service = WorkerService(WorkerSettings.read(["--model", "toy", "--deterministic"]))
    with pytest.raises(InvalidRequest, match="rows differ here"):
        await service.start()
