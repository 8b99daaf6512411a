"""Every query of dashboard and alerts, asked of a real Prometheus that watches a running stack: `make dashboard-check`.

Needs `prometheus` and `promtool` on PATH; everything else starts and ends here. The toy model gets some rounds of
requests of all kinds. A query without an answer, or with nothing but NaN, is a failure; so is a rule that cannot be
evaluated, or an alert that fires or keeps silent where `alerts_test.yaml` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.monitoring import (
    ENVIRONMENT,
    MONITORING,
    Query,
    alert_queries,
    compared,
    metrics_urls,
    panel_queries,
    send_traffic,
)
from tests.support.up import Up

NEEDED = ("prometheus", "promtool")


class Prometheus:
    """A server that scrapes the three services every second."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        """Ask the HTTP API; raises OSError while it is not there."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def num_answers(self, expression: str) -> int:
        """Count the series of an answer that are numbers."""
        try:
            result = self.get("query", query=expression)["result"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"Prometheus refuses {expression}: {error.read().decode()}") from None
        return sum(not math.isnan(float(series["value"][1])) for series in result)


@contextmanager
def running_prometheus(directory: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """Start one in `directory`; `targets` are URLs by job."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "alerts.yaml")],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [urllib.parse.urlsplit(url).netloc]}]}
            for job, url in targets.items()
        ],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    flags = [f"--config.file={directory}/prometheus.yaml", f"--storage.tsdb.path={directory}/data"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *flags, f"--web.listen-address={address}"], stdout=log, stderr=log)
    server = Prometheus(f"http://{address}")
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                server.get("status/buildinfo")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit((directory / "prometheus.log").read_text()) from None
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def check(seconds: float) -> list[str]:
    """Run everything; returns what is wrong."""
    wrong = []
    questions = [*panel_queries(interval=f"{round(seconds)}s")]
    for alert in alert_queries():
        questions += [Query(alert.where, expression) for expression in compared(alert.expression)]
    with tempfile.TemporaryDirectory(prefix="esp") as name:
        up = Up(Path(name), **ENVIRONMENT)
        try:
            up.wait_until_ready()
            with running_prometheus(Path(name), metrics_urls(up)) as prometheus:
                until = time.monotonic() + seconds
                seed = 0
                while time.monotonic() < until:
                    seed += 1
                    send_traffic(up, seed)
                time.sleep(2)  # one more scrape
                for question in questions:
                    num = prometheus.num_answers(question.expression)
                    print(f"{num:5d}  {question}")
                    if num == 0:
                        wrong.append(f"no answer: {question}")
                for group in prometheus.get("rules")["groups"]:
                    wrong += [
                        f"{rule['name']}: {rule['lastError']}" for rule in group["rules"] if rule["health"] != "ok"
                    ]
        finally:
            up.stop()
    print(f"{len(questions)} queries; {seed} rounds of requests in {seconds:.0f} s")
    return wrong


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how long requests are sent")
    arguments = parser.parse_args()
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        raise SystemExit(
            f"{' and '.join(missing)} not found on PATH: install Prometheus (Debian and Ubuntu: the package "
            "`prometheus`; macOS: `brew install prometheus`; or a release from its own site)"
        )
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        subprocess.run(["promtool", *command], cwd=MONITORING, check=True)
    if wrong := check(arguments.seconds):
        print(*wrong, sep="\n", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
