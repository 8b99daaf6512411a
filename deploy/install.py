"""Creates `.venv` and installs this project into it: `python3 deploy/install.py all|dev`.

Standard library only, because it runs before anything is there. It uses pip under the user's own settings, and uv
instead where uv is on PATH and has settings of its own in the environment. Before it downloads it says how much.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# An editable install has a copy of the stubs, made of the contract as it was.
INPUTS = ("pyproject.toml", "constraints.txt", "hatch_build.py", "protos/espalier/v1/*.proto")
UV_SETTINGS = ("UV_FIND_LINKS", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL")
HEAD_TIMEOUT_S = 10

CUDA_ADVICE = """\
  Most of it is the CUDA build of torch. A build for CPUs only is a tenth of that: point PIP_INDEX_URL,
  PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS at PyTorch's CPU wheels, as the CPU choice on PyTorch's own "get started" page
  shows, and run this again."""


def main() -> int:
    """Install unless that has been done for these very inputs."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the very question is which Python this is
        print(f"Espalier needs Python 3.11 or later; this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    extra = sys.argv[1] if len(sys.argv) > 1 else "all"
    stamp = VENV / f".espalier-{extra}"
    files = [file for pattern in INPUTS for file in sorted(ROOT.glob(pattern))]
    inputs = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    if stamp.is_file() and stamp.read_text() == inputs and (ROOT / "gen" / "espalier").is_dir():
        return 0
    started = time.monotonic()
    requirement = [*("-c", str(ROOT / "constraints.txt")), "-e", f"{ROOT}[{extra}]"]
    uv = shutil.which("uv")
    if uv and any(name in os.environ for name in UV_SETTINGS):
        if not PYTHON.exists():
            run([uv, "venv", "--seed", "--python", sys.executable, str(VENV)])
        print("installing with uv, under your UV_ settings; how much that downloads it does not tell beforehand")
        run([uv, "pip", "install", "--python", str(PYTHON), *requirement])
    else:
        if not PYTHON.exists():
            print(f"creating {VENV}")
            venv.create(VENV, with_pip=True)
        pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
        announce(pip, requirement)
        run([*pip, "install", *requirement])
    stamp.write_text(inputs)
    if extra == "dev":  # which has all that `all` has
        (VENV / ".espalier-all").write_text(inputs)
    print(f"installed into {VENV} in {time.monotonic() - started:.0f} s")
    return 0


def run(command: list[str]) -> None:
    """Run a command, or end with its exit code; its own message is above."""
    code = subprocess.call(command)
    if code != 0:
        print(f"`{' '.join(command[:4])} ...` failed with exit code {code}; its message is above", file=sys.stderr)
        sys.exit(1)


def announce(pip: list[str], requirement: list[str]) -> None:
    """Say how much pip is about to download, as far as that can be told."""
    print("asking your package index what is needed", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        report_path = Path(directory) / "report.json"
        command = [*pip, "install", "-qq", "--dry-run", "--report", str(report_path), *requirement]
        if subprocess.call(command) != 0 or not report_path.is_file():
            print("how much will be downloaded cannot be told; pip's message is above", flush=True)
            return
        packages = json.loads(report_path.read_text())["install"]
    urls = [item["download_info"]["url"] for item in packages if "dir_info" not in item["download_info"]]
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(size_of, urls))
    remote = [size for url, size in zip(urls, sizes, strict=True) if not url.startswith("file:")]
    unknown = remote.count(None)
    total_mb = sum(size or 0 for size in remote) / 1e6
    local_mb = sum(size or 0 for url, size in zip(urls, sizes, strict=True) if url.startswith("file:")) / 1e6
    line = f"{len(urls)} packages: {total_mb:,.0f} MB to download at most (less what pip has cached)"
    line += f", {local_mb:,.0f} MB from this machine" if local_mb else ""
    line += f"; {unknown} packages of unknown size" if unknown else ""
    print(line, flush=True)
    if any(item["metadata"]["name"].startswith("nvidia-") for item in packages):
        print(CUDA_ADVICE, flush=True)
        if sys.stdin.isatty():
            print("  Going on in ten seconds; Ctrl-C stops.", flush=True)
            time.sleep(10)


def size_of(url: str) -> int | None:
    """Ask for the size of a file in bytes; None when nobody tells."""
    parts = urllib.parse.urlsplit(url)
    try:
        if parts.scheme == "file":
            return os.path.getsize(urllib.request.url2pathname(parts.path))
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=HEAD_TIMEOUT_S) as answer:
            length = answer.headers["Content-Length"]
        return int(length) if length else None
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
