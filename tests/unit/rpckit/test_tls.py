"""TLS between real processes and channels, with certificates made here."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.rpckit.client_tls import ClientTls, open_blocking_channel, open_channel
from services.rpckit.settings import BadSettingsError, PeerSettings
from tests.unit.rpckit.test_server import _run

SERVING = health_pb2.HealthCheckResponse.SERVING


class Certificates:
    """An authority, a server's certificate and a client's, as files."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.cert, self.key = directory / "tls.crt", directory / "tls.key"
        self.client_cert, self.client_key = directory / "client.crt", directory / "client.key"
        self.renew()
        self._write(self.authority.issue_cert("client@espalier"), self.client_cert, self.client_key)

    def renew(self) -> bytes:
        """Write another certificate of the server, and return it."""
        leaf = self.authority.issue_cert("127.0.0.1", "espalier-worker")
        self._write(leaf, self.cert, self.key)
        return leaf.cert_chain_pems[0].bytes()

    @property
    def trusting(self) -> ClientTls:
        return ClientTls(self.ca)

    @property
    def known(self) -> ClientTls:
        return ClientTls(self.ca, self.client_cert, self.client_key)

    def _write(self, leaf: trustme.LeafCert, cert: Path, key: Path) -> None:
        cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(key)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


class Server:
    """A server of rpckit in a process of its own."""

    def __init__(self, *flags: str) -> None:
        self.process = _run("0", "--address", "127.0.0.1:0", "--drain-s", "0", *flags)
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"ready"' in line:
                break
        self.address = self._address("ready")

    def _address(self, event: str) -> str:
        line = next(line for line in self.lines if f'"event": "{event}"' in line)
        return line.split('"address": "')[1].split('"')[0]

    @property
    def health_address(self) -> str:
        return self._address("health")


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        server.process.kill()
        server.process.communicate(timeout=10)


def _flags(certificates: Certificates) -> tuple[str, ...]:
    return ("--tls-cert-file", str(certificates.cert), "--tls-key-file", str(certificates.key))


def _check(channel: grpc.Channel, service: str = "") -> int:
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status)


def _is_refused(channel: grpc.Channel) -> bool:
    try:
        _check(channel)
    except grpc.RpcError as error:
        return bool(error.code() is grpc.StatusCode.UNAVAILABLE)
    return False


async def test_a_server_that_shows_a_certificate(certificates: Certificates, servers: list[Server]) -> None:
    servers.append(Server(*_flags(certificates)))
    address = servers[0].address
    assert _check(open_blocking_channel(address, certificates.trusting)) == SERVING
    async with open_channel(address, certificates.trusting) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
    assert _is_refused(open_blocking_channel(address, None))


def test_a_client_that_trusts_another_authority(
    certificates: Certificates, servers: list[Server], tmp_path: Path
) -> None:
    servers.append(Server(*_flags(certificates)))
    (tmp_path / "other").mkdir()
    assert _is_refused(open_blocking_channel(servers[0].address, Certificates(tmp_path / "other").trusting))


async def test_the_name_in_the_certificate_counts(certificates: Certificates, servers: list[Server]) -> None:
    servers.append(Server(*_flags(certificates)))
    for name, is_right in (("espalier-worker", True), ("espalier-gateway", False)):
        async with open_channel(servers[0].address, certificates.trusting, server_name=name) as channel:
            call: Any = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            if is_right:
                assert (await call).status == SERVING
            else:
                with pytest.raises(grpc.aio.AioRpcError):
                    await call


def test_a_server_that_asks_for_certificates(certificates: Certificates, servers: list[Server]) -> None:
    servers.append(Server(*_flags(certificates), "--tls-client-ca-file", str(certificates.ca)))
    assert _check(open_blocking_channel(servers[0].address, certificates.known)) == SERVING
    assert _is_refused(open_blocking_channel(servers[0].address, certificates.trusting))


def test_a_renewed_certificate_is_shown_to_the_next_connection(
    certificates: Certificates, servers: list[Server]
) -> None:
    servers.append(Server(*_flags(certificates)))
    host, _, port = servers[0].address.rpartition(":")
    before = ssl.get_server_certificate((host, int(port)))
    renewed = certificates.renew().decode()
    assert before.strip() != renewed.strip()
    # The very connection that notices the new files still gets the old certificate from some releases of gRPC.
    ssl.get_server_certificate((host, int(port)))
    assert ssl.get_server_certificate((host, int(port))).strip() == renewed.strip()

    # Files that are gone for a moment change nothing.
    certificates.cert.unlink()
    assert ssl.get_server_certificate((host, int(port))).strip() == renewed.strip()


def test_probes_speak_plain_text_at_an_address_of_their_own(certificates: Certificates, servers: list[Server]) -> None:
    servers.append(Server(*_flags(certificates), "--health-address", "127.0.0.1:0"))
    for service in ("", "espalier.v1.ConstraintService", "liveness"):
        assert _check(grpc.insecure_channel(servers[0].health_address), service) == SERVING
    with grpc.insecure_channel(servers[0].health_address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/espalier.v1.ConstraintService/ListGrammars")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_files_that_are_no_certificates_end_with_1(certificates: Certificates) -> None:
    certificates.cert.write_text("rubbish")
    process = _run("0", "--address", "127.0.0.1:0", *_flags(certificates))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "are no PEM" in err


class Caller(PeerSettings):
    service = "gateway"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tls-cert-file={ca}"], "espalier gateway: `tls_cert_file` and `tls_key_file` go together"),
        (["--tls-client-ca-file={ca}"], "`tls_client_ca_file` needs"),
        (["--peer-ca-file={ca}", "--peer-key-file={ca}"], "`peer_cert_file` and `peer_key_file` go together"),
        (["--peer-cert-file={ca}", "--peer-key-file={ca}"], "`peer_cert_file` needs `peer_ca_file`"),
        (["--peer-ca-file=/nowhere"], "setting `peer_ca_file`"),
    ],
)
def test_settings_that_do_not_fit_together(certificates: Certificates, flags: list[str], message: str) -> None:
    with pytest.raises(BadSettingsError) as caught:
        Caller.read([flag.format(ca=certificates.ca) for flag in flags])
    assert message in str(caught.value)


def test_the_environment_of_the_command(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ClientTls.of_environment() is None
    monkeypatch.setenv("ESPALIER_PEER_CERT_FILE", str(certificates.client_cert))
    with pytest.raises(BadSettingsError):
        ClientTls.of_environment()
    monkeypatch.setenv("ESPALIER_PEER_CA_FILE", str(certificates.ca))
    monkeypatch.setenv("ESPALIER_PEER_KEY_FILE", str(certificates.client_key))
    assert ClientTls.of_environment() == certificates.known
    certificates.ca.unlink()
    with pytest.raises(BadSettingsError, match="cannot read"):
        certificates.known.credentials()
