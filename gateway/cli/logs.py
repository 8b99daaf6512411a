"""What the services log, shown to people or passed on to machines."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

LogFormat = Literal["text", "json"]

_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "bold red", "critical": "bold red"}
_COLOURS = {"worker": "magenta", "constraint": "cyan", "gateway": "green", "cache": "blue", "up": "bold"}
_SHOWN_APART = {"event", "level", "timestamp", "service", "exception"}


class LogPrinter:
    """Prints lines of the services to stderr: readable ones for a terminal, JSON lines otherwise."""

    def __init__(self, log_format: LogFormat | None = None, *, is_quiet: bool = False) -> None:
        """Without `log_format`, a terminal gets text; `is_quiet` shows warnings and worse only."""
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._format: LogFormat = log_format or ("text" if sys.stderr.isatty() else "json")
        self._is_quiet = is_quiet

    def line(self, service: str, line: str) -> None:
        """Print a line that a service wrote."""
        fields = parse(line)
        if self._is_quiet and (fields is None or fields.get("level") not in ("warning", "error", "critical")):
            return
        if self._format == "json":
            if fields is None:
                fields = {"event": line, "level": "info", "timestamp": datetime.now(UTC).isoformat()}
            print(json.dumps({"service": service} | fields, ensure_ascii=False), file=sys.stderr, flush=True)
        else:
            self.console.print(_readable(service, line, fields))

    def say(self, event: str, *, level: str = "info", **fields: object) -> None:
        """Print a line of `espalier up` itself."""
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        self.line("up", json.dumps({"event": event, "level": level, "timestamp": now} | fields, ensure_ascii=False))


def parse(line: str) -> dict[str, Any] | None:
    """Read a JSON log line; anything else is `None`."""
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and "event" in fields else None


def plain(line: str) -> str:
    """Render a log line without colours and prefix, as the last words of a service are shown."""
    fields = parse(line)
    return line if fields is None else f"{fields.get('level', ''):7} {_message(fields)}"


def _readable(service: str, line: str, fields: dict[str, Any] | None) -> Text:
    text = Text(f"{service:10} ", style=_COLOURS.get(service, ""))
    if fields is None:
        return text.append(line, style="default")
    level = str(fields.get("level", "info"))
    text.append(str(fields.get("timestamp", ""))[11:19] + " ", style="dim not bold")
    text.append(f"{level:7} ", style=_STYLES.get(level, "") or "not bold default")
    return text.append(_message(fields), style=(_STYLES.get(level, "") or "not bold default"))


def _message(fields: dict[str, Any]) -> str:
    rest = [f"{key}={_value(value)}" for key, value in fields.items() if key not in _SHOWN_APART]
    message = " ".join([str(fields["event"]), *rest])
    for error in fields.get("exception") or ():
        if isinstance(error, dict):
            message += f" [{error.get('exc_type')}: {error.get('exc_value')}]"
    return message


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() for c in text) else text
