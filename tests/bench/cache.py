"""The shared cache, with real replicas and a real Redis-compatible server: `make bench-cache`, with flags in `ARGS`.

1. Two replicas: the second serves known schemas without a compile; 100 identical first requests at once to both are one
   compile. Counted by the replicas' own metrics.
2. `first mask`: a Compile of a schema that another replica has compiled, as the caller sees it: RPC, round trip to
   Redis and the first mask included. `warm`: microseconds a mask (`mask_us` of the replies) over a stream of documents
   that is repeated: of the first replica when it knows them, of a second one that found the grammars in Redis, from its
   first document on, and of one that finds grammars but no warm masks there.
3. Faults under load: the server killed and started again, stopped for `--stop-s` seconds, full; a reply is wrong when
   its first mask is not that of a replica without a cache. Then `--mutations` mutated entries, with and without a key,
   those with a right checksum where there is a key.

Schemas are MaskBench's (see `tests/bench/masks.py`), the vocabulary is the demo model's or that of `--tokenizer`.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import random
import struct
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from espalier.v1 import constraint_pb2 as pb
from espalier.v1 import constraint_pb2_grpc, types_pb2

from services.constraint.cache import EntryName, FleetCache, RedisOptions, RedisStore
from services.constraint.cache.entry import FORMAT_VERSION
from services.constraint.checking import Case, parse_case
from services.constraint.compiling import compile_source
from services.constraint.core.engine import (
    CompiledGrammar,
    HotStates,
    Matcher,
    TokenTrie,
    adopt,
    hot_states,
    warm_up,
)
from services.constraint.sources import SourceOptions, common_grammar
from services.constraint.stored_grammar import StoredGrammar
from services.rpckit.status import ServiceError
from services.vocabulary import Vocabulary, allowed_token_ids, bitmask_words
from services.vocabulary.files import read_vocabulary
from tests.bench.masks import DATA, demo_tokenizer, quantiles
from tests.support.redis_server import RedisServer
from tests.support.stack import Process, TestStack
from tests.support.vocabulary_worker import serving

CALL_TIMEOUT_S = 60.0
# Of one schema in the stream of documents.
MAX_TEXTS, MAX_TOKENS = 3, 300


class Replica:
    """A constraint service in a process of its own."""

    def __init__(self, process: Process, vocabulary: Vocabulary) -> None:
        self._process = process
        self._vocabulary = vocabulary
        self._channel = grpc.insecure_channel(process.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub: Any = constraint_pb2_grpc.ConstraintServiceStub(self._channel)

    def compile(self, schema: str) -> pb.CompileResponse:
        request = pb.CompileRequest(
            constraint=types_pb2.Constraint(json_schema=schema), vocabulary_digest=self._vocabulary.digest
        )
        return self._stub.Compile(request, timeout=CALL_TIMEOUT_S)

    def write(self, compiled: pb.CompileResponse, token_ids: Sequence[int]) -> list[int]:
        """Take a text's tokens one by one as far as they are allowed; return the microseconds of each mask."""
        guidance, times = compiled.start, []
        for token_id in token_ids:
            item = pb.AdvanceItem(grammar_id=compiled.grammar_id, state=guidance.state, token_ids=[token_id])
            (result,) = self._stub.Advance(pb.AdvanceRequest(items=[item]), timeout=CALL_TIMEOUT_S).results
            if not result.HasField("guidance"):
                break
            guidance = result.guidance
            times.append(guidance.mask_us)
        return times

    def metrics(self) -> Counter[str]:
        """Read all counters, by name with labels."""
        lines = [json.loads(line) for line in self._process.log.read_text().splitlines() if line.startswith("{")]
        url = next(line["url"] for line in lines if line.get("event") == "metrics")
        with urllib.request.urlopen(url, timeout=5) as response:
            rows = [line.rsplit(" ", 1) for line in response.read().decode().splitlines() if not line.startswith("#")]
        return Counter({name: float(value) for name, value in rows})  # type: ignore[misc]

    def lookups(self, level: str) -> int:
        return int(self.metrics()[f'espalier_constraint_lookups_total{{level="{level}"}}'])


