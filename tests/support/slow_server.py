"""A server for tests of a server's life: `slow_server SECONDS [flags]`; a negative number makes `start()` fail."""

import asyncio
import sys
from typing import Any, ClassVar

from espalier.v1 import constraint_pb2, constraint_pb2_grpc

from services.rpckit.server import serve
from services.rpckit.settings import ServiceSettings


class SlowSettings(ServiceSettings):
    service: ClassVar[str] = "constraint"


class SlowServicer(constraint_pb2_grpc.ConstraintServiceServicer):
    async def ListGrammars(
        self, request: constraint_pb2.ListGrammarsRequest, context: Any
    ) -> constraint_pb2.ListGrammarsResponse:
        await asyncio.sleep(0.7)
        return constraint_pb2.ListGrammarsResponse()


async def main(start_seconds: float, argv: list[str]) -> None:
    async def start() -> None:
        if start_seconds < 0:
            raise RuntimeError("no model")
        await asyncio.sleep(start_seconds)

    async def stop() -> None:
        print("stop called", flush=True)

    await serve(
        SlowSettings.load(argv),
        service_name="constraint",
        register=lambda server: constraint_pb2_grpc.add_ConstraintServiceServicer_to_server(SlowServicer(), server),
        full_service_names=["espalier.v1.ConstraintService"],
        start=start,
        stop=stop,
    )


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2:]))
