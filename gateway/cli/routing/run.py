"""`espalier routing`: a text is written, then run through the model once more for the experts of its tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.cli.client import GatewayClient, WorkerClient
from gateway.cli.errors import BAD_USAGE, REFUSED, CommandError
from gateway.cli.routing.picture import Picture, PictureLayer, PictureToken, read_experts
from gateway.cli.tokens import shown

Draw = Callable[[Picture], bytes]


@dataclass(frozen=True)
class Addresses:
    """Where the services are."""

    gateway: str
    worker: str


def run(generation: Any, *, writes: bool, out: Path, addresses: Addresses, timeout_s: float) -> None:
    """Draw the routing of a `Generation`'s prompt, and of what is written behind it where `writes` is set.

    Raises:
        ServiceError: as gateway or worker answer.
        CommandError: there is nothing to draw, or the file cannot be written.
    """
    draw = drawing_for(out)  # before the work, so that none is lost
    with (
        GatewayClient(addresses.gateway, timeout_s=timeout_s) as gateway,
        WorkerClient(addresses.worker, timeout_s=timeout_s) as worker,
    ):
        model = worker.model()
        if gateway.model_info().vocabulary_digest != model.vocabulary_digest:
            raise CommandError(
                f"the worker at {addresses.worker} ({model.name}) is not of the model that {addresses.gateway} answers "
                "with: give the address of that gateway's own by --worker-address",
                BAD_USAGE,
            )
        if model.moe.num_experts == 1:
            raise _no_router(model.name)
        tokens = _tokens(gateway, generation, writes=writes)
        routed = worker.route([token_id for token_id, _ in tokens])
    if not routed.routing:
        raise _no_router(model.name)
    picture = Picture(
        model=model.name,
        tokens=tuple(token for _, token in tokens),
        layers=tuple(_layer(layer) for layer in routed.routing),
        experts=read_experts(routed.expert_ids, num_tokens=len(tokens), num_layers=len(routed.routing)),
    )
    try:
        out.write_bytes(draw(picture))
    except OSError as error:
        raise CommandError(f"cannot write {out}: {error.strerror}", BAD_USAGE) from None
    print(f"{out}: {len(picture.tokens)} tokens, {len(picture.layers)} layers, {picture.num_experts} experts")


def drawing_for(out: Path) -> Draw:
    """Return what draws a file of this name.

    Raises:
        CommandError: nothing draws it, or its place is not there.
    """
    if out.suffix not in (".html", ".png"):
        raise CommandError(f"--out is a file that ends in .html or .png, not {str(out)!r}", BAD_USAGE)
    if not out.parent.is_dir():
        raise CommandError(f"cannot write {out}: there is no directory {out.parent}", BAD_USAGE)
    if out.suffix == ".html":
        from gateway.cli.routing.page import draw_page  # noqa: PLC0415

        return draw_page
    if importlib.util.find_spec("PIL") is None:
        raise CommandError(
            "a PNG needs Pillow: install it by `pip install 'espalier[plots]'`, or write a .html", BAD_USAGE
        )
    from gateway.cli.routing.image import draw_image  # noqa: PLC0415

    return draw_image


def _tokens(gateway: GatewayClient, generation: Any, *, writes: bool) -> list[tuple[int, PictureToken]]:
    """Return the ids of the prompt's tokens, and of those that are written, with what is shown of them."""
    input_kind = generation.WhichOneof("input")
    prompt = gateway.tokenize(**{input_kind: getattr(generation, input_kind)})
    tokens = [(token.id, PictureToken(shown(token), is_generated=False)) for token in prompt.tokens]
    written = gateway.generate(generation).result.logprobs if writes else []
    for logprob in written:
        num_allowed = logprob.num_allowed if logprob.HasField("num_allowed") else None
        token = PictureToken(shown(logprob.token), is_generated=True, num_allowed=num_allowed)
        tokens.append((logprob.token.id, token))
    return tokens


def _layer(message: Any) -> PictureLayer:
    return PictureLayer(message.layer, tuple(message.tokens_per_expert), message.mean_entropy, message.balance)


def _no_router(model: str) -> CommandError:
    return CommandError(f"{model} is a dense model: it has no router, so there is no routing to show", REFUSED)
