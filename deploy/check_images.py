"""Builds the images and runs them as Kubernetes would: `make image-check`. As root, with buildah and runc, no daemon.

What runs is what the Dockerfiles make, under what `deploy/kustomize/base` says: user, read-only root, capabilities,
writable directories, environment. Only addresses differ: the three share this machine's loopback here. Each must become
ready, serve a guided request together with the others, and end with code 0 on SIGTERM; the gateway gets that while it
writes a text, which it must finish.

The base image is what `--base` names. Where it cannot be pulled, debootstrap makes one of Debian with its Python 3.11.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import yaml
from espalier.v1 import gateway_pb2, gateway_pb2_grpc, types_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.serving import free_ports

ROOT: Final = Path(__file__).resolve().parent.parent
OUT: Final = ROOT / "build" / "image-check"
MADE_BASE: Final = "localhost/espalier-base:bookworm"
IMAGES: Final = ("gateway", "constraint", "worker", "cli")
SERVICES: Final = ("worker", "constraint", "gateway")
FORBIDDEN: Final = {
    "compiler": ("gcc", "cc", "g++", "c++", "clang", "cc1", "ld", "as", "rustc", "go"),
    "installer": ("pip", "pip3", "uv"),
}
READY_TIMEOUT_S: Final = 120


def main() -> int:
    """Build, look and run. Returns the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="base image; without it debootstrap makes one")
    parser.add_argument("--no-build", action="store_true", help="take the images of an earlier run")
    options = parser.parse_args()
    missing = [
        name for name in ("buildah", "runc", *([] if options.base else ["debootstrap"])) if not shutil.which(name)
    ]
    if os.geteuid() != 0 or missing:
        print(
            f"image-check runs as root and needs {', '.join(missing) or 'nothing else'} (Debian packages)",
            file=sys.stderr,
        )
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    if not options.no_build:
        base = options.base or make_base()
        for name in IMAGES:
            build(name, base)
    base_bytes = size_of(options.base or MADE_BASE)
    with contextlib.ExitStack() as stack:
        roots = {name: stack.enter_context(mounted(name)) for name in IMAGES}
        problems = [problem for name, root in roots.items() for problem in look_at(name, root, base_bytes)]
        problems += run_all(roots)
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    print(f"{len(problems)} problems" if problems else "all images pass")
    return 1 if problems else 0


def make_base() -> str:
    """Make a base image of Debian's packages, unless it is there."""
    if (
        subprocess.run(
            ["buildah", "inspect", "--type", "image", MADE_BASE], capture_output=True, check=False
        ).returncode
        == 0
    ):
        return MADE_BASE
    root = OUT / "debian"
    run("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", str(root))
    shutil.rmtree(root / "var" / "cache" / "apt")
    container = output("buildah", "from", "scratch")
    run("buildah", "add", "-q", container, str(root), "/")
    run("buildah", "commit", "-q", "--rm", container, MADE_BASE)
    shutil.rmtree(root)
    return MADE_BASE


def build(name: str, base: str) -> None:
    """Build one image under the caller's own settings of pip."""
    started = time.monotonic()
    settings, volumes = pip_settings()
    secret = OUT / "pip.conf"
    secret.write_text(settings)
    flags = ["--layers", "--isolation", "chroot", "--build-arg", f"BASE={base}", "--secret", f"id=pip,src={secret}"]
    flags += [flag for path in volumes for flag in ("-v", f"{path}:{path}:ro")]
    with (OUT / f"build-{name}.log").open("wb") as log:
        file = f"deploy/images/{name}.Dockerfile"
        command = ["buildah", "bud", *flags, "-f", file, "-t", tag(name), "."]
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        sys.exit(f"building {file} failed; see {log.name}")
    print(f"built {tag(name)} in {time.monotonic() - started:.0f} s", flush=True)


