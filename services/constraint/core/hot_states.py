"""What a matcher has learned, in a form that another process can take in: the states it was asked about most.

Numbers of configurations and stack nodes mean something in one process only, so hot states are written by structure: a
stack node as its frames, a configuration as its items, in numbers of their own that count from the first one written.
Whoever takes them in interns them and gets its own numbers. With them go what is known of each: successors by byte,
its mask, its forced token and its witness.

States are numbered in the order in which they are first met, and one that is met every tenth text is met first ten
times as early as one of every hundredth; so those of low numbers are taken for the hot ones and nothing is counted.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiled_grammar import CorruptGrammarError, are_rows, lie_in
from services.constraint.core.compiling import compiled
from services.constraint.core.interning import intern_configuration, intern_node
from services.constraint.core.matcher import Matcher
from services.constraint.core.tables import (
    BOTTOM,
    DEAD,
    FIRST_CONFIGURATION,
    GROW_SCRATCH,
    NUM_CLASSES,
    NUM_CONFIGURATIONS,
    UNKNOWN,
    UNREACHABLE,
    Int32s,
    Uint8s,
    i64,
    scratch,
)
from services.rpckit.status import OutOfFuel
from services.vocabulary import pack_bool_mask

MAX_CONFIGURATIONS: Final = 4096
MAX_MASK_BYTES: Final = 8 << 20

_NOT_KNOWN: Final = -2
_NONE: Final = -1


class Structure(NamedTuple):
    """N stack nodes, the first of which is none, and K configurations of them; as in `tables.Arena`."""

    node_start: Int32s  # (N + 1,)
    frame_return: Int32s  # (frames,)
    frame_count: Int32s  # (frames,)
    frame_parent: Int32s  # (frames,) a node that stands before the frame's own
    configuration_start: Int32s  # (K + 1,)
    configuration_accepts: Uint8s  # (K,)
    item_state: Int32s  # (items,)
    item_node: Int32s  # (items,)


class Knowledge(NamedTuple):
    """What is known of K configurations, which are numbered from 0 here."""

    edge_source: Int32s  # (E,) configuration
    edge_class: Uint8s  # (E,) byte class
    edge_target: Int32s  # (E,) configuration
    mask: Int32s  # (K,) 1 + a row of masks, 0 where that is not known
    forced_token: Int32s  # (K,) _NOT_KNOWN, _NONE or a token
    witness_num_tokens: Int32s  # (K,) _NOT_KNOWN or a number
    witness_token: Int32s  # (K,) _NONE or a token


@dataclass(frozen=True, slots=True)
class HotStates:
    """States and what is known of them; `masks` (R, words) are all different."""

    structure: Structure
    knowledge: Knowledge
    masks: npt.NDArray[np.int32]

    @property
    def num_configurations(self) -> int:
        """How many states there are."""
        return len(self.structure.configuration_accepts)

    def to_bytes(self) -> bytes:
        """Return the binary form: lengths as JSON, then the arrays, little-endian.

        Each mask is written as what it differs by from the one before, which is little, so that it compresses.
        """
        differences = self.masks.copy()
        differences[1:] ^= self.masks[:-1]
        arrays = (*self.structure, *self.knowledge, differences.reshape(-1))
        head = json.dumps({"lengths": [len(array) for array in arrays], "num_masks": len(self.masks)}).encode()
        body = b"".join(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays)
        return struct.pack("<I", len(head)) + head + body

    @classmethod
    def from_bytes(cls, data: bytes, *, num_words: int) -> HotStates:
        """Read the binary form; `adopt` checks what is in it.

        Raises:
            CorruptGrammarError: it is none.
        """
        try:
            (head_length,) = struct.unpack_from("<I", data)
            head = json.loads(data[4 : 4 + head_length])
            offset = 4 + head_length
            arrays: list[Any] = []
            for length, dtype in zip(head["lengths"], _DTYPES, strict=True):
                if not isinstance(length, int) or length < 0:
                    raise CorruptGrammarError("not hot states: an array without a length")
                arrays.append(np.frombuffer(data, dtype, length, offset).astype(dtype.newbyteorder("=")))
                offset += length * dtype.itemsize
            if offset != len(data):
                raise CorruptGrammarError("not hot states: there is more than the arrays")
            num_fields = len(Structure._fields)
            masks = np.bitwise_xor.accumulate(arrays[-1].reshape(int(head["num_masks"]), num_words), axis=0)
            return cls(Structure(*arrays[:num_fields]), Knowledge(*arrays[num_fields:-1]), masks)
        except (struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CorruptGrammarError(f"not hot states: {error}") from error


_BYTES: Final = {"configuration_accepts", "edge_class"}
_DTYPES: Final = [
    np.dtype("u1") if name in _BYTES else np.dtype("<i4")
    for name in (*Structure._fields, *Knowledge._fields, "differences")
]


def num_known(matcher: Matcher) -> int:
    """Return how much there is to tell others: states with a mask, a forced token or a witness. Takes no lock."""
    return matcher.configurations.num_masks + len(matcher.known_forced) + len(matcher.known_witnesses)


def hot_states(
    matcher: Matcher, *, max_configurations: int = MAX_CONFIGURATIONS, max_mask_bytes: int = MAX_MASK_BYTES
) -> HotStates:
    """Return what a matcher knows of its hot states: those it was asked about, and between them those met first."""
    with matcher.lock:
        a = matcher.configurations.arena
        num_configurations = int(a.sizes[NUM_CONFIGURATIONS])
        forced, witnesses = matcher.known_forced, matcher.known_witnesses
        is_asked = a.mask_row[:num_configurations] != 0
        for known in (forced, witnesses):
            is_asked[np.fromiter((state for state in known if state >= FIRST_CONFIGURATION), np.int64)] = True
        asked = np.flatnonzero(is_asked[FIRST_CONFIGURATION:]) + FIRST_CONFIGURATION
        others = np.flatnonzero(~is_asked[FIRST_CONFIGURATION:]) + FIRST_CONFIGURATION
        chosen = np.sort(np.concatenate((asked, others))[:max_configurations])
        structure = _structure(a, chosen)
        number = np.full(num_configurations, -1, np.int32)
        number[chosen] = np.arange(len(chosen))
        num_classes = int(a.sizes[NUM_CLASSES])
        ways = a.transitions[: num_configurations * num_classes].reshape(-1, num_classes)[chosen]
        source, byte_class = np.nonzero(ways > DEAD)
        target = number[ways[source, byte_class]]
        is_inside = target >= 0
        mask, masks = _masks(matcher, chosen, max_mask_bytes)
        states = chosen.tolist()
        knowledge = Knowledge(
            source[is_inside].astype(np.int32),
            byte_class[is_inside].astype(np.uint8),
            target[is_inside],
            mask,
            _tokens([forced.get(state, _NOT_KNOWN) for state in states]),
            _tokens([witnesses.get(state, (_NOT_KNOWN,))[0] for state in states]),
            _tokens([witnesses.get(state, (0, None))[1] for state in states]),
        )
    return HotStates(structure, knowledge, masks)


def _tokens(values: list[int | None]) -> Int32s:
    return np.array([_NONE if value is None else value for value in values], np.int32)


def _structure(a: Any, chosen: npt.NDArray[np.int64]) -> Structure:
    """Write configurations, and the stack nodes below them, in numbers that count from 0."""
    item_rows, configuration_start = _rows(a.configuration_start, chosen)
    item_node = a.item_node[item_rows]
    nodes = _nodes_below(a.node_start, a.frame_parent, item_node)
    frame_rows, node_start = _rows(a.node_start, nodes)
    number = np.zeros(int(nodes.max(initial=0)) + 1, np.int32)
    number[nodes] = np.arange(1, len(nodes) + 1)
    return Structure(
        np.concatenate((np.zeros(1, np.int32), node_start)),
        a.frame_return[frame_rows],
        a.frame_count[frame_rows],
        number[a.frame_parent[frame_rows]],
        configuration_start,
        a.configuration_accepts[chosen],
        a.item_state[item_rows],
        number[item_node],
    )


def _rows(starts: Int32s, chosen: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Int32s]:
    """Return the places of the elements of the rows `chosen`, and where each row begins among them."""
    lengths = starts[chosen + 1] - starts[chosen]
    begins = np.zeros(len(chosen) + 1, np.int32)
    np.cumsum(lengths, out=begins[1:])
    places = np.arange(begins[-1], dtype=np.int64) + np.repeat(starts[chosen] - begins[:-1], lengths)
    return places, begins


@compiled
def _nodes_below(node_start: Int32s, frame_parent: Int32s, item_node: Int32s) -> npt.NDArray[np.int64]:
    """Return the nodes of items and all that lie below them, ascending: what is below was numbered before."""
    last = i64(0)
    for node in item_node:
        last = max(last, i64(node))
    is_used = np.zeros(last + 1, np.bool_)
    for node in item_node:
        is_used[node] = True
    for node in range(last, 0, -1):
        if is_used[node]:
            for frame in range(node_start[node], node_start[node + 1]):
                is_used[frame_parent[frame]] = True
    is_used[0] = False
    return np.flatnonzero(is_used)


def _masks(matcher: Matcher, chosen: npt.NDArray[np.int64], max_bytes: int) -> tuple[Int32s, npt.NDArray[np.int32]]:
    """Return 1 + its row for each state of `chosen` whose mask is known, and the rows, each once."""
    configurations = matcher.configurations
    num_words = configurations.num_words
    row_of: dict[bytes, int] = {}
    mask = np.zeros(len(chosen), np.int32)
    for index, row in enumerate(configurations.arena.mask_row[chosen]):
        if row == 0:
            continue
        content = bytes(configurations.mask_in_row(int(row) - 1))
        if content not in row_of and (len(row_of) + 1) * 4 * num_words > max_bytes:
            continue
        mask[index] = 1 + row_of.setdefault(content, len(row_of))
    return mask, np.frombuffer(b"".join(row_of), np.int32).reshape(len(row_of), num_words)


def adopt(matcher: Matcher, hot: HotStates) -> int:
    """Take in what another process knows; return how many masks were new.

    What this one knows itself stays as it is. Beyond the limits of the matcher it stops.

    Raises:
        CorruptGrammarError: an index is out of range: no matcher of this grammar and vocabulary wrote this.
    """
    _check(hot, matcher)
    configurations, knowledge = matcher.configurations, hot.knowledge
    states = np.empty(hot.num_configurations, np.int32)
    nodes = np.zeros(len(hot.structure.node_start) - 1, np.int32)
    try:
        with matcher.lock:
            configurations.call(_intern_all, hot.structure, nodes, states)
            a = configurations.arena
            cells = states[knowledge.edge_source].astype(np.int64) * a.sizes[NUM_CLASSES] + knowledge.edge_class
            is_new = a.transitions[cells] == UNKNOWN
            a.transitions[cells[is_new]] = states[knowledge.edge_target[is_new]]
            _remember(matcher, states, knowledge)
    except OutOfFuel:
        return 0
    num_masks = 0
    by_mask = np.argsort(knowledge.mask, kind="stable")
    ends = np.searchsorted(knowledge.mask[by_mask], np.arange(1, len(hot.masks) + 2))
    for number, row in enumerate(hot.masks):
        # The lock is given back in between: requests go first.
        with matcher.lock:
            if not configurations.keep_mask(states[by_mask[ends[number] : ends[number + 1]]], row):
                break
        num_masks += 1
    return num_masks


def _remember(matcher: Matcher, states: Int32s, knowledge: Knowledge) -> None:
    lists = (states, knowledge.forced_token, knowledge.witness_num_tokens, knowledge.witness_token)
    for state, forced, num_tokens, first in zip(*(array.tolist() for array in lists), strict=True):
        if forced != _NOT_KNOWN:
            matcher.known_forced.setdefault(state, None if forced == _NONE else forced)
        if num_tokens != _NOT_KNOWN:
            matcher.known_witnesses.setdefault(state, (num_tokens, None if first == _NONE else first))


@compiled
def _intern_all(memory: int, s: Structure, nodes: Int32s, configurations: Int32s) -> int:
    """Fill in the numbers that nodes and configurations have here; return 0, or a code: then it is called again."""
    w = scratch(memory)
    for node in range(1, len(nodes)):
        first, last = i64(s.node_start[node]), i64(s.node_start[node + 1])
        if last - first > len(w.frame_return):
            return GROW_SCRATCH
        for frame in range(first, last):
            w.frame_return[frame - first] = s.frame_return[frame]
            w.frame_count[frame - first] = s.frame_count[frame]
            w.frame_parent[frame - first] = nodes[s.frame_parent[frame]]
        number = intern_node(memory, w.frame_return, w.frame_count, w.frame_parent, last - first)
        if number < 0:
            return number
        nodes[node] = number
    for configuration in range(len(configurations)):
        first, last = i64(s.configuration_start[configuration]), i64(s.configuration_start[configuration + 1])
        if last - first > len(w.item_state):
            return GROW_SCRATCH
        for item in range(first, last):
            w.item_state[item - first] = s.item_state[item]
            w.item_node[item - first] = nodes[s.item_node[item]]
        accepts = i64(s.configuration_accepts[configuration])
        number = intern_configuration(memory, w.item_state, w.item_node, last - first, accepts)
        if number < 0:
            return number
        configurations[configuration] = number
    return i64(0)


def _check(hot: HotStates, matcher: Matcher) -> None:
    """See that no kernel can leave its arrays, whatever wrote this.

    Raises:
        CorruptGrammarError: one could.
    """
    s, k, g = hot.structure, hot.knowledge, matcher.configurations.tables
    num_nodes, num_configurations = len(s.node_start) - 1, hot.num_configurations
    num_states, num_classes = len(g.is_accepting), int(g.byte_class.max()) + 1
    is_sound = (
        num_nodes >= 1
        and are_rows(s.node_start, num_nodes, len(s.frame_return))
        and are_rows(s.configuration_start, num_configurations, len(s.item_state))
        and len(s.frame_return) == len(s.frame_count) == len(s.frame_parent)
        and len(s.item_state) == len(s.item_node)
        and len(k.edge_source) == len(k.edge_class) == len(k.edge_target)
        and all(len(array) == num_configurations for array in (k.mask, *k[-3:]))
        and lie_in(s.frame_return, BOTTOM, num_states)
        and lie_in(s.frame_count, 0, UNREACHABLE)
        and lie_in(s.frame_parent, 0, num_nodes)
        and bool((s.frame_parent < np.repeat(np.arange(num_nodes), np.diff(s.node_start))).all())
        and bool(((s.frame_parent == 0) == (s.frame_return == BOTTOM)).all())
        and lie_in(s.configuration_accepts, 0, 2)
        and bool(((np.diff(s.configuration_start) > 0) | (s.configuration_accepts == 1)).all())
        and lie_in(s.item_state, 0, num_states)
        and bool((g.edge_start[s.item_state] < g.edge_start[s.item_state + 1]).all())
        and lie_in(s.item_node, 1, num_nodes)
        and lie_in(k.edge_source, 0, num_configurations)
        and lie_in(k.edge_target, 0, num_configurations)
        and lie_in(k.edge_class, 0, num_classes)
        and lie_in(k.mask, 0, len(hot.masks) + 1)
        and lie_in(k.witness_num_tokens, _NOT_KNOWN, UNREACHABLE)
        and _are_tokens(k.forced_token, _NOT_KNOWN, matcher)
        and _are_tokens(k.witness_token, _NONE, matcher)
        and bool(((k.witness_num_tokens <= 0) | (k.witness_token >= 0)).all())
        and _are_masks(hot.masks, matcher)
    )
    if not is_sound:
        raise CorruptGrammarError("the hot states contradict each other or the grammar")


def _are_tokens(token_ids: Int32s, low: int, matcher: Matcher) -> bool:
    """Tell whether these are tokens that stand for text; `low` and what is between it and 0 may stand for none."""
    if not lie_in(token_ids, low, matcher.trie.vocabulary.vocab_size):
        return False
    starts = matcher.trie.vocabulary_arrays.text_start
    given = token_ids[token_ids >= 0]
    return bool((starts[given] < starts[given + 1]).all())


def _are_masks(masks: npt.NDArray[np.int32], matcher: Matcher) -> bool:
    """Tell whether these have the right width, and no bit behind the vocabulary's last token."""
    width = matcher.trie.vocabulary.vocab_size
    used = pack_bool_mask(np.ones(width, np.bool_))
    return masks.shape[1] == len(used) and not (masks & ~used).any()
