"""TLS of a server: what it shows, and what it asks of clients. Files are PEM.

They are read again before each handshake, so that a renewed certificate is used by the next connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from services.rpckit.settings import ServiceSettings

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a server shows to its clients, and what it asks of them."""

    cert_file: Path
    """Certificate, with those of its issuers behind it."""
    key_file: Path
    client_ca_file: Path | None = None
    """Authorities of clients; with them a client must show a certificate."""

    @classmethod
    def of(cls, settings: ServiceSettings) -> ServerTls | None:
        """Take what the settings say; None for plain text."""
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            return None
        return cls(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)

    def credentials(self) -> grpc.ServerCredentials:
        """Make credentials that follow the files.

        Raises:
            OSError: one of them cannot be read now. Later, the server goes on with what it had, and logs why.
        """
        current = self._read()
        first = _configuration(current)

        # Called by gRPC's own threads, one connection after another.
        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal current
            try:
                found = self._read()
            except OSError as error:
                _log.warning("keeping the old certificate: cannot read the files", file=error.filename, why=str(error))
                return None
            if found == current:
                return None
            current = found
            _log.info("certificate renewed", file=str(self.cert_file))
            return _configuration(found)

        # The stubs do not know that None means no change.
        follow: Any = changed
        return grpc.dynamic_ssl_server_credentials(
            first, follow, require_client_authentication=self.client_ca_file is not None
        )

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        client_ca = None if self.client_ca_file is None else self.client_ca_file.read_bytes()
        return self.key_file.read_bytes(), self.cert_file.read_bytes(), client_ca


def _configuration(read: tuple[bytes, bytes, bytes | None]) -> grpc.ServerCertificateConfiguration:
    key, cert, client_ca = read
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)
