"""Who may run now, who waits, who is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway import metrics
from services.rpckit.calls import current_span
from services.rpckit.status import OutOfCapacity


class Admission:
    """A bound on generations at the same time, and on those that wait. Turns come in order of arrival."""

    def __init__(self, max_running: int, max_queued: int) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._turns = asyncio.Semaphore(max_running)
        self._num_queued = 0

    @asynccontextmanager
    async def turn(self, *, is_patient: bool = False) -> AsyncIterator[None]:
        """Wait for a turn and hold it. One that `is_patient` is a stream's, which sends no more before it has answers.

        Raises:
            OutOfCapacity: too many wait already.
        """
        if not is_patient and self._turns.locked() and self._num_queued >= self._max_queued:
            raise OutOfCapacity(
                f"{self._max_running} generations run and {self._num_queued} wait, which is all this gateway takes: "
                "try again later",
                retry_after_s=1.0,
                max_running=self._max_running,
                max_queued=self._max_queued,
            )
        self._num_queued += 1
        arrived_ns = time.time_ns()
        try:
            with metrics.QUEUED.track_inprogress():
                await self._turns.acquire()
        finally:
            self._num_queued -= 1
        now_ns = time.time_ns()
        metrics.QUEUE_SECONDS.observe((now_ns - arrived_ns) / 1e9)
        if (span := current_span()) is not None:
            span.add_child("queue", arrived_ns, now_ns, {})
        try:
            with metrics.RUNNING.track_inprogress():
                yield
        finally:
            self._turns.release()
