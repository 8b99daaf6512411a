"""The constraint service's side of one generation: the state, what may follow it, and the budget it must end within."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from gateway.decode.interfaces import Compiled, CompileOptions, Constraint, ConstraintStream, Guidance, MatcherState
from services.rpckit.status import LeaseExpired, NotReady, ServiceError, TokenRejected

# States lost more often than this within one request mean a service without room for it.
_MAX_REPLAYS: Final = 2


class Guide:
    """Where a constrained text stands.

    States are values, so looking ahead with `look` changes nothing; `take` moves on, `back_to` goes back. For a service
    that no longer knows the state, the constraint is compiled again and the tokens are replayed; it may lose the states
    `_MAX_REPLAYS` times.
    """

    def __init__(self, stream: ConstraintStream, constraint: Constraint, options: CompileOptions) -> None:
        self._stream = stream
        self._constraint = constraint
        self._options = options
        self._grammar_id = ""
        self._known: set[MatcherState] = set()
        """States that the service has named since it last lost some: the older ones are replayed without asking."""
        self._token_ids: list[int] = []
        self._guidance: Guidance | None = None
        self._num_replays = 0
        self.compiled: Compiled | None = None
        self.mask_us = 0

    def fork(self) -> Guide:
        """Return a guide that stands where this one does, and goes on without it."""
        child = Guide(self._stream, self._constraint, self._options)
        child._grammar_id = self._grammar_id
        child._known = set(self._known)
        child._token_ids = list(self._token_ids)
        child._guidance = self._guidance
        child._num_replays = self._num_replays
        child.compiled = self.compiled
        child.mask_us = self.mask_us
        return child

    @property
    def guidance(self) -> Guidance:
        """What may follow the tokens taken so far."""
        assert self._guidance is not None, "started first"
        return self._guidance

    async def start(self) -> Compiled:
        """Compile the constraint. What follows its `start.forced_token_ids` is the guidance then."""
        self.compiled = await self._compile()
        self._set(self.compiled.start)
        return self.compiled

    def look(self, token_id: int) -> asyncio.Task[Guidance]:
        """Ask what follows `token_id`; the call is on its way when this returns."""
        token_ids, state = [*self._token_ids, token_id], self.guidance.after_forced
        if state in self._known:
            future = self._stream.advance(self._grammar_id, state, [token_id])
        else:
            future = self._replay(token_ids)
        return asyncio.ensure_future(self._answer(future, token_ids))

    def take(self, token_id: int, guidance: Guidance) -> None:
        """Move on by a token to what `look` said of it, and by the tokens forced behind it."""
        self._token_ids.append(token_id)
        self._set(guidance)

    def back_to(self, num_tokens: int, guidance: Guidance) -> None:
        """Go back to the first `num_tokens` of the text, forced ones included, and to what was said of them."""
        del self._token_ids[num_tokens:]
        self._guidance = guidance

    def _set(self, guidance: Guidance) -> None:
        self._guidance = guidance
        self._token_ids.extend(guidance.forced_token_ids)
        self.mask_us += guidance.mask_us

    async def _compile(self) -> Compiled:
        compiled = await self._stream.compile(self._constraint, self._options)
        self._grammar_id = compiled.grammar_id
        self._known = {compiled.start.after_forced}
        return compiled

    def _replay(self, token_ids: Sequence[int]) -> asyncio.Future[Guidance]:
        return self._stream.advance(self._grammar_id, None, token_ids)

    async def _answer(self, future: asyncio.Future[Guidance], token_ids: Sequence[int]) -> Guidance:
        while True:
            try:
                guidance = await future
                self._known.add(guidance.after_forced)
                return guidance
            except LeaseExpired as error:
                self._num_replays += 1
                if self._num_replays > _MAX_REPLAYS:
                    raise NotReady(
                        f"the constraint service lost the state {self._num_replays} times: {error.message}",
                        service="constraint",
                    ) from error
                await self._compile()
                future = self._replay(token_ids)
            except TokenRejected as error:
                raise ServiceError(
                    f"the constraint service refused a token that its own mask allowed: {error.message}"
                ) from error
