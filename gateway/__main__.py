"""Runs the gateway: `python -m gateway --help`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from espalier.v1 import gateway_pb2_grpc

from gateway.service import Gateway
from gateway.servicer import FULL_SERVICE_NAME, GatewayServicer
from gateway.settings import GatewaySettings
from services.rpckit.server import serve


async def run(settings: GatewaySettings) -> None:
    """Serve until told to stop."""
    gateway = Gateway(settings)
    await serve(
        settings,
        service_name="gateway",
        register=lambda server: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(GatewayServicer(gateway), server),
        full_service_names=[FULL_SERVICE_NAME],
        start=gateway.start,
        drain=gateway.draining.set,
        stop=gateway.stop,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the settings and serve."""
    asyncio.run(run(GatewaySettings.load(argv)))


if __name__ == "__main__":
    main()
