"""The arrays that the kernels walk, in groups.

A grammar's tables, the store of its configurations, work space, a vocabulary's trie. `pointers.py` says how a kernel
gets to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from services.constraint.core.pointers import reader

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Uint8s = npt.NDArray[np.uint8]

# Scalars in kernels are int64 throughout: a kernel is compiled once more for each other type that it is called with.
i64 = cast(Callable[[Any], int], np.int64)

UNKNOWN: Final = 0
DEAD: Final = 1
FIRST_CONFIGURATION: Final = 2

TERMINATED: Final = -1  # the state behind an end token

# What a kernel returns instead of a configuration: which store to grow before the same call is made again, or that
# the work is too much.
GROW_ARENA: Final = -2
GROW_SCRATCH: Final = -3
OUT_OF_FUEL: Final = -4
INCONSISTENT: Final = -5  # the tables are not what a compiler writes
GROW_MASKS: Final = -6
MISSING_SPAN: Final = -7  # the table of the span that `Arena.sizes` names
UNKNOWN_STATE: Final = -8  # no such configuration
MISSING_LEXEME: Final = -9  # tables of lexemes: `Scratch` says which

UNREACHABLE: Final = 1 << 29  # a distance that no completion has
TOO_FAR: Final = 1 << 18  # bytes; what has no shorter completion is cut off: no context holds it
BOTTOM: Final = -1  # return state of the frame under the start rule: the text may end here

# Slots of `Arena.sizes`.
NUM_NODES: Final = 0
NUM_FRAMES: Final = 1
NUM_CONFIGURATIONS: Final = 2
NUM_ITEMS: Final = 3
FUEL: Final = 4
NUM_MASKS: Final = 5
NUM_CLASSES: Final = 6
WANTED_SPAN: Final = 7
MAX_FUEL: Final = 8  # what FUEL begins with
LOW_BYTE: Final = 9  # the latest step does the same for all bytes from LOW_BYTE to HIGH_BYTE
HIGH_BYTE: Final = 10
NUM_ROWS: Final = 11  # rows of masks that there is memory for
NUM_WANTED: Final = 12  # tables that are missing: see `Scratch.wanted_trie`
NUM_SIZES: Final = 13


class Tables(NamedTuple):
    """A lowered grammar: S states, R rules, in compressed sparse rows. `lowering.py` says how it is made.

    Never written to.
    """

    edge_start: Int32s  # (S + 1,) first byte edge of each state
    edge_low: Uint8s  # (edges,) ascending in each state
    edge_high: Uint8s  # (edges,)
    edge_target: Int32s  # (edges,)
    epsilon_start: Int32s  # (S + 1,)
    epsilon_target: Int32s  # (epsilons,)
    call_start: Int32s  # (S + 1,)
    call_rule: Int32s  # (calls,)
    call_return: Int32s  # (calls,)
    call_is_tail: Uint8s  # (calls,) 1 where nothing but the end of the rule follows the return state
    rule_start: Int32s  # (R,) rules in topological order of their left calls
    is_lexeme: Uint8s  # (R,) 1 where the vocabulary is to have tables of the rule: see `lexemes.py`
    is_accepting: Uint8s  # (S,) 1 at the end of a rule
    is_plain: Uint8s  # (S,) 1 where byte edges are all that the state has
    count_minimum: Int32s  # (S,) of a counting state, else -1
    count_maximum: Int32s  # (S,) of a counting state, -1 without bound
    distance: Int32s  # (S,) fewest bytes to the end of the state's rule
    byte_distance: Int32s  # (S,) the same where a byte edge of the state itself comes first
    body_distance: Int32s  # (S,) fewest bytes of one repetition, of a counting state
    byte_class: Uint8s  # (256,) bytes that no edge tells apart share a class
    base: Int32s  # (S,) a state whose way on is nearly the same, else the state itself: see `masks.py`


class Arena(NamedTuple):
    """The interned nodes and configurations of one grammar, growing. Capacities double (`configuration.py`).

    Node 0 and the configurations below FIRST_CONFIGURATION are none.
    """

    sizes: Int64s  # (NUM_SIZES,) see the slots above
    node_start: Int32s  # (nodes + 1,)
    node_distance: Int32s  # (nodes,) fewest bytes from a return through this node to the end of the text
    node_behind: Int32s  # (nodes,) the configuration behind a return through this node, UNKNOWN until it is asked for
    node_hash: Int64s  # (nodes,)
    node_table: Int32s  # open addressing, 0 = free
    frame_return: Int32s  # (frames,)
    frame_count: Int32s  # (frames,)
    frame_parent: Int32s  # (frames,)
    configuration_start: Int32s  # (configurations + 1,)
    configuration_accepts: Uint8s  # (configurations,)
    configuration_distance: Int32s  # (configurations,) fewest bytes to a complete text
    configuration_hash: Int64s
    configuration_table: Int32s
    item_state: Int32s  # (items,)
    item_node: Int32s  # (items,)
    transitions: Int32s  # (configurations * classes,): UNKNOWN, DEAD or a configuration
    mask_row: Int32s  # (configurations,) 1 + the row of its mask, 0 where that is not known
    row_address: Int64s  # (rows,) where each row of masks lies


class Scratch(NamedTuple):
    """Work space of one call.

    `*_stamp` arrays are valid where they equal `clock[0]`, so that nothing is cleared between calls.
    """

    clock: Int64s  # (1,)
    state_stamp: Int64s  # (S,)
    state_head: Int32s  # (S,) latest position of the state
    seen_stamp: Int64s  # (S,) of phase 3
    rule_stamp: Int64s  # (R,)
    rule_head: Int32s  # (R,) latest entry of the rule
    rule_heap: Int32s  # (R,) rules waiting to be entered, a binary heap
    position_state: Int32s
    position_count: Int32s
    position_node: Int32s
    position_next: Int32s
    position_done: Uint8s
    entry_return: Int32s
    entry_count: Int32s
    entry_parent: Int32s
    entry_next: Int32s
    frame_return: Int32s
    frame_count: Int32s
    frame_parent: Int32s
    item_state: Int32s
    item_node: Int32s
    worklist: Int32s
    is_walked: Uint8s
    path: Int32s  # (longest token + 2,) configurations on the way to a node of the trie
    base_path: Int32s  # (longest token + 2,) the same of a base
    differs: Uint8s  # ((longest token + 2) * 256,) 1 for the bytes on which the two may part
    task_trie: Int64s  # tries that are still to be walked, by their addresses,
    task_configuration: Int32s  # and from where
    returning: Int32s  # nodes through which rules return
    wanted_trie: Int64s  # tables of lexemes that are missing
    wanted_lexeme: Int32s


class TrieArrays(NamedTuple):
    """A token trie in preorder (`trie.py`): N nodes without the root, T tokens in order of their bytes."""

    byte: Uint8s  # (N,)
    depth: Int32s  # (N,) 0 for the first byte of a token
    end: Int32s  # (N,) the first node behind the subtree
    token_start: Int32s  # (N + 1,) tokens that end at the node: token_id[token_start[i]:token_start[i + 1]]
    first: Int32s  # (257,) the nodes first[b] .. first[b + 1] - 1 are those of the tokens that begin with byte b
    token_id: Int32s  # (T,)
    first_bytes: Int64s  # (4,) one bit for each byte that a token begins with
    token_number: Int32s  # (T,) in the trie of a span's exits: units that a token completes before; else 0


class VocabularyArrays(NamedTuple):
    """What a kernel must know of the vocabulary beside its trie."""

    trie: Int64s  # (1,) address of the trie's own pointer table
    text: Uint8s  # the bytes of all tokens, one after the other
    text_start: Int64s  # (vocab_size + 1,) token i is text[text_start[i]:text_start[i + 1]]; empty where it has none
    end_token: Int32s  # the ids that end a text


class SpanArrays(NamedTuple):
    """Which states of the grammar are in a span, and the vocabulary's tables of those spans (`spans.py`)."""

    state_span: Int32s  # (S,) 1 + the span that the state is in, else 0
    state_loop: Int32s  # (S,) the state in which a further unit of that span begins
    state_place: Int32s  # (S,) the place in that span, -1 outside
    address: Int64s  # (spans,) of each span's own pointer table
    difference_start: Int32s  # (S + 1,)
    difference: Uint8s  # the bytes on which each state and its base part


