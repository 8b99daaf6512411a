"""What the gateway counts; served on `--metrics-port` beside the metrics of `rpckit`."""

from prometheus_client import Counter, Gauge, Histogram

_TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

RUNNING = Gauge("espalier_gateway_generations_running", "Generations under way.")
QUEUED = Gauge("espalier_gateway_generations_queued", "Generations that wait for their turn.")
FINISHED = Counter(
    "espalier_gateway_generations",
    "Generations by how they ended: a finish reason, the reason of the error, or CANCELLED.",
    ["outcome"],
)
QUEUE_SECONDS = Histogram(
    "espalier_gateway_queue_seconds",
    "Time that a request waited for its turn.",
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
REQUEST_SECONDS = Histogram(
    "espalier_gateway_request_seconds",
    "Time of a request that got all its texts, from arrival to the last of them, validation included.",
    ["kind"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600),
)
REQUEST_PROMPT_TOKENS = Histogram(
    "espalier_gateway_request_prompt_tokens", "Tokens of the prompt of such a request.", buckets=_TOKEN_BUCKETS
)
REQUEST_COMPLETION_TOKENS = Histogram(
    "espalier_gateway_request_completion_tokens", "Tokens of all texts of such a request.", buckets=_TOKEN_BUCKETS
)
for _outcome in ("stop", "length", "budget_closed", "CANCELLED"):
    FINISHED.labels(_outcome)  # from the start, so that a rate sees the first of each
TTFT_SECONDS = Histogram(
    "espalier_gateway_ttft_seconds",
    "Time from arrival to the first token.",
    ["kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
INTER_TOKEN_SECONDS = Histogram(
    "espalier_gateway_inter_token_seconds",
    "Time from one token to the next; forced ones come at once.",
    ["kind"],
    buckets=(1e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
TPOT_SECONDS = Histogram(
    "espalier_gateway_tpot_seconds",
    "Mean time per token of one text, the first not counted.",
    ["kind"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5),
)
PROMPT_TOKENS = Counter("espalier_gateway_prompt_tokens", "Tokens of prompts.")
COMPLETION_TOKENS = Counter("espalier_gateway_completion_tokens", "Tokens written, forced ones included.")
FORCED_TOKENS = Counter("espalier_gateway_forced_tokens", "Tokens that a constraint forced.")
STEPS = Counter("espalier_gateway_steps", "Steps asked of the model worker, prompts included.")
MASK_WAIT_SECONDS = Histogram(
    "espalier_gateway_mask_wait_seconds",
    "Time per generation that the decode loop waited for masks while no forward pass was under way for it.",
    buckets=(1e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
REMOVED_MASS = Histogram(
    "espalier_gateway_removed_mass",
    "Probability that the mask took from the model, for each token drawn under a constraint; not of beams.",
    buckets=(1e-4, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999, 1),
)
BUDGET_ROLLBACKS = Counter(
    "espalier_gateway_budget_rollbacks", "Tokens drawn in vain: behind them no complete text fitted into max_tokens."
)
DEAD_ENDS = Counter(
    "espalier_gateway_dead_ends", "Tokens drawn in vain: behind them, a constraint's checks left no way on."
)
ROLLED_BACK_TOKENS = Counter(
    "espalier_gateway_rolled_back_tokens", "Tokens written and taken back because of dead ends, forced ones included."
)
VALIDATION_FAILURES = Counter(
    "espalier_gateway_validation_failures", "Finished texts that the validator refused: bugs, each of them."
)
EXTRACTIONS = Counter("espalier_gateway_extractions", "Documents by what came of them.", ["status"])
for _status in ("valid", "budget_closed", "failed"):
    EXTRACTIONS.labels(_status)
