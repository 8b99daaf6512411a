"""What can be told of `deploy/` without kubectl: manifests, Dockerfiles and the settings agree with each other."""

import asyncio
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import yaml

from gateway.settings import GatewaySettings
from services.constraint.cache import RedisStore
from services.constraint.cache.store import EntryName
from services.constraint.settings import ConstraintSettings
from services.model_worker.settings import WorkerSettings
from services.rpckit.server import LIVENESS
from services.rpckit.settings import ServiceSettings
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kustomize" / "base"
COMPONENTS = DEPLOY / "kustomize" / "components"
SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "constraint": ConstraintSettings,
    "worker": WorkerSettings,
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VALIDATION_BYTES = 1 << 30
"""What one validation may take (docs/operations.md)."""


def _objects(path: Path) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all(path.read_text()) if item is not None]


def _of(name: str, kind: str) -> dict[str, Any]:
    return next(item for item in _objects(BASE / f"{name}.yaml") if item["kind"] == kind)


def _pod(name: str) -> dict[str, Any]:
    pod: dict[str, Any] = _of(name, "Deployment")["spec"]["template"]["spec"]
    return pod


def _environment(container: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container.get("env", []) if "value" in item}


def _patches() -> list[tuple[Path, dict[str, Any]]]:
    """Every Deployment, whole or as a patch, of every file."""
    return [
        (path, item)
        for path in sorted((DEPLOY / "kustomize").rglob("*.yaml"))
        for item in _objects(path)
        if item.get("kind") == "Deployment"
    ]


def _bytes(quantity: str) -> int:
    match = re.fullmatch(r"(\d+)(Mi|Gi)", quantity)
    assert match is not None, quantity
    return int(match[1]) << {"Mi": 20, "Gi": 30}[match[2]]


def _dockerfile(name: str) -> str:
    return (DEPLOY / "images" / f"{name}.Dockerfile").read_text()


