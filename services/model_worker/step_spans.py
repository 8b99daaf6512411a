"""The steps of a traced call, each a span from its first forward pass to its answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from espalier.v1 import model_worker_pb2

from services.model_worker.batching import StepOutcome
from services.rpckit.status import ServiceError
from services.rpckit.tracing import since_epoch_ns

if TYPE_CHECKING:
    from services.rpckit.spans import CallSpan


def record_steps(
    span: CallSpan,
    messages: Sequence[model_worker_pb2.SequenceStep],
    answers: Sequence[StepOutcome | BaseException],
) -> None:
    """Add steps that were answered, named `prefill` or `decode`; one that failed is a point in time."""
    for message, answer in zip(messages, answers, strict=True):
        attributes: dict[str, str | int] = {
            "espalier.sequence.id": message.sequence_id,
            "espalier.step.position": message.position,
            "espalier.step.num_tokens": len(message.token_ids),
        }
        if isinstance(answer, StepOutcome):
            attributes |= {
                "espalier.step.num_cached_tokens": answer.num_cached_tokens,
                "espalier.step.queue_us": round(answer.queue_s * 1e6),
                "espalier.step.forward_us": round(answer.forward_s * 1e6),
            }
            span.add_child(answer.kind, since_epoch_ns(answer.started_s), since_epoch_ns(answer.ended_s), attributes)
        else:
            reason = answer.reason if isinstance(answer, ServiceError) else ServiceError.reason
            now = time.time_ns()
            span.add_child("step", now, now, attributes, error=reason)
