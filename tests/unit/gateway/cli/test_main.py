"""The command line itself: what it refuses, with which words and exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


def _espalier(*argv: str, stdin: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ESPALIER_")}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", *argv],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=cwd,
        check=False,
    )


def test_help_lists_the_commands() -> None:
    out = _espalier("--help").stdout
    assert all(name in out for name in ("up", "generate", "routing", "check", "grammars", "demo", "model"))


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["generate"], 2, "exactly one of --prompt and --chat"),
        (["generate", "--prompt", "a", "--chat", "b"], 2, "exactly one"),
        (["generate", "--prompt", "a", "--system", "b"], 2, "--system goes with --chat"),
        (["generate", "--prompt", "a", "--regex", "b", "--choice", "c"], 2, "at most one of"),
        (["generate", "--prompt", "a", "--schema", "/nowhere.json"], 2, "cannot read /nowhere.json: No such file"),
        (["generate", "--prompt", "a", "--grammar", "./nowhere"], 2, "cannot read nowhere: No such file"),
        (["generate", "--prompt", "a", "--max-tokens", "-1"], 2, "--max-tokens"),
        (["generate", "--prompt", "a", "--max-tokens", "0"], 2, "--max-tokens"),
        (["generate", "--prompt", "a", "--top-k", "4294967296"], 2, "--top-k"),
        (["generate", "--prompt", "a", "--seed", "-1"], 2, "--seed"),
        (["generate", "--prompt", "a", "--gateway-address", "127.0.0.1:9"], 4, "is `espalier up` running"),
        (["check", "--gateway-address", "127.0.0.1:9"], 2, "give one of"),
        (["check", "--regex", "a", "--gateway-address", "127.0.0.1:9"], 4, "UNAVAILABLE"),
        (["grammars", "--constraint-address", "127.0.0.1:9"], 4, "UNAVAILABLE"),
        (["routing", "--out", "a.html"], 2, "exactly one of --text and --chat"),
        (["routing", "--out", "a.gif", "--text", "a"], 2, "ends in .html or .png, not 'a.gif'"),
        (["routing", "--out", "a.html", "--text", "a", "--regex", "b", "--max-tokens", "0"], 2, "no constraint"),
        (["routing", "--out", "a.html", "--text", "a", "--worker-address", "127.0.0.1:9"], 4, "127.0.0.1:9"),
        (["up", "--log-format", "xml"], 2, "xml"),
    ],
)
def test_refusals(argv: list[str], code: int, says: str) -> None:
    done = _espalier(*argv)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_up_without_a_model_says_how_to_get_one(tmp_path: Path) -> None:
    done = _espalier("up", cwd=tmp_path)
    assert done.returncode == 2
    assert "espalier model fetch" in done.stderr


@pytest.mark.parametrize("flag", ["--prompt", "--chat"])
def test_stdin_that_is_not_utf8(flag: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "generate", flag, "-"],
        input=b"\xff\xfe",
        capture_output=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"},
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"a text is not UTF-8" in done.stderr


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(b'{"a": "\xff"}')
    done = _espalier("generate", "--prompt", "a", "--schema", str(path))
    assert done.returncode == 2
    assert "is not UTF-8" in done.stderr