def test_dockerfiles_are_clean() -> None:
    files = sorted((DEPLOY / "images").glob("*.Dockerfile"))
    assert len(files) == 4
    command = [Path(sys.executable).parent / "hadolint", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", [*SETTINGS, "cli"])
def test_a_dockerfile_installs_its_own_extra_alone(name: str) -> None:
    """And, for a service, what sends its traces."""
    extras = [name] if name == "cli" else [name, "otel"]
    assert re.findall(r"requirements.py ([\w ]+) <", _dockerfile(name)) == [" ".join(extras)]
    command = [sys.executable, DEPLOY / "images" / "requirements.py", *extras]
    printed = subprocess.run(command, input=(ROOT / "pyproject.toml").read_bytes(), capture_output=True, check=True)
    needed = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    assert printed.stdout.decode().splitlines() == PROJECT["dependencies"] + needed


@pytest.mark.parametrize("name", [*SETTINGS, "cli"])
def test_a_dockerfile_ends_without_privileges(name: str) -> None:
    last = _dockerfile(name).split("FROM ${BASE}\n")[-1]
    assert "USER 65532:65532" in last
    assert "RUN " not in last


@pytest.mark.parametrize("name", SETTINGS)
def test_ports_agree_everywhere(name: str) -> None:
    port = int(str(SETTINGS[name].model_fields["address"].default).rpartition(":")[2])
    text = _dockerfile(name)
    assert f"EXPOSE {port}\n" in text
    assert f"ESPALIER_{name.upper()}_ADDRESS=0.0.0.0:{port}" in text
    (container,) = _pod(name)["containers"]
    ports = {item["name"]: item["containerPort"] for item in container["ports"]}
    assert ports["grpc"] == port
    (service_port,) = _of(name, "Service")["spec"]["ports"]
    assert (service_port["port"], service_port["targetPort"]) == (port, "grpc")
    environment = _environment(container)
    assert environment["ESPALIER_HEALTH_ADDRESS"] == f"0.0.0.0:{ports['health']}"
    assert environment[f"ESPALIER_{name.upper()}_METRICS_PORT"] == str(ports["metrics"])
    probes = [container[f"{probe}Probe"]["grpc"] for probe in ("startup", "readiness", "liveness")]
    assert {probe["port"] for probe in probes} == {ports["health"]}
    assert [probe.get("service") for probe in probes[1:]] == [None, LIVENESS]


def test_only_the_worker_is_started_again_while_it_is_not_ready() -> None:
    """The others wait for it: a slow model must not restart them."""
    startup = {name: _pod(name)["containers"][0]["startupProbe"]["grpc"].get("service") for name in SETTINGS}
    assert startup == {"gateway": LIVENESS, "constraint": LIVENESS, "worker": None}


def test_addresses_of_peers_name_their_services() -> None:
    for name in SETTINGS:
        environment = _environment(_pod(name)["containers"][0])
        for peer in SETTINGS:
            address = environment.get(f"ESPALIER_{peer.upper()}_ADDRESS")
            if address is not None:
                service = _of(peer, "Service")
                assert address == f"dns:///{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
                assert service["spec"]["clusterIP"] == "None"


def test_every_variable_is_a_setting_and_takes_its_value() -> None:
    num_seen = 0
    for path, item in _patches():
        for container in item["spec"]["template"]["spec"].get("containers", []):
            cls = SETTINGS.get(container["name"])
            if cls is None:
                continue
            of_variable = {variable: name for name in cls.model_fields for variable in cls.variables(name)}
            for variable, value in _environment(container).items():
                assert variable in of_variable, f"{path}: {variable}"
                name = of_variable[variable]
                # Files are in the container; addresses are compared above.
                if name.endswith("_file") or name == "config":
                    continue
                required = [] if "model" in name or cls is not WorkerSettings else ["--model", "toy"]
                cls.read([f"--{name.replace('_', '-')}", value, *required])
                num_seen += 1
    assert num_seen > 20


@pytest.mark.parametrize("name", SETTINGS)
def test_a_pod_lives_longer_than_the_longest_generation(name: str) -> None:
    pod = _pod(name)
    (container,) = pod["containers"]
    drain_s = float(_environment(container)["ESPALIER_DRAIN_S"])
    longest_s = GatewaySettings.model_fields["max_request_s"].default
    assert drain_s > longest_s
    assert pod["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + drain_s


def test_memory_of_the_constraint_service() -> None:
    """What its processes may take fits into the limit of the pod, or the kernel ends what the settings allow."""
    (container,) = _pod("constraint")["containers"]
    settings = {key: int(value) for key, value in _environment(container).items() if value.isdigit()}
    most = (
        settings["ESPALIER_CONSTRAINT_NUM_COMPILE_PROCESSES"] * settings["ESPALIER_CONSTRAINT_MAX_COMPILE_MEMORY_BYTES"]
        + settings["ESPALIER_CONSTRAINT_NUM_VALIDATE_PROCESSES"] * VALIDATION_BYTES
        + settings["ESPALIER_CONSTRAINT_MAX_GRAMMAR_MEMORY_BYTES"]
    )
    assert most < _bytes(container["resources"]["limits"]["memory"])


def test_every_container_is_restricted() -> None:
    """What the `restricted` profile of Kubernetes asks, and a read-only root."""
    files = [*BASE.glob("*.yaml"), *COMPONENTS.rglob("*.yaml")]
    pods = [
        (path, item["spec"]["template"]["spec"])
        for path in files
        for item in _objects(path)
        if item.get("kind") in ("Deployment", "Job")
    ]
    num_containers = 0
    for path, pod in pods:
        whole = [*pod.get("initContainers", []), *(one for one in pod["containers"] if "image" in one)]
        for container in whole:
            num_containers += 1
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, path
            assert security["allowPrivilegeEscalation"] is False, path
            assert security["capabilities"]["drop"] == ["ALL"], path
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]), path
        if any("image" in one for one in pod["containers"]):
            assert pod["securityContext"]["runAsNonRoot"] is True, path
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, path
            assert pod["automountServiceAccountToken"] is False, path
    assert num_containers == 6


