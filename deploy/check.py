"""Checks what is in `deploy/`: `make deploy-check`. Nothing of it needs a cluster or a Docker daemon.

1. hadolint on every Dockerfile.
2. `kubectl kustomize` of every overlay, and of the base with every combination of components.
3. `kubernetes-validate`, strictly, of every object that came out, for the latest Kubernetes versions that it knows.
4. checkov on the overlays, on the base with all components, and on the Dockerfiles.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import yaml
from kubernetes_validate.utils import all_versions

ROOT: Final = Path(__file__).resolve().parent.parent
KUSTOMIZE: Final = ROOT / "deploy" / "kustomize"
IMAGES: Final = ROOT / "deploy" / "images"
OUT: Final = ROOT / "build" / "deploy-check"
CHECKOV: Final = ROOT / "build" / "checkov"
CHECKOV_REQUIREMENT: Final = "checkov>=3.3,<4"

COMPONENTS: Final = (
    ("extract-job",),
    ("model-volume", "model-image"),  # either of the two
    ("gpu",),
    ("redis",),
    ("network-policy",),
    ("monitoring",),
    ("tls",),
)
"""In the order in which a kustomization lists them: TLS changes what others have added."""

CUSTOM: Final = {
    "cert-manager.io": "defined by cert-manager, whose cluster checks them when they are applied",
    "monitoring.coreos.com": "defined by the Prometheus operator, whose cluster checks them when they are applied",
}
"""API groups that no version of Kubernetes has a schema of, and who has."""

NUM_VERSIONS: Final = 3
MAX_SHOWN: Final = 20


def main() -> int:
    """Run all checks; say what each found. Returns the process's exit code."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        print(
            "deploy-check needs kubectl (its `kustomize`); install the one of your cluster's version", file=sys.stderr
        )
        return 2
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    problems = [*lint_dockerfiles()]
    rendered, failed = render_all(kubectl)
    problems += failed
    problems += validate_all(rendered)
    problems += scan([*(name for name in rendered if name.startswith("overlay-")), "all-volume", "all-image"])
    for problem in problems[:MAX_SHOWN]:
        print(f"FAILED: {problem}", file=sys.stderr)
    if len(problems) > MAX_SHOWN:
        print(f"and {len(problems) - MAX_SHOWN} more, most likely of the same causes", file=sys.stderr)
    print(f"{len(problems)} problems" if problems else "all checks passed")
    return 1 if problems else 0


def lint_dockerfiles() -> Iterator[str]:
    """Run hadolint."""
    files = sorted(IMAGES.glob("*.Dockerfile"))
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, *files], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        yield f"hadolint:\n{done.stdout}{done.stderr}"
    print(f"hadolint: {len(files)} Dockerfiles")


def combinations() -> Iterator[list[str]]:
    """Choose from `COMPONENTS` in every way, none at all included."""
    for chosen in itertools.product(*((None, *names) for names in COMPONENTS)):
        yield [name for name in chosen if name is not None]


def render_all(kubectl: str) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Render every overlay and combination; returns the objects by name of the rendering, and what failed."""
    started = time.monotonic()
    directories = {f"overlay-{path.name}": path for path in sorted((KUSTOMIZE / "overlays").iterdir())}
    for number, names in enumerate(combinations()):
        directory = OUT / "combinations" / f"{number:03}"
        directory.mkdir(parents=True)
        (directory / "kustomization.yaml").write_text(yaml.safe_dump(_kustomization(directory, names)))
        directories[" + ".join(["base", *names])] = directory
        if len(names) == len(COMPONENTS):
            directories["all-volume" if "model-volume" in names else "all-image"] = directory

    def render(directory: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(directories, pool.map(render, directories.values()), strict=True))
    (OUT / "rendered").mkdir()
    rendered: dict[str, list[dict[str, Any]]] = {}
    failed = []
    for name, done in results.items():
        # kustomize warns of what it will not read any more; nothing of ours should need that.
        if done.returncode != 0 or done.stderr:
            failed.append(f"kubectl kustomize, {name}: {done.stderr.strip()}")
            continue
        rendered[name] = list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))
        if not name.startswith("base"):
            (OUT / "rendered" / f"{name}.yaml").write_text(done.stdout)
    print(f"kubectl kustomize: {len(rendered)} of {len(results)} render, {time.monotonic() - started:.0f} s")
    return rendered, failed


def _kustomization(directory: Path, names: Sequence[str]) -> dict[str, Any]:
    up = Path(os.path.relpath(KUSTOMIZE, directory))
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "espalier",
        "resources": [str(up / "base")],
        "components": [str(up / "components" / name) for name in names],
    }


def validate_all(rendered: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Check each object once, however many renderings have it."""
    unique: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, objects in rendered.items():
        for item in objects:
            unique.setdefault(yaml.dump(item, Dumper=yaml.CSafeDumper), (name, item))
    versions = sorted(set(all_versions()), key=lambda text: [int(part) for part in text.split(".")])[-NUM_VERSIONS:]
    skipped: dict[str, set[str]] = {}
    num_valid = 0
    for name, item in unique.values():
        group = item["apiVersion"].rpartition("/")[0]
        if group in CUSTOM:
            skipped.setdefault(group, set()).add(item["kind"])
            continue
        for version in versions:
            try:
                kubernetes_validate.validate(item, version, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                where = ".".join(str(part) for part in getattr(error, "path", ()))
                why = getattr(error, "message", str(error))
                yield f"Kubernetes {version}, {name}, {item['kind']} {item['metadata']['name']}: {where}: {why}"
            else:
                num_valid += 1
    print(f"kubernetes-validate --strict: {num_valid} checks of different objects for {', '.join(versions)}")
    for group, kinds in sorted(skipped.items()):
        print(f"  not checked: {', '.join(sorted(kinds))} of {group}, {CUSTOM[group]}")


def scan(names: Sequence[str]) -> Iterator[str]:
    """Run checkov, from an environment of its own: it pins dozens of packages, some of them against ours."""
    python = CHECKOV / "bin" / "python"
    if not (CHECKOV / "bin" / "checkov").exists():
        print("installing checkov into build/checkov", flush=True)
        venv.create(CHECKOV, with_pip=True)
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", CHECKOV_REQUIREMENT]
        if subprocess.call(command) != 0:
            shutil.rmtree(CHECKOV)
            yield "checkov cannot be installed; pip's message is above"
            return
    files = [str(OUT / "rendered" / f"{name}.yaml") for name in names]
    config = ["--config-file", str(ROOT / "deploy" / "checkov.yaml"), "--compact", "--quiet"]
    for what, arguments in (
        ("kubernetes", [argument for file in files for argument in ("--file", file)]),
        ("dockerfile", ["--directory", str(IMAGES)]),
    ):
        done = subprocess.run(
            [python, CHECKOV / "bin" / "checkov", "--framework", what, *config, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"LOG_LEVEL": "ERROR"},
        )
        if done.returncode != 0:
            yield f"checkov, {what}:\n{done.stdout}{done.stderr}"
        else:
            print(f"checkov, {what}: passed {done.stdout.strip()}")


if __name__ == "__main__":
    sys.exit(main())
