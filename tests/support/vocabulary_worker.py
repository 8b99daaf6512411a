"""A worker that has nothing but a vocabulary: all that a constraint service asks of one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from espalier.v1 import model_worker_pb2 as pb
from espalier.v1 import model_worker_pb2_grpc

from services.rpckit.options import SERVER_OPTIONS
from services.vocabulary import Vocabulary

_CHUNK_BYTES = 1 << 20


class _Worker(model_worker_pb2_grpc.ModelWorkerServiceServicer):
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def GetModel(self, request: Any, context: Any) -> pb.GetModelResponse:
        known = self._vocabulary
        return pb.GetModelResponse(
            vocab_size=known.vocab_size, eos_token_ids=known.eos_token_ids, vocabulary_digest=known.digest
        )

    def GetTokenizer(self, request: Any, context: Any) -> Iterator[pb.GetTokenizerResponse]:
        content = self._vocabulary.tokenizer_json
        for first in range(0, len(content), _CHUNK_BYTES):
            yield pb.GetTokenizerResponse(chunk=content[first : first + _CHUNK_BYTES])


@contextmanager
def serving(vocabulary: Vocabulary, directory: Path) -> Iterator[str]:
    """Serve a vocabulary on a unix socket in `directory`; give its address."""
    server = grpc.server(ThreadPoolExecutor(2), options=SERVER_OPTIONS)
    model_worker_pb2_grpc.add_ModelWorkerServiceServicer_to_server(_Worker(vocabulary), server)
    address = f"unix:{directory / 'vocabulary.sock'}"
    server.add_insecure_port(address)
    server.start()
    try:
        yield address
    finally:
        server.stop(None)
