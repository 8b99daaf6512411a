"""The constraint service's RPCs: parse, call, build the reply."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any, Final

import grpc.aio
from espalier.v1 import constraint_pb2, constraint_pb2_grpc, types_pb2

from services.constraint.contract import source_of
from services.constraint.core.engine import TERMINATED, Forcing
from services.constraint.move_spans import record_moves
from services.constraint.service import ConstraintService, Move, Moved
from services.constraint.sources import KeywordReport, SourceOptions, named
from services.rpckit.calls import current_span
from services.rpckit.enums import number_of, words_of
from services.rpckit.rich_status import to_item_status
from services.rpckit.status import ServiceError

FULL_SERVICE_NAME: Final[str] = constraint_pb2.DESCRIPTOR.services_by_name["ConstraintService"].full_name

MAX_VIOLATIONS: Final = 10

_Context = grpc.aio.ServicerContext


class ConstraintServicer(constraint_pb2_grpc.ConstraintServiceServicer):
    """Errors are raised as `ServiceError`; the interceptor gives them to the caller."""

    def __init__(self, service: ConstraintService) -> None:
        self._service = service

    async def Compile(
        self, request: constraint_pb2.CompileRequest, context: _Context[Any, Any]
    ) -> constraint_pb2.CompileResponse:
        """Compile a constraint."""
        started = time.perf_counter()
        source = source_of(request.constraint)
        options, forcing = _options(request.options)
        found, moved = await self._service.compile(source, options, forcing, request.vocabulary_digest)
        if (span := current_span()) is not None:
            span.describe({"espalier.grammar.id": found.grammar_id, "espalier.cache.level": found.level})
        return constraint_pb2.CompileResponse(
            grammar_id=found.grammar_id,
            start=_guidance(moved),
            keywords=[_keyword(keyword) for keyword in found.keywords],
            cache_level=number_of(constraint_pb2.CacheLevel.DESCRIPTOR, found.level),
            compile_us=round((time.perf_counter() - started) * 1e6),
            min_bytes=found.min_bytes,
        )

    async def Advance(
        self, request: constraint_pb2.AdvanceRequest, context: _Context[Any, Any]
    ) -> constraint_pb2.AdvanceResponse:
        """Make a batch of moves."""
        return constraint_pb2.AdvanceResponse(results=await self._advance(request.items))

    async def StreamAdvance(
        self, request_iterator: AsyncIterable[constraint_pb2.StreamAdvanceRequest], context: _Context[Any, Any]
    ) -> AsyncIterator[constraint_pb2.StreamAdvanceResponse]:
        """Make batches of moves, in order."""
        async for request in request_iterator:
            results = await self._advance(request.items)
            yield constraint_pb2.StreamAdvanceResponse(request_id=request.request_id, results=results)

    async def Validate(
        self, request: constraint_pb2.ValidateRequest, context: _Context[Any, Any]
    ) -> constraint_pb2.ValidateResponse:
        """Judge a finished text."""
        options, _ = _options(request.options)
        violations = await self._service.validate(source_of(request.constraint), options, request.text)
        return constraint_pb2.ValidateResponse(
            is_valid=not violations,
            violations=[
                constraint_pb2.Violation(
                    instance_pointer=violation.instance_pointer,
                    schema_pointer=violation.schema_pointer,
                    message=violation.message,
                )
                for violation in violations[:MAX_VIOLATIONS]
            ],
        )

    async def ListGrammars(
        self, request: constraint_pb2.ListGrammarsRequest, context: _Context[Any, Any]
    ) -> constraint_pb2.ListGrammarsResponse:
        """List the named grammars."""
        return constraint_pb2.ListGrammarsResponse(
            grammars=[
                constraint_pb2.NamedGrammar(name=grammar.name, description=grammar.description)
                for grammar in named.list_grammars()
            ]
        )

    async def _advance(self, items: Sequence[constraint_pb2.AdvanceItem]) -> list[constraint_pb2.AdvanceResult]:
        started_ns = time.time_ns()
        results = await self._service.advance([_move(item) for item in items])
        if (span := current_span()) is not None:
            record_moves(span, started_ns, items, results)
        return [
            constraint_pb2.AdvanceResult(error=to_item_status(result))
            if isinstance(result, ServiceError)
            else constraint_pb2.AdvanceResult(guidance=_guidance(result))
            for result in results
        ]


def _options(options: types_pb2.CompileOptions) -> tuple[SourceOptions, Forcing]:
    given = words_of(options, "options")
    forcing = given.pop("forcing", "canonical")
    if options.default_draft:
        given["default_draft"] = int(options.default_draft)
    read = SourceOptions(
        **given, whitespace_pattern=options.whitespace_pattern, documents=tuple(sorted(options.documents.items()))
    )
    return read, forcing


def _move(item: constraint_pb2.AdvanceItem) -> Move:
    if not item.HasField("state"):
        return Move(item.grammar_id, item.token_ids)
    state = TERMINATED if item.state.is_terminated else item.state.configuration_id
    return Move(item.grammar_id, item.token_ids, item.state.epoch, state)


def _guidance(moved: Moved) -> constraint_pb2.Guidance:
    guidance = moved.guidance
    is_terminated = guidance.after_forced == TERMINATED
    return constraint_pb2.Guidance(
        state=_state(moved.epoch, guidance.state),
        forced_token_ids=guidance.forced_token_ids,
        after_forced=_state(moved.epoch, guidance.after_forced),
        bitmask=b"" if is_terminated else guidance.bitmask.astype("<i4", copy=False).tobytes(),
        num_allowed=guidance.num_allowed,
        is_accepting=guidance.is_accepting,
        witness_num_tokens=guidance.witness_num_tokens,
        witness_token_id=guidance.witness_token_id,
        mask_us=moved.microseconds,
        is_provisional=not guidance.is_settled,
    )


def _state(epoch: int, state: int) -> constraint_pb2.MatcherState:
    is_terminated = state == TERMINATED
    return constraint_pb2.MatcherState(
        epoch=epoch, configuration_id=0 if is_terminated else state, is_terminated=is_terminated
    )


def _keyword(report: KeywordReport) -> types_pb2.KeywordReport:
    return types_pb2.KeywordReport(
        pointer=report.pointer,
        keyword=report.keyword,
        enforcement=number_of(types_pb2.Enforcement.DESCRIPTOR, report.enforcement),
        note=report.note,
    )
