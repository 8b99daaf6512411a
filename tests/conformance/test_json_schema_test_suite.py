"""The JSON Schema Test Suite (required tests of drafts 7 and 2020-12) against a ratchet.

Each case is right, refused (the schema is not enforced, which the caller is told), wrongly refused (the schema is,
but the instance is not accepted: the published departures) or wrongly accepted. Nothing may be wrongly accepted, and
nothing may get worse than `ratchet.json` says. `ESPALIER_UPDATE_RATCHET=1` writes the file anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.rpckit.status import UnsatisfiableGrammar, UnsupportedConstruct
from tests.support.derivation import matches

SUITE = Path(__file__).parent / "json_schema_test_suite"
RATCHET = Path(__file__).parent / "ratchet.json"
DRAFTS = {
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
ORDER = ["wrongly accepted", "refused", "wrongly refused", "right"]


def judge(draft: str, schema: object, instances: list[tuple[object, bool]]) -> list[str]:
    if isinstance(schema, dict):
        schema = {"$schema": DRAFTS[draft], **schema}
    elif draft == "draft7":
        schema = {"$schema": DRAFTS[draft], "allOf": [schema]}
    source = ConstraintSource("json_schema", json.dumps(schema))
    try:
        grammar = build(source, SourceOptions("bounded")).grammar
    except UnsupportedConstruct:
        return ["refused"] * len(instances)
    except UnsatisfiableGrammar:
        return ["wrongly refused" if is_valid else "right" for _, is_valid in instances]
    result = []
    for data, is_valid in instances:
        is_accepted = matches(grammar, json.dumps(data, ensure_ascii=False).encode())
        result.append("right" if is_accepted == is_valid else "wrongly accepted" if is_accepted else "wrongly refused")
    return result


@pytest.mark.parametrize("draft", DRAFTS)
def test_nothing_is_wrongly_accepted_and_nothing_gets_worse(draft: str) -> None:
    recorded = json.loads(RATCHET.read_text()) if RATCHET.exists() else {}
    found: dict[str, str] = {}
    for path in sorted((SUITE / draft).glob("*.json")):
        for group in json.loads(path.read_text()):
            results = judge(draft, group["schema"], [(test["data"], test["valid"]) for test in group["tests"]])
            for test, result in zip(group["tests"], results, strict=True):
                found[f"{path.stem} | {group['description']} | {test['description']}"] = result
    if os.environ.get("ESPALIER_UPDATE_RATCHET") == "1":
        RATCHET.write_text(json.dumps({**recorded, draft: found}, indent=0, ensure_ascii=False, sort_keys=True) + "\n")
        recorded[draft] = found
    assert found.keys() == recorded[draft].keys()
    assert [case for case, result in found.items() if result == "wrongly accepted"] == []
    worse = {
        case: (recorded[draft][case], result)
        for case, result in found.items()
        if ORDER.index(result) < ORDER.index(recorded[draft][case])
    }
    assert worse == {}
