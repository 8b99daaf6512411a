"""The worker's side of one generation: the tokens it has, and the logits behind the last of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from gateway.decode.interfaces import Logits, Step, StepReply, StepStream
from services.rpckit.status import LeaseExpired, NotReady, ServiceError

# A worker that loses a sequence again at once will not keep the next one either.
_MAX_RESTARTS: Final = 1
_MAX_ROWS: Final = 128
_MAX_ROW_BYTES: Final = 32 << 20
# How long the tail of a cancelled generation may take before its release is left to the lease.
_LAST_REPLY_S: Final = 30.0


class ModelSequence:
    """Tokens sent to the worker as one sequence.

    Steps are sent without waiting, several may be in flight; only the last one's logits count. A worker that no longer
    knows the sequence (its lease ran out, it was evicted) gets all tokens again under another id, once.
    """

    def __init__(self, stream: StepStream, sequence_id: str) -> None:
        self._stream = stream
        self._base_id = sequence_id
        self._ids = [sequence_id]
        self._token_ids: list[int] = []
        self._pending: list[asyncio.Future[StepReply]] = []
        self._abandoned: list[asyncio.Future[StepReply]] = []
        self._parent: ModelSequence | None = None
        """What the first step forks from; None behind that."""
        self._latest: StepReply | None = None
        self._replied_at = 0.0
        self.num_steps = 0
        self.forward_us = 0

    def fork(self, sequence_id: str) -> ModelSequence:
        """Return a sequence that begins with the tokens sent so far. The worker copies nothing.

        Costs no step until something is appended to it. This one may go on meanwhile, but keeps its tokens. Steps
        shared with it, and their time, count for both.
        """
        child = ModelSequence(self._stream, sequence_id)
        child._parent = self._parent or self  # the worker knows this one from its first step on
        child._token_ids = list(self._token_ids)
        child._pending = list(self._pending)
        child._latest = self._latest
        child.num_steps = self.num_steps
        child.forward_us = self.forward_us
        return child

    def append(self, token_ids: Sequence[int], *, keep: int | None = None, wants_all_rows: bool = False) -> None:
        """Send tokens in one step, after cutting the sequence to `keep` tokens where given."""
        truncate_to = None
        if keep is not None and keep < len(self._token_ids):
            del self._token_ids[keep:]
            truncate_to = keep
        self._submit(token_ids, truncate_to, wants_all_rows=wants_all_rows)

    async def rows(self, token_ids: Sequence[int]) -> Logits:
        """Send tokens and return the `(N, V)` logits behind each of them; other logits were there before.

        Raises:
            ServiceError: as `logits`.
        """
        size = self.max_rows
        pieces = [await self._rows(token_ids[start : start + size]) for start in range(0, len(token_ids), size)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    @property
    def max_rows(self) -> int:
        """Rows of logits that are asked for in one step: a reply is one message."""
        assert self._latest is not None, "logits were there before"
        return max(1, min(_MAX_ROWS, _MAX_ROW_BYTES // self._latest.logits.nbytes))

    async def _rows(self, token_ids: Sequence[int]) -> Logits:
        num_before = len(self._token_ids)
        while True:
            self.append(token_ids, keep=num_before, wants_all_rows=True)
            await self.logits()
            assert self._latest is not None
            if len(self._latest.rows) == len(token_ids):
                return self._latest.rows
            # The worker had lost the sequence and got all of it again, in one step: the rows are asked for once more.

    def back_to(self, num_tokens: int) -> None:
        """Cut the sequence to `num_tokens`, at least one, and make the logits behind the last of them the latest again.

        The worker keeps no logits of earlier positions, and rows of all positions would be large: the last token is
        sent once more, in place of itself and all behind it.
        """
        if num_tokens < len(self._token_ids):
            self.append([self._token_ids[num_tokens - 1]], keep=num_tokens - 1)

    @property
    def num_tokens(self) -> int:
        """Tokens sent so far, the prompt's included."""
        return len(self._token_ids)

    @property
    def replied_at(self) -> float | None:
        """When (`time.perf_counter`) the reply to the last step came; None while it has not."""
        return self._replied_at if all(future.done() for future in self._pending) else None

    async def logits(self) -> Logits:
        """Return the `(V,)` logits behind the last token sent; may be asked again.

        Raises:
            ServiceError: the earliest step that failed says how.
        """
        while True:
            try:
                return await self._settle()
            except LeaseExpired as error:
                if len(self._ids) > _MAX_RESTARTS:
                    raise NotReady(
                        f"the model worker lost the sequence more than once: {error.message}", service="worker"
                    ) from error
                self._ids.append(f"{self._base_id}-{len(self._ids)}")
                everything, self._token_ids = self._token_ids, []
                self._parent = None
                self._submit(everything, None)

    async def close(self) -> None:
        """Free the sequence at the worker."""
        await self._stream.release(self._ids)
        sent = self._abandoned + self._pending
        unanswered = [future for future in sent if not future.done()]
        if unanswered:
            # A step that is still on its way could create the sequence after that release.
            await asyncio.wait(unanswered, timeout=_LAST_REPLY_S)
            await self._stream.release(self._ids)
        for future in sent:
            if future.done() and not future.cancelled():
                future.exception()  # seen, so that asyncio does not report it

    async def _settle(self) -> Logits:
        pending, self._pending = self._pending, []
        while pending:
            future = pending[0]
            try:
                self._latest = await asyncio.shield(future)
            except asyncio.CancelledError:
                self._pending = pending
                raise
            except ServiceError:
                # Later steps failed because this one did; their errors say less.
                self._abandoned += pending
                raise
            self.forward_us += self._latest.forward_us
            del pending[0]
        assert self._latest is not None, "a step is submitted before its logits are asked for"
        return self._latest.logits

    def _submit(self, token_ids: Sequence[int], truncate_to: int | None, *, wants_all_rows: bool = False) -> None:
        fork_of = None
        if self._parent is not None:
            fork_of, truncate_to = self._parent._ids[-1], None
            self._parent = None
        step = Step(self._ids[-1], len(self._token_ids), tuple(token_ids), truncate_to, fork_of, wants_all_rows)
        self._token_ids.extend(token_ids)
        self.num_steps += 1
        future = self._stream.submit(step)
        future.add_done_callback(self._note_reply)
        self._pending.append(future)

    def _note_reply(self, _: asyncio.Future[StepReply]) -> None:
        self._replied_at = time.perf_counter()