def test_metrics_that_replicas_follow_exist() -> None:
    from gateway import metrics as gateway_metrics
    from services.model_worker import metrics as worker_metrics

    known = {
        metric._name  # type: ignore[attr-defined]
        for module in (gateway_metrics, worker_metrics)
        for metric in vars(module).values()
        if hasattr(metric, "_name")
    }
    followed = {
        metric["pods"]["metric"]["name"]
        for name in SETTINGS
        for metric in _of(name, "HorizontalPodAutoscaler")["spec"]["metrics"]
        if metric["type"] == "Pods"
    }
    assert followed == {
        "espalier_gateway_generations_queued",
        "espalier_gateway_generations_running",
        "espalier_worker_open_sequences",
    }
    assert followed <= known


@pytest.mark.parametrize("name", SETTINGS)
def test_objects_of_the_base_are_valid(name: str) -> None:
    for item in _objects(BASE / f"{name}.yaml"):
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


def test_each_kustomization_names_all_files_beside_it() -> None:
    for path in (DEPLOY / "kustomize").rglob("kustomization.yaml"):
        text = path.read_text()
        for file in path.parent.iterdir():
            if file.name not in ("kustomization.yaml", "README.md"):
                assert file.name in text, file


def test_images_are_of_this_version() -> None:
    tags = [
        image["newTag"]
        for path in (DEPLOY / "kustomize").rglob("kustomization.yaml")
        for image in _objects(path)[0].get("images", [])
        if "newTag" in image and image["name"] != "espalier-redis"
    ]
    assert set(tags) == {PROJECT["version"], "local", "ci"}


def test_the_job_has_a_shard_for_each_index() -> None:
    job = next(item for item in _objects(COMPONENTS / "extract-job" / "job.yaml") if item["kind"] == "Job")["spec"]
    arguments = job["template"]["spec"]["containers"][0]["args"]
    assert f"$(JOB_COMPLETION_INDEX)/{job['completions']}" in arguments


def test_the_secret_of_the_test_cluster_is_what_the_services_read() -> None:
    directory = DEPLOY / "kustomize" / "overlays" / "ci"
    settings = ConstraintSettings.read(["--config", str(directory / "espalier.toml")])
    assert settings.redis_password is not None
    user = (directory / "users.acl").read_text().splitlines()[1]
    assert f">{settings.redis_password.get_secret_value()} " in user
    assert f"~{settings.redis_prefix}:*" in user


def test_the_rule_of_the_operator_says_what_the_alerts_say() -> None:
    """`make prometheus-rule` writes it."""
    directory = COMPONENTS / "monitoring"
    (rule,) = _objects(directory / "prometheus-rule.yaml")
    assert rule["spec"] == _objects(directory / "alerts.yaml")[0]


def test_the_cache_of_the_manifests_serves_the_constraint_service(tmp_path: Path) -> None:
    """A real server with the component's flags and the test cluster's users, asked with the secret's settings."""
    (deployment,) = (item for item in _objects(COMPONENTS / "redis" / "redis.yaml") if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    secrets = DEPLOY / "kustomize" / "overlays" / "ci"
    flags = [flag.replace("/etc/valkey", str(secrets)) for flag in container["args"]]
    server = RedisServer(tmp_path, *flags)
    try:
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(server.url).ping()
        settings = ConstraintSettings.read(["--config", str(secrets / "espalier.toml"), "--redis-url", server.url])
        options = settings.redis_options()
        assert options is not None
        asyncio.run(_use(RedisStore(replace(options, timeout_s=5))))
    finally:
        server.kill()


async def _use(store: RedisStore) -> None:
    await store.start()
    name = EntryName("grammar", "0" * 64)
    try:
        assert await store.put(name, b"payload")
        assert await store.get(name) == [b"payload"]
        lock = await store.try_lock(name.digest, expiry_s=5)
        assert lock is not None
        await store.renew(lock)
        await store.unlock(lock)
        await store.discard(name, "a test")
        assert await store.get(name) == [None]
    finally:
        await store.close()
