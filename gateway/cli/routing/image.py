"""The routing picture as a PNG, by Pillow: tokens and layers on the left, what each layer's router did on the right."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from gateway.cli.routing.picture import Mark, Picture, PictureToken, colours

_CELL: Final = 14
_LABEL_WIDTH: Final = 180
_HEAD_HEIGHT: Final = 60
_BARS_WIDTH: Final = 260
_BARS_HEIGHT: Final = 26
_LAYER_HEIGHT: Final = 32
_NOTES_WIDTH: Final = 210
_GAP: Final = 20
_MAX_LABEL: Final = 22
"""Characters of a token that are written beside its row."""

_PAPER: Final = "#ffffff"
_INK: Final = "#1c1c1c"
_QUIET: Final = "#707070"
_LINE: Final = "#cccccc"
_INK_OF: Final[dict[Mark, str]] = {"": _INK, "few": "#8a5a00", "forced": "#b00020"}


def image_size(picture: Picture) -> tuple[int, int]:
    """Return width and height in pixels."""
    width = 3 * _GAP + _LABEL_WIDTH + len(picture.layers) * _CELL + _BARS_WIDTH + _NOTES_WIDTH
    rows = max(len(picture.tokens) * _CELL, len(picture.layers) * _LAYER_HEIGHT)
    return width, _HEAD_HEIGHT + rows + _GAP


def draw_image(picture: Picture) -> bytes:
    """Return the file."""
    image = Image.new("RGB", image_size(picture), _PAPER)
    drawing = _Drawing(picture, ImageDraw.Draw(image))
    drawing.head()
    drawing.tokens()
    drawing.layers()
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


class _Drawing:
    """The parts of one image."""

    def __init__(self, picture: Picture, draw: ImageDraw.ImageDraw) -> None:
        self._picture = picture
        self._draw = draw
        self._font = ImageFont.load_default(11)
        self._colours = colours(picture.num_experts)
        self._grid_x = _GAP + _LABEL_WIDTH
        self._bars_x = self._grid_x + len(picture.layers) * _CELL + _GAP

    def head(self) -> None:
        picture = self._picture
        self._text(
            (_GAP, 8),
            f"{picture.model}: {len(picture.tokens)} tokens, {picture.num_experts} experts, "
            f"{picture.num_experts_per_tok} for a token",
        )
        self._text((_GAP, 24), "written: strong edge; few allowed: brown; forced: red", _QUIET)
        for number, layer in enumerate(picture.layers):
            if number % 2 == 0:  # two digits are wider than a column
                self._text((self._grid_x + number * _CELL + 2, _HEAD_HEIGHT - 14), str(layer.number), _QUIET)

    def tokens(self) -> None:
        for row, token in enumerate(self._picture.tokens):
            y = _HEAD_HEIGHT + row * _CELL
            edge = _INK if token.is_generated else _LINE
            self._draw.rectangle((self._grid_x - 4, y, self._grid_x - 2, y + _CELL - 1), edge)
            ink = _INK_OF[token.mark] if token.is_generated else _QUIET
            self._text((self._grid_x - 8, y), _label(token), ink, anchor="ra")
            for column, chosen in enumerate(self._picture.experts[row].tolist()):
                self._cell(self._grid_x + column * _CELL, y, chosen)

    def _cell(self, x: int, y: int, chosen: list[int]) -> None:
        """Fill a cell with the best expert, its lower right half with the second."""
        last = _CELL - 2
        self._draw.rectangle((x, y, x + last, y + last), self._colours[chosen[0]])
        if len(chosen) > 1:
            corners = [(x + last, y), (x + last, y + last), (x, y + last)]
            self._draw.polygon(corners, self._colours[chosen[1]])

    def layers(self) -> None:
        picture = self._picture
        fair = f"fair share {100 / picture.num_experts:.1f} %"
        self._text((self._bars_x, _HEAD_HEIGHT - 14), f"shares of the experts; line: {fair}", _QUIET)
        for number, layer in enumerate(picture.layers):
            bottom = _HEAD_HEIGHT + number * _LAYER_HEIGHT + _BARS_HEIGHT
            width = _BARS_WIDTH / picture.num_experts
            for expert, share in enumerate(layer.shares):
                left = self._bars_x + expert * width
                top = bottom - share / picture.max_share * _BARS_HEIGHT
                self._draw.rectangle((left, top, left + max(width - 1.5, 0), bottom), self._colours[expert])
            y = bottom - _BARS_HEIGHT / picture.num_experts / picture.max_share
            self._draw.line((self._bars_x, y, self._bars_x + _BARS_WIDTH, y), _INK)
            self._text(
                (self._bars_x + _BARS_WIDTH + 8, bottom - 18),
                f"layer {layer.number}: entropy {layer.mean_entropy:.2f} of {picture.max_entropy:.2f}, "
                f"balance {layer.balance:.2f}",
            )

    def _text(self, at: tuple[float, float], text: str, ink: str = _INK, *, anchor: str = "la") -> None:
        self._draw.text(at, text, fill=ink, font=self._font, anchor=anchor)


def _label(token: PictureToken) -> str:
    # The font that comes with Pillow has Latin letters only: what is in another script is spelt, not drawn as a box.
    text = token.text.encode("latin-1", errors="backslashreplace").decode("latin-1")
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"
