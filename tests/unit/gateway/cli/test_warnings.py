from __future__ import annotations

import json

from espalier.v1 import gateway_pb2, types_pb2

from gateway.cli.generate import warnings
from services.constraint.sources import ConstraintSource, SourceOptions, build


def test_a_misspelled_keyword_is_warned_of_with_the_one_that_was_meant() -> None:
    schema = {"title": "T", "type": "string", "maxLenght": 3, "x-owner": "me"}
    built = build(ConstraintSource("json_schema", json.dumps(schema)), SourceOptions())
    keywords = [
        types_pb2.KeywordReport(
            pointer=keyword.pointer,
            keyword=keyword.keyword,
            enforcement=types_pb2.Enforcement.Value(f"ENFORCEMENT_{keyword.enforcement.upper()}"),
            note=keyword.note,
        )
        for keyword in built.keywords
    ]
    assert warnings(gateway_pb2.GenerationResult(keywords=keywords)) == [
        "/maxLenght is not enforced: unknown keyword; did you mean maxLength?",
        "/x-owner is not enforced: unknown keyword",
    ]
