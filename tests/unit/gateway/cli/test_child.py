"""Processes that end well, ill and not at all; and what is left when we are killed: nothing."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.cli.child import Child, ending


def _python(code: str, name: str = "child", lines: list[str] | None = None) -> Child:
    kept = lines if lines is not None else []
    return Child(name, [sys.executable, "-c", code], environment={"X": "1"}, on_line=lambda _, line: kept.append(line))


async def test_lines_and_exit_code() -> None:
    lines: list[str] = []
    child = _python(
        "import os,sys; print('한국어', os.environ['X']); print('two', file=sys.stderr); sys.exit(7)", lines=lines
    )
    await child.start()
    assert await child.wait() == 7
    assert sorted(lines) == ["two", "한국어 1"]
    assert sorted(child.last_lines) == ["two", "한국어 1"]
    assert not child.is_running


async def test_rubbish_and_very_long_lines_do_not_stop_the_reading() -> None:
    lines: list[str] = []
    child = _python(
        "import sys; w=sys.stdout.buffer.write; w(b'\\xff\\n'); w(b'x'*3000000+b'\\n'); w(b'end\\n')", lines=lines
    )
    await child.start()
    await child.wait()
    assert lines[0] == "�"
    assert lines[-1] == "end"


async def test_sigterm_is_enough_for_most() -> None:
    child = _python("import time; time.sleep(60)")
    await child.start()
    await child.stop(5)
    assert await child.wait() == -signal.SIGTERM


async def test_who_ignores_sigterm_is_killed() -> None:
    lines: list[str] = []
    child = _python(
        "import signal,time; signal.signal(15, signal.SIG_IGN); print('go', flush=True); time.sleep(60)", lines=lines
    )
    await child.start()
    while "go" not in lines:
        await asyncio.sleep(0.01)
        if not child.is_running:
            pytest.fail(str(lines))
    await child.stop(0.2)
    assert await child.wait() == -signal.SIGKILL
    assert "killed" in lines[-1]


async def test_it_can_be_started_again() -> None:
    child = _python("print('hello')")
    for _ in range(2):
        await child.start()
        assert await child.wait() == 0
        assert list(child.last_lines) == ["hello"]


PARENT = """
import asyncio, sys
from gateway.cli.child import Child
async def main():
    child = Child("c", [sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"],
                  environment={}, on_line=lambda *_: None)
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_a_killed_parent_leaves_nothing_behind() -> None:
    root = Path(__file__).parents[4]
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for yet does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("code", "said"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "signal 9 (SIGKILL)"), (-99, "signal 99")]
)
def test_endings_in_words(code: int, said: str) -> None:
    assert ending(code) == said
