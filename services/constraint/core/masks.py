"""The compiled walks that find which tokens may follow. Runs without the GIL.

The plain way is one pass over the token trie (`walk`): follow each byte, skip the subtree where the configuration dies.
It costs about 4 ns a node and visits most of 300,000 nodes wherever nearly everything may follow: in a JSON string, a
comment, a word. Three shortcuts make those cheap; all are exact, and what none fits is walked.

- *Spans* (`spans.py`): a loop over one kind of character accepts a set of tokens that depends on the vocabulary alone.
  The vocabulary keeps that set, and a small trie of what tokens hold behind the last character that fits. Only this
  trie is walked, from the configuration that follows one character.
- *Lexemes* (`lexemes.py`): the same for all that is still to come of a rule that many grammars have, such as a name, a
  number or a keyword, and for what remains of the tokens that leave it, whatever trie that is in.
- *Differences*: "any key but these names" is, nearly everywhere, "any key". Such a state names the other one as its
  *base*. The mask is then that of the configuration with the base in its place, but for tokens on whose way the two
  configurations are not the same; `_walk_difference` visits only those.

The mask of a configuration is the union over its items, so each item may go its own way.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiling import compiled
from services.constraint.core.interning import intern_configuration, intern_node
from services.constraint.core.kernel import accept_token, behind_node, transition
from services.constraint.core.lexemes import NO_WORDS, NOT_MADE, lexeme_table, slot_of
from services.constraint.core.pointers import row_at
from services.constraint.core.spans import NUM_COUNTED_ROWS, span_table
from services.constraint.core.tables import (
    BOTTOM,
    DEAD,
    FIRST_CONFIGURATION,
    FUEL,
    GROW_MASKS,
    GROW_SCRATCH,
    MAX_FUEL,
    MISSING_LEXEME,
    MISSING_SPAN,
    NUM_CLASSES,
    NUM_CONFIGURATIONS,
    NUM_MASKS,
    NUM_ROWS,
    NUM_WANTED,
    TERMINATED,
    UNKNOWN,
    UNKNOWN_STATE,
    WANTED_SPAN,
    Int32s,
    Int64s,
    arena,
    i64,
    lexeme_arrays,
    scratch,
    span_arrays,
    tables,
    trie_arrays,
    vocabulary_arrays,
)

# Noting where two configurations part takes about as long as a walk over half as many nodes. Fewer than _MIN_NOTES are
# not worth a walk.
_NODES_PER_NOTE: Final = 64
_MIN_NOTES: Final = 64


@compiled
def mask(memory: int, configuration: int) -> int:
    """Return the row of the configuration's mask, which is computed unless it is known, or a negative code."""
    a = arena(memory)
    a.sizes[FUEL] = a.sizes[MAX_FUEL]
    if a.mask_row[configuration] != 0:
        return i64(a.mask_row[configuration]) - 1
    base = _with_bases(memory, configuration)
    if base < 0:
        return base
    base_row = i64(-1)
    if base != configuration:
        base_row = i64(a.mask_row[base]) - 1
        if base_row < 0:
            base_row = _new_mask(memory, base, base, i64(-1))
            if base_row < 0:
                return base_row
    return _new_mask(memory, configuration, base, base_row)


@compiled
def _new_mask(memory: int, configuration: int, base: int, base_row: int) -> int:
    """Compute a mask and remember it: from that of `base` where there is one, else from nothing."""
    a, v = arena(memory), vocabulary_arrays(memory)
    number = a.sizes[NUM_MASKS]
    if number >= a.sizes[NUM_ROWS]:
        return GROW_MASKS
    num_words = (len(v.text_start) + 30) // 32
    row = row_at(a.row_address[number], num_words)
    if base_row >= 0:
        row[:] = row_at(a.row_address[base_row], num_words)
        code = _walk_difference(memory, configuration, base, row)
    else:
        code = _fill(memory, configuration, row)
    if code < 0:
        return code
    if a.configuration_accepts[configuration] == 1:
        for token_id in v.end_token:
            _set(row, i64(token_id))
    a.sizes[NUM_MASKS] = number + 1
    a.mask_row[configuration] = number + 1
    return i64(number)