@dataclass
class Fleet:
    """Replicas by name, beside a server and a vocabulary."""

    stack: TestStack
    redis: RedisServer
    vocabulary: Vocabulary
    worker_address: str

    def start(self, *names: str, redis: bool = True, flags: Sequence[str] = ()) -> list[Replica]:
        shared = ["--redis-url", self.redis.url] if redis else []
        processes = [
            self.stack.start(
                name,
                "services.constraint",
                *("--worker-address", self.worker_address, "--drain-s", "1", "--warm-interval-s", "0.3"),
                *shared,
                *flags,
            )
            for name in names
        ]
        for process in processes:
            process.wait_until_serving()
        return [Replica(process, self.vocabulary) for process in processes]


@contextmanager
def fleet(vocabulary: Vocabulary) -> Iterator[Fleet]:
    """Have a server and a vocabulary ready for replicas."""
    with tempfile.TemporaryDirectory(prefix="esp") as name, serving(vocabulary, Path(name)) as address:
        made = Fleet(TestStack(Path(name)), RedisServer(Path(name)), vocabulary, address)
        try:
            yield made
        finally:
            made.stack.stop()
            made.redis.go_on()
            made.redis.kill()


def one_compile(replicas: list[Replica], schemas: list[str], *, num_requests: int = 100) -> list[int]:
    """Send each schema many times at once to all replicas; return how many compiles that were, for each."""
    compiles = []
    with ThreadPoolExecutor(num_requests) as threads:
        for schema in schemas:
            before = sum(replica.lookups("compiled") for replica in replicas)
            calls = [threads.submit(replicas[i % len(replicas)].compile, schema) for i in range(num_requests)]
            answers = {call.result().start.bitmask for call in calls}
            assert len(answers) == 1
            compiles.append(sum(replica.lookups("compiled") for replica in replicas) - before)
    return compiles


def first_masks(first: Replica, second: Replica, schemas: list[str]) -> dict[str, Any]:
    """Compile with one replica, then ask the other, once each; return times of both in milliseconds."""
    compiled_ms, found_ms, inside_ms, levels = [], [], [], Counter[str]()
    for schema in schemas:
        try:
            started = time.perf_counter()
            answer = first.compile(schema)
            middle = time.perf_counter()
        except grpc.RpcError:
            continue
        if answer.cache_level != pb.CACHE_LEVEL_COMPILED:
            continue
        compiled_ms.append((middle - started) * 1e3)
        time.sleep(0.02)  # the entry is written behind the answer
        started = time.perf_counter()
        other = second.compile(schema)
        found_ms.append((time.perf_counter() - started) * 1e3)
        inside_ms.append(other.compile_us / 1e3)
        levels[pb.CacheLevel.Name(other.cache_level)] += 1
        assert other.start.bitmask == answer.start.bitmask
    times = {"compiled_ms": compiled_ms, "found_ms": found_ms, "found_inside_the_service_ms": inside_ms}
    return {"levels": dict(levels)} | {name: quantiles(values) for name, values in times.items()}


def stream(replica: Replica, documents: list[tuple[str, list[list[int]]]], num_passes: int) -> list[list[int]]:
    """Write all documents, again and again; return the times of the masks of each pass."""
    passes: list[list[int]] = []
    for _ in range(num_passes):
        times: list[int] = []
        for schema, texts in documents:
            compiled = replica.compile(schema)
            for token_ids in texts:
                times += replica.write(compiled, token_ids)
        passes.append(times)
    return passes


