"""Fetches a worker's vocabulary, so that no other service needs the model's directory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Final

import grpc.aio
from espalier.v1 import model_worker_pb2, model_worker_pb2_grpc

from services.rpckit.client_tls import ClientTls, open_channel
from services.rpckit.status import NotReady, VocabularyMismatch
from services.vocabulary import UnsupportedTokenizerError, Vocabulary

_ASK_TIMEOUT_S: Final = 5.0


async def fetch_vocabulary(
    channel: grpc.aio.Channel, *, timeout_s: float = 30.0
) -> tuple[model_worker_pb2.GetModelResponse, Vocabulary]:
    """Ask the worker behind `channel` for its model and tokenizer; each of the two calls may take `timeout_s` seconds.

    Raises:
        grpc.aio.AioRpcError: as the worker answered.
        VocabularyMismatch: the tokenizer that arrived is not the one that the model names.
        UnsupportedTokenizerError: its tokens have no exact bytes.
    """
    stub = model_worker_pb2_grpc.ModelWorkerServiceStub(channel)
    model = await stub.GetModel(model_worker_pb2.GetModelRequest(), timeout=timeout_s)
    pieces = stub.GetTokenizer(model_worker_pb2.GetTokenizerRequest(), timeout=timeout_s)
    tokenizer_json = b"".join([piece.chunk async for piece in pieces])
    # Reading 50,000 tokens takes a tenth of a second and more: not on the event loop.
    vocabulary = await asyncio.to_thread(Vocabulary, tokenizer_json, model.vocab_size, list(model.eos_token_ids))
    if vocabulary.digest != model.vocabulary_digest:
        raise VocabularyMismatch(
            "the worker's tokenizer is not the one that its model names; was it replaced? Ask again",
            expected=model.vocabulary_digest,
            actual=vocabulary.digest,
        )
    return model, vocabulary


async def fetch_from_any(
    addresses: Mapping[str, str | None],
    wanted_digest: str | None,
    *,
    tls: ClientTls | None = None,
    options: Sequence[tuple[str, int]] = (),
) -> Vocabulary:
    """Fetch the vocabulary that one of several workers has; any will do where none has the wanted one.

    `addresses` are as `addresses.resolve` finds them.

    Raises:
        grpc.aio.AioRpcError, VocabularyMismatch, UnsupportedTokenizerError: as the last worker that was asked.
        NotReady: there is no address.
    """
    found: Vocabulary | None = None
    failed: Exception = NotReady("the model worker has no address yet", service="worker")
    # In another order each time, or one worker would be asked by all.
    for address, server_name in random.sample(list(addresses.items()), len(addresses)):
        async with open_channel(address, tls, options, server_name=server_name) as channel:
            try:
                model = await model_worker_pb2_grpc.ModelWorkerServiceStub(channel).GetModel(
                    model_worker_pb2.GetModelRequest(), timeout=_ASK_TIMEOUT_S
                )
                if found is None or model.vocabulary_digest == wanted_digest:
                    _, found = await fetch_vocabulary(channel)
                if wanted_digest in (None, found.digest):
                    return found
            except (grpc.aio.AioRpcError, VocabularyMismatch, UnsupportedTokenizerError) as error:
                failed = error
    if found is None:
        raise failed
    return found
