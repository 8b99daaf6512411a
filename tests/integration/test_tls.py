"""The three services and the command with TLS between all of them, and certificates on both ends inside."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.support.serving import free_ports, wait_until_serving

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


class Service:
    """One process on two ports of this machine: calls by TLS, probes in plain text."""

    def __init__(self, directory: Path, name: str, module: str, environment: dict[str, str]) -> None:
        self.log = directory / f"{name}.log"
        self.health_address = f"127.0.0.1:{free_ports(1)[0]}"
        environment = environment | {"ESPALIER_HEALTH_ADDRESS": self.health_address, "ESPALIER_DRAIN_S": "1"}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module], stdout=output, stderr=output, env=environment
            )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Run the three; gives what a caller needs who trusts their authority and has no certificate."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    ca = directory / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    leaf = authority.issue_cert("localhost")
    cert, key = directory / "tls.crt", directory / "tls.key"
    cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(key)

    kept = {name: value for name, value in os.environ.items() if not name.startswith("ESPALIER_")}
    shared = kept | {"PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", "OMP_NUM_THREADS": "1"}
    names = ("worker", "constraint", "gateway")
    for name, port in zip(names, free_ports(3), strict=True):
        shared[f"ESPALIER_{name.upper()}_ADDRESS"] = f"localhost:{port}"
    own = {"ESPALIER_TLS_CERT_FILE": str(cert), "ESPALIER_TLS_KEY_FILE": str(key)}
    mutual = {"ESPALIER_TLS_CLIENT_CA_FILE": str(ca)}
    peer = {"ESPALIER_PEER_CA_FILE": str(ca)}
    shown = {"ESPALIER_PEER_CERT_FILE": str(cert), "ESPALIER_PEER_KEY_FILE": str(key)}
    services: list[Service] = []
    try:
        for name, module, added in (
            ("worker", "services.model_worker", own | mutual | {"ESPALIER_MODEL": "toy:7"}),
            ("constraint", "services.constraint", own | mutual | peer | shown),
            ("gateway", "gateway", own | peer | shown),
        ):
            services.append(Service(directory, name, module, shared | added))
        for service in services:
            wait_until_serving(service.process, service.health_address, service.log)
        yield shared | peer
    finally:
        for service in reversed(services):
            service.process.terminate()
            service.process.wait(20)


def _espalier(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.cli.main", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


GENERATE = ("generate", "--prompt", "Red or green?", "--choice", "red", "--choice", "green")


def test_a_guided_text_through_all_three(environment: dict[str, str]) -> None:
    done = _espalier(environment, *GENERATE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("red", "green")


def test_a_caller_in_plain_text_is_told_that_nobody_answers(environment: dict[str, str]) -> None:
    plain = {name: value for name, value in environment.items() if not name.startswith("ESPALIER_PEER_")}
    done = _espalier(plain, *GENERATE, "--timeout", "10")
    assert done.returncode == 4, done.stderr
    assert "no answer from localhost" in done.stderr


def test_a_service_inside_wants_a_certificate(environment: dict[str, str]) -> None:
    """`check` asks the constraint service, which this caller may not."""
    done = _espalier(environment, "grammars", "--timeout", "5")
    assert done.returncode in (4, 5), done.stderr


def test_a_file_that_is_not_there_is_named(environment: dict[str, str]) -> None:
    done = _espalier(environment | {"ESPALIER_PEER_CA_FILE": "/nowhere/ca.pem"}, *GENERATE)
    assert done.returncode == 2
    assert "cannot read /nowhere/ca.pem" in done.stderr
