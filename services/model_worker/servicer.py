"""The worker's RPCs: parse, call, build the reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc.aio
from espalier.v1 import model_worker_pb2, model_worker_pb2_grpc

from services.model_worker.batching import StepOutcome
from services.model_worker.routing import Routing
from services.model_worker.sequence import LogitsSelection, Step
from services.model_worker.service import WorkerService
from services.model_worker.step_spans import record_steps
from services.rpckit.calls import current_span
from services.rpckit.rich_status import to_item_status
from services.rpckit.status import InvalidRequest, ServiceError

FULL_SERVICE_NAME: Final[str] = model_worker_pb2.DESCRIPTOR.services_by_name["ModelWorkerService"].full_name

_CHUNK_BYTES: Final = 1 << 20
_MAX_LOGIT_BYTES: Final = 60 << 20
"""Most bytes of logits in one reply: a little less than the largest message."""
_MAX_BATCHES_IN_FLIGHT: Final = 256
"""Of one stream; a caller that sends more waits for answers first."""

_Context = grpc.aio.ServicerContext
_Answer = StepOutcome | BaseException

_SELECTION: Final[dict[int, LogitsSelection]] = {
    model_worker_pb2.LOGITS_SELECTION_UNSPECIFIED: "last",
    model_worker_pb2.LOGITS_SELECTION_NONE: "none",
    model_worker_pb2.LOGITS_SELECTION_LAST: "last",
    model_worker_pb2.LOGITS_SELECTION_ALL: "all",
}


class ModelWorkerServicer(model_worker_pb2_grpc.ModelWorkerServiceServicer):
    """Errors are raised as `ServiceError`; the interceptor gives them to the caller."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service

    async def GetModel(
        self, request: model_worker_pb2.GetModelRequest, context: _Context[Any, Any]
    ) -> model_worker_pb2.GetModelResponse:
        """Say what model runs here."""
        loaded = self._service.loaded
        config = loaded.model.config
        return model_worker_pb2.GetModelResponse(
            name=loaded.name,
            architecture=config.architecture,
            vocabulary_digest=loaded.vocabulary_digest,
            vocab_size=config.vocab_size,
            context_length=self._service.context_length,
            bos_token_id=loaded.tokenizer.bos_token_id,
            eos_token_ids=loaded.tokenizer.eos_token_ids,
            chat_template=loaded.tokenizer.chat_template,
            moe=model_worker_pb2.MoeShape(
                num_layers=config.num_hidden_layers,
                num_experts=config.num_experts,
                num_experts_per_tok=config.num_experts_per_tok,
            ),
            num_parameters=loaded.num_parameters,
            num_active_parameters=loaded.num_active_parameters,
            dtype=loaded.dtype,
            device=str(loaded.model.device),
            flops_per_token=loaded.cost.flops_per_token,
            dense_flops_per_token=loaded.cost.dense_flops_per_token,
            flops_per_context_token=loaded.cost.flops_per_context_token,
            weight_bytes=loaded.cost.weight_bytes,
        )

    async def GetRouting(
        self, request: model_worker_pb2.GetRoutingRequest, context: _Context[Any, Any]
    ) -> model_worker_pb2.GetRoutingResponse:
        """Say where tokens were routed."""
        routing = self._service.routing
        total = routing.total
        return model_worker_pb2.GetRoutingResponse(
            num_tokens=total.num_tokens, layers=_layer_messages(routing.layers, total)
        )

    async def GetTokenizer(
        self, request: model_worker_pb2.GetTokenizerRequest, context: _Context[Any, Any]
    ) -> AsyncIterator[model_worker_pb2.GetTokenizerResponse]:
        """Send the tokenizer in pieces."""
        tokenizer_json = self._service.loaded.tokenizer.tokenizer_json
        for start in range(0, len(tokenizer_json), _CHUNK_BYTES):
            yield model_worker_pb2.GetTokenizerResponse(chunk=tokenizer_json[start : start + _CHUNK_BYTES])

    async def StepLogits(
        self, request: model_worker_pb2.StepLogitsRequest, context: _Context[Any, Any]
    ) -> model_worker_pb2.StepLogitsResponse:
        """Apply one batch of steps."""
        if not request.steps:
            raise InvalidRequest("a batch needs at least one step", field="steps")
        answers = await self._submit(request.steps, object())
        return model_worker_pb2.StepLogitsResponse(
            results=_results(request.steps, answers, self._service.routing.layers)
        )

    async def StreamStepLogits(
        self,
        request_iterator: AsyncIterator[model_worker_pb2.StreamStepLogitsRequest],
        context: _Context[Any, Any],
    ) -> AsyncIterator[model_worker_pb2.StreamStepLogitsResponse]:
        """Apply batches as they come, answer each as soon as it is done."""
        stream = object()  # told apart from all others by being another object
        answers: asyncio.Queue[model_worker_pb2.StreamStepLogitsResponse | Exception | None] = asyncio.Queue()
        room = asyncio.Semaphore(_MAX_BATCHES_IN_FLIGHT)
        batches: set[asyncio.Task[None]] = set()

        async def answer(
            request: model_worker_pb2.StreamStepLogitsRequest, submitted: asyncio.Future[list[_Answer]]
        ) -> None:
            try:
                results = _results(request.steps, await submitted, self._service.routing.layers)
            except Exception as error:  # a bug: ends the stream rather than leave the caller waiting
                answers.put_nowait(error)
                return
            answers.put_nowait(
                model_worker_pb2.StreamStepLogitsResponse(request_id=request.request_id, results=results)
            )

        async def read() -> None:
            try:
                async for request in request_iterator:
                    await room.acquire()
                    # Queued here and now, so that batches are applied in the order of sending.
                    try:
                        submitted = self._submit(request.steps, stream)
                    except ServiceError as error:  # of the whole batch, but not of the stream
                        submitted = asyncio.gather(*(_failed(error) for _ in request.steps), return_exceptions=True)
                    task = asyncio.ensure_future(answer(request, submitted))
                    batches.add(task)
                    task.add_done_callback(batches.discard)
                while batches:
                    await asyncio.wait(batches)
            finally:
                answers.put_nowait(None)

        reader = asyncio.ensure_future(read())
        try:
            while (response := await answers.get()) is not None:
                if isinstance(response, Exception):
                    raise response
                room.release()
                yield response
            await reader
        finally:
            # The caller has gone, or has closed the stream and has all answers.
            for task in (reader, *batches):
                task.cancel()

    async def ReleaseSequences(
        self, request: model_worker_pb2.ReleaseSequencesRequest, context: _Context[Any, Any]
    ) -> model_worker_pb2.ReleaseSequencesResponse:
        """Free sequences."""
        num_released = await asyncio.wrap_future(self._service.engine.release(request.sequence_ids))
        return model_worker_pb2.ReleaseSequencesResponse(num_released=num_released)

    def _submit(
        self, messages: Sequence[model_worker_pb2.SequenceStep], stream: object
    ) -> asyncio.Future[list[_Answer]]:
        """Queue the steps now; the future has an outcome or an error for each. Cancelling it drops them."""
        steps = [_step(message) for message in messages]
        good = [step for step in steps if isinstance(step, Step)]
        num_rows = sum(_num_rows(step) for step in good)
        row_bytes = 4 * self._service.loaded.model.config.vocab_size
        if num_rows * row_bytes > _MAX_LOGIT_BYTES:
            raise InvalidRequest(
                f"the batch asks for {num_rows} rows of logits, one reply holds {_MAX_LOGIT_BYTES // row_bytes}; "
                "split it, or ask for fewer",
                field="steps",
                num_rows=num_rows,
                max_rows=_MAX_LOGIT_BYTES // row_bytes,
            )
        outcomes = iter(self._service.engine.submit(good, stream=stream))
        waiting = [asyncio.wrap_future(next(outcomes)) if isinstance(step, Step) else _failed(step) for step in steps]
        return asyncio.gather(*waiting, return_exceptions=True)


