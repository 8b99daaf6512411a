import json

import pytest

from gateway.cli.logs import LogPrinter, parse, plain

LINE = json.dumps(
    {"event": "ready", "level": "info", "timestamp": "2026-01-02T03:04:05Z", "address": "h:1", "말": "한 글"}
)


def test_json_lines_pass_with_their_service(capsys: pytest.CaptureFixture[str]) -> None:
    printer = LogPrinter("json")
    printer.line("worker", LINE)
    printer.line("cache", "plain 한글")
    first, second = capsys.readouterr().err.splitlines()
    assert json.loads(first) == {"service": "worker"} | json.loads(LINE)
    assert (json.loads(second)["service"], json.loads(second)["event"]) == ("cache", "plain 한글")


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    printer = LogPrinter("text")
    printer.line("worker", LINE)
    printer.line("cache", "[not markup]")
    assert capsys.readouterr().err.splitlines() == [
        'worker     03:04:05 info    ready address=h:1 말="한 글"',
        "cache      [not markup]",
    ]


def test_quiet_shows_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    printer = LogPrinter("text", is_quiet=True)
    printer.line("worker", LINE)
    printer.line("worker", "noise")
    printer.say("it died", level="error")
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("line", ["", "x", "{", "[1]", '{"a": 1}', '{"event"'])
def test_what_is_no_log_line_is_left_alone(line: str) -> None:
    assert parse(line) is None
    assert plain(line) == line


def test_exceptions_are_named() -> None:
    line = json.dumps(
        {"event": "cannot start", "level": "error", "exception": [{"exc_type": "OSError", "exc_value": "x"}]}
    )
    assert plain(line) == "error   cannot start [OSError: x]"
