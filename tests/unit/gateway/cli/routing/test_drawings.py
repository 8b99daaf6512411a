"""The page and the image: read back, cell by cell."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest
from PIL import Image

from gateway.cli.routing.image import draw_image, image_size
from gateway.cli.routing.page import draw_page
from gateway.cli.routing.picture import PictureToken, colours
from tests.support.pictures import picture

TOKENS = (
    PictureToken("'<script>alert(\"1\")</script>'", is_generated=False),
    PictureToken("'한'", is_generated=False),
    PictureToken("'{'", is_generated=True, num_allowed=1),
    PictureToken("'\\xea\\xb0'", is_generated=True, num_allowed=3),
    PictureToken("'x'", is_generated=True, num_allowed=200),
)
VOID = {"meta", "rect", "line"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        return [*([self] if self.tag == tag else []), *(found for child in self.children for found in child.all(tag))]


class Reader(HTMLParser):
    """Builds a tree, and notices what is opened and not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(page)
        self.close()
        assert self.open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID - {"rect"}:  # a bar has a title in it
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))  # type: ignore[arg-type]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].text += data


def read(page: bytes) -> tuple[Element, Element]:
    """Return the table of tokens and that of layers."""
    grid, layers = Reader(page.decode()).root.all("table")
    return grid, layers


def test_a_cell_for_each_token_and_layer() -> None:
    drawn = picture(TOKENS)
    grid, _ = read(draw_page(drawn))
    rows = grid.all("tbody")[0].all("tr")
    assert len(rows) == len(TOKENS)
    for row, token, of_token in zip(rows, TOKENS, drawn.experts.tolist(), strict=True):
        assert row.all("th")[0].text == token.text
        allowed, *cells = row.all("td")
        assert allowed.text == ("" if token.num_allowed is None else str(token.num_allowed))
        for layer, cell, (best, second) in zip(drawn.layers, cells, of_token, strict=True):
            assert cell.attributes["class"] == f"x e{best} s{second}"
            assert cell.attributes["title"] == f"{token.text}, layer {layer.number}: {best}, {second}"
            assert cell.text == f"{best} {second}"
    assert [header.text for header in grid.all("thead")[0].all("th")] == ["token", "allowed", "10", "11"]


def test_prompt_and_text_and_what_the_constraint_chose_are_told_apart() -> None:
    grid, _ = read(draw_page(picture(TOKENS)))
    assert [row.attributes["class"] for row in grid.all("tbody")[0].all("tr")] == [
        "prompt",
        "prompt",
        "generated first-generated forced",
        "generated few",
        "generated",
    ]


def test_a_token_is_text_whatever_it_spells() -> None:
    page = draw_page(picture(TOKENS)).decode()
    root = Reader(page).root
    assert not root.all("script")
    assert root.all("title")[0].text == "Routing of a <model>"
    assert "<script" not in page


def test_the_page_needs_nothing_else() -> None:
    page = draw_page(picture(TOKENS)).decode()
    assert not re.findall(r"\b(?:src|href)=|url\(|@import|https?:", page)
    assert "prefers-color-scheme: dark" in page


def test_layers_have_shares_in_words_and_bars() -> None:
    drawn = picture(TOKENS)
    _, layers = read(draw_page(drawn))
    rows = layers.all("tbody")[0].all("tr")
    for row, layer in zip(rows, drawn.layers, strict=True):
        bars = row.all("rect")
        heights = [float(bar.attributes["height"]) * drawn.max_share for bar in bars]
        assert heights == pytest.approx(layer.shares, abs=1e-3)
        assert row.all("svg")[0].attributes["aria-label"].startswith(f"Shares of the experts of layer {layer.number}")
        share = f"{100 * max(layer.shares):.1f} %"
        texts = [cell.text.strip() for cell in row.all("td")]
        assert texts[1:] == [f"{layer.busiest} ({share})", str(layer.num_idle), "1.25", "1.50"]


def test_one_expert_for_a_token() -> None:
    drawn = picture(TOKENS[:2], num_experts_per_tok=1)
    grid, _ = read(draw_page(drawn))
    classes = [cell.attributes["class"] for cell in grid.all("tbody")[0].all("td") if cell.attributes["class"] != "n"]
    assert classes == [f"x e{expert}" for expert in drawn.experts.flatten().tolist()]


def test_a_large_mixture_is_a_page_of_a_few_megabytes() -> None:
    tokens = tuple(PictureToken(f"'{number}'", is_generated=number > 100) for number in range(300))
    drawn = picture(tokens, num_layers=48, num_experts=128, num_experts_per_tok=8)
    page = draw_page(drawn)
    assert len(page) < 4 << 20
    grid, _ = read(page)
    assert len(grid.all("td")) == 300 * (48 + 1)
    assert image_size(drawn)[1] >= 300 * 14


@pytest.mark.parametrize("per_token", [1, 2, 4])
def test_the_image(per_token: int) -> None:
    drawn = picture(TOKENS, num_experts_per_tok=per_token)
    image = Image.open(io.BytesIO(draw_image(drawn)))
    assert (image.format, image.size) == ("PNG", image_size(drawn))
    palette = [tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in colours(4)]
    # Of the first cell: its upper left corner is the best expert's, its lower right the second's.
    chosen = drawn.experts[0, 0].tolist()
    assert image.getpixel((200, 60)) == palette[chosen[0]]
    assert image.getpixel((212, 72)) == palette[chosen[min(1, per_token - 1)]]