def pip_settings() -> tuple[str, list[str]]:
    """Return what pip is set to here as a file for it, and the paths on this machine that it names."""
    settings: dict[str, str] = {}
    listed = output(sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list")
    # The environment's come last, because they are stronger.
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, quoted = line.partition("=")
        key = name.rpartition(".")[2]
        if key in ("index-url", "extra-index-url", "find-links", "cert", "trusted-host"):
            settings[key] = quoted.strip("'")
    words = [word for value in settings.values() for word in value.split()]
    # An index of files has them beside its pages.
    paths = [str(Path(word.removeprefix("file://")).parent) if word.startswith("file://") else word for word in words]
    lines = ["[global]", *(f"{key} = {value}" for key, value in settings.items())]
    return "\n".join(lines) + "\n", sorted({path for path in paths if Path(path).exists()})


@contextlib.contextmanager
def mounted(name: str) -> Iterator[Path]:
    """Give the files of an image."""
    container = output("buildah", "from", "--pull-never", tag(name))
    try:
        yield Path(output("buildah", "mount", container))
    finally:
        run("buildah", "rm", container, quiet=True)


def look_at(name: str, root: Path, base_bytes: int) -> Iterator[str]:
    """Tell the sizes and find what must not be there."""
    own = root / "opt" / "espalier"
    total = size_of(tag(name))
    print(f"{name}: {total / 1e6:,.0f} MB, of which {(total - base_bytes) / 1e6:,.0f} MB are ours", flush=True)
    directories = [root / path for path in ("bin", "usr/bin", "usr/local/bin", "opt/espalier/bin", "sbin", "usr/sbin")]
    for what, names in FORBIDDEN.items():
        found = {file for file in names for directory in directories if os.path.lexists(directory / file)}
        # The official Python images have pip of their own; ours must not add another.
        if what == "installer":
            found = {file for file in names if os.path.lexists(own / "bin" / file)}
        if found:
            yield f"{name} has a {what}: {', '.join(sorted(found))}"
    has_torch = any(own.glob("lib/python*/site-packages/torch"))
    if has_torch is not (name == "worker"):
        yield f"{name} {'has' if has_torch else 'lacks'} torch"
    if name == "constraint" and not list(own.glob("kernels/*/*/*.nbc")):
        yield "constraint has no compiled kernels"


class Container:
    """One service, run by runc as its manifest says."""

    def __init__(self, name: str, root: Path, changed: dict[str, str]) -> None:
        """Start it; `changed` are variables that differ from the manifest's."""
        self.name = name
        self.id = f"espalier-{name}-{os.getpid()}"
        pod = manifest(name)["spec"]["template"]["spec"]
        container = pod["containers"][0]
        image = json.loads(output("buildah", "inspect", "--type", "image", tag(name)))["OCIv1"]["config"]
        environment = dict(pair.split("=", 1) for pair in image["Env"])
        environment |= {item["name"]: item["value"] for item in container["env"]} | changed
        bundle = OUT / self.id
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.mkdir(parents=True)
        security = container["securityContext"]
        assert security["capabilities"]["drop"] == ["ALL"]
        specification = {
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": pod["securityContext"]["runAsUser"], "gid": pod["securityContext"]["runAsGroup"]},
                "args": image["Entrypoint"],
                "env": [f"{key}={value}" for key, value in environment.items()],
                "cwd": image["WorkingDir"],
                "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
                "noNewPrivileges": not security["allowPrivilegeEscalation"],
            },
            "root": {"path": str(root), "readonly": security["readOnlyRootFilesystem"]},
            "mounts": mounts(pod, container),
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
        }
        (bundle / "config.json").write_text(json.dumps(specification, indent=2))
        self.log = bundle / "log"
        with self.log.open("wb") as log:
            command = ["runc", "run", "-b", str(bundle), self.id]
            self.started = time.monotonic()
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def wait_until_ready(self, address: str) -> float:
        """Ask as the kubelet does; returns the seconds since the start."""
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while self.process.poll() is None and time.monotonic() < self.started + READY_TIMEOUT_S:
                with contextlib.suppress(grpc.RpcError):
                    if stub.Check(health_pb2.HealthCheckRequest(), timeout=1).status == 1:
                        return time.monotonic() - self.started
                time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not become ready:\n{self.log.read_text()[-4000:]}")

    @property
    def pid(self) -> int:
        """The process that is number 1 in there, as seen from here."""
        return int(json.loads(output("runc", "state", self.id))["pid"])

    def terminate(self) -> None:
        """Do what the kubelet does first."""
        os.kill(self.pid, signal.SIGTERM)

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            subprocess.run(["runc", "kill", self.id, "KILL"], capture_output=True, check=False)
            self.process.wait(10)
        subprocess.run(["runc", "delete", "-f", self.id], capture_output=True, check=False)


