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
