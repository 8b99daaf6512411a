"""Settings of the model worker."""

from __future__ import annotations

import os
from typing import ClassVar, Literal

from pydantic import Field

from services.rpckit.settings import Address, ServiceSettings

_MIB = 1 << 20


class WorkerSettings(ServiceSettings):
    """What the worker can be told."""

    service: ClassVar[str] = "worker"

    address: Address = Field("127.0.0.1:50061", description="Where to listen: host:port or unix:/path.")
    model: str = Field(
        description="A GGUF file, a directory that holds one, a Hugging Face directory with safetensors, "
        "or `toy` or `toy:<seed>` for a small random model."
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of weights and cache in memory.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$",
        description="Where the model runs: `cpu`, `cuda`, `cuda:<number>`; `auto` is a GPU where there is one.",
    )
    deterministic: bool = Field(
        False,
        description="Whether the same tokens have the same logits bit for bit, alone or in any batch; somewhat slower.",
    )
    num_threads: int = Field(os.cpu_count() or 1, ge=1, le=1024, description="Threads of a forward pass.")
    max_batch_tokens: int = Field(
        128,
        ge=16,
        le=65536,
        description="Most tokens in one forward pass; longer prompts go in pieces, others have their turn in between.",
    )
    kv_cache_bytes: int = Field(
        1024 * _MIB, ge=_MIB, description="Memory for keys and values; taken from the system as it is used."
    )
    max_sequences: int = Field(1024, ge=1, description="Most open sequences.")
    max_queued_steps: int = Field(
        4096, ge=1, description="Most steps waiting; more are refused with RESOURCE_EXHAUSTED."
    )
    routing_window_tokens: int = Field(
        4096, ge=1, description="Tokens after which routing is looked at, for its gauges and for a collapse."
    )
    routing_collapse: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="A layer has collapsed where its balance is beyond this part of the way from uniform to the worst.",
    )
    lease_s: float = Field(60.0, gt=0, le=86400, description="A sequence that nobody uses for so long is freed.")
