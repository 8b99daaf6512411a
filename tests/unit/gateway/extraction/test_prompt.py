"""What the model is asked for a record."""

from __future__ import annotations

import pytest

from gateway.decode.sampler import Sampling
from gateway.extraction.prompt import prompt_of
from gateway.extraction.request import MAX_EXAMPLES, Example, Extraction
from services.rpckit.status import InvalidRequest

SCHEMA = '{"type": "object"}'


def test_documents_of_a_job_share_all_but_their_own_text() -> None:
    extraction = Extraction(SCHEMA, instructions="Do it.", examples=(Example("one", '{"a": 1}'),))
    first, second = (prompt_of(extraction, text) for text in ("the first", "the second"))
    assert [message.role for message in first.messages] == ["user", "assistant", "user"]
    assert first.messages[:-1] == second.messages[:-1]
    assert "Do it." in first.messages[0].content
    assert SCHEMA in first.messages[0].content
    assert first.messages[1].content == '{"a": 1}'
    assert "the first" in first.messages[-1].content
    assert first.plain is not None
    assert first.plain.replace("the first", "the second") == second.plain
    head, _, rest = first.plain.partition("the first")
    assert '{"a": 1}' in head
    assert rest == "\n\nDo it.\n\nRecord:\n\n"


def test_the_schema_can_be_left_out() -> None:
    (message,) = prompt_of(Extraction(SCHEMA, shows_schema=False), "text").messages
    assert SCHEMA not in message.content


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"examples": (Example("a", "{}"),) * (MAX_EXAMPLES + 1)}, "extraction.examples"),
        ({"examples": (Example("a", ""),)}, "extraction.examples[0].record"),
        ({"timeout_s": 0.0}, "extraction.timeout_ms"),
        ({"json_schema": ""}, "generation.constraint.json_schema"),
        ({"sampling": Sampling(temperature=-1)}, "generation.sampling.temperature"),
        ({"max_tokens": 0}, "generation.max_tokens"),
    ],
)
def test_what_is_out_of_range_is_named(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Extraction(**({"json_schema": SCHEMA} | fields))  # type: ignore[arg-type]
    assert caught.value.field == field