@compiled
def _set(row: Int32s, token_id: int) -> None:
    row[token_id >> 5] |= np.int32(1) << np.int32(token_id & 31)


@compiled
def _clear(row: Int32s, token_id: int) -> None:
    row[token_id >> 5] &= ~(np.int32(1) << np.int32(token_id & 31))


@compiled
def _fill(memory: int, configuration: int, row: Int32s) -> int:
    """Write the tokens that may follow `configuration`: its spans by their tables, then the other items."""
    a, w, s, v = arena(memory), scratch(memory), span_arrays(memory), vocabulary_arrays(memory)
    x = lexeme_arrays(memory)
    first, last = i64(a.configuration_start[configuration]), i64(a.configuration_start[configuration + 1])
    if last - first > len(w.is_walked):
        return GROW_SCRATCH
    num_spans = i64(0)
    for item in range(first, last):
        w.is_walked[item - first] = 1
        if s.state_span[a.item_state[item]] != 0 and x.state_lexeme[a.item_state[item]] == 0:
            done = _fill_span(memory, i64(a.item_state[item]), i64(a.item_node[item]), num_spans == 0, row)
            if done < 0:
                return done
            if done > 0:
                w.is_walked[item - first] = 0
                num_spans += 1
    rest = configuration
    if num_spans == 0:
        row[:] = 0
    else:
        rest = _of_walked(memory, first, last)
        if rest < 0:
            return rest
        if rest == DEAD:
            return 0
    return _add_lexemes(memory, i64(v.trie[0]), rest, row)


@compiled
def _of_walked(memory: int, first: int, last: int) -> int:
    """Return the configuration of those items, of `first` to `last`, that `is_walked` marks; or a code."""
    a, w = arena(memory), scratch(memory)
    n = i64(0)
    for item in range(first, last):
        if w.is_walked[item - first] == 1:
            w.item_state[n], w.item_node[n] = a.item_state[item], a.item_node[item]
            n += 1
    return intern_configuration(memory, w.item_state, w.item_node, n, i64(0))


@compiled
def _add_lexemes(memory: int, trie: int, configuration: int, row: Int32s) -> int:
    """Set the bit of every token of a trie that may follow a configuration; return 0 or a code.

    Items in a lexeme by its table against the trie: what remains of the tokens that leave it is in a trie of its own,
    which is done in the same way, from the configuration behind the lexeme. Other items by a walk.
    """
    a, w, x = arena(memory), scratch(memory), lexeme_arrays(memory)
    w.task_trie[0], w.task_configuration[0] = trie, configuration
    num_tasks = i64(1)
    a.sizes[NUM_WANTED] = 0
    while num_tasks > 0:
        num_tasks -= 1
        trie, configuration = i64(w.task_trie[num_tasks]), i64(w.task_configuration[num_tasks])
        first, last = i64(a.configuration_start[configuration]), i64(a.configuration_start[configuration + 1])
        if last - first > len(w.is_walked) or num_tasks + last - first > len(w.task_trie):
            return GROW_SCRATCH
        num_walked = i64(0)
        for item in range(first, last):
            state = i64(a.item_state[item])
            is_lexeme = x.state_lexeme[state] > 0
            w.is_walked[item - first] = not is_lexeme
            num_walked += not is_lexeme
            if not is_lexeme or not _may_begin(memory, trie, state):
                continue
            rest, behind = _add_lexeme(memory, trie, state, i64(a.item_node[item]), row)
            if rest < 0:
                return rest
            if rest != NO_WORDS:
                w.task_trie[num_tasks], w.task_configuration[num_tasks] = rest, behind
                num_tasks += 1
        if num_walked == 0:
            continue
        rest = configuration
        if num_walked < last - first:
            rest = _of_walked(memory, first, last)
            if rest < 0:
                return rest
        code = walk(memory, trie, rest, i64(0), i64(0), row)
        if code < 0:
            return code
    return i64(MISSING_LEXEME) if a.sizes[NUM_WANTED] > 0 else i64(0)


