"""The moves of a traced call: a span for each batch, from its arrival to its answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from espalier.v1 import constraint_pb2

from services.constraint.service import Moved
from services.rpckit.status import ServiceError

if TYPE_CHECKING:
    from services.rpckit.spans import CallSpan


def record_moves(
    span: CallSpan,
    started_ns: int,
    items: Sequence[constraint_pb2.AdvanceItem],
    results: Sequence[Moved | ServiceError],
) -> None:
    """Add a batch that has just been answered, named `advance`; the first move that failed names the error."""
    moved = [result for result in results if isinstance(result, Moved)]
    failed = [result.reason for result in results if isinstance(result, ServiceError)]
    attributes = {
        "espalier.advance.num_items": len(items),
        "espalier.advance.num_tokens": sum(len(item.token_ids) for item in items),
        "espalier.advance.num_forced_tokens": sum(len(result.guidance.forced_token_ids) for result in moved),
        "espalier.advance.mask_us": sum(result.microseconds for result in moved),
    }
    span.add_child("advance", started_ns, time.time_ns(), attributes, error=failed[0] if failed else "")
