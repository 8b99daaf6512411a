"""What the constraint service counts; served on `--metrics-port` beside the metrics of `rpckit`."""

from prometheus_client import Counter, Gauge, Histogram

COMPILE_SECONDS = Histogram(
    "espalier_constraint_compile_seconds",
    "Time to compile one constraint, not counting those found in a cache.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 60),
)
LOOKUPS = Counter("espalier_constraint_lookups", "Compile calls by where the grammar was found.", ["level"])
MASK_SECONDS = Histogram(
    "espalier_constraint_mask_seconds",
    "Time of one move: taking tokens and finding the mask behind them.",
    buckets=(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
)
ADVANCES = Counter("espalier_constraint_advances", "Moves by outcome: OK, or the reason of the error.", ["outcome"])
VALIDATIONS = Counter("espalier_constraint_validations", "Validated texts by outcome.", ["outcome"])
GRAMMARS_HELD = Gauge("espalier_constraint_grammars_held", "Compiled grammars in memory.")
GRAMMAR_BYTES = Gauge("espalier_constraint_grammar_bytes", "Memory of compiled grammars and their masks.")
STORE_FAILURES = Counter("espalier_constraint_store_failures", "Redis operations that failed; each was a miss.", ["op"])
CACHE_AVAILABLE = Gauge("espalier_constraint_cache_available", "1 where Redis answers this use, else 0.", ["use"])
CACHE_BYTES = Counter("espalier_constraint_cache_bytes", "Bytes of entries that went to and fro.", ["direction"])
CACHE_MISSES = Counter("espalier_constraint_cache_misses", "Look-ups in Redis that found no usable entry.")
CACHE_SKIPPED = Counter("espalier_constraint_cache_skipped", "Entries too large for Redis.", ["kind"])
COMPILE_SAVED_SECONDS = Counter(
    "espalier_constraint_compile_saved_seconds", "Time that compiles took whose results were found in Redis."
)
REFUSALS_FOUND = Counter("espalier_constraint_refusals_found", "Refusals that were remembered.", ["level"])
LOCK_WAITS = Counter(
    "espalier_constraint_lock_waits", "Waits for another replica's compile by how they ended.", ["outcome"]
)
LOCK_WAIT_SECONDS = Histogram(
    "espalier_constraint_lock_wait_seconds",
    "Time of such a wait.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
WARM_MASKS = Counter("espalier_constraint_warm_masks", "Masks taken from and given to other replicas.", ["direction"])

# From the start, so that a rate sees the first of each.
for _metric, _values in (
    (LOOKUPS, ("memory", "redis", "compiled")),
    (ADVANCES, ("OK", "LEASE_EXPIRED")),
    (VALIDATIONS, ("VALID", "INVALID")),
    (STORE_FAILURES, ("get", "put", "probe")),
):
    for _value in _values:
        _metric.labels(_value)
