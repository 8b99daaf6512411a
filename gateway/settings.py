"""Settings of the gateway."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from services.rpckit.addresses import Addresses
from services.rpckit.settings import Address, PeerSettings


class GatewaySettings(PeerSettings):
    """What the gateway can be told. Limits have a unit in their name; passing one is a documented error."""

    service: ClassVar[str] = "gateway"
    starts_traces: ClassVar[bool] = True

    address: Address = Field("127.0.0.1:50060", description="Where to listen: host:port or unix:/path.")
    worker_address: Addresses = Field(
        "127.0.0.1:50061", description="The model workers: addresses with commas between, or a name of several."
    )
    constraint_address: Addresses = Field("127.0.0.1:50062", description="The constraint service, likewise.")
    resolve_interval_s: float = Field(
        5.0, gt=0, le=3600, description="The names of the other services are resolved again so often."
    )
    startup_wait_s: float = Field(
        60.0, ge=0, description="Starting waits so long for the other two; then it serves, and says what is missing."
    )
    connect_wait_s: float = Field(
        2.0, ge=0, le=60, description="A request waits so long for a service that is away before it fails."
    )
    max_running: int = Field(16, ge=1, le=4096, description="Generations at the same time.")
    max_queued: int = Field(64, ge=0, le=65536, description="Generations that wait for their turn; more are refused.")
    max_batch_concurrent: int = Field(
        16, ge=1, le=4096, description="Documents of one ExtractBatch at the same time; others wait in their client."
    )
    max_request_s: float = Field(600.0, gt=0, description="Time of one generation, also where the caller allows more.")
    max_step_s: float = Field(120.0, gt=0, description="Time of one step of the worker, a long prompt's included.")
    max_advance_s: float = Field(30.0, gt=0, description="Time of one answer of the constraint service to a token.")
    max_input_bytes: int = Field(16 << 20, ge=1, description="Largest prompt or conversation, before it is tokenized.")
    forced_grace_ms: float = Field(
        2.0,
        ge=0,
        le=100,
        description="How long a drawn token waits for the tokens forced behind it, to share their step; 0: never.",
    )
    max_budget_draws: int = Field(
        16, ge=1, le=1024, description="Draws that do not fit into max_tokens before the shortest completion is taken."
    )
    max_rollbacks: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="Dead ends that one generation may meet: there a constraint's checks leave no way on.",
    )
    max_rollback_tokens: int = Field(
        4096,
        ge=0,
        le=1_000_000,
        description="Tokens that one generation may take back because of dead ends: their forward passes were in vain.",
    )
