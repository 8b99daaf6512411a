"""The life of a server: bind, load, serve, drain, stop.

1. Bind. A port in use ends the process here, with code 1.
2. `start()` loads what is needed. Health says NOT_SERVING; calls are refused with NOT_READY.
3. Serve, until SIGTERM or SIGINT. Health says SERVING, overall and per service.
4. Drain. Health says NOT_SERVING, new calls are refused, open ones may end within `drain_s`.
5. `stop()` lets go of what is held.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import prometheus_client
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import Gauge

from services.rpckit.interceptors import CallInterceptor
from services.rpckit.options import SERVER_OPTIONS, server_options
from services.rpckit.server_tls import ServerTls
from services.rpckit.settings import ServiceSettings
from services.rpckit.status import ServiceError
from services.rpckit.tracing import start_tracing

START_FAILED_EXIT_CODE = 1

LIVENESS = "liveness"
"""What health always says SERVING for: that it answers means that the event loop turns, and nothing else."""

READY = Gauge("espalier_ready", "1 while the service takes calls, 0 while it loads or drains.", ["service"])
TASKS = Gauge("espalier_tasks", "Tasks of the service's event loop, those of open calls among them.")

_log = structlog.get_logger()


# Without the frames' variables: those are callers' prompts and our secrets.
_tracebacks = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def configure_logs(settings: ServiceSettings) -> None:
    """Send logs to stderr: structlog's and those of libraries, as JSON lines or as text."""

    def add_service(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Name the service in every line, those of threads too, which have no context."""
        event["service"] = settings.service
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_service,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    rendering: list[structlog.typing.Processor] = (
        [_tracebacks, structlog.processors.JSONRenderer(ensure_ascii=False)]
        if settings.log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries' chatter stays out; ours is told apart by the service's own level.
    root.setLevel(max(logging.INFO, logging.getLevelName(settings.log_level.upper())))
    for name in ("services", "gateway"):
        logging.getLogger(name).setLevel(settings.log_level.upper())


async def serve(
    settings: ServiceSettings,
    *,
    service_name: str,
    register: Callable[[grpc.aio.Server], None],
    full_service_names: Sequence[str],
    start: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
    drain: Callable[[], None] = lambda: None,
    report_health: Callable[[Callable[[str, bool], Awaitable[None]]], Awaitable[None]] | None = None,
) -> None:
    """Run a server until it is told to stop; returns after `stop()`.

    `register` adds the servicers; their handlers are called only after `start()` returned. `full_service_names` are
    those of the contract, for example `espalier.v1.GatewayService`: reflection lists them, and health answers for
    each and for "". `drain` is called when draining begins, for calls that would not end by themselves. `report_health`
    runs from `start()` to the end and tells by `await report(name, is_fine)` of what the service can do without: health
    answers for "<first full name>/<name>".

    Raises:
        SystemExit: code 1 when the address is in use, or when `start()` fails; the log says why.
    """
    configure_logs(settings)
    _log.info("settings", **settings.describe())
    for variable in settings.unknown_variables():
        _log.warning("an environment variable that looks like a setting is none; see --help", variable=variable)

    is_ready = False
    ready = READY.labels(settings.service)
    ready.set(0)
    tracing = start_tracing(settings)
    server = grpc.aio.server(
        interceptors=[CallInterceptor(service_name, lambda: is_ready, tracing)],
        options=server_options(settings.max_connection_age_s),
    )
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    async def set_health(status: Any) -> None:
        for name in ("", *full_service_names):
            await health_servicer.set(name, status)

    await set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
    await health_servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
    register(server)
    reflection.enable_server_reflection((*full_service_names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    async def report(name: str, is_fine: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await health_servicer.set(f"{full_service_names[0]}/{name}", status.SERVING if is_fine else status.NOT_SERVING)

    reporting: asyncio.Future[None] | None = None
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    bound = _bind(server, settings.address, tls=ServerTls.of(settings))
    _serve_metrics(settings)
    health_server = await _serve_health(settings, health_servicer)
    await server.start()
    _log.info("listening, not ready yet", address=bound)
    try:
        if await _finish_unless(stopping, start):
            is_ready = True
            ready.set(1)
            await set_health(health_pb2.HealthCheckResponse.SERVING)
            _log.info("ready", address=bound)
            reporting = None if report_health is None else asyncio.ensure_future(report_health(report))
            await stopping.wait()
    except ServiceError as error:
        _log.error("cannot start", reason=error.reason, message=error.message)
        raise SystemExit(START_FAILED_EXIT_CODE) from None
    except Exception as error:
        _log.error("cannot start", exc_info=error)
        raise SystemExit(START_FAILED_EXIT_CODE) from None
    finally:
        is_ready = False
        ready.set(0)
        if reporting is not None:
            reporting.cancel()
        _log.info("stopping", drain_s=settings.drain_s)
        # Not `enter_graceful_shutdown`, which would end liveness too: a long drain is no reason to kill the process.
        await set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        drain()
        await server.stop(settings.drain_s)
        await stop()
        if tracing is not None:
            await asyncio.to_thread(tracing.stop)
        if health_server is not None:
            await health_server.stop(None)
        _log.info("stopped")


async def _finish_unless(stopping: asyncio.Event, start: Callable[[], Awaitable[None]]) -> bool:
    """Run `start()`, or give it up when `stopping` is set; returns whether it finished."""
    starting = asyncio.ensure_future(start())
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            return not stopping.is_set()
        return False
    finally:
        for task in (starting, stopped):
            task.cancel()
        await asyncio.gather(starting, stopped, return_exceptions=True)


async def _serve_health(settings: ServiceSettings, servicer: Any) -> grpc.aio.Server | None:
    """Answer for health at an address of its own; on the same event loop, or it would tell nothing of that."""
    if settings.health_address is None:
        return None
    server = grpc.aio.server(options=SERVER_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    bound = _bind(server, settings.health_address, setting="health-address")
    await server.start()
    _log.info("health", address=bound)
    return server


def _bind(server: grpc.aio.Server, address: str, *, tls: ServerTls | None = None, setting: str = "address") -> str:
    """Bind the address and return it with the port that was taken; ends the process with code 1 when it is in use."""
    reason = "it is in use, or not an address of this machine"
    if address.startswith("unix:") and _is_unix_socket_served(address.removeprefix("unix:")):
        # gRPC would take the path away from the server that has it.
        port = 0
        reason = "another server listens on it"
    else:
        try:
            port = (
                server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls.credentials())
            )
        except RuntimeError:
            port = 0
            if tls is not None:
                reason += f", or {tls.cert_file} and {tls.key_file} are no PEM of a certificate and its key"
        except OSError as error:
            _log.error("cannot read a file of TLS", file=error.filename, why=error.strerror)
            raise SystemExit(START_FAILED_EXIT_CODE) from None
    if port == 0:
        _log.error(
            f"cannot listen on {address}: {reason}; stop what holds it, or set --{setting} to another one",
            address=address,
        )
        raise SystemExit(START_FAILED_EXIT_CODE)
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _is_unix_socket_served(path: str) -> bool:
    if not Path(path).is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def _serve_metrics(settings: ServiceSettings) -> None:
    loop = asyncio.get_running_loop()
    TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
    if settings.metrics_port is None:
        return
    host = "127.0.0.1" if settings.address.startswith("unix:") else settings.address.rpartition(":")[0].strip("[]")
    try:
        http_server, _ = prometheus_client.start_http_server(settings.metrics_port, addr=host)
    except OSError as error:
        where, why = f"{host}:{settings.metrics_port}", os.strerror(error.errno or 0)
        _log.error(f"cannot serve metrics on {where}: {why}; set --metrics-port to a free port")
        raise SystemExit(START_FAILED_EXIT_CODE) from None
    _log.info("metrics", url=f"http://{host}:{http_server.server_port}/metrics")
