"""`espalier model show`: what model a gateway answers with, in a few lines."""

from __future__ import annotations

from typing import Any


def describe_model(info: Any) -> str:
    """Say in a few lines what a `GetModelInfoResponse` says."""
    experts = (
        "dense"
        if info.num_experts == 1
        else f"{info.num_experts} experts, {info.num_experts_per_tok} of them for each token"
    )
    flops = f"{info.flops_per_token / 1e6:,.1f} MFLOP"
    if info.dense_flops_per_token > info.flops_per_token:
        flops += f" ({info.dense_flops_per_token / 1e6:,.1f} with all experts)"
    return "\n".join(
        [
            f"{info.name}: {info.architecture}, {info.num_layers} layers, {experts}",
            f"parameters: {info.num_parameters / 1e6:,.1f} M, {info.num_active_parameters / 1e6:,.1f} M a token; "
            f"{info.weight_bytes / 1e6:,.0f} MB in {info.dtype} on {info.device}",
            f"a token: {flops}, and {info.flops_per_context_token / 1e3:,.1f} kFLOP for each token of its context",
            f"context: {info.context_length:,} tokens; vocabulary: {info.vocab_size:,}, {info.vocabulary_digest[:16]}…",
        ]
    )