def _step(message: model_worker_pb2.SequenceStep) -> Step | ServiceError:
    """Parse a step; an error is an answer to this step only."""
    if message.logits not in _SELECTION:
        return InvalidRequest(f"there is no logits selection {message.logits}", field="logits")
    return Step(
        sequence_id=message.sequence_id,
        position=message.position,
        token_ids=tuple(message.token_ids),
        truncate_to=message.truncate_to if message.HasField("truncate_to") else None,
        fork_of=message.fork_of if message.HasField("fork_of") else None,
        logits=_SELECTION[message.logits],
        wants_experts=message.wants_experts,
        wants_routing=message.wants_routing,
        ignores_cache=message.ignores_cache,
    )


def _num_rows(step: Step) -> int:
    return {"none": 0, "last": min(1, len(step.token_ids)), "all": len(step.token_ids)}[step.logits]


def _failed(error: ServiceError) -> asyncio.Future[StepOutcome]:
    future: asyncio.Future[StepOutcome] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def _results(
    messages: Sequence[model_worker_pb2.SequenceStep], answers: Sequence[_Answer], routed_layers: Sequence[int]
) -> list[model_worker_pb2.StepResult]:
    if (span := current_span()) is not None:
        record_steps(span, messages, answers)
    return [
        _result(message.sequence_id, answer, routed_layers) for message, answer in zip(messages, answers, strict=True)
    ]


def _result(sequence_id: str, answer: _Answer, routed_layers: Sequence[int]) -> model_worker_pb2.StepResult:
    if isinstance(answer, ServiceError):
        return model_worker_pb2.StepResult(sequence_id=sequence_id, error=to_item_status(answer))
    if isinstance(answer, BaseException):
        raise answer
    return model_worker_pb2.StepResult(
        sequence_id=sequence_id,
        position=answer.position,
        logits=answer.logits.astype("<f4", copy=False).tobytes(),
        num_rows=len(answer.logits),
        queue_us=round(answer.queue_s * 1e6),
        forward_us=round(answer.forward_s * 1e6),
        num_cached_tokens=answer.num_cached_tokens,
        expert_ids=b"" if answer.experts is None else answer.experts.astype("<u2", copy=False).tobytes(),
        routing=[] if answer.routing is None else _layer_messages(routed_layers, answer.routing),
    )


def _layer_messages(layers: Sequence[int], routing: Routing) -> list[model_worker_pb2.LayerRouting]:
    return [
        model_worker_pb2.LayerRouting(
            layer=layer,
            tokens_per_expert=counts,
            mean_probabilities=means,
            mean_entropy=entropy,
            balance=balance,
        )
        for layer, counts, means, entropy, balance in zip(
            layers,
            routing.tokens_per_expert,
            routing.mean_probabilities,
            routing.mean_entropy,
            routing.balance,
            strict=True,
        )
    ]
