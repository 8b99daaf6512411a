"""The command, on a small GGUF file: trains, goes on, composes; what it writes, worker and `transformers` read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from services.model_worker.loading import load_model
from services.model_worker.training.__main__ import EXPERTS, RESULT, main
from services.model_worker.training.report import ROUTING, STEPS
from tests.support.gguf_files import random_tensors, write_gguf
from tests.support.toy_model import prefill_logits, random_tokens

TEXT = random_tokens(30)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"prompt": f"<|im_start|>the number {number}: ", "completion": f"{number * 7}<|im_end|>"})
        for number in range(40)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:32]) + "\n")
    (tmp_path / "validation.jsonl").write_text("\n".join(lines[32:]) + "\n")
    return write_gguf(tmp_path / "base.gguf", random_tensors())


def train(base: Path, *flags: str) -> int:
    directory = base.parent
    paths = ["--base", str(base), "--data", str(directory), "--out", str(directory / "out")]
    small = ["--first-layer", "1", "--experts", "4", "--width", "8", "--batch-tokens", "128", "--learning-rate", "0.01"]
    small += ["--threads", "1"]
    return main(["train", *paths, *small, "--epochs", "4", "--save-every", "2", *flags])


@pytest.mark.parametrize("flags", [[], ["--experts", "1", "--per-token", "1"], ["--capacity", "1.0"]])
def test_train_and_compose(base: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(base, *flags) == 0
    out, composed = base.parent / "out", base.parent / "composed"
    result = json.loads((out / RESULT).read_text())
    assert result["validation_loss"] < result["validation_loss_before"]
    assert len((out / STEPS).read_text().splitlines()) == 1 + result["num_steps"]
    has_router = "--experts" not in flags
    assert ((out / ROUTING).read_text() != "") == has_router
    assert ("validation_balance" in result) == has_router

    assert main(["compose", "--base", str(base), "--experts", str(out / EXPERTS), "--out", str(composed)]) == 0
    loaded = load_model(str(composed), torch.float32)
    assert loaded.tokenizer == load_model(str(base), torch.float32).tokenizer
    assert loaded.model.routed_layers == ((1,) if has_router else ())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(composed, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([TEXT])).logits[0]
    torch.testing.assert_close(torch.tensor(prefill_logits(TEXT, loaded.model)), expected, atol=1e-3, rtol=0)


def test_a_run_is_gone_on_with_and_never_overwritten(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(base, "--steps", "3") == 0
    first = load_file(base.parent / "out" / EXPERTS)
    result = json.loads((base.parent / "out" / RESULT).read_text())
    assert train(base, "--steps", "3") == 1
    assert "--resume" in capsys.readouterr().err
    assert train(base, "--steps", "4", "--resume") == 1
    assert "other options" in capsys.readouterr().err
    assert train(base, "--steps", "3", "--resume") == 0
    again = load_file(base.parent / "out" / EXPERTS)
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert json.loads((base.parent / "out" / RESULT).read_text()) | {"seconds": 0} == result | {"seconds": 0}


def test_what_cannot_be_used_is_said(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(base, "--first-layer", "9") == 1
    assert "first_layer is 9" in capsys.readouterr().err
    assert train(base, "--per-token", "5") == 1
    assert "num_experts_per_tok is 5" in capsys.readouterr().err
    (base.parent / "train.jsonl").write_text("{}\n")
    assert train(base) == 1
    assert "line 1" in capsys.readouterr().err
    assert main(["compose", "--base", str(base), "--experts", str(base), "--out", str(base.parent / "x")]) == 1
    assert "cannot be read" in capsys.readouterr().err
