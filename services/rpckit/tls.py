"""TLS on both ends of a connection: what a server shows, and whom a client trusts. Files are PEM.

A server reads its files again before each handshake, so that a renewed certificate is used by the next connection.
gRPC has no such thing for clients: a channel keeps what it was made with. Certificates of clients that expire need a
restart between their renewal and their end.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog

from services.rpckit.settings import BadSettingsError, PeerSettings, ServiceSettings

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


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Whom a client trusts, and what it shows to servers that ask."""

    ca_file: Path
    """Authorities of servers."""
    cert_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def of(cls, settings: PeerSettings) -> ClientTls | None:
        """Take what the settings say; None for plain text."""
        if settings.peer_ca_file is None:
            return None
        return cls(settings.peer_ca_file, settings.peer_cert_file, settings.peer_key_file)

    @classmethod
    def of_environment(cls) -> ClientTls | None:
        """Take `ESPALIER_PEER_CA_FILE`, `…_CERT_FILE` and `…_KEY_FILE`, as the services do; None without the first.

        Raises:
            BadSettingsError: only some of them are set.
        """
        ca, cert, key = (os.environ.get(f"ESPALIER_PEER_{name}_FILE") for name in ("CA", "CERT", "KEY"))
        if (cert is None) is not (key is None) or (cert is not None and ca is None):
            raise BadSettingsError(
                "ESPALIER_PEER_CERT_FILE and ESPALIER_PEER_KEY_FILE go together, and need ESPALIER_PEER_CA_FILE"
            )
        if ca is None:
            return None
        return cls(Path(ca), None if cert is None else Path(cert), None if key is None else Path(key))

    def credentials(self) -> grpc.ChannelCredentials:
        """Make credentials of what the files hold now.

        Raises:
            BadSettingsError: one of them cannot be read.
        """
        try:
            return grpc.ssl_channel_credentials(
                self.ca_file.read_bytes(),
                None if self.key_file is None else self.key_file.read_bytes(),
                None if self.cert_file is None else self.cert_file.read_bytes(),
            )
        except OSError as error:
            raise BadSettingsError(f"cannot read {error.filename}: {error.strerror}") from None


def open_channel(address: str, tls: ClientTls | None, options: Any = (), *, server_name: str | None = None) -> Any:
    """Open a `grpc.aio.Channel`, in plain text without `tls`; it connects when it is first used.

    `server_name` is the name that the server's certificate must have, where it is not the host of `address`.

    Raises:
        BadSettingsError: a file of `tls` cannot be read.
    """
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, tls.credentials(), options=_named(options, server_name))


def open_blocking_channel(address: str, tls: ClientTls | None, options: Any = ()) -> grpc.Channel:
    """Open a `grpc.Channel` as `open_channel` does."""
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls.credentials(), options=options)


def _named(options: Any, server_name: str | None) -> Any:
    return options if server_name is None else (*options, ("grpc.ssl_target_name_override", server_name))


def _configuration(read: tuple[bytes, bytes, bytes | None]) -> grpc.ServerCertificateConfiguration:
    key, cert, client_ca = read
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)
