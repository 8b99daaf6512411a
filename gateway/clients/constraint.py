"""Client of the constraint service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import grpc.aio
import numpy as np
from espalier.v1 import constraint_pb2 as pb
from espalier.v1 import constraint_pb2_grpc, types_pb2

from gateway.clients.peer import Metadata, PairedStream, Peer, converted
from gateway.decode.interfaces import (
    Compiled,
    CompileOptions,
    Constraint,
    Guidance,
    KeywordReport,
    MatcherState,
    Violation,
)
from services.rpckit.enums import with_words, word_of
from services.rpckit.rich_status import from_item_status
from services.rpckit.status import InvalidRequest, ServiceError
from services.rpckit.tls import ClientTls


class ConstraintClient:
    """Calls the constraint service at one address."""

    def __init__(self, address: str, *, advance_timeout_s: float, tls: ClientTls | None = None) -> None:
        self.peer = Peer("constraint", address, tls)
        self.advance_timeout_s = advance_timeout_s
        self.stub = constraint_pb2_grpc.ConstraintServiceStub(self.peer.channel)

    async def close(self) -> None:
        """Disconnect."""
        await self.peer.close()

    def open(self, *, vocabulary_digest: str, deadline: float, metadata: Metadata) -> ConstraintCalls:
        """Make the calls of one generation, which end at `deadline` (of `time.monotonic`)."""
        return ConstraintCalls(self, vocabulary_digest, deadline, metadata)

    async def agree(self, vocabulary_digest: str, *, timeout_s: float) -> None:
        """Return when the service has the vocabulary of this digest.

        Raises:
            NotReady, DeadlineExceeded: it is away.
            VocabularyMismatch: it has another one.
        """
        calls = self.open(vocabulary_digest=vocabulary_digest, deadline=time.monotonic() + timeout_s, metadata=())
        await calls.compile(Constraint("choices", choices=("a",)), CompileOptions())


class ConstraintCalls:
    """The `ConstraintStream` of one generation over gRPC."""

    def __init__(self, client: ConstraintClient, vocabulary_digest: str, deadline: float, metadata: Metadata) -> None:
        self._client = client
        self._vocabulary_digest = vocabulary_digest
        self._deadline = deadline
        self._metadata = metadata
        self._stream: PairedStream[pb.StreamAdvanceResponse] = PairedStream(
            client.peer,
            lambda requests: client.stub.StreamAdvance(requests, timeout=self._left_s(), metadata=metadata),
            response_timeout_s=client.advance_timeout_s,
        )

    async def compile(self, constraint: Constraint, options: CompileOptions) -> Compiled:
        """Compile a constraint, or find it compiled."""
        request = pb.CompileRequest(
            constraint=_constraint(constraint), options=_options(options), vocabulary_digest=self._vocabulary_digest
        )
        try:
            response = await self._client.stub.Compile(request, timeout=self._left_s(), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._blame(error) from None
        return Compiled(
            grammar_id=response.grammar_id,
            start=_guidance(response.start),
            keywords=tuple(map(_keyword, response.keywords)),
            compile_us=response.compile_us,
        )

    def advance(
        self, grammar_id: str, state: MatcherState | None, token_ids: Sequence[int]
    ) -> asyncio.Future[Guidance]:
        """Take tokens from a state, or from the start, without waiting."""
        item = pb.AdvanceItem(grammar_id=grammar_id, token_ids=token_ids)
        if state is not None:
            item.state.epoch = state.epoch
            item.state.configuration_id = state.configuration_id
            item.state.is_terminated = state.is_terminated
        sent = self._stream.send(lambda request_id: pb.StreamAdvanceRequest(request_id=request_id, items=[item]))
        return converted(sent, _advanced)

    async def validate(self, constraint: Constraint, options: CompileOptions, text: bytes) -> Sequence[Violation]:
        """Judge a finished text by the independent validator; nothing means that it is valid."""
        request = pb.ValidateRequest(constraint=_constraint(constraint), options=_options(options), text=text)
        try:
            response = await self._client.stub.Validate(request, timeout=self._left_s(), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._blame(error) from None
        if response.is_valid:
            return ()
        return [Violation(violation.schema_pointer) for violation in response.violations] or [Violation("")]

    async def close(self) -> None:
        """End the stream."""
        await self._stream.close()

    def _left_s(self) -> float:
        return max(self._deadline - time.monotonic(), 0)

    def _blame(self, error: grpc.aio.AioRpcError) -> ServiceError:
        said = self._client.peer.translate(error)
        if isinstance(said, InvalidRequest) and said.field is not None and not said.field.startswith("generation."):
            # The caller wrote these fields in another message.
            name = (
                said.field.replace("options", "compile_options", 1) if said.field.startswith("options") else said.field
            )
            said.field = f"generation.{name}"
        return said


def _constraint(constraint: Constraint) -> types_pb2.Constraint:
    fields: dict[str, Any]
    match constraint.kind:
        case "choices":
            fields = {"choices": types_pb2.Choices(values=constraint.choices)}
        case "sequence" | "any_of":
            fields = {constraint.kind: types_pb2.Parts(parts=map(_constraint, constraint.parts))}
        case _:
            fields = {constraint.kind: constraint.text}
    return types_pb2.Constraint(**fields)


def _options(options: CompileOptions) -> types_pb2.CompileOptions:
    return with_words(types_pb2.CompileOptions, **(asdict(options) | {"documents": dict(options.documents)}))


def _advanced(response: pb.StreamAdvanceResponse) -> Guidance:
    if len(response.results) != 1:
        raise ServiceError(f"the constraint service answered one move with {len(response.results)} results")
    result = response.results[0]
    if result.HasField("error"):
        raise from_item_status(result.error)
    return _guidance(result.guidance)


def _guidance(message: pb.Guidance) -> Guidance:
    return Guidance(
        state=_state(message.state),
        forced_token_ids=tuple(message.forced_token_ids),
        after_forced=_state(message.after_forced),
        bitmask=np.frombuffer(message.bitmask, "<i4"),
        num_allowed=message.num_allowed,
        is_accepting=message.is_accepting,
        witness_num_tokens=message.witness_num_tokens,
        witness_token_id=message.witness_token_id if message.HasField("witness_token_id") else None,
        mask_us=message.mask_us,
        is_settled=not message.is_provisional,
    )


def _state(message: pb.MatcherState) -> MatcherState:
    return MatcherState(message.epoch, message.configuration_id, message.is_terminated)


def _keyword(message: types_pb2.KeywordReport) -> KeywordReport:
    try:
        enforcement = word_of(types_pb2.Enforcement.DESCRIPTOR, message.enforcement)
    except ValueError:
        raise ServiceError(
            f"the constraint service honours `{message.pointer}` in a way ({message.enforcement}) that this gateway "
            "does not know: run the same version of both"
        ) from None
    return KeywordReport(pointer=message.pointer, keyword=message.keyword, enforcement=enforcement, note=message.note)
