"""TLS of a client: whom it trusts, and what it shows to servers that ask. Files are PEM.

A channel keeps what it was made with, because gRPC has nothing else for clients: certificates of clients that expire
need a restart between their renewal and their end.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from services.rpckit.bad_settings import BadSettingsError

if TYPE_CHECKING:  # commands need no settings, which take a quarter of a second to import
    from services.rpckit.settings import PeerSettings


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
