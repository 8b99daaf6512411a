"""Runs the constraint service: `python -m services.constraint --help`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from espalier.v1 import constraint_pb2_grpc

from services.constraint.service import ConstraintService
from services.constraint.servicer import FULL_SERVICE_NAME, ConstraintServicer
from services.constraint.settings import ConstraintSettings
from services.rpckit.addresses import resolve
from services.rpckit.client_tls import ClientTls
from services.rpckit.options import CHANNEL_OPTIONS
from services.rpckit.server import serve
from services.rpckit.settings import BAD_SETTINGS_EXIT_CODE
from services.rpckit.status import NotReady
from services.vocabulary import Vocabulary
from services.vocabulary.client import fetch_from_any


async def run(settings: ConstraintSettings) -> None:
    """Serve until told to stop."""
    tls = ClientTls.of(settings)

    async def fetch(wanted_digest: str | None) -> Vocabulary:
        try:
            workers = await resolve(settings.worker_address)
        except OSError as error:
            message = f"the model worker's address {settings.worker_address} cannot be resolved: {error.strerror}"
            raise NotReady(message, service="worker") from None
        return await fetch_from_any(workers, wanted_digest, tls=tls, options=CHANNEL_OPTIONS)

    try:
        service = ConstraintService(settings, fetch)
    except ValueError as error:
        print(f"espalier constraint: setting `redis_url`: {error}", file=sys.stderr)
        raise SystemExit(BAD_SETTINGS_EXIT_CODE) from None
    await serve(
        settings,
        service_name="constraint",
        register=lambda server: constraint_pb2_grpc.add_ConstraintServiceServicer_to_server(
            ConstraintServicer(service), server
        ),
        full_service_names=[FULL_SERVICE_NAME],
        start=service.start,
        stop=service.stop,
        report_health=service.report_health,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the settings and serve."""
    asyncio.run(run(ConstraintSettings.load(argv)))


if __name__ == "__main__":
    main()
