"""The training loop: seeded, resumable, the language model's loss on completions plus what keeps the routers apart."""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from services.model_worker.training import losses
from services.model_worker.training.examples import Example, batches
from services.model_worker.training.gating import Assignment
from services.model_worker.training.hidden import HiddenStates
from services.model_worker.training.mixture import GatingOptions, MixtureShape
from services.model_worker.training.network import Network, Rows, split_rows
from services.model_worker.training.report import Report, StepRouting

STATE: Final = "state.pt"


class ResumeError(ValueError):
    """What is to be resumed is another run."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What each loss beside the language model's counts; 0: not at all."""

    balance: float = 0.1
    retention: float = 0.1
    z: float = 0.001
    entropy: float = 0.0
    importance: float = 0.0
    diversity: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """All that a run depends on, beside base and texts."""

    first_layer: int = 14
    num_layers: int = 10
    """Most layers with experts; fewer where the model ends before."""
    shape: MixtureShape = field(default_factory=MixtureShape)
    gating: GatingOptions = field(default_factory=GatingOptions)
    weights: LossWeights = field(default_factory=LossWeights)
    epochs: float = 1.0
    """How often each text is read; of the last time a part, if it is not a whole number."""
    max_steps: int | None = None
    batch_tokens: int = 2048
    """Most tokens in one forward and backward pass."""
    accumulation: int = 1
    """Passes whose gradients make one step."""
    learning_rate: float = 1.5e-3
    warmup_steps: int = 20
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    retention_texts: int = 2
    """Texts of a pass whose prompts the retention loss is measured on."""
    retention_rows: int = 128
    """Tokens of these prompts, drawn anew each time."""
    seed: int = 0


@dataclass(frozen=True)
class _Batch:
    """Some texts as rows, as the network takes them."""

    x: Tensor
    """`(N, H)`, of the lower layers."""
    rows: Rows
    prompt_rows: Tensor
    completion_rows: Tensor
    """`(R,)`, what the loss is of."""
    targets: Tensor
    """`(R,)`, the tokens after these rows."""


