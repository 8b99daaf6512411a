"""How far a job is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from gateway.cli.extract.documents import Documents

_SECONDS_BETWEEN_LINES: Final = 10.0


class _Rate(ProgressColumn):
    """Documents a second since the start."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['rate']:.1f}/s", style="cyan")


class JobProgress:
    """Shows counts, rate and the time left, which is told from how much of the input has been read."""

    def __init__(self, documents: Documents, counts: Counter[str]) -> None:
        """Show `counts`, by status, as they are whenever `advance` is called."""
        self._documents = documents
        self._counts = counts
        self._num_before = counts.total()
        self._started = time.monotonic()
        self._last_line = self._started
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        # The time left is that of the bar, so it begins where the job begins.
        self._task = self._bar.add_task(self._text(), total=documents.size, completed=documents.position, rate=0.0)

    def __enter__(self) -> JobProgress:
        """Show until left."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state there."""
        self.advance()
        self._bar.stop()

    def advance(self) -> None:
        """Show what is new."""
        now = time.monotonic()
        rate = (self._counts.total() - self._num_before) / max(now - self._started, 1e-6)
        self._bar.update(self._task, description=self._text(), completed=self._documents.position, rate=rate)
        if not self._console.is_terminal and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._console.print(f"{self._text()}, {rate:.1f} a second")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, markup=False)

    def _text(self) -> str:
        return summary(self._counts)


def summary(counts: Counter[str]) -> str:
    """Say how many documents have which status."""
    closed = f", {counts['budget_closed']} closed at the budget" if counts["budget_closed"] else ""
    return f"{counts.total()} documents: {counts['valid']} valid{closed}, {counts['failed']} failed"
