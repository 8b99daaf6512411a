"""Entries: what was sealed comes back, everything else is refused, nothing is unpacked beyond its bounds."""

import hashlib
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.constraint.cache import entry
from services.constraint.cache.entry import BadEntryError, seal, unseal

KEYS = st.sampled_from([None, b"k" * 16, b"l" * 16])
PAYLOAD = b"payload \x00\xff" * 50


@given(st.binary(min_size=1, max_size=2000), KEYS, KEYS, st.sampled_from(["grammar:a", "grammar:b", "warm:a"]))
def test_only_the_same_name_and_key_open_an_entry(
    payload: bytes, key: bytes | None, other: bytes | None, name: str
) -> None:
    value = seal("grammar:a", payload, key=key)
    if name == "grammar:a" and key == other:
        assert unseal(name, value, key=other) == payload
    else:
        with pytest.raises(BadEntryError, match="seal"):
            unseal(name, value, key=other)


@pytest.mark.parametrize("key", [None, b"secret" * 4])
def test_any_change_is_found_out(key: bytes | None) -> None:
    value, rng = seal("grammar:a", PAYLOAD, key=key), random.Random(1)
    for position in range(len(value)):
        changed = bytearray(value)
        changed[position] ^= 1 << rng.randrange(8)
        for wrong in (bytes(changed), value[:position], value + bytes(1)):
            with pytest.raises(BadEntryError):
                unseal("grammar:a", wrong, key=key)


def _resealed(head: bytes, packed: bytes, name: str = "grammar:a") -> bytes:
    """Seal as anybody can where there is no key."""
    return head + hashlib.sha256(head + name.encode() + b"\0" + packed).digest() + packed


def _head(num_bytes: int, version: int = entry.FORMAT_VERSION) -> bytes:
    return struct.pack("<4sHI", b"ESPG", version, num_bytes)


PACKED = zlib.compress(PAYLOAD)


@pytest.mark.parametrize(
    ("head", "packed", "message"),
    [
        (_head(len(PAYLOAD), version=3), PACKED, "format"),
        (_head(len(PAYLOAD) - 1), PACKED, "not as long"),
        (_head(len(PAYLOAD) + 1), PACKED, "not as long"),
        (_head(0), PACKED, "0 bytes"),
        (_head(2**32 - 1), PACKED, "4294967295 bytes"),
        (_head(10), zlib.compress(bytes(100 << 20)), "not as long"),  # a bomb: 100 MB in 100 KB
        (_head(len(PAYLOAD)), PACKED + b"x", "more than"),
        (_head(len(PAYLOAD)), PACKED[:-1], "not as long"),
        (_head(len(PAYLOAD)), b"y" + PACKED[1:], "unpacked"),
    ],
)
def test_a_right_seal_around_wrong_contents_is_refused(head: bytes, packed: bytes, message: str) -> None:
    assert unseal("grammar:a", _resealed(_head(len(PAYLOAD)), PACKED), key=None) == PAYLOAD
    with pytest.raises(BadEntryError, match=message):
        unseal("grammar:a", _resealed(head, packed), key=None)


def test_with_a_key_a_seal_that_anybody_can_make_does_not_open() -> None:
    with pytest.raises(BadEntryError, match="seal"):
        unseal("grammar:a", _resealed(_head(len(PAYLOAD)), PACKED), key=b"k" * 16)
