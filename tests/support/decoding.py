"""The decode loop over the services of `fake_services`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.decode.guided import Guide
from gateway.decode.interfaces import CompileOptions, Constraint
from gateway.decode.limits import Limits
from gateway.decode.loop import DecodeLoop, plain_mask
from gateway.decode.output import Delta
from gateway.decode.sampler import Sampler, Sampling
from gateway.decode.sequence import ModelSequence
from tests.support.fake_services import FakeWorker, FiniteLanguage, vocabulary

PROMPT: Final = (70, 71)


@dataclass
class Run:
    reason: str
    token_ids: list[int]
    deltas: list[Delta]
    loop: DecodeLoop
    worker: FakeWorker
    sequence: ModelSequence

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


async def decode(
    language: FiniteLanguage | None,
    worker: FakeWorker | None = None,
    *,
    sampling: Sampling | None = None,
    max_tokens: int = 200,
    stops: tuple[str, ...] = (),
    grace_s: float = 0.0,
    max_budget_draws: int = 16,
    is_context_bound: bool = False,
    max_rollbacks: int = 10_000,
    max_rollback_tokens: int = 10_000,
    prompt: Sequence[int] = PROMPT,
    stop_token_ids: tuple[int, ...] = (),
    min_tokens: int = 0,
) -> Run:
    """Write one text, and see to it that nothing is left at the worker."""
    worker = worker or FakeWorker()
    deltas: list[Delta] = []

    async def emit(delta: Delta) -> None:
        deltas.append(delta)

    sequence = ModelSequence(worker, "s")
    sequence.append(prompt)
    guide = Guide(language, Constraint("choices", choices=("x",)), CompileOptions()) if language else None
    if guide is not None:
        await guide.start()
    loop = DecodeLoop(
        sequence=sequence,
        guide=guide,
        vocabulary=vocabulary(),
        plain_mask=plain_mask(vocabulary()),
        sampler=Sampler(sampling or Sampling(), prompt),
        stops=stops,
        stop_token_ids=stop_token_ids,
        limits=Limits(
            max_tokens, is_context_bound, grace_s, max_budget_draws, max_rollbacks, max_rollback_tokens, min_tokens
        ),
        emit=emit,
    )
    try:
        reason = await loop.run()
    finally:
        await sequence.close()
    assert worker.sequences == {}
    return Run(reason, loop.account.token_ids, deltas, loop, worker, sequence)
