from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.decode.detokenize import Detokenizer
from gateway.decode.output import Output
from gateway.decode.stop import StopMatcher

TEXTS = ("한국어 문장", "👩‍👩‍👧‍👦 family 👍🏽", "e\u0301a\u0308 naïve", "plain", "🇰🇷 대한민국 \U0010ffff", "")


def cut(data: bytes, at: list[int]) -> list[bytes]:
    points = sorted({0, len(data), *(point % (len(data) + 1) for point in at)})
    return [data[start:end] for start, end in itertools.pairwise(points)]


@given(st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)), st.lists(st.integers(0, 200), max_size=30))
def test_pieces_of_a_text_come_out_as_the_text(text: str, at: list[int]) -> None:
    detokenizer = Detokenizer(is_strict=True)
    pieces = [detokenizer.push(piece) for piece in cut(text.encode(), at)]
    assert "".join(pieces) + detokenizer.finish() == text


@given(st.binary(max_size=40), st.lists(st.integers(0, 50), max_size=20))
def test_free_text_replaces_what_never_becomes_a_character(data: bytes, at: list[int]) -> None:
    detokenizer = Detokenizer(is_strict=False)
    pieces = [detokenizer.push(piece) for piece in cut(data, at)]
    assert "".join(pieces) + detokenizer.finish() == data.decode(errors="replace")


@pytest.mark.parametrize("text", TEXTS)
def test_every_cut_into_two(text: str) -> None:
    data = text.encode()
    for point in range(len(data) + 1):
        detokenizer = Detokenizer(is_strict=True)
        assert detokenizer.push(data[:point]) + detokenizer.push(data[point:]) == text


def first_stop(text: str, stops: list[str]) -> str:
    """The text up to the stop text that is whole first, by reading character by character."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))]
    return text


@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 20), max_size=10),
)
def test_stop_texts_are_found_across_pieces(text: str, stops: list[str], at: list[int]) -> None:
    matcher = StopMatcher(stops)
    out = ""
    for piece in cut(text.encode(), at):
        out += matcher.push(piece.decode())
        # Nothing that is out may ever have to be taken back.
        assert first_stop(text, stops).startswith(out)
    out += matcher.finish()
    assert out == first_stop(text, stops)
    assert matcher.is_stopped == (first_stop(text, stops) != text)


def test_only_what_may_become_a_stop_text_is_held_back() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("one E") == "one "
    assert matcher.push("N") == ""
    assert matcher.push("T") == "ENT"


def test_tokens_are_counted_with_the_text_they_complete() -> None:
    output = Output(("STOP",), is_strict=False)
    first, second = "한".encode()[:1], "한".encode()[1:]

    output.push(b"a", is_forced=False)
    delta = output.take()
    assert delta is not None
    assert (delta.text, delta.num_tokens) == ("a", 1)

    output.push(first, is_forced=True)
    assert output.take() is None

    output.push(second + b"S", is_forced=False)
    delta = output.take()
    assert delta is not None
    # The S may be the beginning of STOP; the half character is told together with the token that completed it.
    assert (delta.text, delta.num_tokens, delta.num_forced_tokens) == ("한", 0, 0)

    output.push(b"TOP and more", is_forced=False)
    rest = output.finish()
    assert output.is_stopped
    assert rest is not None
    assert (rest.text, rest.num_tokens, rest.num_forced_tokens) == ("", 3, 1)
    assert output.text == "a한"


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=20), st.booleans())
def test_counts_add_up_to_all_tokens(tokens: list[bytes], is_forced: bool) -> None:
    output = Output(("ab", "\n"), is_strict=False)
    deltas = []
    for token in tokens:
        output.push(token, is_forced=is_forced)
        deltas.append(output.take())
    deltas.append(output.finish())
    told = [delta for delta in deltas if delta is not None]
    assert sum(delta.num_tokens for delta in told) == len(tokens)
    assert sum(delta.num_forced_tokens for delta in told) == len(tokens) * is_forced
    assert "".join(delta.text for delta in told) == output.text
