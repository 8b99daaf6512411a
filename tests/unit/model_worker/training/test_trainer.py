"""The loop: learns, keeps its routers apart, and goes on after a stop as if there had been none."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from tokenizers import Tokenizer

from services.model_worker.toy import toy_tokenizer
from services.model_worker.training.examples import ExamplesError, batches, read_examples
from services.model_worker.training.hidden import HiddenStates, hidden_states
from services.model_worker.training.losses import retention_loss
from services.model_worker.training.mixture import GatingOptions, MixtureShape
from services.model_worker.training.network import Rows, split_rows
from services.model_worker.training.report import ROUTING, STEPS, Report
from services.model_worker.training.trainer import STATE, LossWeights, ResumeError, Trainer, TrainingOptions
from tests.support.trained_toy import FIRST_LAYER, SHAPE, toy_examples, toy_network

OPTIONS = TrainingOptions(
    first_layer=FIRST_LAYER,
    shape=SHAPE,
    gating=GatingOptions(noise_scale=0.3),
    epochs=4,
    batch_tokens=64,
    learning_rate=1e-2,
    warmup_steps=2,
)
EXAMPLES = toy_examples()


def hidden(directory: Path) -> HiddenStates:
    return hidden_states(toy_network(), "toy", EXAMPLES, directory, lambda _: None)


def trainer_of(directory: Path, options: TrainingOptions = OPTIONS) -> Trainer:
    network = toy_network(options.shape, options.gating, is_trained=False)
    return Trainer(network, EXAMPLES, hidden(directory), options)


def run(trainer: Trainer, directory: Path, *, until: int | None = None) -> list[dict[str, float]]:
    found = []
    with Report(directory, FIRST_LAYER, trainer.num_done, 0.5) as report:
        for values in trainer.run(report):
            found.append(values)
            if until is not None and trainer.num_done == until:
                break
    return found


@pytest.mark.parametrize("shape", [SHAPE, MixtureShape(num_experts=1, num_experts_per_tok=1, expert_width=16)])
def test_it_learns(tmp_path: Path, shape: MixtureShape) -> None:
    trainer = trainer_of(tmp_path, replace(OPTIONS, shape=shape, epochs=12))
    before, _ = trainer.evaluate(EXAMPLES, hidden(tmp_path))
    base = {name: parameter.clone() for name, parameter in trainer.network.base.named_parameters()}
    steps = run(trainer, tmp_path)
    after, seen = trainer.evaluate(EXAMPLES, hidden(tmp_path))
    assert after < before - 0.5
    assert len(steps) == trainer.num_steps
    assert (seen is not None) == shape.has_router
    assert all(torch.equal(base[name], now) for name, now in trainer.network.base.named_parameters())


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    one = trainer_of(tmp_path)
    run(one, whole)
    first = trainer_of(tmp_path)
    run(first, broken, until=3)
    first.save(broken)
    run(first, broken, until=5)  # lost: it was not saved
    second = trainer_of(tmp_path)
    second.load(broken)
    run(second, broken)
    for name, parameter in one.network.state_dict().items():
        assert torch.equal(parameter, second.network.state_dict()[name]), name
    for name in (STEPS, ROUTING):
        rows = [list(csv.DictReader((directory / name).read_text().splitlines())) for directory in (whole, broken)]
        for found in rows:
            for row in found:
                row.pop("seconds", None)
        assert rows[0] == rows[1]
    with pytest.raises(ResumeError, match="other options"):
        trainer_of(tmp_path, replace(OPTIONS, seed=1)).load(broken)
    (broken / STATE).write_bytes((broken / STATE).read_bytes()[:1000])
    with pytest.raises(ResumeError, match="damaged"):
        trainer_of(tmp_path).load(broken)


def test_accumulated_gradients_are_those_of_one_pass(tmp_path: Path) -> None:
    calm = replace(OPTIONS, gating=GatingOptions(), weights=LossWeights(balance=0, z=0), epochs=1)
    large = trainer_of(tmp_path, replace(calm, batch_tokens=10_000))
    # One step either way; a router's own losses would differ, because they are means over a pass.
    small = trainer_of(tmp_path, replace(calm, batch_tokens=64, accumulation=100))
    assert (large.num_steps, small.num_steps) == (1, 1)
    (of_large,), (of_small,) = run(large, tmp_path), run(small, tmp_path)
    assert of_small["loss"] == pytest.approx(of_large["loss"], abs=1e-4)
    assert of_small["gradient_norm"] == pytest.approx(of_large["gradient_norm"], rel=1e-3)


def test_balancing_keeps_experts_apart_and_a_collapse_is_told(tmp_path: Path) -> None:
    def balance(weights: LossWeights) -> tuple[float, list[str]]:
        # A router that starts with one favourite.
        trainer = trainer_of(tmp_path, replace(OPTIONS, weights=weights, gating=GatingOptions(), epochs=15))
        for mixture in trainer.network.layers:
            mean = torch.cat([hidden(tmp_path).of(index) for index in range(len(EXAMPLES))]).mean(dim=0)
            mixture.router.data[:2] = 3 * mean / mean.norm()
        with capture_logs() as logs:
            steps = run(trainer, tmp_path)
        return steps[-1]["balance"], [entry["event"] for entry in logs]

    with_balancing, _ = balance(LossWeights(balance=0.5))
    without, told = balance(LossWeights(balance=0))
    assert with_balancing < without - 0.1
    assert any("routing has collapsed" in event for event in told)


def test_retention_keeps_what_the_base_says_of_prompts(tmp_path: Path) -> None:
    def trained(retention: float) -> tuple[float, float]:
        weights = LossWeights(retention=retention)
        trainer = trainer_of(tmp_path, replace(OPTIONS, weights=weights, epochs=12, retention_rows=20))
        run(trainer, tmp_path)
        network, apart = trainer.network.eval(), []
        for index, example in enumerate(EXAMPLES):
            rows = Rows((len(example.token_ids),))
            prompts, _ = split_rows([example.num_prompt_tokens], rows)
            x = hidden(tmp_path).of(index)
            with torch.no_grad():
                logits, _ = network(x, rows, prompts)
            apart.append(retention_loss(logits, network.base_logits(x, rows, prompts)).item())
        return trainer.evaluate(EXAMPLES, hidden(tmp_path))[0], sum(apart) / len(apart)

    loss, apart = trained(1.0)
    loss_without, apart_without = trained(0.0)
    assert apart < apart_without / 2
    assert loss < loss_without + 0.5


def test_a_part_of_an_epoch_is_a_part_of_its_passes(tmp_path: Path) -> None:
    one, two, half = (trainer_of(tmp_path, replace(OPTIONS, epochs=epochs)).num_steps for epochs in (1, 2, 1.5))
    assert one < half < two
    assert half == round(two * 0.75)


def test_lower_layers_are_computed_once(tmp_path: Path) -> None:
    network = toy_network()
    told: list[int] = []
    states = hidden_states(network, "toy", EXAMPLES, tmp_path, told.append)
    assert sum(told) == sum(len(example.token_ids) for example in EXAMPLES)
    network.lower = None  # type: ignore[assignment,method-assign]
    again = hidden_states(network, "toy", EXAMPLES, tmp_path, lambda _: None)
    assert all(torch.equal(states.of(index), again.of(index)) for index in range(len(EXAMPLES)))


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="MB are needed"):
        hidden(tmp_path)
    assert not list(tmp_path.iterdir())


def test_batches_have_every_example_once() -> None:
    lengths = [7, 100, 3, 20, 20, 5]
    found = list(batches(lengths, 30, seed=1))
    assert sorted(index for batch in found for index in batch) == list(range(6))
    assert all(len(batch) == 1 or sum(lengths[index] for index in batch) <= 30 for batch in found)
    assert found == list(batches(lengths, 30, seed=1))
    assert found != list(batches(lengths, 30, seed=2))


def test_examples_are_read_and_bad_lines_named(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(toy_tokenizer().tokenizer_json.decode())
    file = tmp_path / "train.jsonl"
    file.write_text('{"prompt": "<|im_start|>the", "completion": "한<|im_end|>"}\n', encoding="utf-8")
    (example,) = read_examples(file, tokenizer)
    assert tokenizer.decode(example.token_ids, skip_special_tokens=False) == "<|im_start|>the한<|im_end|>"
    assert example.num_prompt_tokens == 2
    for bad in ("nothing", '{"prompt": "a"}', '{"prompt": "a", "completion": ""}', '{"prompt": 1, "completion": "b"}'):
        file.write_text(bad + "\n")
        with pytest.raises(ExamplesError, match="line 1"):
            read_examples(file, tokenizer)
    file.write_text("")
    with pytest.raises(ExamplesError, match="no examples"):
        read_examples(file, tokenizer)