def warm(made: Fleet, first: Replica, cases: list[Case], num_passes: int) -> dict[str, Any]:
    """Compare the second replica's masks with the first's."""
    documents = []
    for case in cases:
        texts = [made.vocabulary.encode(test.text)[:MAX_TOKENS] for test in case.tests if test.is_valid][:MAX_TEXTS]
        try:
            first.compile(case.source.text or "")
        except grpc.RpcError:
            continue
        documents.append((case.source.text or "", texts))
    cold, *rest = stream(first, documents, 1 + num_passes)
    time.sleep(3)  # the first replica tells
    (second,) = made.start("second")
    (plain,) = made.start("plain", flags=["--warm-mask-bytes", "0"])
    for replica in (second, plain):
        for schema, _ in documents:
            replica.compile(schema)
    time.sleep(1)  # what is known is taken in behind the answer
    means = {"first, cold": cold, "first, warm": rest[-1]}
    for name, replica in (("second", second), ("second, no warm masks", plain)):
        passes = stream(replica, documents, num_passes)
        means |= {f"{name}, first pass": passes[0], f"{name}, whole stream": [us for one in passes for us in one]}
    found = {name: {"masks": len(times), "mean_us": float(np.mean(times))} for name, times in means.items()}
    ratio = found["second, whole stream"]["mean_us"] / found["first, warm"]["mean_us"]
    taken = second.metrics()['espalier_constraint_warm_masks_total{direction="taken"}']
    return {"mask_us": found, "second_over_first_warm": ratio, "masks_taken": taken}


class Load:
    """Requests without a pause, each for a grammar that the replicas have not in memory; every answer is compared."""

    def __init__(self, replicas: list[Replica], schemas: list[str], expected: dict[str, bytes]) -> None:
        self._replicas, self._schemas, self._expected = replicas, schemas, expected
        self._stop = threading.Event()
        self.times: list[float] = []
        self.failed: list[str] = []
        self.wrong = 0
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        rng, number = random.Random(seed), 0
        while not self._stop.is_set():
            schema = rng.choice(self._schemas)
            number += 1
            # Two threads ask for the same, one replica each: a compile and an entry that is found.
            varied = json.dumps({**json.loads(schema), "$comment": f"{seed // 2} {number % 300}"})
            started = time.perf_counter()
            try:
                answer = self._replicas[seed % len(self._replicas)].compile(varied)
            except grpc.RpcError as error:
                self.failed.append(str(error))
                continue
            self.times.append(time.perf_counter() - started)
            self.wrong += answer.start.bitmask != self._expected[schema]


def faults(
    made: Fleet, replicas: list[Replica], schemas: list[str], *, stop_s: float, second_s: float = 1.0
) -> dict[str, Any]:
    """Break the server in several ways under load; `second_s` is what lies between, a second or less."""
    (alone,) = made.start("alone", redis=False)
    schemas = [schema for schema in schemas if isinstance(json.loads(schema), dict)]
    expected = {}
    for schema in schemas:
        try:
            expected[schema] = alone.compile(schema).start.bitmask
        except grpc.RpcError:
            continue

    def kill_and_restart() -> None:
        time.sleep(second_s)
        made.redis.kill()
        time.sleep(2 * second_s)
        made.redis.start()
        time.sleep(3 * second_s)

    def stop() -> None:
        time.sleep(second_s)
        made.redis.stop_answering()
        time.sleep(stop_s)
        made.redis.go_on()
        time.sleep(3 * second_s)

    def fill() -> None:
        made.redis.client.config_set("maxmemory", "3mb")
        time.sleep(4 * second_s)
        made.redis.client.config_set("maxmemory", 0)
        time.sleep(2 * second_s)

    report: dict[str, Any] = {}
    steps: dict[str, Callable[[], None]] = {
        "no fault": lambda: time.sleep(3 * second_s),
        "killed and restarted": kill_and_restart,
        f"SIGSTOP for {stop_s:.0f} s": stop,
        "maxmemory reached": fill,
    }
    for name, step in steps.items():
        failures = _store_failures(replicas)
        with Load(replicas, list(expected), expected) as load:
            step()
        found = [replica.metrics()['espalier_constraint_cache_available{use="read"}'] for replica in replicas]
        report[name] = {
            "requests": len(load.times) + len(load.failed),
            "failed": len(load.failed),
            "wrong": load.wrong,
            "ms": quantiles(seconds * 1e3 for seconds in load.times),
            "calls to Redis that failed": _store_failures(replicas) - failures,
            "available_afterwards": found,
        }
    return report


