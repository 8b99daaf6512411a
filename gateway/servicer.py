"""The gateway's RPCs: parse, call, build the reply."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc.aio
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import gateway_pb2_grpc

from gateway.contract import (
    extraction_result_message,
    fields_of,
    logprob_message,
    read_batch,
    read_document,
    read_document_of_batch,
    read_extraction,
    read_generation,
    read_prompt,
    refuse_unknown_fields,
    result_message,
)
from gateway.decode.output import Delta
from gateway.extraction.batch import extract_all
from gateway.extraction.extractor import ExtractionResult, Extractor
from gateway.extraction.request import Document
from gateway.generation import GenerationResult
from gateway.request import ScoreRequest
from gateway.service import Gateway
from services.rpckit.calls import current_span, outgoing_metadata

FULL_SERVICE_NAME: Final[str] = pb.DESCRIPTOR.services_by_name["GatewayService"].full_name

_Context = grpc.aio.ServicerContext


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Errors are raised as `ServiceError`; the interceptor gives them to the caller."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._extractor = Extractor(gateway)

    async def Generate(self, request: pb.GenerateRequest, context: _Context[Any, Any]) -> pb.GenerateResponse:
        """Write a text."""
        generation = read_generation(request, request.generation)
        results = await self._gateway.generate(
            generation,
            None,
            deadline_s=context.time_remaining(),
            metadata=outgoing_metadata(),
            span=current_span(),
        )
        first, *others = (pb.Choice(text=result.text, result=result_message(result)) for result in results)
        return pb.GenerateResponse(text=first.text, result=first.result, others=others)

    async def GenerateStream(  # type: ignore[override]  # the stub knows only generators
        self, request: pb.GenerateStreamRequest, context: _Context[Any, Any]
    ) -> None:
        """Write a text as a stream.

        Writes to the context itself rather than being a generator: a cancelled call then raises in the decode loop.
        """
        generation = read_generation(request, request.generation)

        writing = asyncio.Lock()  # one message at a time, whichever text it is of

        async def send(choice: int, piece: Delta | GenerationResult) -> None:
            if isinstance(piece, GenerationResult):
                message = pb.GenerateStreamResponse(choice=choice, result=result_message(piece))
            else:
                message = pb.GenerateStreamResponse(
                    choice=choice,
                    delta=piece.text,
                    num_tokens=piece.num_tokens,
                    num_forced_tokens=piece.num_forced_tokens,
                    reasoning_delta=piece.reasoning,
                    values=[pb.ValueEvent(pointer=value.pointer, json=value.json) for value in piece.values],
                )
            async with writing:
                await context.write(message)

        await self._gateway.generate(
            generation,
            send,
            deadline_s=context.time_remaining(),
            metadata=outgoing_metadata(),
            span=current_span(),
        )

    async def Extract(self, request: pb.ExtractRequest, context: _Context[Any, Any]) -> pb.ExtractResponse:
        """Make a record of a document."""
        extraction = read_extraction(request, request.extraction)
        with fields_of("extraction"):
            result = await self._extractor.extract(
                extraction,
                read_document(request.document),
                deadline_s=context.time_remaining(),
                metadata=outgoing_metadata(),
                span=current_span(),
            )
        return pb.ExtractResponse(result=extraction_result_message(result))

    async def ExtractBatch(  # type: ignore[override]  # the stub knows only generators
        self, requests: Any, context: _Context[Any, Any]
    ) -> None:
        """Make records of documents as they come."""
        first = await context.read()
        if first is grpc.aio.EOF:
            return
        extraction, max_concurrent = read_batch(first, self._gateway.settings.max_batch_concurrent)
        metadata = outgoing_metadata()

        async def read() -> Document | None:
            message = await context.read()
            if message is grpc.aio.EOF:
                return None
            return read_document_of_batch(message)

        async def extract(document: Document) -> ExtractionResult:
            return await self._extractor.extract(
                extraction, document, deadline_s=context.time_remaining(), metadata=metadata, is_patient=True
            )

        async def write(result: ExtractionResult) -> None:
            await context.write(pb.ExtractBatchResponse(result=extraction_result_message(result)))

        with fields_of("extraction"):
            await extract_all(read, extract, write, max_concurrent=max_concurrent, draining=self._gateway.draining)

    async def Score(self, request: pb.ScoreRequest, context: _Context[Any, Any]) -> pb.ScoreResponse:
        """Say how probable a text is."""
        refuse_unknown_fields(request)
        with fields_of(""):
            target_token_ids = None
            if request.WhichOneof("target") == "text_token_ids":
                target_token_ids = tuple(request.text_token_ids.ids)
            found, num_prompt_tokens = await self._gateway.score(
                ScoreRequest(read_prompt(request), request.text, target_token_ids, request.num_top, request.with_end),
                deadline_s=context.time_remaining(),
                metadata=outgoing_metadata(),
            )
        return pb.ScoreResponse(
            logprob=found.logprob,
            tokens=map(logprob_message, found.tokens),
            end_logprob=found.end_logprob,
            num_prompt_tokens=num_prompt_tokens,
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: _Context[Any, Any]) -> pb.TokenizeResponse:
        """Cut a prompt into tokens."""
        refuse_unknown_fields(request)
        with fields_of(""):
            tokens, model = await self._gateway.tokenize(read_prompt(request))
        return pb.TokenizeResponse(
            tokens=[pb.Token(id=token_id, spelling=spelling) for token_id, spelling in tokens],
            context_length=model.context_length,
        )

    async def Detokenize(self, request: pb.DetokenizeRequest, context: _Context[Any, Any]) -> pb.DetokenizeResponse:
        """Put tokens together."""
        refuse_unknown_fields(request)
        with fields_of(""):
            return pb.DetokenizeResponse(text=await self._gateway.detokenize(tuple(request.token_ids.ids)))

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, context: _Context[Any, Any]
    ) -> pb.GetModelInfoResponse:
        """Say what model answers."""
        refuse_unknown_fields(request)
        model = await self._gateway.model()
        names = (field.name for field in pb.GetModelInfoResponse.DESCRIPTOR.fields)
        return pb.GetModelInfoResponse(**{name: getattr(model, name) for name in names})
