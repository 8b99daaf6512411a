"""Masks come while the model runs: seen in the trace of one request to the real model."""

from __future__ import annotations

import secrets
from pathlib import Path

import grpc
import pytest
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import types_pb2

from tests.support.otlp import running_collector
from tests.support.real_model import real_model_path
from tests.support.up import Up, gateway_stub

pytestmark = [pytest.mark.real_model, pytest.mark.slow]


def test_the_mask_behind_a_token_is_found_during_its_step(tmp_path: Path) -> None:
    trace_id = secrets.token_hex(16)
    asked = pb.Generation(prompt="The river", constraint=types_pb2.Constraint(regex="[a-z ,]{120,160}"), max_tokens=80)
    with running_collector() as collector:
        up = Up(
            tmp_path,
            model=str(real_model_path()),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_BSP_SCHEDULE_DELAY="100",
            # Else a token may wait for its mask, to share its step with tokens forced behind it.
            ESPALIER_GATEWAY_FORCED_GRACE_MS="0",
        ).wait_until_ready()
        try:
            with grpc.insecure_channel(up.addresses["gateway"]) as channel:
                gateway_stub(channel).Generate(
                    pb.GenerateRequest(generation=asked),
                    metadata=(("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"),),
                )
            spans = collector.wait_for(
                lambda spans: {"StreamStepLogits", "StreamAdvance"} <= {span.name.rpartition("/")[2] for span in spans},
                trace_id=trace_id,
            )
        finally:
            up.stop()
    steps, moves = ([span for span in spans if span.name == name] for name in ("decode", "advance"))
    assert len(moves) >= 10
    # Nearly all of them on a machine that does nothing else; `test_loop.py` shows that none waits for its step.
    assert any(step.overlap_ns(move) > 0 for step in steps for move in moves)
