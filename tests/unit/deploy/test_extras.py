"""Each service imports only what its extra brings, so that an image with that extra alone can start it."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OURS = ("services", "gateway", "espalier")
ENTRIES = {
    "worker": ["services.model_worker.__main__"],
    "constraint": ["services.constraint.__main__", "services.constraint.kernels"],
    "gateway": ["gateway.__main__"],
}


def _path(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    found = path.with_suffix(".py"), path / "__init__.py"
    return next((one for one in found if one.is_file()), None)


def _imports(module: str) -> set[str]:
    """Every module that a file names, also inside of functions, but for what only type checkers read."""
    path = _path(module)
    assert path is not None, module
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def _third_party(entries: list[str]) -> dict[str, str]:
    """Name the top-level modules of others that the entries reach, and who imports each."""
    seen: set[str] = set()
    foreign: dict[str, str] = {}
    todo = list(entries)
    while todo:
        module = todo.pop()
        if module in seen or _path(module) is None:
            continue
        seen.add(module)
        # What processes are started with is named by text.
        named = re.findall(r'"(services\.[\w.]+):\w+"', _path(module).read_text())  # type: ignore[union-attr]
        for name in _imports(module) | set(named):
            top = name.partition(".")[0]
            if top in OURS:
                todo += [".".join(name.split(".")[: i + 1]) for i in range(name.count(".") + 1)]
            elif top not in sys.stdlib_module_names:
                foreign.setdefault(top, module)
    assert len(seen) > 5
    return foreign


def _brought_by(extra: str) -> set[str]:
    """The distributions that an extra installs, with what those need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo = [*project["dependencies"], *project["optional-dependencies"][extra]]
    found: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        todo += [need for need in needs if "extra ==" not in need or "jsonschema" in name]
    return found


@pytest.mark.parametrize("extra", ENTRIES)
def test_an_extra_is_enough(extra: str) -> None:
    brought = _brought_by(extra)
    distributions = importlib.metadata.packages_distributions()
    for module, importer in _third_party(ENTRIES[extra]).items():
        names = {name.lower().replace("_", "-") for name in distributions.get(module, [])}
        assert names & brought, f"{importer} imports {module} ({names}), which the extra `{extra}` does not bring"


@pytest.mark.parametrize("extra", ["constraint", "gateway", "cli"])
def test_torch_is_the_workers_alone(extra: str) -> None:
    assert "torch" not in _brought_by(extra)
