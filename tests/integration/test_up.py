"""`espalier up` from the outside: addresses, health, reflection, every RPC by `buf curl`, the command line, the end."""

import json
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import free_ports
from tests.support.up import SERVICES, Up, espalier, is_alive

SCHEMA = {
    "type": "object",
    "properties": {"이름": {"enum": ["김치", "불고기 🍲"]}, "ready": {"type": "boolean"}},
    "required": ["이름", "ready"],
    "additionalProperties": False,
}
PACKAGE = "espalier.v1"
NAMES = {"worker": "ModelWorkerService", "constraint": "ConstraintService", "gateway": "GatewayService"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    # TCP here, as `buf curl` speaks it; the fault tests use sockets.
    ports = dict(zip(NAMES, free_ports(3), strict=True))
    flags = [flag for name, port in ports.items() for flag in (f"--{name}-address", f"127.0.0.1:{port}")]
    up = Up(tmp_path_factory.mktemp("u"), *flags)
    up.addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    yield up.wait_until_ready()
    assert up.stop() == 0


def _buf(*argv: str) -> subprocess.CompletedProcess[str]:
    buf = Path(sysconfig.get_path("scripts")) / "buf"
    command = [str(buf), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _call(up: Up, name: str, rpc: str, request: Any) -> Any:
    url = f"http://{up.addresses[name]}/{PACKAGE}.{NAMES[name]}/{rpc}"
    done = _buf(url, "--data", json.dumps(request))
    assert done.returncode == 0, done.stderr
    answers, rest = [], done.stdout.strip()
    while rest:
        answer, end = json.JSONDecoder().raw_decode(rest)
        answers.append(answer)
        rest = rest[end:].strip()
    return answers[0] if len(answers) == 1 else answers


def test_four_processes(up: Up) -> None:
    assert set(up.pids()) == set(SERVICES)


@pytest.mark.parametrize("name", NAMES)
def test_reflection_lists_the_service(up: Up, name: str) -> None:
    done = _buf(f"http://{up.addresses[name]}", "--list-services")
    assert f"{PACKAGE}.{NAMES[name]}" in done.stdout.split()
    assert "grpc.health.v1.Health" in done.stdout.split()


@pytest.mark.parametrize("name", NAMES)
def test_health_overall_and_by_name(up: Up, name: str) -> None:
    for service in ("", f"{PACKAGE}.{NAMES[name]}"):
        done = _buf(
            f"http://{up.addresses[name]}/grpc.health.v1.Health/Check", "--data", json.dumps({"service": service})
        )
        assert json.loads(done.stdout) == {"status": "SERVING"}


def test_every_rpc_can_be_called(up: Up) -> None:
    """Goes through the contract as a client without generated code would."""
    model = _call(up, "worker", "GetModel", {})
    assert _call(up, "worker", "GetTokenizer", {})
    step = {"sequenceId": "by-hand", "tokenIds": [5, 6, 7]}
    assert _call(up, "worker", "StepLogits", {"steps": [step]})["results"][0]["position"] == 3
    step = {"sequenceId": "by-hand", "position": 3, "tokenIds": [8]}
    assert _call(up, "worker", "StreamStepLogits", {"requestId": 1, "steps": [step]})["results"][0]["position"] == 4
    assert _call(up, "worker", "ReleaseSequences", {"sequenceIds": ["by-hand"]}) == {"numReleased": 1}

    constraint = {"jsonSchema": json.dumps(SCHEMA)}
    compiled = _call(
        up, "constraint", "Compile", {"constraint": constraint, "vocabularyDigest": model["vocabularyDigest"]}
    )
    item = {"grammarId": compiled["grammarId"], "state": compiled["start"]["state"]}
    assert _call(up, "constraint", "Advance", {"items": [item]})["results"][0]["guidance"]
    assert _call(up, "constraint", "StreamAdvance", {"requestId": 1, "items": [item]})["requestId"] == "1"
    assert _call(up, "constraint", "ListGrammars", {})["grammars"]
    text = json.dumps({"이름": "김치", "ready": True}, ensure_ascii=False).encode()
    import base64

    validated = _call(up, "constraint", "Validate", {"constraint": constraint, "text": base64.b64encode(text).decode()})
    assert validated == {"isValid": True}

    assert _call(up, "gateway", "GetModelInfo", {})["vocabularyDigest"] == model["vocabularyDigest"]
    generation = {"prompt": "x", "constraint": constraint, "sampling": {"temperature": 1, "seed": "3"}}
    whole = _call(up, "gateway", "Generate", {"generation": generation})
    assert json.loads(whole["text"])["이름"] in ("김치", "불고기 🍲")
    assert whole["result"]["isValidated"]
    pieces = _call(up, "gateway", "GenerateStream", {"generation": generation})
    pieces = pieces if isinstance(pieces, list) else [pieces]
    assert "".join(piece.get("delta", "") for piece in pieces) == whole["text"]


@pytest.fixture
def at(up: Up) -> list[str]:
    return ["--gateway-address", up.addresses["gateway"]]


def test_generate(up: Up, at: list[str], tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA, ensure_ascii=False), encoding="utf-8")
    argv = ["generate", "--prompt", "한국어 😀", "--schema", str(schema), "--temperature", "1", "--seed", "4", *at]
    whole = espalier(*argv)
    assert whole.returncode == 0, whole.stderr
    assert json.loads(whole.stdout)["이름"] in ("김치", "불고기 🍲")
    assert "validated" in whole.stderr
    assert espalier(*argv, "--stream").stdout == whole.stdout
    reply = json.loads(espalier(*argv, "--json").stdout)
    assert (reply["text"] + "\n", reply["result"]["is_validated"]) == (whole.stdout, True)


def test_generate_under_the_other_constraints(at: list[str], tmp_path: Path) -> None:
    lark = tmp_path / "g.lark"
    lark.write_text('start: "é" "한"+ "."', encoding="utf-8")
    common = ["generate", "--prompt", "x", "--temperature", "1", "--max-tokens", "40", *at]
    assert espalier(*common, "--choice", "네", "--choice", "아니요").stdout.strip() in ("네", "아니요")
    assert espalier(*common, "--regex", "[ab]{3}").stdout.strip("ab") == "\n"
    assert espalier(*common, "--grammar", str(lark)).stdout.startswith("é한")
    parts = tmp_path / "parts.json"
    schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 2}
    parts.write_text(json.dumps({"sequence": [{"until": "e"}, {"json_schema": schema}]}))
    made = espalier(*common, "--constraint", str(parts))
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout[made.stdout.index("e") + 1 :]) in ([], [1], [2], [1, 2], [2, 1])
    named = espalier(*common, "--grammar", "json")
    assert named.returncode == 0, named.stderr
    json.loads(named.stdout)


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--grammar", "nothing"], 3, "UNKNOWN_GRAMMAR"),
        (["--regex", "("], 3, "GRAMMAR_SYNTAX"),
        (["--temperature", "-1"], 3, "sampling.temperature"),
        (["--top-p", "2"], 3, "sampling.top_p"),
        (["--max-tokens", "0"], 2, "--max-tokens"),
        (["--max-tokens", "1", "--regex", "[ab]{30}"], 3, "BUDGET_TOO_SMALL"),
        (["--max-tokens", "1000000"], 3, "CONTEXT_EXCEEDED"),
    ],
)
def test_refusals_have_reasons_and_exit_codes(at: list[str], argv: list[str], code: int, says: str) -> None:
    done = espalier("generate", "--prompt", "x", *argv, *at)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_a_prompt_that_is_too_long(at: list[str]) -> None:
    done = espalier("generate", "--prompt", "x y " * 20_000, *at)
    assert done.returncode == 3
    assert "CONTEXT_EXCEEDED" in done.stderr


