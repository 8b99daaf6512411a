"""Documents with exact known records: real ones that Debian and CPython installations carry, and a few shipped here."""

from gateway.samples.collection import KINDS, Sample, collect, schema_text, write

__all__ = ["KINDS", "Sample", "collect", "schema_text", "write"]
