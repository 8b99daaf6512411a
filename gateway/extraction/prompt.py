"""What the model reads: schema and examples first, which all documents of a job share, then document and task.

So the worker keeps the part that is the same, and reads little more of each document than its text.
"""

from __future__ import annotations

from gateway.extraction.request import Extraction
from gateway.request import ChatPrompt, Message


def prompt_of(extraction: Extraction, text: str) -> ChatPrompt:
    """Return the conversation that asks for a document's record.

    Everything is said by the user: some models' templates know no system message.
    """
    turns: list[Message] = []
    for example in extraction.examples:
        turns += [Message("user", _asked(extraction, example.text)), Message("assistant", example.record.strip())]
    turns.append(Message("user", _asked(extraction, text)))
    if extraction.shows_schema:
        schema = f"JSON Schema:\n{extraction.json_schema.strip()}"
        turns[0] = Message("user", f"{schema}\n\n{turns[0].content}")
    return ChatPrompt(tuple(turns), plain=_plain(turns))


def _asked(extraction: Extraction, text: str) -> str:
    # Small models do best what they were told last.
    return f"Document:\n{text.strip()}\n\n{extraction.instructions}"


def _plain(turns: list[Message]) -> str:
    """Return the same as raw text, which the record follows."""
    lines = [f"{turn.content}\n\nRecord:" if turn.role == "user" else turn.content for turn in turns]
    return "\n\n".join(lines) + "\n\n"
