"""Whether calls are traced: only where the environment names a collector, by `OTEL_EXPORTER_OTLP_ENDPOINT` or its kin.

OpenTelemetry, the extra `otel`, is imported only then. What is not traced pays for one comparison with None.
"""

from __future__ import annotations

import importlib
import os
import time
from typing import TYPE_CHECKING, Final

import structlog

from services.rpckit.settings import ServiceSettings

if TYPE_CHECKING:
    from services.rpckit.spans import Tracing

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS: Final = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}

_log = structlog.get_logger()


def start_tracing(settings: ServiceSettings) -> Tracing | None:
    """Begin to export spans; None where nobody asks for them, or where they cannot be sent, which the log says."""
    endpoint = _first(_ENDPOINTS)
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or is_off or exporter == "none":
        return None
    protocol = _first(_PROTOCOLS) or "grpc"
    if exporter != "otlp" or protocol not in _EXPORTERS:
        known = ", ".join(_EXPORTERS)
        _log.warning(
            f"no traces: the exporter must be otlp, its protocol {known}", exporter=exporter, protocol=protocol
        )
        return None
    try:
        spans = importlib.import_module("services.rpckit.spans")
        exporter_class = importlib.import_module(_EXPORTERS[protocol]).OTLPSpanExporter
    except ImportError as error:
        _log.warning("no traces: a package is missing, see the extra `otel`", missing=error.name, endpoint=endpoint)
        return None
    tracing: Tracing = spans.Tracing(
        settings.service,
        exporter_class(),
        starts_traces=settings.starts_traces,
        max_spans=settings.trace_max_spans,
    )
    _log.info("traces", endpoint=endpoint, protocol=protocol, sampler=tracing.sampler)
    return tracing


def since_epoch_ns(monotonic_s: float) -> int:
    """Turn a reading of `time.monotonic` into nanoseconds since the epoch."""
    return time.time_ns() - round((time.monotonic() - monotonic_s) * 1e9)


def _first(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
