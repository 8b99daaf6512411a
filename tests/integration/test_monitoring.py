"""Dashboard and alerts ask for what the running services expose. `make dashboard-check` asks a real Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.monitoring import (
    ENVIRONMENT,
    MONITORING,
    Exposed,
    Query,
    alert_queries,
    compared,
    metrics_urls,
    panel_queries,
    read_page,
    send_traffic,
)
from tests.support.up import Up

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exposed]:
    up = Up(tmp_path_factory.mktemp("u"), **ENVIRONMENT)
    try:
        up.wait_until_ready()
        send_traffic(up, 1)
        yield Exposed(*map(read_page, metrics_urls(up).values()))
    finally:
        up.stop()


@pytest.mark.parametrize("query", [*panel_queries(), *alert_queries()], ids=str)
def test_a_query_asks_for_what_is_there(exposed: Exposed, query: Query) -> None:
    assert exposed.mistakes(query) == []


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        ("rate(espalier_gateway_generation_total[1m])", "no metric espalier_gateway_generation_total"),
        ("sum by (nobody) (espalier_ready)", "no metric has the label nobody"),
        ('espalier_ready{nobody="1"}', "espalier_ready has no label nobody"),
        ('espalier_ready{service="workers"}', "no espalier_ready has service='workers'"),
        ("espalier_ready / on (nobody) up", "no metric up"),
    ],
)
def test_mistakes_are_found(exposed: Exposed, expression: str, mistake: str) -> None:
    assert any(mistake in found for found in exposed.mistakes(Query("here", expression)))


def test_what_an_alert_compares() -> None:
    assert compared('(sum(a) or vector(0)) == 0 and b{c="d"} > 2') == ["sum(a)", "vector(0)", 'b{c="d"}']


def test_the_docs_name_each_metric_of_ours_and_no_other(exposed: Exposed) -> None:
    # What prometheus_client adds to each counter and histogram tells when it was made.
    ours = {name for name in exposed.names if name.startswith("espalier_") and not name.endswith("_created")}
    assert set(re.findall(r"\bespalier_[a-z_]+\b", DOCS.read_text())) == ours


def test_each_alert_says_what_to_do() -> None:
    headings = {line.lstrip("# ").lower() for line in DOCS.read_text().splitlines() if line.startswith("#")}
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    rules: list[Any] = [rule for group in groups for rule in group["rules"]]
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/observability.md#{rule['alert'].lower()}"
        assert rule["alert"].lower() in headings
        assert rule["labels"]["severity"] in ("critical", "warning")
    # What tests them with Prometheus's own tool tests all of them.
    tested = (MONITORING / "alerts_test.yaml").read_text()
    assert [rule["alert"] for rule in rules if f'"{rule["alert"]}"' not in tested] == []


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["targets"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
