"""The exact bytes of a tokenizer's pieces, and which tokenizers have them.

Three kinds are read: byte-level (GPT-2's printable stand-ins for bytes; without merges these are plain bytes),
SentencePiece with byte fallback (`▁` for a space, `<0xE2>` for a byte), and SentencePiece whose pieces are bytes only.

Bytes are exact when what a text ends up as is the pieces' bytes in a row. That is a matter of the decoder, so each of
its parts must be one that is known. Normalizers are a matter of what goes in. Those that write a text down in another
alphabet and lose nothing are taken: `Replace " " -> ▁` and `Prepend ▁` (SentencePiece's), `ByteLevel`. `NFC` is taken
though it changes texts: what comes out of a model is bytes as exact as before, and a prompt becomes one that Unicode
defines to be equal. All others (lower case, stripped accents, NFKC, a `Replace` of something else, …) are refused,
because the model would be asked about another text than the user's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

SPACE_MARK: Final = "\u2581"  # what SentencePiece writes for a space

_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# Where a part of type Sequence keeps its parts.
_CHILDREN: Final[tuple[str, ...]] = ("normalizers", "pretokenizers", "decoders")

PieceDecoder = Callable[[str], bytes]


class UnsupportedTokenizerError(ValueError):
    """The tokenizer does not say the exact bytes of its tokens; the message tells what it has and what is supported."""


def parts(part: Any) -> Iterator[dict[str, Any]]:
    """Iterate over a normalizer, pre-tokenizer or decoder and what it is a sequence of, in order."""
    if not isinstance(part, dict):
        return
    if part.get("type") == "Sequence":
        for key in _CHILDREN:
            for child in part.get(key) or ():
                yield from parts(child)
    else:
        yield part


def piece_decoder(layout: Mapping[str, Any]) -> PieceDecoder:
    """Return what turns a piece of this tokenizer into its bytes. `layout` is the parsed `tokenizer.json`.

    Raises:
        UnsupportedTokenizerError: pieces have no exact bytes, or texts are changed before they are cut.
    """
    decoders = list(parts(layout.get("decoder")))
    names = [decoder.get("type") for decoder in decoders]
    if "ByteLevel" in names and set(names) <= {"ByteLevel", "Fuse"}:
        lossless, to_bytes = _is_byte_level_normalizer, _byte_level
    elif "ByteFallback" in names and all(_is_sentencepiece_decoder(decoder) for decoder in decoders):
        _check_strip(names)
        writes_spaces = any(name in ("Replace", "Metaspace") for name in names)
        lossless, to_bytes = _is_sentencepiece_normalizer, _sentencepiece if writes_spaces else _with_byte_pieces
    else:
        raise UnsupportedTokenizerError(
            f"the decoder is {', '.join(map(_described, decoders)) or 'absent'}; supported are ByteLevel, and "
            "SentencePiece with ByteFallback"
        )
    lossy = [_described(part) for part in parts(layout.get("normalizer")) if not lossless(part)]
    if lossy:
        raise UnsupportedTokenizerError(
            f"the normalizer {', '.join(lossy)} changes text before it is cut, so tokens have no exact bytes"
        )
    model = layout.get("model") or {}
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedTokenizerError(
                f"pieces are marked by {name} = {model[name]!r}, which is no text, so tokens have no exact bytes"
            )
    return to_bytes


def unknown_piece(layout: Mapping[str, Any]) -> str | None:
    """Return the piece that stands for what the vocabulary cannot write, and thus for no text; None without one."""
    model = layout.get("model") or {}
    if isinstance(model.get("unk_token"), str):
        return str(model["unk_token"])
    if isinstance(model.get("unk_id"), int) and isinstance(model.get("vocab"), Sequence):
        return str(model["vocab"][model["unk_id"]][0])
    return None


def exact_layout(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer that cuts a text as this one does, but that very text.

    Nothing is put before it, as some do with a space at the start of a prompt; it is not composed (NFC); and cuts are
    not drawn at random (BPE's `dropout`).
    """
    exact = dict(layout)
    for name, change in (("normalizer", _without_composing), ("pre_tokenizer", _without_prefix)):
        if layout.get(name) is not None:
            exact[name] = _changed(layout[name], change)
    if isinstance(layout.get("model"), dict) and layout["model"].get("dropout"):
        exact["model"] = {**layout["model"], "dropout": None}
    return exact


def _changed(part: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return a part with every part of it changed; None leaves one out. Equal where nothing changes."""
    if part.get("type") != "Sequence":
        return change(part)
    lists = ((key, part[key]) for key in _CHILDREN if key in part)
    kept = {key: [new for child in children if (new := _changed(child, change))] for key, children in lists}
    return {**part, **kept}


def _without_composing(part: dict[str, Any]) -> dict[str, Any] | None:
    return None if part.get("type") in ("NFC", "Prepend") else part


def _without_prefix(part: dict[str, Any]) -> dict[str, Any]:
    if part.get("type") == "ByteLevel":
        return {**part, "add_prefix_space": False}
    if part.get("type") == "Metaspace":
        older = {"add_prefix_space": False} if "add_prefix_space" in part else {}
        return {**part, "prepend_scheme": "never", **older}
    return part


def _is_byte_level_normalizer(part: Mapping[str, Any]) -> bool:
    return part.get("type") in ("NFC", "ByteLevel")


def _is_sentencepiece_normalizer(part: Mapping[str, Any]) -> bool:
    match part:
        case {"type": "NFC"}:
            return True
        case {"type": "Replace", "pattern": {"String": " "}, "content": content}:
            return bool(content == SPACE_MARK)
        case {"type": "Prepend", "prepend": content}:
            return bool(content == SPACE_MARK)
    return False


def _is_sentencepiece_decoder(part: Mapping[str, Any]) -> bool:
    match part:
        case {"type": "ByteFallback" | "Fuse"}:
            return True
        case {"type": "Replace", "pattern": {"String": pattern}, "content": " "}:
            return bool(pattern == SPACE_MARK)
        case {"type": "Metaspace", "replacement": replacement}:
            return bool(replacement == SPACE_MARK)
        # The space that was put before a prompt goes; that is none of the bytes of a text that goes on from one.
        case {"type": "Strip", "content": " ", "start": 0 | 1, "stop": 0}:
            return True
    return False


def _check_strip(names: list[Any]) -> None:
    """Refuse a `Strip` that works on every piece, rather than on the text that `Fuse` made of them."""
    if "Strip" in names and "Fuse" not in names[: names.index("Strip")]:
        raise UnsupportedTokenizerError("the decoder strips spaces off every piece, so tokens have no exact bytes")


def _described(part: Mapping[str, Any]) -> str:
    """Name a part, with what it does where that decides."""
    match part:
        case {"type": "Replace", "pattern": {"String": pattern} | {"Regex": pattern}, "content": content}:
            return f"Replace {pattern!r} by {content!r}"
        case {"type": "Prepend", "prepend": content}:
            return f"Prepend {content!r}"
        case {"type": "Strip", "content": content, "start": start, "stop": stop}:
            return f"Strip {content!r} {start} {stop}"
    return str(part.get("type"))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes.

    Printable Latin-1 stands for itself, the others for U+0100 onwards, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()


def _byte_level(piece: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
    except KeyError as error:
        raise UnsupportedTokenizerError(
            f"the piece {piece!r} has {error.args[0]!r}, which is not in the byte-level alphabet"
        ) from None


def _with_byte_pieces(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.encode()


def _sentencepiece(piece: str) -> bytes:
    return _with_byte_pieces(piece.replace(SPACE_MARK, " "))
