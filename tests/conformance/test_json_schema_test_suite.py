"""The JSON Schema Test Suite (drafts 7 and 2020-12) against a ratchet, with the suite's remotes as documents.

`format` is an annotation, as the suite has it, and members come in any order. (`test_formats.py` has the formats.)

Each case is right, refused (the schema is not enforced, which the caller is told), wrongly refused (the schema is,
but the instance is not accepted) or wrongly accepted. Nothing may be wrongly accepted, nothing may get worse than
`ratchet.json` says, and each required case that is not right there is an exception, with its reason, here.
`ESPALIER_UPDATE_RATCHET=1` writes the file anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from services.constraint.sources import SourceOptions
from services.constraint.sources.source import Draft
from services.rpckit.status import UnsatisfiableGrammar, UnsupportedConstruct
from tests.support.acceptance import accepts, matcher_of

SUITE = Path(__file__).parent / "json_schema_test_suite"
RATCHET = Path(__file__).parent / "ratchet.json"
DRAFTS: dict[str, Draft] = {"draft7": 7, "draft2020-12": 2020}
ORDER = ["wrongly accepted", "refused", "wrongly refused", "right"]
REQUIRED_SHARE = 0.98

# Required cases that are not right, by the reason. A case is of both drafts where both have it.
EXCEPTIONS = {
    "a dialect of its own, whose metaschema is among the documents, is refused: only the five drafts are known": [
        "vocabulary | ignore unrecognized optional vocabulary | number value",
        "vocabulary | ignore unrecognized optional vocabulary | string value",
        "vocabulary | schema that uses custom metaschema with with no validation vocabulary"
        " | applicator vocabulary still works",
        "vocabulary | schema that uses custom metaschema with with no validation vocabulary"
        " | no validation: invalid number, but it still validates",
        "vocabulary | schema that uses custom metaschema with with no validation vocabulary"
        " | no validation: valid number",
    ],
}


def documents() -> tuple[tuple[str, str], ...]:
    """Return the suite's remote documents by the URIs that it names them with."""
    root = SUITE / "remotes"
    return tuple(
        (f"http://localhost:1234/{path.relative_to(root).as_posix()}", path.read_text())
        for path in sorted(root.rglob("*.json"))
    )


def judge(draft: str, schema: object, instances: list[tuple[object, bool]]) -> list[str]:
    options = SourceOptions(
        property_order="any", format="annotation", default_draft=DRAFTS[draft], documents=documents()
    )
    try:
        matcher = matcher_of(schema, options)
    except UnsupportedConstruct:
        return ["refused"] * len(instances)
    except UnsatisfiableGrammar:
        return ["wrongly refused" if is_valid else "right" for _, is_valid in instances]
    result = []
    for data, is_valid in instances:
        is_accepted = accepts(matcher, json.dumps(data, ensure_ascii=False).encode())
        result.append("right" if is_accepted == is_valid else "wrongly accepted" if is_accepted else "wrongly refused")
    return result


def judged(draft: str, folder: Path) -> dict[str, str]:
    """Return the result of each case of a folder's files."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        for group in json.loads(path.read_text()):
            results = judge(draft, group["schema"], [(test["data"], test["valid"]) for test in group["tests"]])
            for test, result in zip(group["tests"], results, strict=True):
                found[f"{path.stem} | {group['description']} | {test['description']}"] = result
    return found


@pytest.mark.parametrize("draft", DRAFTS)
def test_nothing_is_wrongly_accepted_and_nothing_gets_worse(draft: str) -> None:
    recorded = json.loads(RATCHET.read_text()) if RATCHET.exists() else {}
    found = judged(draft, SUITE / draft)
    if os.environ.get("ESPALIER_UPDATE_RATCHET") == "1":
        RATCHET.write_text(json.dumps({**recorded, draft: found}, indent=0, ensure_ascii=False, sort_keys=True) + "\n")
        recorded[draft] = found
    num_right = list(found.values()).count("right")
    print(f"{draft}: {num_right} of {len(found)} cases are decided rightly")
    assert found.keys() == recorded[draft].keys()
    assert [case for case, result in found.items() if result == "wrongly accepted"] == []
    worse = {
        case: (recorded[draft][case], result)
        for case, result in found.items()
        if ORDER.index(result) < ORDER.index(recorded[draft][case])
    }
    assert worse == {}
    assert num_right >= REQUIRED_SHARE * len(found)


def test_each_case_that_is_not_right_has_a_reason() -> None:
    recorded = json.loads(RATCHET.read_text())
    excepted = [case for cases in EXCEPTIONS.values() for case in cases]
    assert len(set(excepted)) == len(excepted)
    for draft in DRAFTS:
        not_right = {case for case, result in recorded[draft].items() if result != "right"}
        assert not_right == recorded[draft].keys() & excepted, "write down the exceptions as the ratchet has them"
    assert set(excepted) <= set().union(*recorded.values())


@pytest.mark.parametrize("draft", DRAFTS)
def test_optional_cases_are_right(draft: str) -> None:
    found = judged(draft, SUITE / draft / "optional")
    print(f"{draft}: {len(found)} optional cases")
    assert [(case, result) for case, result in found.items() if result != "right"] == []
