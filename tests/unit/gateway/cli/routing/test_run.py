"""What `espalier routing` does with the answers of services, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from espalier.v1 import gateway_pb2, model_worker_pb2

from gateway.cli.client import make_generation
from gateway.cli.errors import BAD_USAGE, REFUSED, CommandError
from gateway.cli.routing import run as command

ADDRESSES = command.Addresses("gateway:1", "worker:1")


class Service:
    """Stands for both clients."""

    num_experts = 4
    worker_digest = "d"
    generations: list[Any]

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def model_info(self) -> Any:
        return gateway_pb2.GetModelInfoResponse(vocabulary_digest="d")

    def model(self) -> Any:
        moe = model_worker_pb2.MoeShape(num_layers=1, num_experts=self.num_experts, num_experts_per_tok=1)
        return model_worker_pb2.GetModelResponse(name="m", vocabulary_digest=self.worker_digest, moe=moe)

    def tokenize(self, **prompt: Any) -> Any:
        tokens = [gateway_pb2.Token(id=number, spelling=bytes([number])) for number in prompt["prompt"].encode()]
        return gateway_pb2.TokenizeResponse(tokens=tokens)

    def generate(self, generation: Any) -> Any:
        self.generations.append(generation)
        logprob = gateway_pb2.TokenLogprob(token=gateway_pb2.Token(id=99, spelling=b"c"), num_allowed=1)
        return gateway_pb2.GenerateResponse(result=gateway_pb2.GenerationResult(logprobs=[logprob]))

    def route(self, token_ids: list[int]) -> Any:
        if self.num_experts == 1:
            return model_worker_pb2.StepResult()
        experts = np.array([token_id % 4 for token_id in token_ids], "<u2")
        counts = np.bincount(experts, minlength=4).tolist()
        layer = model_worker_pb2.LayerRouting(layer=2, tokens_per_expert=counts, mean_entropy=1, balance=1)
        return model_worker_pb2.StepResult(expert_ids=experts.tobytes(), routing=[layer])


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> type[Service]:
    class Ours(Service):
        generations: list[Any] = []  # noqa: RUF012

    monkeypatch.setattr(command, "GatewayClient", Ours)
    monkeypatch.setattr(command, "WorkerClient", Ours)
    return Ours


def run(out: Path, *, writes: bool = True) -> None:
    command.run(make_generation(prompt="ab"), writes=writes, out=out, addresses=ADDRESSES, timeout_s=1)


def test_prompt_then_text_in_one_picture(service: type[Service], tmp_path: Path) -> None:
    run(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert all(f'title="&#39;{letter}&#39;, layer 2: {ord(letter) % 4}"' in page for letter in "abc")
    assert "first-generated forced" in page


def test_the_text_alone(service: type[Service], tmp_path: Path) -> None:
    run(tmp_path / "a.png", writes=False)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not service.generations


def refusal(out: Path) -> CommandError:
    with pytest.raises(CommandError) as caught:
        run(out)
    return caught.value


def test_a_dense_model_has_no_routing(service: type[Service], tmp_path: Path) -> None:
    service.num_experts = 1
    error = refusal(tmp_path / "a.html")
    assert (str(error), error.exit_code) == (
        "m is a dense model: it has no router, so there is no routing to show",
        REFUSED,
    )
    assert not service.generations


def test_a_worker_of_another_model(service: type[Service], tmp_path: Path) -> None:
    service.worker_digest = "other"
    error = refusal(tmp_path / "a.html")
    assert "--worker-address" in str(error)
    assert error.exit_code == BAD_USAGE


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.svg", "ends in .html or .png"),
        ("a", "ends in .html or .png"),
        ("no/a.html", "there is no directory"),
        ("directory.html", "Is a directory"),
    ],
)
def test_a_file_that_cannot_be_written(service: type[Service], tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "directory.html").mkdir()
    error = refusal(tmp_path / name)
    assert says in str(error)
    assert error.exit_code == BAD_USAGE


def test_without_pillow_there_is_the_page(
    service: type[Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "espalier[plots]" in str(refusal(tmp_path / "a.png"))
    assert not service.generations
    run(tmp_path / "a.html")
