"""Build hook: generates the Python stubs of `protos/` into `gen/`, for wheels and editable installs alike."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateStubs(BuildHookInterface):  # type: ignore[type-arg]
    """Runs `protos/generate.py` before anything is collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate the stubs; fails the build when protoc does."""
        root = Path(self.root)
        sys.path.insert(0, str(root / "protos"))
        try:
            from generate import generate  # noqa: PLC0415
        finally:
            sys.path.pop(0)
        generate(root / "protos", root / "gen")
