"""Runs the constraint service: `python -m services.constraint --help`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from espalier.v1 import constraint_pb2_grpc

from services.constraint.service import ConstraintService
from services.constraint.servicer import FULL_SERVICE_NAME, ConstraintServicer
from services.constraint.settings import ConstraintSettings
from services.rpckit.server import CHANNEL_OPTIONS, serve
from services.rpckit.settings import BAD_SETTINGS_EXIT_CODE
from services.rpckit.tls import ClientTls, open_channel
from services.vocabulary import Vocabulary
from services.vocabulary.client import fetch_vocabulary


async def run(settings: ConstraintSettings) -> None:
    """Serve until told to stop."""
    async with open_channel(settings.worker_address, ClientTls.of(settings), CHANNEL_OPTIONS) as channel:

        async def fetch() -> Vocabulary:
            _, vocabulary = await fetch_vocabulary(channel)
            return vocabulary

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
