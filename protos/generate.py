"""Generates the Python messages, stubs and their types from `protos/` into `gen/`: `python protos/generate.py`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from grpc_tools import protoc


def generate(protos: Path, out: Path) -> None:
    """Write `out/espalier/v1/*` afresh; raises RuntimeError when protoc refuses the sources."""
    shutil.rmtree(out / "espalier", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path) for path in protos.glob("espalier/v1/*.proto"))
    builtin = Path(protoc.__file__).parent / "_proto"
    # protoc looks its plugins up on PATH; in an isolated build they are beside our interpreter, or on PATH already.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    plain = [f"--python_out={out}", f"--grpc_python_out={out}"]
    typed = [f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}"]
    status = protoc.main(["protoc", f"-I{protos}", f"-I{builtin}", *plain, *typed, *sources])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}; its messages are above")
    (out / "espalier" / "v1" / "__init__.py").touch()
    (out / "espalier" / "__init__.py").touch()


if __name__ == "__main__":
    here = Path(__file__).parent
    generate(here, here.parent / "gen")