class LexemeArrays(NamedTuple):
    """Which states of the grammar are in a lexeme, and where the vocabulary's tables are (`lexemes.py`).

    The tables are found by open addressing: an entry is there where its table is not 0.
    """

    state_lexeme: Int32s  # (S,) 1 + the number of the lexeme that the state is in, else 0
    state_first: Int64s  # (4 S,) one bit for each byte that may follow a state inside its rule
    state_ends: Uint8s  # (S,) 1 where the rule may end without a byte
    trie: Int64s  # (capacity,) address of the trie
    lexeme: Int64s  # (capacity,) number of the lexeme
    table: Int64s  # (capacity,) address of the table of the two


_GROUPS = (Tables, Arena, Scratch, VocabularyArrays, SpanArrays, LexemeArrays)
FIRST_SLOT: Final[dict[type, int]] = {
    group: sum(len(before._fields) for before in _GROUPS[:index]) for index, group in enumerate(_GROUPS)
}
NUM_SLOTS: Final = sum(len(group._fields) for group in _GROUPS)

# Functions of kernels: address of a grammar's pointer table -> its arrays.
tables = reader(Tables, FIRST_SLOT[Tables])
arena = reader(Arena, FIRST_SLOT[Arena])
scratch = reader(Scratch, FIRST_SLOT[Scratch])
vocabulary_arrays = reader(VocabularyArrays, FIRST_SLOT[VocabularyArrays])
span_arrays = reader(SpanArrays, FIRST_SLOT[SpanArrays])
lexeme_arrays = reader(LexemeArrays, FIRST_SLOT[LexemeArrays])
trie_arrays = reader(TrieArrays)  # of a trie's own table
