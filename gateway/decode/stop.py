"""Stop texts: found across token boundaries, and no part of one is ever let out."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Lets text through up to the first stop text; holds back what may become one.

    Of several, the one that is whole first ends the text, so that it does not matter how the text is cut in pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.is_stopped = False
        self.rest = ""
        """What the piece that completed a stop text has behind it."""

    def push(self, text: str) -> str:
        """Return the text that may go out. Sets `is_stopped` when a stop text was met; later pieces are dropped."""
        if self.is_stopped:
            return ""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            self._held = ""
            end, start = min(found)
            self.rest = text[end:]
            return text[:start]
        lengths = range(min(self._longest - 1, len(text)), 0, -1)
        num_held = next((length for length in lengths if self._may_begin(text[-length:])), 0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """Return what was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)