def test_a_schema_that_is_not_json_and_one_that_is_not_enforced(at: list[str], tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    elsewhere = '{"properties": {"a": {"$ref": "https://example.com/a"}}}'
    for text, says in (("{", "GRAMMAR_SYNTAX"), (elsewhere, "/properties/a")):
        path.write_text(text)
        done = espalier("generate", "--prompt", "x", "--schema", str(path), *at)
        assert done.returncode == 3
        assert says in done.stderr


def test_a_deadline(at: list[str]) -> None:
    done = espalier("generate", "--prompt", "x", "--max-tokens", "900", "--timeout", "0.05", *at)
    assert done.returncode == 5
    assert "DEADLINE" in done.stderr


def test_routing(up: Up, at: list[str], tmp_path: Path) -> None:
    schema, page = tmp_path / "schema.json", tmp_path / "routing.html"
    schema.write_text(json.dumps(SCHEMA, ensure_ascii=False), encoding="utf-8")
    common = ["routing", "--worker-address", up.addresses["worker"], *at]
    argv = [*common, "--text", "<b>한국</b> " * 20, "--schema", str(schema), "--seed", "4", "--temperature", "1"]
    # The second finds the prompt in the worker's cache, and draws it all the same.
    pages = []
    for _ in range(2):
        done = espalier(*argv, "--out", str(page))
        assert done.returncode == 0, done.stderr
        pages.append(page.read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert pages[0].count('<tr class="prompt">') > 100
    assert '<tr class="generated first-generated' in pages[0]
    assert '<tr class="generated forced">' in pages[0]
    assert "2 layers, 4 experts" in done.stdout

    image = tmp_path / "routing.png"
    assert espalier(*common, "--chat", "Hello.", "--max-tokens", "0", "--out", str(image)).returncode == 0
    assert image.read_bytes().startswith(b"\x89PNG")


def test_check(up: Up, at: list[str], tmp_path: Path) -> None:
    schema, text = tmp_path / "schema.json", tmp_path / "text.json"
    schema.write_text(json.dumps(SCHEMA | {"title": "음식"}), encoding="utf-8")
    text.write_text('{"이름": "피자", "ready": true}', encoding="utf-8")
    argv = ["check", "--schema", str(schema), "--constraint-address", up.addresses["constraint"], *at]
    done = espalier(*argv)
    assert done.returncode == 0, done.stderr
    assert "/properties/이름/enum" in done.stdout
    assert "annotation" in done.stdout
    wrong = espalier(*argv, "--text", str(text))
    assert wrong.returncode == 3
    assert "/이름" in wrong.stderr
    assert "json: " in espalier("grammars", "--constraint-address", up.addresses["constraint"]).stdout


def test_an_address_in_use_is_told_before_anything_starts(up: Up, tmp_path: Path) -> None:
    done = espalier("up", "--model", "toy", "--gateway-address", up.addresses["gateway"], "--log-format", "text")
    assert done.returncode == 1
    assert f"the gateway's address {up.addresses['gateway']}" in done.stderr
    assert "--gateway-address" in done.stderr


@pytest.mark.parametrize(
    ("model", "says"),
    [("/nowhere/model.gguf", "there is no model at /nowhere/model.gguf"), ("empty", "model")],
)
def test_a_model_that_is_none(tmp_path: Path, model: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    up = Up(tmp_path, "--log-format", "text", model=model if model.startswith("/") else str(tmp_path / model))
    assert up.process.wait(120) == 1
    assert any("ended before it was ready" in line["event"] for line in up.lines)
    assert any(says in line["event"] for line in up.lines)


def test_bad_settings_of_a_service_are_told_by_up(tmp_path: Path) -> None:
    up = Up(tmp_path, ESPALIER_CONSTRAINT_MAX_SOURCE_BYTES="lots")
    assert up.process.wait(120) == 1
    assert "max_source_bytes" in up.wait_for("ended before it was ready")["event"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_everything(tmp_path: Path, number: int) -> None:
    up = Up(tmp_path).wait_until_ready()
    pids = up.pids()
    assert up.stop(number) == 0
    assert not any(is_alive(pid) for pid in pids.values())
    assert up.process.stdout is not None
    assert "worker" in up.process.stdout.read()


def test_ctrl_c_while_it_starts(tmp_path: Path) -> None:
    up = Up(tmp_path)
    up.wait_for("listening", service="worker")
    pids = up.pids()
    assert up.stop(signal.SIGINT) == 0
    assert not any(is_alive(pid) for pid in pids.values())


def test_kill_9_leaves_nothing_behind(tmp_path: Path) -> None:
    up = Up(tmp_path).wait_until_ready()
    pids = list(up.pids().values())
    grandchildren = [
        int(child) for pid in pids for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]
    up.process.kill()
    up.process.wait()
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids + grandchildren) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids + grandchildren if is_alive(pid)]
