"""Where the replicas of a service are: several addresses in one setting, and names that stand for several."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from services.rpckit.settings import check_address

_DNS = "dns:///"

Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the IP addresses of a host's name and a port; raises OSError where there is none."""


def check_addresses(value: str) -> str:
    """Return the list of addresses as it is.

    Raises:
        ValueError: one of them is none; says what is.
    """
    for address in _split(value):
        check_address(address.removeprefix(_DNS))
        if address.startswith(_DNS + "unix:"):
            raise ValueError("`dns:///` goes before `name:port`")
    return value


Addresses = Annotated[str, AfterValidator(check_addresses)]
"""Where replicas are found: `host:port`, `dns:///host:port`, `[ipv6]:port` or `unix:/path`, several with commas."""


async def look_up(host: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


async def resolve(addresses: str, lookup: Lookup = look_up) -> dict[str, str | None]:
    """Return the address of each replica, a name's as `ip:port`, in the order of the setting.

    With each comes the name that stood for it, which its certificate has; None where it was given as it is.

    Raises:
        OSError: a name is not known, or the resolver does not answer.
    """
    found: dict[str, str | None] = {}
    for address in _split(addresses):
        host, _, port = address.removeprefix(_DNS).rpartition(":")
        if address.startswith("unix:") or _is_ip(host):
            found[address.removeprefix(_DNS)] = None
        else:
            for ip in await lookup(host, int(port)):
                found[f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"] = host
    return found


def _split(addresses: str) -> list[str]:
    return [address.strip() for address in addresses.split(",")]


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
