"""Client of the model worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import grpc.aio
import numpy as np
import structlog
from espalier.v1 import model_worker_pb2 as pb
from espalier.v1 import model_worker_pb2_grpc

from gateway.clients.peer import Metadata, PairedStream, Peer, converted
from gateway.decode.interfaces import Step, StepReply
from services.rpckit.calls import outgoing_metadata
from services.rpckit.rich_status import from_item_status
from services.rpckit.status import LeaseExpired, NotReady, OutOfCapacity, ServiceError, VocabularyMismatch
from services.vocabulary import UnsupportedTokenizerError, Vocabulary
from services.vocabulary.client import fetch_vocabulary

_RELEASE_TIMEOUT_S: Final = 10.0
_GET_MODEL_TIMEOUT_S: Final = 10.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Model:
    """What model answers, with its vocabulary."""

    name: str
    vocabulary: Vocabulary
    vocabulary_digest: str
    vocab_size: int
    context_length: int
    bos_token_id: int | None
    chat_template: str | None
    num_parameters: int
    num_active_parameters: int
    architecture: str
    num_layers: int
    num_experts: int
    num_experts_per_tok: int
    flops_per_token: int
    dense_flops_per_token: int
    flops_per_context_token: int
    weight_bytes: int
    dtype: str
    device: str


class ModelWorkerClient:
    """Calls one worker. Its vocabulary is kept until it answers with another digest: each worker has its own model."""

    def __init__(
        self, peer: Peer, *, step_timeout_s: float, vocabularies: WeakValueDictionary[str, Vocabulary] | None = None
    ) -> None:
        """Share `vocabularies`, by digest, with the clients of other workers: they are large, and mostly the same."""
        self.peer = peer
        self._vocabularies = WeakValueDictionary() if vocabularies is None else vocabularies
        self._step_timeout_s = step_timeout_s
        self._stub = model_worker_pb2_grpc.ModelWorkerServiceStub(self.peer.channel)
        self._model: Model | None = None
        self._fetching = asyncio.Lock()
        self._releasing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Finish the releases under way and disconnect."""
        if self._releasing:
            await asyncio.wait(self._releasing, timeout=1)
        await self.peer.close()

    async def model(self) -> Model:
        """Return the model known from earlier calls, or ask for it.

        Raises:
            ServiceError: the worker is away, or its tokenizer cannot be used.
        """
        return self._model or await self.refresh(None)

    async def refresh(self, known: Model | None) -> Model:
        """Ask for the model anew, unless another caller just did: then it is not `known` any more."""
        async with self._fetching:
            if self._model is None or self._model is known:
                self._model = await self._fetch()
            return self._model

    async def check(self, known: Model, metadata: Metadata) -> bool:
        """Return whether the worker still runs the model whose vocabulary is in use."""
        try:
            answer = await self._stub.GetModel(pb.GetModelRequest(), timeout=_GET_MODEL_TIMEOUT_S, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self.peer.translate(error) from None
        return answer.vocabulary_digest == known.vocabulary_digest and answer.name == known.name

    def open_steps(self, *, deadline: float, metadata: Metadata) -> WorkerSteps:
        """Make a stream for one generation, which ends at `deadline` (of `time.monotonic`)."""
        stream: PairedStream[pb.StreamStepLogitsResponse] = PairedStream(
            self.peer,
            lambda requests: self._stub.StreamStepLogits(
                requests, timeout=max(deadline - time.monotonic(), 0), metadata=metadata
            ),
            response_timeout_s=self._step_timeout_s,
        )
        return WorkerSteps(self, stream)

    async def release(self, sequence_ids: Sequence[str]) -> None:
        """Free sequences. Goes on when the caller is cancelled; a failure is logged, the lease frees them then."""
        task = asyncio.ensure_future(self._release(list(sequence_ids)))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        await asyncio.shield(task)

    async def _release(self, sequence_ids: list[str]) -> None:
        try:
            await self._stub.ReleaseSequences(
                pb.ReleaseSequencesRequest(sequence_ids=sequence_ids),
                timeout=_RELEASE_TIMEOUT_S,
                metadata=outgoing_metadata(),
            )
        except grpc.aio.AioRpcError as error:
            _log.warning("sequences are left to their lease", sequence_ids=sequence_ids, error=error.details())

    async def _fetch(self) -> Model:
        try:
            answer, vocabulary = await fetch_vocabulary(self.peer.channel)
        except grpc.aio.AioRpcError as error:
            raise self.peer.translate(error) from None
        except VocabularyMismatch as error:
            raise self.peer.away(f"changes its model just now; try again ({error.message})") from error
        except (UnsupportedTokenizerError, ValueError) as error:
            raise ServiceError(
                f"the tokenizer of the model worker at {self.peer.address} cannot be used: {error}"
            ) from error
        vocabulary = self._vocabularies.setdefault(vocabulary.digest, vocabulary)
        return Model(
            name=answer.name,
            vocabulary=vocabulary,
            vocabulary_digest=answer.vocabulary_digest,
            vocab_size=answer.vocab_size,
            context_length=answer.context_length,
            bos_token_id=answer.bos_token_id if answer.HasField("bos_token_id") else None,
            chat_template=answer.chat_template if answer.HasField("chat_template") else None,
            num_parameters=answer.num_parameters,
            num_active_parameters=answer.num_active_parameters,
            architecture=answer.architecture,
            num_layers=answer.moe.num_layers,
            num_experts=answer.moe.num_experts,
            num_experts_per_tok=answer.moe.num_experts_per_tok,
            flops_per_token=answer.flops_per_token,
            dense_flops_per_token=answer.dense_flops_per_token,
            flops_per_context_token=answer.flops_per_context_token,
            weight_bytes=answer.weight_bytes,
            dtype=answer.dtype,
            device=answer.device,
        )


class WorkerSteps:
    """The `StepStream` of one generation over gRPC."""

    def __init__(self, client: ModelWorkerClient, stream: PairedStream[pb.StreamStepLogitsResponse]) -> None:
        self._client = client
        self._stream = stream

    def submit(self, step: Step) -> asyncio.Future[StepReply]:
        """Send a step without waiting; the future fails with a ServiceError."""
        message = pb.SequenceStep(
            sequence_id=step.sequence_id,
            position=step.position,
            token_ids=step.token_ids,
            truncate_to=step.truncate_to,
            fork_of=step.fork_of,
            logits=pb.LOGITS_SELECTION_ALL if step.wants_all_rows else pb.LOGITS_SELECTION_LAST,
        )
        sent = self._stream.send(lambda request_id: pb.StreamStepLogitsRequest(request_id=request_id, steps=[message]))
        num_rows = len(step.token_ids) if step.wants_all_rows else 1
        return converted(sent, lambda response: _reply(self._client.peer, response, num_rows))

    async def release(self, sequence_ids: Sequence[str]) -> None:
        """Free sequences; raises nothing, because a lease frees them too."""
        await self._client.release(sequence_ids)

    async def close(self) -> None:
        """End the stream."""
        await self._stream.close()


def _reply(peer: Peer, response: pb.StreamStepLogitsResponse, num_rows: int) -> StepReply:
    if len(response.results) != 1:
        raise ServiceError(f"the model worker answered one step with {len(response.results)} results")
    result = response.results[0]
    if result.HasField("error"):
        error = from_item_status(result.error)
        if isinstance(error, LeaseExpired | NotReady | OutOfCapacity):
            raise peer.away(f"is not ready: {error.message}") if isinstance(error, NotReady) else error
        # The caller's request was checked before: what the worker refuses here is our mistake, not theirs.
        raise ServiceError(f"the model worker refused a step: {error.message}", step_reason=error.reason)
    logits = np.frombuffer(result.logits, "<f4")
    if result.num_rows != num_rows or not len(logits):
        raise ServiceError(
            f"the model worker answered with {result.num_rows} rows of logits where {num_rows} were asked for"
        )
    return StepReply(logits.reshape(num_rows, -1), result.forward_us)