@compiled
def _add_lexeme(memory: int, trie: int, state: int, node: int, row: Int32s) -> tuple[int, int]:
    """Add the tokens of a trie that stay in the lexeme of one item.

    Return the trie of what remains of the others, or a code, and the configuration from which that goes on.
    """
    x = lexeme_arrays(memory)
    lexeme = i64(x.state_lexeme[state]) - 1
    address = _lexeme_table(memory, trie, lexeme)
    if address == 0:
        return _want(memory, trie, lexeme), i64(DEAD)
    t = lexeme_table(address)
    for word in range(len(t.inside)):
        row[word] |= t.inside[word]
    for token_id in t.few:
        _set(row, i64(token_id))
    # All that may remain is among what remains behind every end.
    goes_on = _may_follow(memory, node, t.going_on)
    rest = i64(t.crossing[0] if goes_on else t.exits[0])
    if rest == NOT_MADE:
        return _want(memory, trie, lexeme), i64(DEAD)
    if rest == NO_WORDS or not _may_follow(memory, node, trie_arrays(rest).first_bytes):
        return i64(NO_WORDS), i64(DEAD)
    behind = behind_node(memory, node)
    return (rest, behind) if behind > 0 else (behind, behind)


@compiled
def _want(memory: int, trie: int, lexeme: int) -> int:
    """Note that a table is missing; return NO_WORDS, or a code where no more can be noted."""
    a, w = arena(memory), scratch(memory)
    number = a.sizes[NUM_WANTED]
    if number == len(w.wanted_trie):
        return i64(MISSING_LEXEME)
    w.wanted_trie[number], w.wanted_lexeme[number] = trie, lexeme
    a.sizes[NUM_WANTED] = number + 1
    return i64(NO_WORDS)


@compiled
def _may_begin(memory: int, trie: int, state: int) -> bool:
    """Tell whether a word of a trie begins with a byte that may follow a state."""
    return _share_bytes(memory, state, trie_arrays(trie).first_bytes)


@compiled
def _share_bytes(memory: int, state: int, byte_set: Int64s) -> bool:
    x = lexeme_arrays(memory)
    shared = i64(0)
    for word in range(4):
        shared |= x.state_first[4 * state + word] & byte_set[word]
    return shared != 0


@compiled
def _may_follow(memory: int, node: int, byte_set: Int64s) -> bool:
    """Tell whether one of the bytes may follow a return through a node. Where many rules may end there, it says yes."""
    a, w, x = arena(memory), scratch(memory), lexeme_arrays(memory)
    if byte_set[0] | byte_set[1] | byte_set[2] | byte_set[3] == 0:
        return False
    w.returning[0] = node
    n = i64(1)
    at = i64(0)
    while at < n:
        node = i64(w.returning[at])
        at += 1
        for frame in range(a.node_start[node], a.node_start[node + 1]):
            state = i64(a.frame_return[frame])
            if state == BOTTOM:
                continue
            if _share_bytes(memory, state, byte_set):
                return True
            if x.state_ends[state] == 1:
                parent = a.frame_parent[frame]
                is_new = True
                for other in range(n):
                    is_new = is_new and w.returning[other] != parent
                if is_new:
                    if n == len(w.returning):
                        return True
                    w.returning[n] = parent
                    n += 1
    return False


@compiled
def _lexeme_table(memory: int, trie: int, lexeme: int) -> int:
    """Return the address of the table of a trie and a lexeme, 0 where it is not made."""
    x = lexeme_arrays(memory)
    slot = slot_of(trie, lexeme, i64(len(x.table)))
    while x.table[slot] != 0:
        if x.trie[slot] == trie and x.lexeme[slot] == lexeme:
            return i64(x.table[slot])
        slot = (slot + 1) & (len(x.table) - 1)
    return i64(0)


