"""What a format's automaton has is what the validator's libraries take."""

import random

import pytest

from services.constraint.sources.json_schema import strings
from services.constraint.sources.json_schema.formats import FORMATS
from services.constraint.validation.formats import STRING_FORMATS
from tests.support.dfa_walks import random_text


@pytest.mark.parametrize("name", FORMATS)
def test_random_strings_of_a_format_are_valid(name: str) -> None:
    known = FORMATS[name]
    dfa = strings.dfa_of(known.pattern)
    rng = random.Random(name)
    for number in range(300):
        text = random_text(dfa, rng, 1 + number % 40)
        if known.check is None or known.check(text):
            assert STRING_FORMATS[name](text), text


# Beside what the JSON Schema Test Suite has.
@pytest.mark.parametrize(
    ("name", "text", "is_valid"),
    [
        ("date-time", "1990-12-31T15:59:60-08:00", True),
        ("date-time", "1990-12-30T23:59:60Z", False),
        ("date-time", "1990-12-31 23:59:59Z", False),
        ("date-time", "0000-01-01T00:00:00Z", False),
        ("hostname", ".".join(["a" * 63] * 3), True),
        ("hostname", "a." * 126 + "a", False),
        ("hostname", "a" * 63 + "." + "b" * 63 + "." + ("c" * 17 + ".") * 6 + "d" * 17, True),
        ("hostname", "ab--c", False),
        ("email", "a@b", True),
        ("email", '"a\\"b"@c', True),
        ("email", '"a"b"@c', False),
        ("email", "a@[IPv6:1:2:3:4:5:6:7::]", False),
        ("email", "a@[IPv6:1:2:3:4:5:6::]", True),
        ("ipv6", "1:2:3:4:5:6:7::", True),
        ("ipv6", "::2:3:4:5:6:7:8", True),
        ("ipv6", "1:2:3:4:5:6::7:8", False),
        ("ipv6", "::1:2:3:4:5:1.2.3.4", True),
        ("ipv6", "1::2:3:4:5:6:1.2.3.4", False),
        ("uri", "a:", True),
        ("uri", "a://", True),
        ("uri", "a:////b", True),
        ("uri", "http://a[::1]", False),
        ("uri-reference", "a//b", True),
        ("uri-reference", "a@b/c:d", True),
        ("iri", "a:?\ue000", True),
        ("iri", "a:\ue000", False),
        ("iri", "a:#\ue000", False),
        ("byte", "YQ==", True),
        ("byte", "YR==", False),
        ("byte", "YWI=", True),
        ("byte", "YWI", False),
        ("idn-email", "a@한국.kr", True),
        ("idn-email", "a@-한국.kr", False),
        ("regex", r"(a)\1", True),
        ("regex", r"(a)\2", False),
        ("regex", r"(?<n>a)(?<n>b)", False),
        ("regex", r"\k<n>", False),
        ("regex", r"[\w-]", True),
        ("regex", r"[\w-a]", False),
        ("regex", r"[a-\d]", False),
        ("regex", r"\-", False),
        ("regex", r"[\-]", True),
        ("regex", "]", False),
        ("regex", "a{,3}", False),
        ("regex", "a{2,1}", False),
        ("regex", "(?=a)*", False),
        ("regex", r"\p{Lu}\u{1f600}", True),
    ],
)
def test_more_strings(name: str, text: str, is_valid: bool) -> None:
    known = FORMATS[name]
    assert (strings.dfa_of(known.pattern).matches(text) and (known.check is None or known.check(text))) == is_valid
