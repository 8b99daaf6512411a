"""What the model reads: instructions, schema and examples first, which all documents of a job share, the document last.

So the worker keeps the part that is the same, and reads of each document only its text.
"""

from __future__ import annotations

from gateway.extraction.request import Extraction
from gateway.request import ChatPrompt, Message


def prompt_of(extraction: Extraction, text: str) -> ChatPrompt:
    """Return the conversation that asks for a document's record.

    Everything is said by the user: some models' templates know no system message.
    """
    head = extraction.instructions
    if extraction.shows_schema:
        head += f"\n\nJSON Schema:\n{extraction.json_schema.strip()}"
    turns: list[Message] = []
    for example in extraction.examples:
        turns += [Message("user", _asked(example.text)), Message("assistant", example.record.strip())]
    turns.append(Message("user", _asked(text)))
    turns[0] = Message("user", f"{head}\n\n{turns[0].content}")
    return ChatPrompt(tuple(turns), plain=_plain(turns))


def _asked(text: str) -> str:
    return f"Document:\n{text.strip()}"


def _plain(turns: list[Message]) -> str:
    """Return the same as raw text, which the record follows."""
    lines = [f"{turn.content}\n\nRecord:" if turn.role == "user" else turn.content for turn in turns]
    return "\n\n".join(lines) + "\n\n"