def _store_failures(replicas: list[Replica]) -> int:
    counters = (replica.metrics().items() for replica in replicas)
    return int(sum(value for row in counters for name, value in row if "store_failures_total" in name))


def mutations(vocabulary: Vocabulary, cases: list[Case], redis: RedisServer, number: int) -> dict[str, Any]:
    """Put mutated entries in Redis and ask for them, as a replica does; compare each mask."""
    trie = TokenTrie(vocabulary)
    warm_up(trie, common_grammar())
    subjects = []
    for case in cases:
        try:
            stored = compile_source(case.source, SourceOptions())
        except ServiceError:
            continue
        matcher = Matcher(CompiledGrammar.from_bytes(stored.compiled), trie)
        for test in case.tests:
            state = matcher.start
            for token_id in vocabulary.encode(test.text):
                guidance = matcher.guidance(state)
                if token_id not in allowed_token_ids(guidance.bitmask, vocabulary.vocab_size):
                    break
                state = matcher.accept(state, (token_id,))
        subjects.append((stored, hot_states(matcher), matcher.guidance(matcher.start).bitmask.tobytes()))
    return {
        name: asyncio.run(_mutate(trie, subjects, redis, number, key=key, is_repaired=is_repaired))
        for name, key, is_repaired in (
            ("without a key", None, False),
            ("with a key", b"a key of the fleet", False),
            ("with a key, checksum repaired", b"a key of the fleet", True),
        )
    }


async def _mutate(
    trie: TokenTrie,
    subjects: list[tuple[StoredGrammar, HotStates, bytes]],
    redis: RedisServer,
    number: int,
    *,
    key: bytes | None,
    is_repaired: bool,
) -> dict[str, Any]:
    store = RedisStore(RedisOptions(redis.url, hmac_key=key, timeout_s=1.0))
    await store.start()
    rng, client = random.Random(11), redis.client
    num_words = bitmask_words(trie.vocabulary.vocab_size)
    counts: Counter[str] = Counter()

    async def decode(payload: bytes) -> tuple[StoredGrammar, CompiledGrammar]:
        stored = StoredGrammar.from_bytes(payload)
        return stored, CompiledGrammar.from_bytes(stored.compiled)

    sealed = []
    for index, (stored, hot, _) in enumerate(subjects):
        names = EntryName("grammar", f"{index:064x}"), EntryName("warm", f"{index:064x}")
        for name, payload in zip(names, (stored.to_bytes(), hot.to_bytes()), strict=True):
            assert await store.put(name, payload)
        keys = [f"espalier:{FORMAT_VERSION}:{name}" for name in names]
        sealed.append((names, keys, client.mget(keys)))
    for index in range(number):
        stored, hot, expected = subjects[index % len(subjects)]
        names, keys, values = sealed[index % len(subjects)]
        for name, entry, value in zip(names, keys, values, strict=True):
            wild = _mutated(value, rng)
            client.set(entry, _repaired(str(name), wild) if is_repaired else wild)
        cache = FleetCache(
            store,
            encode=lambda value: value[0].to_bytes(),
            limits="",
            lock_s=3,
            max_lock_wait_s=1,
            refusal_ttl_s=1,
        )

        async def make(stored: StoredGrammar = stored) -> tuple[StoredGrammar, CompiledGrammar]:
            return stored, CompiledGrammar.from_bytes(stored.compiled)

        try:
            (_, compiled), is_found = await cache.find_or_make(names[0].digest, decode=decode, make=make)
            matcher = Matcher(compiled, trie)
            (payload_of_warm,) = await store.get(names[1])
            if payload_of_warm is not None:
                counts["warm entries accepted"] += 1
                adopt(matcher, HotStates.from_bytes(payload_of_warm, num_words=num_words))
            counts["grammars accepted"] += is_found
            counts["wrong masks"] += matcher.guidance(matcher.start).bitmask.tobytes() != expected
        except Exception as error:
            counts[f"failed: {type(error).__name__}"] += 1
        await cache.close()
        counts["entries"] += 2
    await store.close()
    client.flushall()
    return dict(counts)