@compiled
def walk(memory: int, trie: int, configuration: int, fewest: int, most: int, row: Int32s) -> int:
    """Set the bit of every token of a trie whose bytes lead from `configuration` to a live one; return 0 or a code.

    Tokens whose number in the trie is not from `fewest` to `most` are left out. Every configuration that is alive can
    be completed, because the lowering left nothing unproductive in the grammar: so a token is allowed when its bytes
    stay alive.
    """
    g, a, w, t = tables(memory), arena(memory), scratch(memory), trie_arrays(trie)
    num_classes = a.sizes[NUM_CLASSES]
    w.path[0] = configuration
    for first_byte in range(256):
        # Most first bytes lead nowhere: they take no more than this.
        if a.transitions[configuration * num_classes + g.byte_class[first_byte]] == DEAD:
            continue
        i = i64(t.first[first_byte])
        n = i64(t.first[first_byte + 1])
        while i < n:
            depth = i64(t.depth[i])
            byte = t.byte[i]
            target = i64(a.transitions[w.path[depth] * num_classes + g.byte_class[byte]])
            if target == UNKNOWN:
                target = transition(memory, i64(w.path[depth]), i64(byte))
                if target < 0:
                    return target
            if target == DEAD:
                i = i64(t.end[i])
                continue
            w.path[depth + 1] = target
            for j in range(t.token_start[i], t.token_start[i + 1]):
                if fewest <= t.token_number[j] <= most:
                    _set(row, i64(t.token_id[j]))
            i += 1
    return 0


@compiled
def _fill_span(memory: int, state: int, node: int, is_first: bool, row: Int32s) -> int:
    """Add the tokens that may follow one item by its span's table; return 1, 0 where the table does not fit, or a code.

    With k units read before, of `minimum` to `maximum`, a token may begin at most `remaining` more, and may leave the
    span when it has completed at least `needed`. What `row` held before is overwritten where `is_first`.
    """
    g, a, s, w = tables(memory), arena(memory), span_arrays(memory), scratch(memory)
    address = s.address[s.state_span[state] - 1]
    if address == 0:
        a.sizes[WANTED_SPAN] = s.state_span[state] - 1
        return MISSING_SPAN
    t = span_table(address)
    remaining, needed = max(i64(t.most_begun[0]), i64(t.most_completed[0])), i64(1)
    if t.is_counted[0] == 1:
        frame = i64(a.node_start[node])
        if a.node_start[node + 1] - frame != 1 or a.frame_return[frame] < 0:
            return 0
        ret = i64(a.frame_return[frame])
        if g.count_minimum[ret] < 0:
            return 0
        needed = max(needed, i64(g.count_minimum[ret]) - a.frame_count[frame])
        if g.count_maximum[ret] >= 0:
            remaining = min(remaining, i64(g.count_maximum[ret]) - a.frame_count[frame])
    if needed > t.most_completed[0] and remaining >= t.most_begun[0]:
        _add_inside(address, remaining, is_first, row)
        return 1
    w.item_state[0], w.item_node[0] = state, node
    alone = intern_configuration(memory, w.item_state, w.item_node, i64(1), i64(0))
    if alone < 0:
        return alone
    behind = alone
    for byte in t.word:
        behind = transition(memory, behind, i64(byte))
        if behind < 0:
            return behind
    for _ in range(1, needed):
        for byte in t.unit:
            behind = transition(memory, behind, i64(byte))
            if behind < 0:
                return behind
    if t.is_counted[0] == 1:
        # What goes on with the span has counted the units.
        frame = i64(a.node_start[node])
        ret, count = i64(a.frame_return[frame]), i64(a.frame_count[frame]) + needed
        w.frame_return[0], w.frame_parent[0] = ret, a.frame_parent[frame]
        w.frame_count[0] = min(count, i64(g.count_minimum[ret])) if g.count_maximum[ret] < 0 else count
        node = intern_node(memory, w.frame_return, w.frame_count, w.frame_parent, i64(1))
        if node < 0:
            return node
    is_clear = _is_clear(memory, state, node, behind)
    if t.is_counted[0] == 1 and not is_clear:
        return 0
    if not is_clear and t.crossing[0] == 0:
        a.sizes[WANTED_SPAN] = -i64(s.state_span[state])
        return MISSING_SPAN
    _add_inside(address, remaining, is_first, row)
    if is_clear:
        behind = _without_span(memory, state, node, behind)
        if behind < 0:
            return behind
        code = walk(memory, i64(t.exits[0]), behind, needed, remaining, row)
    else:
        code = walk(memory, i64(t.crossing[0]), alone, i64(0), i64(0), row)
    return code if code < 0 else i64(1)


