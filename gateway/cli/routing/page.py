"""The routing picture as one HTML file that needs nothing else: no script, no font, no other file."""

from __future__ import annotations

from typing import Final

import jinja2

from gateway.cli.routing.picture import FEW_TOKENS, Picture, colours

_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("gateway.cli.routing", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def draw_page(picture: Picture) -> bytes:
    """Return the file: a table of tokens and layers, then one of layers and what their routers did."""
    template = _ENVIRONMENT.get_template("page.html.jinja")
    page = template.render(
        picture=picture, experts=picture.experts.tolist(), colours=colours(picture.num_experts), few=FEW_TOKENS
    )
    return page.encode()
