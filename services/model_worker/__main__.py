"""Runs the model worker: `python -m services.model_worker --help`."""

from __future__ import annotations

import os

# Before torch is loaded: threads that spin while they wait starve the other services on a machine with few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import asyncio
from collections.abc import Sequence

from espalier.v1 import model_worker_pb2_grpc

from services.model_worker.service import WorkerService
from services.model_worker.servicer import FULL_SERVICE_NAME, ModelWorkerServicer
from services.model_worker.settings import WorkerSettings
from services.rpckit.server import serve


async def run(settings: WorkerSettings) -> None:
    """Serve until told to stop."""
    service = WorkerService(settings)
    await serve(
        settings,
        service_name="worker",
        register=lambda server: model_worker_pb2_grpc.add_ModelWorkerServiceServicer_to_server(
            ModelWorkerServicer(service), server
        ),
        full_service_names=[FULL_SERVICE_NAME],
        start=service.start,
        stop=service.stop,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the settings and serve."""
    asyncio.run(run(WorkerSettings.load(argv)))


if __name__ == "__main__":
    main()