def mounts(pod: dict[str, Any], container: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what every container gets, and a file system of its own for each emptyDir of the manifest."""
    system = [
        ("/proc", "proc", ["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/shm", "tmpfs", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ]
    limits = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]}
    writable = [
        (mount["mountPath"], "tmpfs", ["nosuid", "nodev", "mode=0777", f"size={limits[mount['name']].rstrip('i')}"])
        for mount in container["volumeMounts"]
    ]
    return [
        {"destination": where, "type": kind, "source": kind, "options": options}
        for where, kind, options in [*system, *writable]
    ]


def run_all(roots: dict[str, Path]) -> Iterator[str]:
    """Start the three, let them answer, and end them while they work."""
    ports = iter(free_ports(3 * len(SERVICES)))
    address = {name: f"127.0.0.1:{next(ports)}" for name in SERVICES}
    health = {name: f"127.0.0.1:{next(ports)}" for name in SERVICES}
    containers: dict[str, Container] = {}
    try:
        for name in SERVICES:
            changed = {f"ESPALIER_{peer.upper()}_ADDRESS": address[peer] for peer in SERVICES}
            changed |= {
                "ESPALIER_HEALTH_ADDRESS": health[name],
                f"ESPALIER_{name.upper()}_METRICS_PORT": str(next(ports)),
            }
            if name == "worker":
                changed |= {"ESPALIER_MODEL": "toy:7", "ESPALIER_WORKER_NUM_THREADS": "1"}
            containers[name] = Container(name, roots[name], changed)
        for name, container in containers.items():
            print(f"{name}: ready after {container.wait_until_ready(health[name]):.1f} s", flush=True)
        yield from look_inside(containers)
        with grpc.insecure_channel(address["gateway"]) as channel:
            yield from serve_and_drain(containers, gateway_pb2_grpc.GatewayServiceStub(channel))
    except (RuntimeError, grpc.RpcError, subprocess.SubprocessError) as error:
        yield str(error)
        for container in containers.values():
            yield f"the log of {container.name}: {container.log.read_text()[-2000:]}"
    finally:
        for container in containers.values():
            container.end()


def look_inside(containers: dict[str, Container]) -> Iterator[str]:
    """See that each process has no power, and that kernels came from the image."""
    for name, container in containers.items():
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{container.pid}/status").read_text().splitlines())
        ids = set(status["Uid"].split() + status["Gid"].split())
        powers = {int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        if ids != {"65532"} or powers != {0} or status["NoNewPrivs"] != "1":
            yield f"{name} runs with ids {ids}, capabilities {powers}, NoNewPrivs {status['NoNewPrivs']}"
        print(f"{name}: uid 65532, no capabilities, {int(status['VmRSS'].split()[0]) / 1024:,.0f} MiB resident")
    root = Path(f"/proc/{containers['constraint'].pid}/root")
    baked = {path.name for path in root.glob("opt/espalier/kernels/*/*/*.nbc")}
    used = {path.name for path in root.glob("tmp/*/kernels-*/*/*.nbc")}
    if used != baked:
        yield f"the constraint service compiled {len(used - baked)} kernels that the image lacks"
    print(f"constraint: {len(baked)} kernels, none compiled at start")


def serve_and_drain(containers: dict[str, Container], stub: Any) -> Iterator[str]:
    """Ask for texts, send SIGTERM to the gateway while one is being written, then to the others."""
    colours = types_pb2.Constraint(choices=types_pb2.Choices(values=["red", "green"]))
    generation = gateway_pb2.Generation(prompt="Red or green?", constraint=colours)
    answer = stub.Generate(gateway_pb2.GenerateRequest(generation=generation), timeout=60)
    if answer.text not in ("red", "green") or not answer.result.is_validated:
        yield f"the guided text is {answer.text!r}"
    print(f"served a guided text: {answer.text!r}")

    constraint = types_pb2.Constraint(regex="[a-z ]{3000}")
    generation = gateway_pb2.Generation(prompt="a", constraint=constraint, max_tokens=3500)
    pieces: list[Any] = []
    has_begun = threading.Event()

    def read() -> None:
        for piece in stub.GenerateStream(gateway_pb2.GenerateStreamRequest(generation=generation), timeout=300):
            pieces.append(piece)
            has_begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    if not has_begun.wait(60):
        yield "the long text did not begin"
    num_before = len(pieces)
    asked = time.monotonic()
    containers["gateway"].terminate()
    reader.join(300)
    num_after = len(pieces) - num_before
    if not pieces or not pieces[-1].result.is_validated or num_after < 2:
        yield f"the text under way did not end well: {num_after} pieces after SIGTERM"
    print(f"the gateway finished the text under way: {num_after} pieces after SIGTERM")
    for name in reversed(SERVICES):
        if name != "gateway":
            asked = time.monotonic()
            containers[name].terminate()
        code = containers[name].process.wait(60)
        print(f"{name}: ended with code {code}, {time.monotonic() - asked:.1f} s after SIGTERM")
        if code != 0:
            yield f"{name} ended with code {code}"


def manifest(name: str) -> dict[str, Any]:
    """Read the Deployment of a service."""
    objects = yaml.safe_load_all((ROOT / "deploy" / "kustomize" / "base" / f"{name}.yaml").read_text())
    found: dict[str, Any] = next(item for item in objects if item["kind"] == "Deployment")
    return found


def tag(name: str) -> str:
    """Name the image of a service here."""
    return f"localhost/espalier-{name}:check"


def size_of(image: str) -> int:
    """Return an image's bytes, unpacked."""
    listed = json.loads(output("buildah", "images", "--json", image))
    text = str(listed[0]["size"])
    number, _, unit = text.partition(" ")
    return int(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


def output(*command: str) -> str:
    """Run a command and return what it prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run(*command: str, quiet: bool = False) -> None:
    """Run a command; raises CalledProcessError when it fails."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL if quiet else None)


if __name__ == "__main__":
    sys.exit(main())