@compiled
def _is_clear(memory: int, state: int, node: int, behind: int) -> bool:
    """Tell whether no byte that follows a span, in `behind`, could also go on with it: tokens leave it in one way.

    What does go on with it there has the stack `node`.
    """
    g, a, s = tables(memory), arena(memory), span_arrays(memory)
    t = span_table(s.address[s.state_span[state] - 1])
    for item in range(a.configuration_start[behind], a.configuration_start[behind + 1]):
        follower = i64(a.item_state[item])
        if _is_in_loop(memory, state, node, follower, i64(a.item_node[item])):
            continue
        for edge in range(g.edge_start[follower], g.edge_start[follower + 1]):
            if t.going_on[i64(g.edge_high[edge]) + 1] > t.going_on[g.edge_low[edge]]:
                return False
    return True


@compiled
def _without_span(memory: int, state: int, node: int, behind: int) -> int:
    """Return the configuration of what follows a span alone, without the items that go on with it."""
    a, w = arena(memory), scratch(memory)
    first, last = i64(a.configuration_start[behind]), i64(a.configuration_start[behind + 1])
    if last - first > len(w.item_state):
        return i64(GROW_SCRATCH)
    n = i64(0)
    for item in range(first, last):
        if not _is_in_loop(memory, state, node, i64(a.item_state[item]), i64(a.item_node[item])):
            w.item_state[n], w.item_node[n] = a.item_state[item], a.item_node[item]
            n += 1
    return intern_configuration(memory, w.item_state, w.item_node, n, i64(0))


@compiled
def _is_in_loop(memory: int, state: int, node: int, other_state: int, other_node: int) -> bool:
    """Tell whether an item behind the end of a span goes on with it, with the stack `node`.

    Others may be in the same automaton: in another place, or as a call from elsewhere.
    """
    s = span_arrays(memory)
    if other_node != node or s.state_span[other_state] == 0:
        return False
    t = span_table(s.address[s.state_span[state] - 1])
    return bool(s.state_loop[other_state] == s.state_loop[state] and s.state_place[other_state] == t.end_place[0])


@compiled
def _add_inside(span: int, remaining: int, is_first: bool, row: Int32s) -> None:
    """Add the tokens that stay in the span and begin at most `remaining` units, to nothing where `is_first`."""
    t = span_table(span)
    num_words = len(row)
    number = i64(0) if remaining >= t.most_begun[0] else min(remaining, i64(NUM_COUNTED_ROWS))
    start = number * num_words
    if is_first:
        row[:] = t.inside[start : start + num_words]
    else:
        for word in range(num_words):
            row[word] |= t.inside[start + word]
    if number > 0 and remaining > NUM_COUNTED_ROWS:
        for j in range(len(t.long_token)):
            if t.long_begun[j] > remaining:
                break
            _set(row, i64(t.long_token[j]))


@compiled
def _with_bases(memory: int, configuration: int) -> int:
    """Return the configuration with each state's base in its place: itself, where no state has one."""
    g, a, w = tables(memory), arena(memory), scratch(memory)
    first, last = i64(a.configuration_start[configuration]), i64(a.configuration_start[configuration + 1])
    found = False
    for item in range(first, last):
        if g.base[a.item_state[item]] != a.item_state[item]:
            found = True
            break
    if not found:
        return configuration
    if last - first > len(w.item_state):
        return GROW_SCRATCH
    for item in range(first, last):
        w.item_state[item - first] = g.base[a.item_state[item]]
        w.item_node[item - first] = a.item_node[item]
    accepts = i64(a.configuration_accepts[configuration])
    return intern_configuration(memory, w.item_state, w.item_node, last - first, accepts)


@compiled
def _note_differences(memory: int, configuration: int, base: int, level: int) -> int:
    """Write the bytes on which a configuration and another one may part to `differs` at `level`; return 0 or a code."""
    a, s, w = arena(memory), span_arrays(memory), scratch(memory)
    start = 256 * level
    with_bases = _with_bases(memory, configuration)
    if with_bases < 0:
        return with_bases
    if with_bases != base:
        w.differs[start : start + 256] = 1
        return 0
    w.differs[start : start + 256] = 0
    for item in range(a.configuration_start[configuration], a.configuration_start[configuration + 1]):
        state = a.item_state[item]
        for j in range(s.difference_start[state], s.difference_start[state + 1]):
            w.differs[start + s.difference[j]] = 1
    return 0


