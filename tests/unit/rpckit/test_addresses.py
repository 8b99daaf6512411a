"""Addresses of several replicas: what may be written, and what names stand for."""

import asyncio

import pytest

from services.rpckit.addresses import check_addresses, resolve

HOSTS = {"workers": ["10.0.0.1", "10.0.0.2", "fd00::1"], "other": ["10.0.0.2"]}


async def _lookup(host: str, port: int) -> list[str]:
    if host not in HOSTS:
        raise OSError(-2, f"{host} is not known")
    return HOSTS[host]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("10.0.0.9:1", ["10.0.0.9:1"]),
        ("[fd00::2]:1, unix:/a/b", ["[fd00::2]:1", "unix:/a/b"]),
        ("workers:7", ["10.0.0.1:7", "10.0.0.2:7", "[fd00::1]:7"]),
        ("dns:///workers:7,other:7,other:8", ["10.0.0.1:7", "10.0.0.2:7", "[fd00::1]:7", "10.0.0.2:8"]),
        ("dns:///10.0.0.9:1", ["10.0.0.9:1"]),
    ],
)
def test_names_stand_for_their_addresses(written: str, expected: list[str]) -> None:
    assert check_addresses(written) == written
    found = asyncio.run(resolve(written, _lookup))
    assert list(found) == expected
    for address, server_name in found.items():
        # What a name stood for is known by it.
        assert (server_name is None) == (address in written) or server_name in written


def test_the_systems_resolver_knows_this_machine() -> None:
    assert set(asyncio.run(resolve("localhost:5"))) & {"127.0.0.1:5", "[::1]:5"}


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(OSError, match="nowhere"):
        asyncio.run(resolve("workers:1,nowhere:1", _lookup))


@pytest.mark.parametrize("written", ["", "a:1,", ",", "a", "a:1;b:1", "dns:///", "dns:///unix:/a", "dns://8.8.8.8/a:1"])
def test_what_is_no_address_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"must be|goes before"):
        check_addresses(written)
