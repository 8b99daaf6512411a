"""Client of the constraint service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import grpc.aio
import numpy as np
from espalier.v1 import constraint_pb2 as pb
from espalier.v1 import constraint_pb2_grpc, types_pb2

from gateway.clients.peer import Metadata, PairedStream, Peer, converted
from gateway.clients.replicas import Replica, Replicas
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
from services.rpckit.status import InvalidRequest, LeaseExpired, NotReady, ServiceError, VocabularyMismatch

_T = TypeVar("_T")


class ConstraintClient:
    """Calls one replica of the constraint service."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.stub = constraint_pb2_grpc.ConstraintServiceStub(peer.channel)

    async def close(self) -> None:
        """Disconnect."""
        await self.peer.close()


class ConstraintCalls:
    """The `ConstraintStream` of one generation over gRPC, with one replica as long as that answers.

    States belong to a replica. Where it is gone they are `LeaseExpired`, and compiling anew makes them at another.
    """

    def __init__(
        self,
        replicas: Replicas[ConstraintClient],
        *,
        vocabulary_digest: str,
        deadline: float,
        connect_wait_s: float,
        advance_timeout_s: float,
        metadata: Metadata,
    ) -> None:
        """Make the calls of one generation, which end at `deadline` (of `time.monotonic`)."""
        self._replicas = replicas
        self._vocabulary_digest = vocabulary_digest
        self._deadline = deadline
        self._connect_wait_s = connect_wait_s
        self._advance_timeout_s = advance_timeout_s
        self._metadata = metadata
        self._replica: Replica[ConstraintClient] | None = None
        self._stream: PairedStream[pb.StreamAdvanceResponse] | None = None
        self._left: set[str] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def agree(self) -> None:
        """Return when a replica has the vocabulary.

        Raises:
            NotReady, DeadlineExceeded: all are away.
            VocabularyMismatch: they have another one.
        """
        await self.compile(Constraint("choices", choices=("a",)), CompileOptions())

    async def compile(self, constraint: Constraint, options: CompileOptions) -> Compiled:
        """Compile a constraint, or find it compiled."""
        request = pb.CompileRequest(
            constraint=_constraint(constraint), options=_options(options), vocabulary_digest=self._vocabulary_digest
        )
        response = await self._ask(
            lambda client: client.stub.Compile(request, timeout=self._left_s(), metadata=self._metadata)
        )
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
        replica, stream = self._replica, self._stream
        if replica is None or stream is None:
            lost: asyncio.Future[Guidance] = asyncio.get_running_loop().create_future()
            lost.set_exception(LeaseExpired("the replica of the constraint service that knew the state is gone"))
            return lost
        item = pb.AdvanceItem(grammar_id=grammar_id, token_ids=token_ids)
        if state is not None:
            item.state.epoch = state.epoch
            item.state.configuration_id = state.configuration_id
            item.state.is_terminated = state.is_terminated
        sent = stream.send(lambda request_id: pb.StreamAdvanceRequest(request_id=request_id, items=[item]))

        def blame(error: Exception) -> Exception:
            if isinstance(error, NotReady) and self._leave(replica, error):
                return LeaseExpired(f"states are lost: {error.message}")
            return error

        return converted(sent, _advanced, blame)

    async def validate(self, constraint: Constraint, options: CompileOptions, text: bytes) -> Sequence[Violation]:
        """Judge a finished text by the independent validator; nothing means that it is valid."""
        request = pb.ValidateRequest(constraint=_constraint(constraint), options=_options(options), text=text)
        response = await self._ask(
            lambda client: client.stub.Validate(request, timeout=self._left_s(), metadata=self._metadata)
        )
        if response.is_valid:
            return ()
        return [Violation(violation.schema_pointer) for violation in response.violations] or [Violation("")]

    async def close(self) -> None:
        """End the stream."""
        self._let_go()
        await asyncio.gather(*self._closing)

    async def _ask(self, call: Callable[[ConstraintClient], Awaitable[_T]]) -> _T:
        """Make a call that any replica can answer: this one, or where it does not, another, which is kept then."""
        while True:
            replica = self._replica
            if replica is None:
                replica = await self._replicas.pick(min(self._connect_wait_s, self._left_s()), avoid=self._left)
                # Another text of the request may have picked meanwhile.
                replica = self._replica or self._settle(replica)
            try:
                return await call(replica.client)
            except grpc.aio.AioRpcError as error:
                said = self._blame(replica.client.peer, error)
                if not isinstance(said, NotReady | VocabularyMismatch) or not self._leave(replica, said):
                    raise said from None

    def _settle(self, replica: Replica[ConstraintClient]) -> Replica[ConstraintClient]:
        replica.begin()
        self._replica = replica
        self._stream = PairedStream(
            replica.client.peer,
            lambda requests: replica.client.stub.StreamAdvance(
                requests, timeout=self._left_s(), metadata=self._metadata
            ),
            response_timeout_s=self._advance_timeout_s,
        )
        return replica

    def _leave(self, replica: Replica[ConstraintClient], error: ServiceError) -> bool:
        """Go away from a replica that failed; returns whether there is another."""
        if replica.address not in self._left:
            self._replicas.suspect(replica, error)
            self._left.add(replica.address)
        if self._replica is not replica:
            return True
        if not self._replicas.has_other(self._left):
            return False
        self._let_go()
        return True

    def _let_go(self) -> None:
        if self._replica is not None and self._stream is not None:
            self._replica.end()
            task = asyncio.ensure_future(self._stream.close())
            self._closing.add(task)
        self._replica = self._stream = None

    def _left_s(self) -> float:
        return max(self._deadline - time.monotonic(), 0)

    def _blame(self, peer: Peer, error: grpc.aio.AioRpcError) -> ServiceError:
        said = peer.translate(error)
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
