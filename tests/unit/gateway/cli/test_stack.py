import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import stack as module
from gateway.cli.logs import LogPrinter
from gateway.cli.stack import Service, Stack, StackError, StackOptions, find_redis_binary


def _options(directory: Path, **changes: Any) -> StackOptions:
    values: dict[str, Any] = {
        "model": "toy",
        "directory": directory,
        "worker_address": f"unix:{directory}/w",
        "constraint_address": f"unix:{directory}/c",
        "gateway_address": f"unix:{directory}/g",
        "redis_url": "none",
    }
    return StackOptions(**(values | changes))


async def _enter(options: StackOptions) -> str:
    stack = Stack(options, LogPrinter("text"))
    with pytest.raises(StackError) as caught:
        await stack.__aenter__()
    assert not stack.services
    return str(caught.value)


async def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        message = await _enter(_options(tmp_path, constraint_address=address))
    assert address in message
    assert "--constraint-address" in message


async def test_a_socket_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(tmp_path / "g"))
        holder.listen()
        assert "--gateway-address" in await _enter(_options(tmp_path))


async def test_addresses_must_differ(tmp_path: Path) -> None:
    assert "different" in await _enter(_options(tmp_path, gateway_address=f"unix:{tmp_path}/w"))


@pytest.mark.parametrize("address", ["nonsense", "host:port", "127.0.0.1:99999", "unix:"])
async def test_bad_addresses(tmp_path: Path, address: str) -> None:
    assert "the worker's address" in await _enter(_options(tmp_path, worker_address=address))


async def test_an_address_of_another_machine(tmp_path: Path) -> None:
    assert "cannot be used" in await _enter(_options(tmp_path, worker_address="192.0.2.1:50000"))


class ShortStack(Stack):
    """Runs one process of our choice in the place of the services."""

    def __init__(self, options: StackOptions, code: str) -> None:
        super().__init__(options, LogPrinter("text"))
        self._code = code

    async def _start(self) -> None:
        async def is_healthy() -> bool:
            return any("up" in line for line in self.services["worker"].child.last_lines)

        self._add("worker", [sys.executable, "-uc", self._code], "nowhere", is_healthy, {})
        await self.services["worker"].child.start()
        await self._wait_until_healthy(["worker"])
        self._supervisors = [asyncio.create_task(self._supervise(self.services["worker"]))]


async def test_who_dies_while_starting_is_named_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(StackError) as caught:
        async with ShortStack(_options(tmp_path), "print('no weights here'); raise SystemExit(1)"):
            pass
    assert "worker ended before it was ready" in str(caught.value)
    assert "no weights here" in str(caught.value)


async def test_who_is_never_ready(tmp_path: Path) -> None:
    with pytest.raises(StackError) as caught:
        async with ShortStack(_options(tmp_path, start_timeout_s=0.5), "import time; time.sleep(60)"):
            pass
    assert "not ready within" in str(caught.value)


SLEEP = "import time; print('up'); time.sleep(60)"


async def _dies(service: Service) -> None:
    pid = service.child.pid
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while service.child.is_running and service.child.pid == pid:
            await asyncio.sleep(0.02)


async def test_who_dies_is_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RESTART_DELAYS_S", (0.05, 0.1))
    async with ShortStack(_options(tmp_path), SLEEP) as stack:
        service = stack.services["worker"]
        for _ in range(3):
            pid = service.child.pid
            await _dies(service)
            async with asyncio.timeout(20):
                while not (service.child.is_running and service.child.pid != pid):
                    await asyncio.sleep(0.02)
    said = capsys.readouterr().err
    assert said.count("worker died: signal 9 (SIGKILL)") == 3
    assert "its last lines:\n    up" in said
    assert not service.child.is_running


async def test_without_restarts_a_death_is_told(tmp_path: Path) -> None:
    async with ShortStack(_options(tmp_path, restarts=False), SLEEP) as stack:
        await _dies(stack.services["worker"])
        async with asyncio.timeout(10):
            await stack.died.wait()
        assert not stack.services["worker"].child.is_running


async def test_the_cache_of_our_own(tmp_path: Path) -> None:
    assert find_redis_binary() is not None
    stack = Stack(_options(tmp_path, redis_url="auto"), LogPrinter("text"))
    try:
        assert await stack._start_cache() == f"unix://{tmp_path}/cache.sock"
    finally:
        await stack.stop()
    assert not stack.services["cache"].child.is_running


async def test_without_any_redis_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_redis_binary", lambda: None)
    stack = Stack(_options(tmp_path, redis_url="auto"), LogPrinter("text"))
    assert await stack._start_cache() is None
    assert "memory only" in capsys.readouterr().err
