"""A dense decoder with routed experts in some of its layers, differentiable: only the experts and routers learn.

The lower layers never change, so what they give is computed once for each text, however often it is read
(`training/hidden.py`). What is here is the definition that the serving decoder has too, without a cache and without
writing in place; a test holds both together.

Shapes: N tokens of B texts, one after another, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.model_worker.model.config import ModelConfig
from services.model_worker.model.moe import DenseFeedForward
from services.model_worker.model.transformer import Block, Transformer
from services.model_worker.training.gating import Assignment
from services.model_worker.training.mixture import PLAIN_GATING, GatingOptions, MixtureShape, TrainableMixture


@dataclass(frozen=True)
class Rows:
    """Texts as rows of one tensor."""

    lengths: tuple[int, ...]
    """Tokens of each text; N together."""

    @property
    def positions(self) -> Tensor:
        """`(N,)`."""
        return torch.cat([torch.arange(length) for length in self.lengths])


class Network(nn.Module):
    """A loaded dense `base`, and experts beside at most `num_layers` of its blocks from `first_layer` on."""

    def __init__(
        self,
        base: Transformer,
        first_layer: int,
        num_layers: int,
        shape: MixtureShape,
        options: GatingOptions = PLAIN_GATING,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        config = base.config
        if config.num_experts > 1 or config.has_qkv_bias or config.qk_norm != "none" or config.windows:
            raise ValueError(f"experts are trained beside Llama's blocks; {config.architecture} has others")
        if not 0 <= first_layer < config.num_hidden_layers:
            raise ValueError(f"first_layer is {first_layer}, there are layers from 0 to {config.num_hidden_layers - 1}")
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}, it must be at least 1")
        self._base = [base]  # in a list: its weights are not this module's parameters
        self.first_layer = first_layer
        self.shape = shape
        self.mixtures = nn.ModuleList(
            TrainableMixture(config.hidden_size, shape, options, generator)
            for _ in range(min(num_layers, config.num_hidden_layers - first_layer))
        ).to(base.device)

    @property
    def base(self) -> Transformer:
        """The dense model."""
        return self._base[0]

    @property
    def layers(self) -> list[TrainableMixture]:
        """What is trained, of the layers from `first_layer` on."""
        return [mixture for mixture in self.mixtures if isinstance(mixture, TrainableMixture)]

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.base.blocks if isinstance(block, Block)]

    @torch.no_grad()
    def lower(self, token_ids: Tensor, rows: Rows) -> Tensor:
        """Run the layers that never change. `token_ids`: `(N,)`. Returns `(N, H)`."""
        return self._dense_layers(self._blocks[: self.first_layer], self.base.embedding(token_ids), rows)

    def forward(
        self, x: Tensor, rows: Rows, logit_rows: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Assignment]]:
        """Run the upper layers.

        `x`: `(N, H)`, of the lower ones; `logit_rows`: `(R,)`. Returns logits `(R, vocab_size)`, and what each layer's
        router decided.
        """
        decided: list[Assignment] = []
        rotary = self._rotary(rows)
        mixtures = self.layers
        above = self.first_layer + len(mixtures)
        for block, mixture in zip(self._blocks[self.first_layer : above], mixtures, strict=True):
            x = x + _attention(block, x, rotary, rows, self.base.config)
            normed: Tensor = block.feed_forward_norm(x)
            routed, assignment = mixture(normed, generator)
            x = x + _dense(block, normed) + routed
            if assignment is not None:
                decided.append(assignment)
        return self._logits(self._dense_layers(self._blocks[above:], x, rows), logit_rows), decided

    @torch.no_grad()
    def base_logits(self, x: Tensor, rows: Rows, logit_rows: Tensor) -> Tensor:
        """Run the upper layers of the base alone, from what the lower ones gave. Returns `(R, vocab_size)`."""
        return self._logits(self._dense_layers(self._blocks[self.first_layer :], x, rows), logit_rows)

    def _dense_layers(self, blocks: Sequence[Block], x: Tensor, rows: Rows) -> Tensor:
        rotary = self._rotary(rows)
        for block in blocks:
            x = x + _attention(block, x, rotary, rows, self.base.config)
            normed: Tensor = block.feed_forward_norm(x)
            x = x + _dense(block, normed)
        return x

    def _logits(self, x: Tensor, logit_rows: Tensor) -> Tensor:
        return F.linear(self.base.norm(x.index_select(0, logit_rows)), self.base.head.weight)

    def _rotary(self, rows: Rows) -> Tensor:
        positions = rows.positions.to(self.base.device)
        return self.base.rotary.index_select(0, positions).unsqueeze(1)  # (N, 1, D / 2) complex


def _attention(block: Block, x: Tensor, rotary: Tensor, rows: Rows, config: ModelConfig) -> Tensor:
    num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
    qkv = F.linear(block.attention_norm(x), block.attention.qkv.weight).view(len(x), -1, config.head_dim)
    turned, values = torch.split(qkv, [num_heads + num_kv_heads, num_kv_heads], dim=1)
    pairs = torch.view_as_complex(turned.reshape(*turned.shape[:-1], -1, 2))
    queries, keys = torch.split(torch.view_as_real(pairs * rotary).flatten(-2), [num_heads, num_kv_heads], dim=1)
    group_size = num_heads // num_kv_heads
    keys, values = (heads.repeat_interleave(group_size, dim=1) for heads in (keys, values))
    by_head = (heads.transpose(0, 1)[None] for heads in (queries, keys, values))  # (1, Hq, N, D) each
    by_text = zip(*(torch.split(heads, list(rows.lengths), dim=2) for heads in by_head), strict=True)
    attended = [F.scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in by_text]
    joined = torch.cat(attended, dim=2)[0].transpose(0, 1).flatten(1)
    return F.linear(joined, block.attention.output.weight)


def _dense(block: Block, normed: Tensor) -> Tensor:
    dense = block.feed_forward
    assert isinstance(dense, DenseFeedForward), "the base is dense"
    gate, up = F.linear(normed, dense.gate_up.weight).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, dense.down.weight)


def split_rows(prompt_lengths: Sequence[int], rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the rows whose logits say what prompts are made of, and those that say what completions are.

    A row says the token after it: the last of a prompt is the first of its completion's, and the last of a text is
    neither's.
    """
    prompts, completions, start = [], [], 0
    for num_prompt_tokens, length in zip(prompt_lengths, rows.lengths, strict=True):
        turn = start + num_prompt_tokens - 1
        prompts.append(torch.arange(start, turn))
        completions.append(torch.arange(turn, start + length - 1))
        start += length
    return torch.cat(prompts), torch.cat(completions)
