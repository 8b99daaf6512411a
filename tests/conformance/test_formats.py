"""The JSON Schema Test Suite's tests of `format`, as assertions (drafts 7 and 2020-12): the mask and the validator.

The validator decides all of them rightly. The mask, with the check of the finished string where there is one, accepts
nothing that is wrong, and refuses only what DEPARTURES lists with the reason. `pytest -rA` prints the figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.constraint.sources.json_schema import strings
from services.constraint.sources.json_schema.formats import FORMATS
from services.constraint.sources.json_schema.nodes import String
from services.constraint.validation.formats import STRING_FORMATS, format_checker

SUITE = Path(__file__).parent / "json_schema_test_suite"
DRAFTS = ("draft7", "draft2020-12")
UNKNOWN = "unknown"

A_LABEL = "whether an A-label decodes to a U-label is not regular"
LEAP_SECOND = "leap seconds are for UTC and whole hours west of it: every other offset costs states"
DEPARTURES = {
    ("hostname", "xn--9n2bp8q.xn--9t4b11yi5a"): A_LABEL,
    ("hostname", "xn--zca29lwxobi7a"): A_LABEL,
    ("hostname", "xn--qmbc"): A_LABEL,
    ("hostname", "xn--ll-0ea"): A_LABEL,
    ("hostname", "xn--wva3je"): A_LABEL,
    ("hostname", "xn--4dbc5h"): A_LABEL,
    ("hostname", "xn--4dbc8h"): A_LABEL,
    ("hostname", "xn--k8j5u"): A_LABEL,
    ("hostname", "xn--bck0j"): A_LABEL,
    ("hostname", "xn--vek778f"): A_LABEL,
    ("hostname", "xn--ngba1o"): A_LABEL,
    ("hostname", "xn--0-gyc"): A_LABEL,
    ("hostname", "xn--11b2ezcw70k"): A_LABEL,
    ("hostname", "xn--11b2ezcs70k"): A_LABEL,
    ("hostname", "xn--ngba5hb2804a"): A_LABEL,
    ("time", "01:29:60+01:30"): LEAP_SECOND,
    ("time", "23:29:60+23:30"): LEAP_SECOND,
    ("time", "00:29:60-23:30"): LEAP_SECOND,
}


def cases(draft: str) -> Iterator[tuple[str, object, bool]]:
    """Yield (format, instance, is it valid) of all tests."""
    for path in sorted((SUITE / draft / "optional" / "format").glob("*.json")):
        for group in json.loads(path.read_text()):
            for test in group["tests"]:
                yield group["schema"]["format"], test["data"], test["valid"]


@pytest.mark.parametrize("draft", DRAFTS)
def test_masks_accept_nothing_wrong_and_refuse_what_is_listed(draft: str) -> None:
    wrongly_accepted, wrongly_refused = [], set()
    num_cases = 0
    for name, value, is_valid in cases(draft):
        if name == UNKNOWN or not isinstance(value, str):
            continue
        num_cases += 1
        is_accepted = strings.matches(String(formats=(name,)), value)
        if is_accepted and not is_valid:
            wrongly_accepted.append((name, value))
        elif is_valid and not is_accepted:
            wrongly_refused.add((name, value))
    print(f"{draft}: {num_cases - len(wrongly_refused)} of {num_cases} strings are decided rightly")
    assert wrongly_accepted == []
    assert wrongly_refused == DEPARTURES.keys()


@pytest.mark.parametrize("draft", DRAFTS)
def test_the_validator_decides_all_rightly(draft: str) -> None:
    checker = format_checker()
    wrong = [(name, value) for name, value, is_valid in cases(draft) if checker.conforms(value, name) != is_valid]
    assert wrong == []


def test_the_validator_knows_every_format() -> None:
    assert STRING_FORMATS.keys() == FORMATS.keys()
