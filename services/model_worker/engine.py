"""The engine: one thread that gathers the steps of all callers and runs them through the model together.

`Engine.step` is the algorithm: forget what nobody waits for, start what can start, run one batch, answer what is
finished.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import numpy as np
import structlog

from services.model_worker import metrics
from services.model_worker.batching import Chunk, PendingStep, StepOutcome, plan_batch, startable
from services.model_worker.kv_cache import KvCache
from services.model_worker.model.transformer import Transformer
from services.model_worker.routing import RoutingMonitor
from services.model_worker.runner import ModelRunner, RunnerInput
from services.model_worker.sequence import Logits, SequenceTable, Step
from services.rpckit.status import LeaseExpired, NotReady, OutOfCapacity, ServiceError

_log = structlog.get_logger()

ENGINE_FAILED_EXIT_CODE = 70
_LINGER_SHARE = 0.05
"""Longest wait for the next steps of those just answered, as a share of what the latest forward pass took."""
_IDLE_S = 1.0
"""Longest sleep without work: how late an ended lease is noticed."""


class Engine:
    """Runs steps. `submit` and `release` may be called from any thread; everything else happens in the engine's own."""

    def __init__(
        self,
        model: Transformer,
        cache: KvCache,
        *,
        context_length: int,
        max_batch_tokens: int,
        max_queued_steps: int,
        max_sequences: int,
        lease_s: float,
        routing: RoutingMonitor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = ModelRunner(model, cache, routing)
        self._cache = cache
        self._vocab_size = model.config.vocab_size
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_steps = max_queued_steps
        self._clock = clock
        self._sequences = SequenceTable(
            cache,
            vocab_size=model.config.vocab_size,
            context_length=context_length,
            max_sequences=max_sequences,
            lease_s=lease_s,
            clock=clock,
        )
        self._wake = threading.Condition()
        self._arrived: list[PendingStep] = []
        self._releases: list[tuple[tuple[str, ...], Future[int]]] = []
        self._is_stopping = False
        self._waiting: list[PendingStep] = []
        self._running: list[PendingStep] = []
        self._num_rounds = 0
        self._num_answered = 0
        """Steps answered since the latest batch started."""
        self._latest_pass_s = 0.0
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        metrics.KV_BLOCKS.set(self._cache.num_blocks)
        metrics.STEPS_RUNNING.set_function(lambda: len(self._running))
        metrics.STEPS_WAITING.set_function(lambda: len(self._waiting) + len(self._arrived))
        self._show()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the batch that runs now; steps that are left are answered with NotReady."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, steps: Sequence[Step], *, stream: object = None) -> list[Future[StepOutcome]]:
        """Queue steps of a stream; those of one sequence are applied in the order of submission.

        A future has the outcome, or a ServiceError. Cancelling it drops the step and leaves the sequence as it was,
        unless the step was finished already.
        """
        pending = [PendingStep(step, self._clock(), stream) for step in steps]
        with self._wake:
            num_queued = len(self._waiting) + len(self._arrived)
            is_full = num_queued + len(pending) > self._max_queued_steps
            if not self._is_stopping and not is_full:
                self._arrived.extend(pending)
                self._wake.notify()
                return [item.future for item in pending]
        for item in pending:
            item.future.set_exception(
                NotReady("the worker is stopping; try another or again", service="worker")
                if self._is_stopping
                else OutOfCapacity(
                    f"{num_queued} steps are queued, at most {self._max_queued_steps} may be; try again",
                    retry_after_s=1.0,
                    max_queued_steps=self._max_queued_steps,
                )
            )
        return [item.future for item in pending]

    def release(self, sequence_ids: Sequence[str]) -> Future[int]:
        """Free sequences and drop their steps; the future has the number of ids that were known."""
        future: Future[int] = Future()
        with self._wake:
            if self._is_stopping:
                future.set_result(0)
            else:
                self._releases.append((tuple(sequence_ids), future))
                self._wake.notify()
        return future

    def _loop(self) -> None:
        while True:
            with self._wake:
                if not self._has_work():
                    self._wake.wait(_IDLE_S)
                self._linger()
                if self._is_stopping:
                    break
            try:
                self.step()
            except Exception as error:
                # The state of the sequences is not known any more. Nobody must wait for a thread that has ended.
                _log.critical("the engine failed; the worker ends", exc_info=error)
                os._exit(ENGINE_FAILED_EXIT_CODE)
        for _, future in self._releases:
            future.set_result(0)
        for pending in [*self._running, *self._waiting, *self._arrived]:
            self._fail(pending, NotReady("the worker is stopping; try another or again", service="worker"))

    def _has_work(self) -> bool:
        return bool(self._arrived or self._releases or self._waiting or self._running or self._is_stopping)

    def _linger(self) -> None:
        """Wait a moment for those who were just answered to send their next step.

        It would miss the batch that starts now, and wait for all of it, which may hold a piece of a long prompt.
        """
        until = self._clock() + _LINGER_SHARE * self._latest_pass_s
        while (
            self._has_work()
            and not (self._is_stopping or self._releases)
            and len(self._arrived) < self._num_answered
            and (left := until - self._clock()) > 0
        ):
            self._wake.wait(left)
        self._num_answered = 0

    def step(self) -> None:
        """Do one round: everything up to and with one forward pass."""
        self._take_arrivals()
        self._drop_cancelled()
        self._expire()
        self._start_steps()
        for pending in list(self._running):
            pending.reuse()
            if pending.num_left == 0:  # all was in the cache, or a fork that appends nothing
                self._finish(pending)
        chunks = plan_batch(self._running, self._max_batch_tokens)
        if chunks:
            self._run(chunks)
        self._show()

    def _show(self) -> None:
        """Set the gauges."""
        num_used = self._cache.num_blocks - self._cache.num_free_blocks
        metrics.OPEN_SEQUENCES.set(len(self._sequences))
        metrics.KV_BLOCKS_USED.set(num_used)
        metrics.KV_BLOCKS_FREE.set(self._cache.num_free_blocks)
        metrics.KV_USAGE_RATIO.set(num_used / self._cache.num_blocks)

    def _take_arrivals(self) -> None:
        with self._wake:
            arrived, self._arrived = self._arrived, []
            releases, self._releases = self._releases, []
            self._waiting.extend(arrived)
        for sequence_ids, future in releases:
            _set_result(future, sum(self._release(sequence_id) for sequence_id in dict.fromkeys(sequence_ids)))

    def _release(self, sequence_id: str) -> bool:
        is_known = False
        for pending in [*self._running, *self._waiting]:
            if pending.step.sequence_id == sequence_id:
                is_known = is_known or pending.transaction is not None
                self._fail(pending, LeaseExpired(f"the sequence {sequence_id!r} was released", sequence_id=sequence_id))
        return self._sequences.release(sequence_id) or is_known

    def _drop_cancelled(self) -> None:
        for pending in [*self._running, *self._waiting]:
            if pending.future.cancelled():
                self._forget(pending)
                metrics.STEPS.labels("CANCELLED").inc()

    def _expire(self) -> None:
        in_use = {name for pending in [*self._running, *self._waiting] for name in pending.names}
        for sequence_id in self._sequences.expire(in_use):
            _log.info("a lease has ended", sequence_id=sequence_id)
            metrics.LEASES_EXPIRED.inc()

    def _start_steps(self) -> None:
        for pending in startable(self._waiting, self._running):
            try:
                answer = self._sequences.answer_retry(pending.step)
                if answer is not None:
                    self._answer(pending, *answer)
                    continue
                pending.transaction = self._sequences.begin(pending.step)
            except ServiceError as error:
                self._fail(pending, error)
                continue
            pending.num_done = pending.num_cached_tokens = pending.transaction.num_cached_tokens
            pending.latest_round = self._num_rounds
            self._waiting.remove(pending)
            self._running.append(pending)

    def _run(self, chunks: Sequence[Chunk]) -> None:
        started = self._clock()
        self._num_rounds += 1
        for chunk in chunks:
            chunk.pending.latest_round = self._num_rounds
            if chunk.pending.started_s is None:
                chunk.pending.started_s = started
                metrics.QUEUE_SECONDS.observe(started - chunk.pending.arrived_s)
        try:
            results = self._runner.forward([_runner_input(chunk) for chunk in chunks])
        except Exception as error:
            _log.error("a forward pass failed", num_steps=len(chunks), exc_info=error)
            for chunk in chunks:
                self._fail(chunk.pending, ServiceError("the forward pass failed, a bug of the worker: see its log"))
            return
        seconds = self._latest_pass_s = self._clock() - started
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        metrics.FORWARD_SECONDS.observe(seconds)
        metrics.BATCH_TOKENS.observe(num_tokens)
        metrics.BATCH_SEQUENCES.observe(len(chunks))
        metrics.TOKENS.inc(num_tokens)
        for chunk, output in zip(chunks, results, strict=True):
            pending = chunk.pending
            pending.forward_s += seconds
            pending.num_done += chunk.num_tokens
            assert pending.transaction is not None
            pending.transaction.publish(pending.num_done)
            if len(output.logits):
                pending.rows.append(output.logits)
            if output.experts is not None:
                pending.experts.append(output.experts)
            if output.routing is not None:
                pending.routing = output.routing if pending.routing is None else pending.routing + output.routing
            if pending.num_left == 0:
                self._finish(pending)

    def _finish(self, pending: PendingStep) -> None:
        """Commit a step whose tokens are all in the cache, and answer it."""
        assert pending.transaction is not None
        # From here on it cannot be cancelled: who has cancelled a step relies on its not being applied.
        if not pending.future.set_running_or_notify_cancel():
            return  # the next round drops it
        rows = pending.rows or [np.empty((0, self._vocab_size), dtype=np.float32)]
        logits = rows[0] if len(rows) == 1 else np.concatenate(rows)
        # A copy, so that one kept row does not keep a whole batch's logits in memory.
        last_logits = logits[-1:].copy() if len(logits) else None
        position = self._sequences.commit(pending.transaction, last_logits)
        pending.transaction = None
        self._answer(pending, position, logits)

    def _answer(self, pending: PendingStep, position: int, logits: Logits) -> None:
        ended = self._clock()
        started = ended if pending.started_s is None else pending.started_s
        if pending.started_s is not None:
            metrics.STEP_SECONDS.labels(pending.kind).observe(ended - started)
        self._forget(pending)
        self._num_answered += 1
        metrics.STEPS.labels("OK").inc()
        metrics.CACHED_TOKENS.inc(pending.num_cached_tokens)
        _set_result(
            pending.future,
            StepOutcome(
                position,
                logits,
                queue_s=started - pending.arrived_s,
                forward_s=pending.forward_s,
                num_cached_tokens=pending.num_cached_tokens,
                experts=np.concatenate(pending.experts) if pending.experts else None,
                routing=pending.routing,
                kind=pending.kind,
                started_s=started,
                ended_s=ended,
            ),
        )

    def _fail(self, pending: PendingStep, error: ServiceError) -> None:
        self._forget(pending)
        metrics.STEPS.labels(error.reason).inc()
        try:
            pending.future.set_exception(error)
        except InvalidStateError:  # the caller has gone in this moment
            return

    def _forget(self, pending: PendingStep) -> None:
        """Take a step out of the lists; where it had begun and was not committed, its sequence is as before."""
        if pending.transaction is not None:
            pending.transaction.finish(is_applied=False)
            pending.transaction = None
        for steps in (self._running, self._waiting):
            if pending in steps:
                steps.remove(pending)


def _runner_input(chunk: Chunk) -> RunnerInput:
    pending = chunk.pending
    assert pending.transaction is not None
    step = pending.step
    end = pending.num_done + chunk.num_tokens
    if step.logits == "all":
        num_logit_rows = chunk.num_tokens
    else:
        num_logit_rows = int(step.logits == "last" and end == len(step.token_ids))
    return RunnerInput(
        token_ids=step.token_ids[pending.num_done : end],
        position=step.position + pending.num_done,
        block_ids=pending.transaction.block_ids,
        num_logit_rows=num_logit_rows,
        wants_experts=step.wants_experts,
        wants_routing=step.wants_routing,
    )


def _set_result(future: Future[Any], result: Any) -> None:
    try:
        future.set_result(result)
    except InvalidStateError:  # the caller has gone in this moment
        return
