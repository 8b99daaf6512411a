"""An entry as it lies in Redis: a header, and a payload that is compressed and sealed.

The seal covers header, payload and the entry's own name, so that an entry which was cut, changed, or moved to another
name is found out. Without a key it is a SHA-256, which anybody can make who may write to Redis; with one it is an
HMAC-SHA-256 (RFC 2104). Nothing is unpacked before the seal was checked, and never more than `MAX_PAYLOAD_BYTES`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from typing import Final

FORMAT_VERSION: Final = 5
"""Of all entries; another version has other names, so entries of older ones are never read and expire."""

MAX_PAYLOAD_BYTES: Final = 256 << 20

_MAGIC: Final = b"ESPG"
_HEAD: Final = struct.Struct("<4sHI")  # magic, format version, bytes of the payload when unpacked
_SEAL_BYTES: Final = 32
# The fastest; grammars shrink to a fifth by it.
_COMPRESSION_LEVEL: Final = 1


class BadEntryError(ValueError):
    """Not an entry of this name that `seal` made with this key."""


def seal(name: str, payload: bytes, *, key: bytes | None) -> bytes:
    """Pack a payload for the entry `name`."""
    head = _HEAD.pack(_MAGIC, FORMAT_VERSION, len(payload))
    packed = zlib.compress(payload, _COMPRESSION_LEVEL)
    return head + _seal_of(name, head, packed, key) + packed


def unseal(name: str, value: bytes, *, key: bytes | None) -> bytes:
    """Return the payload of the entry `name`.

    Raises:
        BadEntryError: it was not sealed like that.
    """
    head, given, packed = value[: _HEAD.size], value[_HEAD.size :][:_SEAL_BYTES], value[_HEAD.size + _SEAL_BYTES :]
    if len(head) < _HEAD.size:
        raise BadEntryError("too short")
    magic, version, num_bytes = _HEAD.unpack(head)
    if (magic, version) != (_MAGIC, FORMAT_VERSION):
        raise BadEntryError("another format")
    if not hmac.compare_digest(_seal_of(name, head, packed, key), given):
        raise BadEntryError("the seal does not match: changed, of another name, or of another key")
    if not 0 < num_bytes <= MAX_PAYLOAD_BYTES:
        raise BadEntryError(f"its payload is said to have {num_bytes} bytes")
    unpacking = zlib.decompressobj()
    try:
        payload = unpacking.decompress(packed, num_bytes)
    except zlib.error as error:
        raise BadEntryError(f"its payload cannot be unpacked: {error}") from None
    if len(payload) != num_bytes or unpacking.decompress(unpacking.unconsumed_tail, 1) or not unpacking.eof:
        raise BadEntryError("its payload is not as long as it is said to be")
    if unpacking.unused_data:
        raise BadEntryError("there is more than the payload")
    return payload


def _seal_of(name: str, head: bytes, packed: bytes, key: bytes | None) -> bytes:
    sealed = hashlib.sha256() if key is None else hmac.new(key, digestmod="sha256")
    for part in (head, name.encode(), b"\0", packed):
        sealed.update(part)
    return sealed.digest()
