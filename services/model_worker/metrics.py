"""What the worker counts; served on `--metrics-port` beside the metrics of `rpckit`."""

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

STEPS = Counter("espalier_worker_steps", "Steps by outcome: OK, CANCELLED, or the reason of the error.", ["outcome"])
for _outcome in ("OK", "CANCELLED"):
    STEPS.labels(_outcome)  # from the start, so that a rate sees the first of each
TOKENS = Counter("espalier_worker_tokens", "Tokens that went through the model.")
CACHED_TOKENS = Counter(
    "espalier_worker_cached_tokens", "Tokens of steps whose keys and values were in the cache already."
)
QUEUE_SECONDS = Histogram(
    "espalier_worker_queue_seconds", "Time of a step from arrival to its first forward pass.", buckets=_BUCKETS
)
FORWARD_SECONDS = Histogram("espalier_worker_forward_seconds", "Time of one forward pass.", buckets=_BUCKETS)
STEP_SECONDS = Histogram(
    "espalier_worker_step_seconds",
    "Time of a step from its first forward pass to its answer: `prefill` creates a sequence or appends many tokens.",
    ["kind"],
    buckets=_BUCKETS,
)
BATCH_TOKENS = Histogram(
    "espalier_worker_batch_tokens",
    "Tokens of one forward pass.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096),
)
BATCH_SEQUENCES = Histogram(
    "espalier_worker_batch_sequences", "Sequences of one forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
STEPS_RUNNING = Gauge("espalier_worker_steps_running", "Steps that have begun and have no answer yet.")
STEPS_WAITING = Gauge("espalier_worker_steps_waiting", "Steps that have not begun.")
OPEN_SEQUENCES = Gauge("espalier_worker_open_sequences", "Sequences in the cache.")
KV_BLOCKS_USED = Gauge("espalier_worker_kv_blocks_used", "Blocks of the cache that sequences hold.")
KV_BLOCKS_FREE = Gauge("espalier_worker_kv_blocks_free", "Blocks of the cache that nobody holds.")
KV_BLOCKS = Gauge("espalier_worker_kv_blocks", "Blocks of the cache.")
KV_USAGE_RATIO = Gauge("espalier_worker_kv_usage_ratio", "Share of the blocks that sequences hold, 0 to 1.")
LEASES_EXPIRED = Counter("espalier_worker_leases_expired", "Sequences freed because nobody used them.")
EXPERT_TOKENS = Counter(
    "espalier_worker_expert_tokens",
    'Tokens of an expert, up to the latest window; "all" where there are over 2,048 experts in all layers.',
    ["layer", "expert"],
)
ROUTING_BALANCE = Gauge(
    "espalier_worker_routing_balance",
    "E * sum(f * P) of a layer over the latest window: 1 is uniform, E / A a full collapse.",
    ["layer"],
)
ROUTING_ENTROPY = Gauge(
    "espalier_worker_routing_entropy", "Mean entropy of a layer's router over the latest window, in nats.", ["layer"]
)
COLLAPSED_LAYERS = Gauge(
    "espalier_worker_routing_collapsed_layers", "Layers whose routing had collapsed in the latest window."
)
