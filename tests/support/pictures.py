"""Pictures for tests, of any size."""

from __future__ import annotations

import numpy as np

from gateway.cli.routing.picture import Picture, PictureLayer, PictureToken


def picture(
    tokens: tuple[PictureToken, ...], *, num_layers: int = 2, num_experts: int = 4, num_experts_per_tok: int = 2
) -> Picture:
    generator = np.random.default_rng(0)
    drawn = generator.random((len(tokens), num_layers, num_experts)).argsort(axis=-1)[..., :num_experts_per_tok]
    experts = drawn.astype(np.uint16)
    layers = tuple(
        PictureLayer(
            10 + layer,
            tuple(np.bincount(experts[:, layer].flatten(), minlength=num_experts).tolist()),
            mean_entropy=1.25,
            balance=1.5,
        )
        for layer in range(num_layers)
    )
    return Picture("a <model>", tokens, layers, experts)