def _mutated(value: bytes, rng: random.Random) -> bytes:
    """Change an entry: flip bits, cut, lengthen, set a huge length, another version, bytes of another place."""
    wild = bytearray(value)
    match rng.randrange(6):
        case 0:
            for _ in range(rng.randrange(1, 4)):
                wild[rng.randrange(len(wild))] ^= 1 << rng.randrange(8)
        case 1:
            del wild[rng.randrange(len(wild)) :]
        case 2:
            wild += rng.randbytes(rng.randrange(1, 50))
        case 3:
            wild[6:10] = struct.pack("<I", rng.choice([0, 2**32 - 1, 2**31, rng.getrandbits(32)]))
        case 4:
            wild[4:6] = struct.pack("<H", rng.choice([0, FORMAT_VERSION + 1, FORMAT_VERSION - 1, 65535]))
        case _:
            first, second = rng.randrange(len(wild)), rng.randrange(len(wild))
            wild[first] = (wild[second] + 1) % 256 if wild[first] == wild[second] else wild[second]
    return bytes(wild)


def _repaired(name: str, value: bytes) -> bytes:
    """Put a checksum that fits where it stands, as anybody can who may write."""
    head, packed = value[:10], value[42:]
    return head + hashlib.sha256(head + name.encode() + b"\0" + packed).digest() + packed


def main() -> int:
    """Measure; returns 1 where something failed or was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or a directory; default: the demo model's")
    parser.add_argument("--every", type=int, default=24, help="take every n-th schema")
    parser.add_argument("--parts", default="fleet,faults,mutations", help="what to run, by comma")
    parser.add_argument("--passes", type=int, default=3, help="of the stream of documents")
    parser.add_argument("--stop-s", type=float, default=10.0)
    parser.add_argument("--mutations", type=int, default=5000, help="grammars, each with its warm masks: two entries")
    parser.add_argument("--out", type=Path, default=Path("build/bench-cache.json"))
    arguments = parser.parse_args()
    if not DATA.is_file():
        print(f"{DATA} is not there: set ESPALIER_DATA to the folder that has it", file=sys.stderr)
        return 2
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        cases = [case for case in map(parse_case, lines) if case.tests][:: arguments.every]
    vocabulary = read_vocabulary(arguments.tokenizer or demo_tokenizer())
    parts = arguments.parts.split(",")
    report: dict[str, Any] = {}
    schemas = [case.source.text or "" for case in cases]
    with fleet(vocabulary) as made:
        if "fleet" in parts or "faults" in parts:
            replicas = made.start("a", "b")
        if "fleet" in parts:
            report["compiles of 100 first requests"] = one_compile(
                replicas, [_named(schema) for schema in schemas[:10]]
            )
            report["first mask"] = first_masks(*replicas, schemas)
            report["warm"] = warm(made, replicas[0], cases[:20], arguments.passes)
        if "faults" in parts:
            report["faults"] = faults(made, replicas, schemas[:30], stop_s=arguments.stop_s)
        if "mutations" in parts:
            report["mutations"] = mutations(vocabulary, cases[:20], made.redis, arguments.mutations)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2)
    arguments.out.write_text(text)
    print(text)
    return 0 if is_good(report) else 1


def _named(schema: str) -> str:
    """Make a schema one that nothing else here asks for."""
    value = json.loads(schema)
    return json.dumps({**value, "$comment": "asked for at once"}) if isinstance(value, dict) else schema


def is_good(report: dict[str, Any]) -> bool:
    """Tell whether nothing failed and nothing was wrong; times are for people to judge."""
    rows = report.get("faults", {}).values()
    changed = report.get("mutations", {}).values()
    return (
        set(report.get("compiles of 100 first requests", [1])) == {1}
        and not any(row["failed"] or row["wrong"] for row in rows)
        and not any(name.startswith(("failed", "wrong")) and row[name] for row in changed for name in row)
    )


if __name__ == "__main__":
    sys.exit(main())
