"""Conversations to tokens, by the model's own chat template.

The template writes special tokens (`<|im_start|>`) by their spelling. A message that spells one must not become one:
the special tokens of a prompt are exactly those that the template wrote. To know which those are, the template is
rendered a second time with every content replaced by a word that nobody can guess.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.request import ChatPrompt, Message
from services.rpckit.status import InvalidRequest
from services.vocabulary import Vocabulary

_FIELD: Final = "generation.chat"


class ChatTemplate:
    """A model's template and vocabulary. Thread-safe."""

    def __init__(self, source: str | None, vocabulary: Vocabulary, *, bos_token_id: int | None = None) -> None:
        """Read the template; one that does not parse, or none, is told to those who send a conversation."""
        self._vocabulary = vocabulary
        self._tokens = {
            "bos_token": "" if bos_token_id is None else vocabulary.spelling(bos_token_id).decode(),
            "eos_token": vocabulary.spelling(vocabulary.eos_token_ids[0]).decode(),
        }
        self._template: jinja2.Template | None = None
        self._problem = "the model has no chat template: send `prompt` or `token_ids`"
        if source is None:
            return
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            self._problem = (
                f"the model's chat template does not parse ({error}): send `prompt` or `token_ids`, or mend the model"
            )

    def encode(self, chat: ChatPrompt) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant begins to speak.

        The whole rendered text is cut at once, as Hugging Face does. Where a content spells a special token, it is cut
        apart from the template's text. Where even that cannot be done, because the template changes the content, the
        conversation is refused.

        Raises:
            InvalidRequest: no template, or it refuses the conversation, or a special token cannot be kept out.
        """
        rendered = self._render(chat.messages)
        words = [f"\ue000{secrets.token_hex(16)}\ue001" for _ in chat.messages]
        veiled = self._render(
            [
                Message(message.role, _veil(message.content, word))
                for message, word in zip(chat.messages, words, strict=True)
            ]
        )
        token_ids = self._vocabulary.encode_chat(rendered)
        if self._special(token_ids) == self._special(self._vocabulary.encode_chat(veiled)):
            return token_ids
        contents = {word: message.content.strip() for word, message in zip(words, chat.messages, strict=True)}
        pieces = _split(veiled, words)
        if "".join(contents.get(piece, piece) for piece in pieces) != rendered:
            raise InvalidRequest(
                "a message spells one of the model's special tokens, and the model's chat template changes what it is "
                "given, so that the two cannot be kept apart: write the message without the token",
                field=f"{_FIELD}.messages",
            )
        apart: list[int] = []
        for piece in pieces:
            apart += (
                self._vocabulary.encode(contents[piece]) if piece in contents else self._vocabulary.encode_chat(piece)
            )
        return apart

    def _special(self, token_ids: Sequence[int]) -> list[int]:
        return [token_id for token_id in token_ids if self._vocabulary.token_bytes[token_id] is None]

    def _render(self, messages: Sequence[Message]) -> str:
        if self._template is None:
            raise InvalidRequest(self._problem, field=_FIELD)
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=conversation, add_generation_prompt=True, **self._tokens)
        except _RefusedError as error:
            raise InvalidRequest(
                f"the model's chat template refuses the conversation: {error}", field=f"{_FIELD}.messages"
            ) from None
        except Exception as error:  # a template may raise anything that Python can
            raise InvalidRequest(
                f"the model's chat template fails on this conversation ({type(error).__name__}: {error}): "
                "send `prompt` or `token_ids`",
                field=_FIELD,
            ) from error


class _RefusedError(jinja2.TemplateError):
    """A template's own `raise_exception`."""


class _Generation(Extension):
    """Hugging Face's `{% generation %}`: marks what the assistant said; its body is rendered as it is."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - as in the base class

    def parse(self, parser: Parser) -> Node:
        """Read the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the environment that Hugging Face's templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model wants to read.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _veil(content: str, word: str) -> str:
    """Replace a content, but keep the white space around it, which templates often strip."""
    bare = content.strip()
    if not bare:
        return content
    start = content.index(bare)
    return content[:start] + word + content[start + len(bare) :]


def _split(text: str, words: Sequence[str]) -> list[str]:
    """Cut a text before and after each of the words."""
    pieces = [text]
    for word in words:
        pieces = [part for piece in pieces for part in _around(piece, word)]
    return pieces


def _around(piece: str, word: str) -> list[str]:
    parts = piece.split(word)
    around = [parts[0]]
    for part in parts[1:]:
        around += [word, part]
    return [part for part in around if part]
