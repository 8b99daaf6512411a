"""What a run tells of itself: a line for each step, a line for each layer of each step, and a warning of a collapse."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import structlog

from services.model_worker.model.moe import RoutingLog
from services.model_worker.routing import Routing, collapse_limit
from services.model_worker.training.gating import Assignment

_log = structlog.get_logger()

STEPS: Final = "steps.csv"
ROUTING: Final = "routing.csv"


@dataclass(frozen=True)
class StepRouting:
    """What the routers of all L layers decided in one step."""

    routing: Routing
    num_dropped: tuple[int, ...]
    """Choices for which an expert had no room, by layer."""

    @classmethod
    def of(cls, decided: Sequence[Assignment]) -> StepRouting:
        """Sum up what the layers decided."""
        log = RoutingLog([one.probs.detach() for one in decided], [one.expert_ids for one in decided])
        return cls(Routing.of(log), tuple(one.num_dropped for one in decided))

    def __add__(self, other: StepRouting) -> StepRouting:
        dropped = zip(self.num_dropped, other.num_dropped, strict=True)
        return StepRouting(self.routing + other.routing, tuple(ours + theirs for ours, theirs in dropped))


class Report:
    """Writes `steps.csv` and `routing.csv`; what a resumed run does again is written again."""

    def __init__(self, directory: Path, first_layer: int, first_step: int, collapse: float) -> None:
        """Begin the tables. A layer has collapsed where its balance is beyond `collapse` of the way from 1 to E / A."""
        self._first_layer = first_layer
        self._collapse = collapse
        self._steps = _Table(directory / STEPS, first_step)
        self._routing = _Table(directory / ROUTING, first_step)
        self._collapsed: frozenset[int] = frozenset()

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._steps.close()
        self._routing.close()

    def step(self, number: int, values: dict[str, float], seen: StepRouting | None) -> dict[str, float]:
        """Write what a step gave; returns it with what is to be said of all layers together."""
        if seen is None:
            self._steps.write(values)
            return values
        routing = seen.routing
        num_choices = routing.tokens_per_expert.sum(axis=1)
        for row, balance in enumerate(routing.balance.tolist()):
            shares = (routing.tokens_per_expert[row] / num_choices[row]).round(5).tolist()
            self._routing.write(
                {
                    "step": number,
                    "layer": self._first_layer + row,
                    "balance": round(balance, 5),
                    "entropy": round(float(routing.mean_entropy[row]), 5),
                    "dropped": seen.num_dropped[row],
                    **{f"share_{expert}": share for expert, share in enumerate(shares)},
                }
            )
        limit = collapse_limit(routing.tokens_per_expert.shape[1], num_choices[0] / routing.num_tokens, self._collapse)
        collapsed = frozenset(self._first_layer + int(row) for row in (routing.balance > limit).nonzero()[0])
        if collapsed - self._collapsed:
            _log.warning("routing has collapsed: few experts take most tokens", step=number, layers=sorted(collapsed))
        self._collapsed = collapsed
        values = values | {
            "balance": round(float(routing.balance.mean()), 5),
            "worst_balance": round(float(routing.balance.max()), 5),
            "entropy": round(float(routing.mean_entropy.mean()), 5),
            "dropped": sum(seen.num_dropped) / max(1, int(num_choices.sum())),
            "collapsed_layers": len(collapsed),
        }
        self._steps.write(values)
        return values


class _Table:
    """A CSV file with a column `step`, of which those from a step on are written anew."""

    def __init__(self, file: Path, first_step: int) -> None:
        kept: list[dict[str, Any]] = []
        if first_step and file.exists():
            with file.open(newline="", encoding="utf-8") as opened:
                kept = [row for row in csv.DictReader(opened) if int(row["step"]) < first_step]
        self._opened = file.open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter[str] | None = None
        for row in kept:
            self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._opened, list(row))
            self._writer.writeheader()
        self._writer.writerow(row)
        self._opened.flush()

    def close(self) -> None:
        self._opened.close()