@compiled
def _walk_difference(memory: int, configuration: int, base: int, row: Int32s) -> int:
    """Make the mask of `base` that of `configuration`: visit the tokens on whose way the two are not the same.

    The bytes on which two configurations part are noted once per depth, for all further nodes there to which the same
    two lead: in a loop, nearly all. Where they change so often that noting them takes half as long as a walk, it walks.
    """
    g, a, w, t = tables(memory), arena(memory), scratch(memory), trie_arrays(vocabulary_arrays(memory).trie[0])
    num_classes = a.sizes[NUM_CLASSES]
    w.path[0], w.base_path[0] = configuration, base
    code = _note_differences(memory, configuration, base, i64(0))
    if code < 0:
        return code
    num_levels = i64(1)  # that have been noted; each for the two on the paths
    n = len(t.byte)
    notes_left = max(n // _NODES_PER_NOTE, i64(_MIN_NOTES))
    i = i64(0)
    while i < n:
        depth = i64(t.depth[i])
        byte = i64(t.byte[i])
        if w.differs[256 * depth + byte] == 0:
            i = i64(t.end[i])
            continue
        mine = i64(a.transitions[w.path[depth] * num_classes + g.byte_class[byte]])
        if mine == UNKNOWN:
            mine = transition(memory, i64(w.path[depth]), byte)
            if mine < 0:
                return mine
        other = i64(a.transitions[w.base_path[depth] * num_classes + g.byte_class[byte]])
        if other == UNKNOWN:
            other = transition(memory, i64(w.base_path[depth]), byte)
            if other < 0:
                return other
        if mine == other:
            i = i64(t.end[i])
            continue
        if mine == DEAD:
            for j in range(t.token_start[i], t.token_start[t.end[i]]):
                _clear(row, i64(t.token_id[j]))
            i = i64(t.end[i])
            continue
        for j in range(t.token_start[i], t.token_start[i + 1]):
            _set(row, i64(t.token_id[j]))
        i += 1
        level = depth + 1
        if i == t.end[i - 1] or (level < num_levels and w.path[level] == mine and w.base_path[level] == other):
            continue
        if notes_left == 0:
            return _fill(memory, configuration, row)
        notes_left -= 1
        w.path[level], w.base_path[level] = mine, other
        num_levels = max(num_levels, level + 1)
        code = _note_differences(memory, mine, other, level)
        if code < 0:
            return code
    return 0


@compiled
def advance(memory: int, configuration: int, token_id: int) -> int:
    """Return the configuration after a token (DEAD: it may not follow; TERMINATED: it was an end token), or a code."""
    a, v = arena(memory), vocabulary_arrays(memory)
    if configuration == TERMINATED:
        return i64(DEAD)
    if not FIRST_CONFIGURATION <= configuration < a.sizes[NUM_CONFIGURATIONS]:
        return i64(UNKNOWN_STATE)
    a.sizes[FUEL] = a.sizes[MAX_FUEL]
    for end_token in v.end_token:
        if token_id == end_token:
            return i64(TERMINATED) if a.configuration_accepts[configuration] == 1 else i64(DEAD)
    if not 0 <= token_id < len(v.text_start) - 1 or v.text_start[token_id] == v.text_start[token_id + 1]:
        return i64(DEAD)
    return accept_token(memory, configuration, token_id)


@compiled
def advance_all(
    memories: Int64s, states: Int64s, token_ids: Int64s, out: npt.NDArray[np.int32], items: Int64s, first: int
) -> tuple[int, int]:
    """Take the token of each of `items`, from the `first` on, and write the mask behind it to its row of `out`.

    `states` are the configurations before and after; a row is all zero where nothing may follow. Return the place in
    `items` where it stopped and why: a code, or the number of items and 0.
    """
    for place in range(first, len(items)):
        item = items[place]
        memory = memories[item]
        target = advance(memory, states[item], token_ids[item])
        if target < TERMINATED:
            return i64(place), target
        if target <= DEAD:  # or TERMINATED
            out[item, :] = 0
        else:
            number = mask(memory, target)
            if number < 0:
                return i64(place), number
            out[item, :] = row_at(arena(memory).row_address[number], i64(out.shape[1]))
        states[item] = target
    return i64(len(items)), i64(0)
