"""The toy model behind an engine that tests drive by hand, and its logits by the plainest way: one prefill."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any

import numpy as np
import torch

from services.model_worker.batching import StepOutcome
from services.model_worker.engine import Engine
from services.model_worker.kv_cache import KvCache, num_blocks_for
from services.model_worker.model.kernels import FAST, deterministic_kernels
from services.model_worker.model.transformer import Transformer
from services.model_worker.runner import ModelRunner, RunnerInput
from services.model_worker.sequence import Logits, Step
from services.model_worker.toy import toy_model

TOLERANCE = 2e-5
"""Float32 sums in another order differ by so much in the toy's logits, which lie between -10 and 10."""


@cache
def shared_toy() -> Transformer:
    torch.set_num_threads(1)
    return toy_model(0)


@cache
def serving_toy() -> Transformer:
    """Return the same model as the worker runs it; its oracle is `shared_toy`."""
    model = toy_model(0)
    model.prepare(FAST)
    return model


@cache
def deterministic_toy() -> Transformer:
    """Return the same model in deterministic mode."""
    model = toy_model(0)
    model.prepare(deterministic_kernels(model.config))
    return model


@cache
def windowed_toy() -> Transformer:
    """Return the model in deterministic mode, its second layer with a sliding window."""
    model = toy_model(0)
    model.blocks[1].attention.window = 20
    model.prepare(deterministic_kernels(model.config))
    return model


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class DrivenEngine:
    """An engine without its thread: `run` takes rounds until all steps are answered."""

    def __init__(self, model: Transformer | None = None, *, num_blocks: int = 256, **options: Any) -> None:
        model = model or serving_toy()
        self.cache = KvCache(model.config, num_blocks, model.dtype, model.device)
        self.clock = Clock()
        settings: dict[str, Any] = {
            "context_length": model.config.context_length,
            "max_batch_tokens": 64,
            "max_queued_steps": 1000,
            "max_sequences": 100,
            "lease_s": 60.0,
            "clock": self.clock,
        }
        self.engine = Engine(model, self.cache, **(settings | options))

    @property
    def num_used_blocks(self) -> int:
        return self.cache.num_blocks - self.cache.num_free_blocks

    def submit(self, *steps: Step, stream: object = None) -> list[Future[StepOutcome]]:
        return self.engine.submit(steps, stream=stream)

    def run(self, *steps: Step) -> list[StepOutcome | BaseException]:
        futures = self.submit(*steps)
        for _ in range(1000):
            if all(future.done() for future in futures):
                return [future.exception() or future.result() for future in futures]
            self.engine.step()
        raise AssertionError("the engine does not answer")

    def one(self, sequence_id: str, position: int, token_ids: Sequence[int], **fields: Any) -> StepOutcome:
        """Run one step and return its outcome; raises what it answers."""
        step = Step(sequence_id=sequence_id, position=position, token_ids=tuple(token_ids), **fields)
        (outcome,) = self.run(step)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def release(self, *sequence_ids: str) -> int:
        future = self.engine.release(sequence_ids)
        self.engine.step()
        return future.result(timeout=0)


def prefill_logits(token_ids: Sequence[int], model: Transformer | None = None) -> Logits:
    """Return `(len(token_ids), vocab_size)` from one pass over all tokens with an empty cache."""
    model = model or shared_toy()
    num_blocks = num_blocks_for(len(token_ids))
    runner = ModelRunner(model, KvCache(model.config, num_blocks, model.dtype))
    (output,) = runner.forward([RunnerInput(token_ids, 0, range(num_blocks), len(token_ids))])
    return output.logits


def random_tokens(num_tokens: int, seed: int = 0, vocab_size: int = 282) -> tuple[int, ...]:
    return tuple(int(token_id) for token_id in np.random.default_rng(seed).integers(3, vocab_size, num_tokens))
