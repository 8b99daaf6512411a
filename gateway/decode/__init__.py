"""The decode loop on plain types: numpy arrays, bytes and dataclasses. docs/decoding.md explains it."""