class Trainer:
    """Trains a network's experts on examples whose lower layers are known."""

    def __init__(
        self, network: Network, examples: Sequence[Example], hidden: HiddenStates, options: TrainingOptions
    ) -> None:
        self.network = network
        self._examples = examples
        self._hidden = hidden
        self._options = options
        self._generator = torch.Generator(network.base.device).manual_seed(options.seed)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        # Vectors that choose are not to be pulled to zero.
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [one for one in trained if one.dim() == 3], "weight_decay": options.weight_decay},
                {"params": [one for one in trained if one.dim() < 3], "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
            betas=(0.9, 0.98),
        )
        self._plan = self._steps()
        self.num_steps = len(self._plan)
        self.num_done = 0

    def _steps(self) -> list[list[list[int]]]:
        """Plan all steps: for each its passes, for each of them the indices of its examples."""
        options = self._options
        lengths = [len(example.token_ids) for example in self._examples]
        passes = [
            batch
            for epoch in range(math.ceil(options.epochs))
            for batch in batches(lengths, options.batch_tokens, seed=options.seed * 1000 + epoch)
        ]
        passes = passes[: round(len(passes) * options.epochs / math.ceil(options.epochs))]
        steps = [passes[start : start + options.accumulation] for start in range(0, len(passes), options.accumulation)]
        return steps[: options.max_steps]

    def run(self, report: Report) -> Iterator[dict[str, float]]:
        """Go through the steps that are left; yields what each gave."""
        while self.num_done < self.num_steps:
            started = time.perf_counter()
            values, seen = self._step(self._plan[self.num_done])
            values |= {"seconds": round(time.perf_counter() - started, 3)}
            values = report.step(self.num_done, {"step": self.num_done} | values, seen)
            self.num_done += 1
            yield values

    def _step(self, passes: list[list[int]]) -> tuple[dict[str, float], StepRouting | None]:
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.network.train()
        num_learned = sum(
            len(self._examples[index].token_ids) - self._examples[index].num_prompt_tokens
            for indices in passes
            for index in indices
        )
        sums: dict[str, float] = {}
        seen: StepRouting | None = None
        for indices in passes:
            batch = self._batch(self._examples, self._hidden, indices)
            kept, base_logits = self._retention(batch)
            logit_rows = torch.cat([batch.completion_rows, kept])
            logits, decided = self.network(batch.x, batch.rows, logit_rows, self._generator)
            learned, retained = logits.split([len(batch.targets), len(kept)])
            parts = {"loss": F.cross_entropy(learned, batch.targets, reduction="sum") / num_learned}
            mean_losses = self._router_losses(decided)
            if len(kept):
                mean_losses["retention"] = losses.retention_loss(retained, base_logits)
            parts |= {name: loss / len(passes) for name, loss in mean_losses.items()}
            weights = asdict(self._options.weights)
            total = sum((weights.get(name, 1.0) * loss for name, loss in parts.items()), torch.zeros(()))
            total.backward()  # type: ignore[no-untyped-call]
            for name, loss in parts.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach())
            if decided:
                seen = StepRouting.of(decided) if seen is None else seen + StepRouting.of(decided)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self._options.max_gradient_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        values = {name if name == "loss" else f"{name}_loss": round(value, 5) for name, value in sums.items()}
        num_tokens = sum(len(self._examples[index].token_ids) for indices in passes for index in indices)
        return values | {
            "tokens": num_tokens,
            "gradient_norm": round(float(norm), 5),
            "learning_rate": self._learning_rate(),
        }, seen

    def _batch(self, examples: Sequence[Example], hidden: HiddenStates, indices: Sequence[int]) -> _Batch:
        chosen = [examples[index] for index in indices]
        rows = Rows(tuple(len(example.token_ids) for example in chosen))
        prompt_rows, completion_rows = split_rows([example.num_prompt_tokens for example in chosen], rows)
        token_ids = torch.tensor([token_id for example in chosen for token_id in example.token_ids])
        device = self.network.base.device
        return _Batch(
            torch.cat([hidden.of(index) for index in indices]).to(device),
            rows,
            prompt_rows.to(device),
            completion_rows.to(device),
            token_ids[completion_rows + 1].to(device),
        )

    def _retention(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Draw rows of a pass at which the base's predictions are to stay; returns them and the base's logits there.

        They are of the first texts, which chance has put there, so that the base need not run all; the rows of these
        texts are the first of the pass.
        """
        options, device = self._options, self.network.base.device
        if not options.weights.retention:
            return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device)
        first = Rows(batch.rows.lengths[: options.retention_texts])
        num_rows = sum(first.lengths)
        prompt_rows = batch.prompt_rows[batch.prompt_rows < num_rows]
        order = torch.randperm(len(prompt_rows), generator=self._generator, device=device)
        kept = prompt_rows[order[: options.retention_rows]]
        return kept, self.network.base_logits(batch.x[:num_rows], first, kept)

    def _router_losses(self, decided: list[Assignment]) -> dict[str, Tensor]:
        """Return the means over layers of the losses that count."""
        weights = self._options.weights
        if not decided:
            return {}
        found: dict[str, list[Tensor]] = {
            "balance": [losses.load_balancing_loss(one.probs, one.expert_ids) for one in decided],
            "z": [losses.router_z_loss(one.logits) for one in decided],
        }
        if weights.entropy:
            found["entropy"] = [losses.entropy_loss(one.probs) for one in decided]
        if weights.importance:
            found["importance"] = [losses.importance_loss(one.probs) for one in decided]
        if weights.diversity:
            found["diversity"] = [losses.diversity_loss(mixture.gate_up) for mixture in self.network.layers]
        return {name: torch.stack(layers).mean() for name, layers in found.items()}

    def _learning_rate(self) -> float:
        """Rise in a line, then fall as a cosine does, to a tenth."""
        options, step = self._options, self.num_done
        if step < options.warmup_steps:
            return options.learning_rate * (step + 1) / options.warmup_steps
        part = (step - options.warmup_steps) / max(1, self.num_steps - options.warmup_steps)
        return options.learning_rate * (0.1 + 0.9 * (1 + math.cos(math.pi * part)) / 2)

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Example], hidden: HiddenStates) -> tuple[float, StepRouting | None]:
        """Return the mean loss of the completions' tokens, in nats, and the routing, without what training adds."""
        self.network.eval()
        total, num_learned, seen = 0.0, 0, None
        for index in range(len(examples)):
            batch = self._batch(examples, hidden, [index])
            logits, decided = self.network(batch.x, batch.rows, batch.completion_rows)
            total += float(F.cross_entropy(logits, batch.targets, reduction="sum"))
            num_learned += len(batch.targets)
            if decided:
                seen = StepRouting.of(decided) if seen is None else seen + StepRouting.of(decided)
        return total / num_learned, seen

    def save(self, directory: Path) -> None:
        """Write all that `load` needs to go on from here."""
        state = {
            "options": json.dumps(asdict(self._options), sort_keys=True),
            "num_done": self.num_done,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }
        partial = directory / f"{STATE}.partial"
        torch.save(state, partial)
        partial.replace(directory / STATE)

    def load(self, directory: Path) -> None:
        """Go on where `save` was.

        Raises:
            ResumeError: that was a run with other options, or the state is damaged.
        """
        try:
            state: dict[str, Any] = torch.load(directory / STATE, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ResumeError(f"{directory / STATE} is damaged: {error}") from None
        if state["options"] != json.dumps(asdict(self._options), sort_keys=True):
            raise ResumeError(f"{directory / STATE} is of a run with other options: {state['options']}")
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self.num_done = state["num_done"]
