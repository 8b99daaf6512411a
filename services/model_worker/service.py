"""The worker's life: load the model, run the engine, say what it is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
import torch

from services.model_worker.engine import Engine
from services.model_worker.kv_cache import KvCache, blocks_within
from services.model_worker.loading import LoadedModel, load_model
from services.model_worker.model.attention import BLOCK_TOKENS
from services.model_worker.model.checkpoint import CheckpointError
from services.model_worker.model.device import device_of
from services.model_worker.model.kernels import FAST, NotDeterministicError, deterministic_kernels
from services.model_worker.routing import RoutingMonitor
from services.model_worker.settings import WorkerSettings
from services.rpckit.status import InvalidRequest, NotReady

_log = structlog.get_logger()

_MAX_BLOCKS = 1 << 16
"""A small model would otherwise get millions of blocks; this is a million tokens."""


@dataclass(frozen=True)
class _Running:
    """What is there once the model is loaded."""

    loaded: LoadedModel
    engine: Engine
    routing: RoutingMonitor


class WorkerService:
    """What the servicer calls. Nothing is there before `start` returned."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._running: _Running | None = None
        self.context_length = 0

    async def start(self) -> None:
        """Load the model, away from the event loop."""
        await asyncio.to_thread(self._load)

    async def stop(self) -> None:
        """End the engine."""
        if self._running is not None:
            await asyncio.to_thread(self._running.engine.stop)

    @property
    def loaded(self) -> LoadedModel:
        """The model. Raises NotReady as long as it is not loaded, like the others."""
        return self._get().loaded

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self._get().engine

    @property
    def routing(self) -> RoutingMonitor:
        """What the routers did."""
        return self._get().routing

    def _get(self) -> _Running:
        if self._running is None:
            raise NotReady("the worker loads its model; try again", service="worker")
        return self._running

    def _load(self) -> None:
        settings = self._settings
        torch.set_num_threads(settings.num_threads)
        try:
            device = device_of(settings.device)
        except ValueError as error:
            raise InvalidRequest(str(error), field="device") from None
        try:
            loaded = load_model(settings.model, getattr(torch, settings.dtype), device)
        except CheckpointError as error:
            raise InvalidRequest(str(error), field="model") from None
        try:
            loaded.model.prepare(deterministic_kernels(loaded.model.config, device) if settings.deterministic else FAST)
        except NotDeterministicError as error:
            raise InvalidRequest(str(error), field="deterministic") from None
        config, dtype = loaded.model.config, loaded.model.dtype
        num_blocks = min(blocks_within(config, settings.kv_cache_bytes, dtype), _MAX_BLOCKS)
        if num_blocks == 0:
            raise InvalidRequest(
                f"kv_cache_bytes is {settings.kv_cache_bytes}, but {BLOCK_TOKENS} tokens of this model already need "
                f"{BLOCK_TOKENS * config.kv_values_per_token * dtype.itemsize}",
                field="kv_cache_bytes",
            )
        self.context_length = min(config.context_length, num_blocks * BLOCK_TOKENS)
        if self.context_length < config.context_length:
            _log.warning(
                "the cache is smaller than the model's context; raise kv_cache_bytes to use all of it",
                context_length=self.context_length,
                of=config.context_length,
            )
        routing = RoutingMonitor(
            loaded.model.routed_layers,
            config.num_experts,
            config.num_experts_per_tok,
            window_tokens=settings.routing_window_tokens,
            collapse=settings.routing_collapse,
        )
        engine = Engine(
            loaded.model,
            KvCache(config, num_blocks, dtype, device),
            context_length=self.context_length,
            max_batch_tokens=settings.max_batch_tokens,
            max_queued_steps=settings.max_queued_steps,
            max_sequences=settings.max_sequences,
            lease_s=settings.lease_s,
            routing=routing,
        )
        engine.start()
        self._running = _Running(loaded, engine, routing)
