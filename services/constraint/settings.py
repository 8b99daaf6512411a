"""Settings of the constraint service."""

from __future__ import annotations

import os
from typing import ClassVar

from pydantic import Field

from services.rpckit.settings import Address, ServiceSettings

_MIB = 1 << 20


class ConstraintSettings(ServiceSettings):
    """What the constraint service can be told. Limits have a unit in their name; passing one is a documented error."""

    service: ClassVar[str] = "constraint"

    address: Address = Field("127.0.0.1:50062", description="Where to listen: host:port or unix:/path.")
    worker_address: Address = Field("127.0.0.1:50061", description="The model worker, whose vocabulary is fetched.")
    redis_url: str | None = Field(
        None, description="Cache shared by replicas: redis://, rediss:// or unix:// URL. Absent: memory only."
    )
    redis_timeout_s: float = Field(0.25, gt=0, le=60, description="A slower Redis counts as a miss.")
    redis_ttl_s: int = Field(7 * 24 * 3600, ge=1, description="Seconds a cached grammar lives in Redis.")
    redis_max_value_bytes: int = Field(16 * _MIB, ge=0, description="Larger compiled grammars stay out of Redis.")
    max_grammar_memory_bytes: int = Field(
        512 * _MIB, ge=_MIB, description="Compiled grammars and their masks in memory; least recently used ones go."
    )
    max_source_bytes: int = Field(_MIB, ge=1, description="Largest schema, grammar, regex or list of choices.")
    max_text_bytes: int = Field(16 * _MIB, ge=1, description="Largest text to validate.")
    max_batch_items: int = Field(1024, ge=1, description="Most moves in one Advance.")
    max_compile_s: float = Field(20.0, gt=0, le=600, description="A compile that takes longer is ended.")
    max_compile_memory_bytes: int = Field(2048 * _MIB, ge=256 * _MIB, description="Memory of one compile.")
    max_validate_s: float = Field(10.0, gt=0, le=600, description="A validation that takes longer is ended.")
    num_compile_processes: int = Field(
        min(2, os.cpu_count() or 1), ge=1, le=64, description="Compiles that run at the same time."
    )
    num_validate_processes: int = Field(
        min(2, os.cpu_count() or 1), ge=1, le=64, description="Validations that run at the same time."
    )
    num_mask_threads: int = Field(
        min(4, os.cpu_count() or 1), ge=1, le=256, description="Threads that compute masks; they run without the GIL."
    )
