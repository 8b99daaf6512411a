"""Writes the alert rules as the Prometheus operator takes them: `make prometheus-rule`, after `alerts.yaml` changed.

kustomize cannot put one file into another. So the rules are kept as Prometheus itself reads them, and this file beside
them says the same once more; a test compares the two.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final

MONITORING: Final = Path(__file__).resolve().parent / "kustomize" / "components" / "monitoring"

HEAD: Final = """\
# Made from alerts.yaml by `make prometheus-rule`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: espalier
spec:
"""


def prometheus_rule() -> str:
    """Return the rules as an object of Kubernetes."""
    return HEAD + textwrap.indent((MONITORING / "alerts.yaml").read_text(), "  ")


if __name__ == "__main__":
    (MONITORING / "prometheus-rule.yaml").write_text(prometheus_rule())
