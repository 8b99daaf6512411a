"""What gRPC is told on both ends of a connection: the one must bear what the other does."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message: all positions' logits of a long step are the largest there are (50,000 float32 are 200 KB a row)."""

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Without this, two servers on one port share its connections and nobody notices.
    ("grpc.so_reuseport", 0),
    # Clients may ping an idle connection every ten seconds to find a dead peer.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A peer that restarts is found again within a second rather than after gRPC's default backoff of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
"""What a channel between our services is made with; matches `SERVER_OPTIONS`."""


def server_options(max_connection_age_s: float | None) -> tuple[tuple[str, int], ...]:
    """Return what a server is made with; connections of that age get no new calls, None for any age."""
    if max_connection_age_s is None:
        return SERVER_OPTIONS
    # No grace is set: gRPC's is endless, and calls that are open end in their own time, over the old connection.
    return (*SERVER_OPTIONS, ("grpc.max_connection_age_ms", round(max_connection_age_s * 1e3)))
