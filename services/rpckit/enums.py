"""Enums of the contract as plain words: `WHITESPACE_COMPACT` is "compact", and `WHITESPACE_UNSPECIFIED` is no word."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from services.rpckit.status import InvalidRequest

_Message = TypeVar("_Message", bound=Message)


def number_of(enum: EnumDescriptor, word: str) -> Any:
    """Return the number of a word."""
    return enum.values_by_name[_prefix(enum) + word.upper()].number


def word_of(enum: EnumDescriptor, number: int) -> Any:
    """Return the word of a number.

    Raises:
        ValueError: it has none. proto3 enums are open: a newer peer may send values that are not known here.
    """
    value = enum.values_by_number.get(number)
    if value is None or number == 0:
        raise ValueError(f"{enum.name} has no word for {number}")
    return value.name.removeprefix(_prefix(enum)).lower()


def with_words(cls: type[_Message], **fields: Any) -> _Message:
    """Make a message whose enum fields are given as words, or as numbers."""
    for field in cls.DESCRIPTOR.fields:
        value = fields.get(field.name)
        if field.enum_type is not None and isinstance(value, str):
            fields[field.name] = number_of(field.enum_type, value)  # type: ignore[arg-type]  # upb's is one as well
    return cls(**fields)


def words_of(message: Message, path: str) -> dict[str, Any]:
    """Return the words of a message's enum fields by their names; those that are unspecified are left out.

    Raises:
        InvalidRequest: a number that is not known; names the field, behind the path of the message.
    """
    words = {}
    for field, number in message.ListFields():
        if field.enum_type is not None:
            try:
                words[field.name] = word_of(field.enum_type, number)
            except ValueError:
                raise InvalidRequest(
                    f"`{field.name}` {number} is not known here", field=f"{path}.{field.name}"
                ) from None
    return words


def _prefix(enum: EnumDescriptor) -> str:
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
