"""`espalier up`: the whole stack on one machine."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gateway.cli.logs import LogPrinter
from gateway.cli.stack import Stack, StackError, StackOptions


async def run(options: StackOptions, printer: LogPrinter) -> int:
    """Run the stack until SIGINT or SIGTERM; returns the exit code."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    stack = Stack(options, printer)
    starting = asyncio.create_task(stack.__aenter__())
    told = asyncio.create_task(stopping.wait())
    died = asyncio.create_task(stack.died.wait())
    try:
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return 0
        try:
            starting.result()
        except StackError as error:
            printer.say(str(error), level="error")
            return 1
        _print_addresses(stack)
        printer.say("ready; Ctrl-C stops everything")
        await asyncio.wait({told, died}, return_when=asyncio.FIRST_COMPLETED)
        return 1 if died.done() else 0
    finally:
        printer.say("stopping")
        for task in (starting, told, died):
            task.cancel()
        await asyncio.gather(starting, told, died, return_exceptions=True)
        await stack.stop()
        printer.say("stopped")


def _print_addresses(stack: Stack) -> None:
    table = Table("service", "address", "process")
    for name, service in stack.services.items():
        table.add_row(name, service.address, str(service.child.pid))
    Console(soft_wrap=True).print(table)


def private_directory() -> tempfile.TemporaryDirectory[str]:
    """Make a directory for sockets that only this user can enter, with a path short enough for them."""
    base = Path(tempfile.gettempdir())
    return tempfile.TemporaryDirectory(prefix="espalier-", dir=base if len(str(base)) < 60 else "/tmp")
