"""The decoder: embedding, blocks, final norm, logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.model_worker.model.attention import Attention, AttentionPlan
from services.model_worker.model.config import ModelConfig
from services.model_worker.model.kernels import DEFINITION, Kernels
from services.model_worker.model.linear import Embedding, Linear
from services.model_worker.model.moe import MoeFeedForward, RoutingLog, feed_forward
from services.model_worker.model.norm import RmsNorm
from services.model_worker.model.rope import rotary_table


class Block(nn.Module):
    """Attention and feed-forward, each on the normed residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, config.window(layer))
        self.feed_forward_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = feed_forward(config, layer)

    def forward(
        self, x: Tensor, rotary: Tensor, layer_cache: Tensor, plan: AttentionPlan, log: RoutingLog | None = None
    ) -> Tensor:
        """`x`: `(N, hidden_size)` to the same; the others as in `Attention.forward` and `MoeFeedForward.forward`."""
        x = x + self.attention(self.attention_norm(x), rotary, layer_cache, plan)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x), log)
        return out


class Transformer(nn.Module):
    """A decoder whose parameters hold nothing until a checkpoint is loaded into them."""

    rotary: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.kernels = DEFINITION
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.head.weight = self.embedding.weight
        self.register_buffer(
            "rotary",
            rotary_table(config.context_length, config.head_dim, config.rope_theta, config.rope_scaling),
            persistent=False,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers between layers and in the cache."""
        dtype: torch.dtype = self.norm.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.norm.weight.device
        return device

    def prepare(self, kernels: Kernels) -> None:
        """Compute with these kernels from now on: for serving, as the weights cannot be read any more.

        Raises:
            NotDeterministicError: the kernels cannot do what they promise.
        """
        self.kernels = kernels
        for module in self.modules():
            if isinstance(module, Linear | MoeFeedForward):
                module.prepare(kernels.make_product)
            elif isinstance(module, Attention):
                module.attend = kernels.attend
        if self.config.tie_word_embeddings:
            self.head.weight = self.embedding.weight

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        plan: AttentionPlan,
        cache: Tensor,
        logit_rows: Tensor,
        log: RoutingLog | None = None,
    ) -> Tensor:
        """Run all N tokens through the model once.

        `token_ids`: `(N,)`; `cache`: `(num_layers, 2, Hkv, num_blocks, BLOCK_TOKENS, D)`, written at the plan's slots;
        `logit_rows`: `(R,)`, the rows whose logits are wanted; `log` gets what the routers chose, in the order of the
        layers that have one. Returns logits `(R, vocab_size)` float32.
        """
        x = self.embedding(token_ids)
        rotary = self.rotary.index_select(0, plan.positions).unsqueeze(1)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, cache[layer], plan, log)
        logits: Tensor = self.head(self.norm(x.index_select(0, logit_rows))).float()
        return logits

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """The layers that have a router."""
        return tuple(i for i, block in enumerate(self.blocks) if isinstance(block.feed_forward, MoeFeedForward))

    def num_parameters(self) -> int:
        """Count all parameters, shared ones once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def num_active_parameters(self) -> int:
        """Count those that one token uses: of the experts only its share."""
        config = self.config
        num_idle = config.num_experts - config.num_experts_per_tok
        expert = (config.first_projections + 1) * config.hidden_size * config.intermediate_size
        return self.num_parameters() - len(self.routed_layers) * num_idle * expert
