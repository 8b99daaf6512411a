"""The queries of dashboard and alerts, what each asks for, and traffic that gives all of them something to show."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import promql_parser
import yaml
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import types_pb2
from prometheus_client.parser import text_string_to_metric_families

from tests.support.up import Up, gateway_stub, generation

MONITORING = Path(__file__).parents[2] / "deploy" / "kustomize" / "components" / "monitoring"
SCRAPE_LABELS = {"job", "instance", "namespace", "pod"}
"""What Prometheus adds to every metric, or its Kubernetes discovery does."""

# Few turns, so that some requests are refused; a short window, so that the routing of few tokens is seen.
ENVIRONMENT = {f"ESPALIER_{name}_METRICS_PORT": "0" for name in ("GATEWAY", "WORKER", "CONSTRAINT")} | {
    "ESPALIER_GATEWAY_MAX_RUNNING": "2",
    "ESPALIER_GATEWAY_MAX_QUEUED": "1",
    "ESPALIER_WORKER_ROUTING_WINDOW_TOKENS": "64",
}
RECORD = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "tags": {"enum": [["a"], ["b", "a"]]}},
    "required": ["name", "tags"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Query:
    """One expression, and where it stands."""

    where: str
    expression: str

    def __str__(self) -> str:
        return f"{self.where}: {' '.join(self.expression.split())}"


@dataclass(frozen=True)
class Selector:
    """One metric that an expression reads, with the conditions on its labels: (label, operator, value)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


def panel_queries(*, interval: str = "1m", layer: str = "0") -> list[Query]:
    """The dashboard's queries, its variables replaced as Grafana does."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    values = {"$__rate_interval": interval, "$namespace": ".*", "$layer": layer}
    queries = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in values.items():
                expression = expression.replace(variable, value)
            queries.append(Query(f"panel {panel['title']!r}", expression))
    return queries


def alert_queries() -> list[Query]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [Query(f"alert {rule['alert']}", rule["expr"]) for group in groups for rule in group["rules"]]


def selectors(expression: str) -> list[Selector]:
    return [
        Selector(node.name, tuple((m.name, _OPERATORS[str(m.op)], m.value) for m in node.matchers.matchers))
        for node in _nodes(promql_parser.parse(expression))
        if isinstance(node, promql_parser.VectorSelector)
    ]


def grouping_labels(expression: str) -> set[str]:
    """Labels by which anything is put together or matched."""
    labels: set[str] = set()
    for node in _nodes(promql_parser.parse(expression)):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            labels |= set(node.modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None and node.modifier.matching:
            labels |= set(node.modifier.matching.labels)
    return labels


def compared(expression: str) -> list[str]:
    """What an alert's expression compares with its limits: empty answers there mean that it can never fire."""

    def sides(node: Any) -> Iterator[Any]:
        if isinstance(node, promql_parser.ParenExpr):
            yield from sides(node.expr)
        elif isinstance(node, promql_parser.BinaryExpr) and str(node.op) in ("and", "or", "unless"):
            yield from sides(node.lhs)
            yield from sides(node.rhs)
        elif isinstance(node, promql_parser.BinaryExpr) and str(node.op) in ("==", "!=", ">", "<", ">=", "<="):
            yield from sides(node.lhs)
        else:
            yield node

    return [node.prettify() for node in sides(promql_parser.parse(expression))]


_OPERATORS = {
    "MatchOp.Equal": "=",
    "MatchOp.NotEqual": "!=",
    "MatchOp.Re": "=~",
    "MatchOp.NotRe": "!~",
}


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        if (child := getattr(node, name, None)) is not None:
            yield from _nodes(child)
    for child in getattr(node, "args", None) or ():
        yield from _nodes(child)


class Exposed:
    """What the services' `/metrics` answer: the label sets of each sample's name, and the names of all metrics."""

    def __init__(self, *pages: str) -> None:
        self.labels_of: dict[str, list[dict[str, str]]] = {}
        self.names: set[str] = set()
        """Of those without a sample too; not of what belongs to a histogram."""
        for page in pages:
            for family in text_string_to_metric_families(page):
                self.names.add(f"{family.name}_total" if family.type == "counter" else family.name)
                for sample in family.samples:
                    self.labels_of.setdefault(sample.name, []).append(sample.labels)

    def mistakes(self, query: Query) -> list[str]:
        """Names, labels and values of a query that nobody exposes."""
        found = []
        known: set[str] = set(SCRAPE_LABELS)
        for selector in selectors(query.expression):
            label_sets = self.labels_of.get(selector.name)
            if label_sets is None:
                found.append(f"{query}: no metric {selector.name}")
                continue
            names = {name for labels in label_sets for name in labels} | SCRAPE_LABELS
            known |= names
            for label, operator, value in selector.matchers:
                if label not in names:
                    found.append(f"{query}: {selector.name} has no label {label}")
                elif label not in SCRAPE_LABELS and not any(
                    _matches(labels.get(label, ""), operator, value) for labels in label_sets
                ):
                    found.append(f"{query}: no {selector.name} has {label}{operator}{value!r}")
        return found + [
            f"{query}: no metric has the label {label}" for label in grouping_labels(query.expression) - known
        ]


def _matches(actual: str, operator: str, value: str) -> bool:
    is_equal = re.fullmatch(value, actual) is not None if "~" in operator else actual == value
    return is_equal != operator.startswith("!")


def metrics_urls(up: Up) -> dict[str, str]:
    """The pages of the three services, by name."""
    return {name: up.wait_for("metrics", service=name)["url"] for name in ("gateway", "worker", "constraint")}


def read_page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        page: str = response.read().decode()
        return page


def send_traffic(up: Up, seed: int) -> None:
    """Send a round of requests: guided, free, by a beam, for several texts, refused, too many, and one given up."""
    constraint = types_pb2.Constraint(json_schema=json.dumps(RECORD))
    beam = pb.Generation(prompt="Write.", constraint=constraint, max_tokens=60, beam=pb.Beam(width=2))
    several = generation(max_tokens=8, seed=seed)
    several.n = 3
    new_schema = RECORD | {"description": f"Round {seed}: no cache knows this one."}
    with grpc.insecure_channel(up.addresses["gateway"]) as channel, ThreadPoolExecutor(8) as pool:
        stub = gateway_stub(channel)

        def ask(asked: pb.Generation, timeout_s: float = 60) -> str:
            try:
                stub.Generate(pb.GenerateRequest(generation=asked), timeout=timeout_s)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

        for asked in (generation(RECORD, seed=seed), generation(new_schema, seed=seed), generation(max_tokens=16)):
            assert ask(asked) == "OK"
        assert ask(beam) == "OK"
        assert ask(several) == "OK"
        assert ask(generation({"type": "strin"})) == "INVALID_ARGUMENT"
        assert ask(generation(RECORD, max_tokens=2)) == "INVALID_ARGUMENT"
        ask(generation(max_tokens=400), timeout_s=0.05)
        at_once = list(pool.map(ask, [generation(max_tokens=32, seed=seed)] * 8))
        assert "RESOURCE_EXHAUSTED" in at_once
