"""The compiled transitions between configurations. Runs without the GIL.

A *configuration* is a set of items (state, stack node): every way in which the bytes so far can be read. A *stack node*
is a set of frames (return state, count, parent node): what to go on with when the present rule ends. Both are interned
("hash-consed"): the same set is the same integer, so a state of a matcher is one integer, transitions can be remembered
in a flat table, and equal futures are found to be equal. Sharing stack nodes is what keeps ambiguous grammars
polynomial (Tomita, "Efficient Parsing for Natural Language", 1985: the graph-structured stack).

One transition has three phases:

1. *Advance*: follow the byte from every item; follow epsilons; where a rule ends, pop its frames. No rule is ever
   entered here.
2. *Merge*: positions that share state and count but differ in stack become one position with the union of the frames.
3. *Call*: enter rules in topological order of their left calls (callers first; the lowering removed left recursion), so
   that each rule is entered once, with all its frames known. Nothing is popped here: the lowering put an epsilon beside
   every call of a rule that may match nothing.

Most transitions lead from one plain state to another (inside a key, a number, a string): those skip all three.

Every kernel takes `memory`, the address of the grammar's pointer table (`tables.py`). `reference.py` is the plain
Python twin that tests compare this with.
"""

from __future__ import annotations

from typing import Final

from services.constraint.core.compiling import compiled
from services.constraint.core.interning import intern_configuration, intern_node
from services.constraint.core.tables import (
    BOTTOM,
    DEAD,
    FUEL,
    GROW_SCRATCH,
    HIGH_BYTE,
    INCONSISTENT,
    LOW_BYTE,
    NUM_CLASSES,
    OUT_OF_FUEL,
    UNKNOWN,
    Int32s,
    Uint8s,
    arena,
    i64,
    scratch,
    tables,
    vocabulary_arrays,
)

# A step along a chain of positions, or a frame copied, costs a fraction of what a state does.
_STEPS_PER_FUEL: Final = 8
# More items are looked through pair by pair for too long.
_MAX_PLAIN: Final = 16


@compiled
def _add_position(memory: int, n: int, state: int, count: int, node: int) -> int:
    """Add a position unless it is there; return the new number of positions, or GROW_SCRATCH."""
    a, w = arena(memory), scratch(memory)
    clock = w.clock[0]
    head = -1
    if w.state_stamp[state] == clock:
        head = w.state_head[state]
        i = head
        steps = i64(0)
        while i >= 0:
            if w.position_node[i] == node and w.position_count[i] == count:
                return n
            i = w.position_next[i]
            steps += 1
        a.sizes[FUEL] -= steps // _STEPS_PER_FUEL
    if n >= len(w.position_state):
        return GROW_SCRATCH
    w.position_state[n] = state
    w.position_count[n] = count
    w.position_node[n] = node
    w.position_next[n] = head
    w.position_done[n] = 0
    w.state_stamp[state] = clock
    w.state_head[state] = n
    return n + 1


@compiled
def _push_rule(heap: Int32s, n: int, rule: int) -> int:
    i = n
    while i > 0:
        parent = (i - 1) // 2
        if heap[parent] <= rule:
            break
        heap[i] = heap[parent]
        i = parent
    heap[i] = rule
    return n + 1


@compiled
def _pop_rule(heap: Int32s, n: int) -> int:
    """Move the least rule of the heap of n to heap[n - 1]."""
    least = heap[0]
    last = heap[n - 1]
    i = i64(0)
    while True:
        child = 2 * i + 1
        if child >= n - 1:
            break
        if child + 1 < n - 1 and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= last:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = last
    heap[n - 1] = least
    return n - 1


@compiled
def _add_entry(memory: int, entries: int, waiting: int, rule: int, ret: int, count: int, parent: int) -> int:
    """Note that `rule` is to be entered with this frame; return the new number of waiting rules, or GROW_SCRATCH."""
    w = scratch(memory)
    if entries >= len(w.entry_return):
        return GROW_SCRATCH
    head = -1
    if w.rule_stamp[rule] == w.clock[0]:
        head = w.rule_head[rule]
    else:
        w.rule_stamp[rule] = w.clock[0]
        waiting = _push_rule(w.rule_heap, waiting, rule)
    w.entry_return[entries] = ret
    w.entry_count[entries] = count
    w.entry_parent[entries] = parent
    w.entry_next[entries] = head
    w.rule_head[rule] = entries
    return waiting


@compiled
def _enter_calls(memory: int, state: int, count: int, node: int, entries: int, waiting: int) -> tuple[int, int]:
    """Note the calls of a state.

    Return the new numbers of entries and of waiting rules (or GROW_SCRATCH in the second).
    """
    g, a = tables(memory), arena(memory)
    if g.count_minimum[state] >= 0 and g.count_maximum[state] >= 0 and count >= g.count_maximum[state]:
        return entries, waiting
    for call in range(g.call_start[state], g.call_start[state + 1]):
        rule = i64(g.call_rule[call])
        if g.call_is_tail[call] == 1:
            # What follows the return is the end of the caller, so the callee returns to the caller's callers at once.
            for frame in range(a.node_start[node], a.node_start[node + 1]):
                waiting = _add_entry(
                    memory,
                    entries,
                    waiting,
                    rule,
                    i64(a.frame_return[frame]),
                    i64(a.frame_count[frame]),
                    i64(a.frame_parent[frame]),
                )
                if waiting < 0:
                    return entries, waiting
                entries += 1
        else:
            waiting = _add_entry(memory, entries, waiting, rule, i64(g.call_return[call]), count, node)
            if waiting < 0:
                return entries, waiting
            entries += 1
    return entries, waiting


@compiled
def _enter_rules(memory: int, entries: int, waiting: int, items: int, accepts: int) -> int:
    """Phase 3: enter the waiting rules, add the items at their starts, and intern the configuration."""
    g, a, w = tables(memory), arena(memory), scratch(memory)
    clock = w.clock[0]
    while waiting > 0:
        waiting = _pop_rule(w.rule_heap, waiting)
        rule = i64(w.rule_heap[waiting])
        n = i64(0)
        entry = w.rule_head[rule]
        while entry >= 0:
            if n >= len(w.frame_return):
                return GROW_SCRATCH
            w.frame_return[n] = w.entry_return[entry]
            w.frame_count[n] = w.entry_count[entry]
            w.frame_parent[n] = w.entry_parent[entry]
            n += 1
            entry = w.entry_next[entry]
        node = intern_node(memory, w.frame_return, w.frame_count, w.frame_parent, n)
        if node < 0:
            return node
        w.worklist[0] = g.rule_start[rule]
        w.seen_stamp[g.rule_start[rule]] = clock
        todo = i64(1)
        while todo > 0:
            todo -= 1
            state = i64(w.worklist[todo])
            a.sizes[FUEL] -= 1
            if g.edge_start[state] < g.edge_start[state + 1]:
                if items >= len(w.item_state):
                    return GROW_SCRATCH
                w.item_state[items] = state
                w.item_node[items] = node
                items += 1
            entries, waiting = _enter_calls(memory, state, i64(0), node, entries, waiting)
            if waiting < 0:
                return waiting
            for epsilon in range(g.epsilon_start[state], g.epsilon_start[state + 1]):
                target = g.epsilon_target[epsilon]
                if w.seen_stamp[target] != clock:
                    w.seen_stamp[target] = clock
                    w.worklist[todo] = target
                    todo += 1
    if a.sizes[FUEL] < 0:
        return OUT_OF_FUEL
    return intern_configuration(memory, w.item_state, w.item_node, items, accepts)


@compiled
def start_configuration(memory: int, rule: int, accepts: int) -> int:
    """Return the configuration before the first byte; `accepts` tells whether the empty text is complete."""
    w = scratch(memory)
    w.clock[0] += 1
    w.frame_return[0] = BOTTOM
    w.frame_count[0] = 0
    w.frame_parent[0] = 0
    bottom = intern_node(memory, w.frame_return, w.frame_count, w.frame_parent, i64(1))
    if bottom < 0:
        return bottom
    waiting = _add_entry(memory, i64(0), i64(0), rule, i64(BOTTOM), i64(0), i64(0))
    return _enter_rules(memory, i64(1), waiting, i64(0), accepts)


@compiled
def _follow(memory: int, configuration: int, byte: int) -> int:
    """Write where `byte` leads from each item to the scratch items, as they come; return how many, or GROW_SCRATCH.

    LOW_BYTE and HIGH_BYTE become the interval around it in which no edge begins or ends.
    """
    g, a, w = tables(memory), arena(memory), scratch(memory)
    n = i64(0)
    low, high = i64(0), i64(255)
    for item in range(a.configuration_start[configuration], a.configuration_start[configuration + 1]):
        state = a.item_state[item]
        for edge in range(g.edge_start[state], g.edge_start[state + 1]):
            if g.edge_low[edge] > byte:
                high = min(high, i64(g.edge_low[edge]) - 1)
                break
            if g.edge_high[edge] < byte:
                low = max(low, i64(g.edge_high[edge]) + 1)
                continue
            low, high = max(low, i64(g.edge_low[edge])), min(high, i64(g.edge_high[edge]))
            if n >= len(w.item_state):
                return i64(GROW_SCRATCH)
            w.item_state[n], w.item_node[n] = g.edge_target[edge], a.item_node[item]
            n += 1
    a.sizes[LOW_BYTE], a.sizes[HIGH_BYTE] = low, high
    return n


@compiled
def _are_plain(memory: int, n: int) -> bool:
    """Tell whether the first n scratch items are a configuration as they stand: plain states, no two the same."""
    g, w = tables(memory), scratch(memory)
    if n > _MAX_PLAIN:
        return False
    for i in range(n):
        if g.is_plain[w.item_state[i]] == 0:
            return False
        for other in range(i):
            # Two stacks in one state are to be merged.
            if w.item_state[other] == w.item_state[i]:
                return False
    return True


@compiled
def step(memory: int, configuration: int, byte: int) -> int:
    """Return the configuration after `byte`: DEAD, a configuration, or a negative code. Not memoised.

    See `transition`.
    """
    a, w = arena(memory), scratch(memory)
    followed = _follow(memory, configuration, byte)
    if followed < 0:
        return followed
    if _are_plain(memory, followed):
        a.sizes[FUEL] -= 1 + followed
        if a.sizes[FUEL] < 0:
            return OUT_OF_FUEL
        return intern_configuration(memory, w.item_state, w.item_node, followed, i64(0))
    w.clock[0] += 1
    n = i64(0)
    for i in range(followed):
        n = _add_position(memory, n, i64(w.item_state[i]), i64(0), i64(w.item_node[i]))
        if n < 0:
            return n
    return _closed(memory, n, i64(0))


@compiled
def behind_node(memory: int, node: int) -> int:
    """Return the configuration behind a return through a node, or a negative code. Remembered."""
    a, w = arena(memory), scratch(memory)
    if a.node_behind[node] == UNKNOWN:
        w.clock[0] += 1
        n, accepts = _return(memory, i64(0), node)
        if n < 0:
            return n
        behind = _closed(memory, n, accepts)
        if behind < 0:
            return behind
        a.node_behind[node] = behind
    return i64(a.node_behind[node])


@compiled
def _return(memory: int, n: int, node: int) -> tuple[int, int]:
    """Add the positions behind a return through a node; return the new number (or a code), and 1 at the text's end."""
    g, a = tables(memory), arena(memory)
    accepts = i64(0)
    for frame in range(a.node_start[node], a.node_start[node + 1]):
        ret = i64(a.frame_return[frame])
        if ret == BOTTOM:
            accepts = i64(1)
            continue
        returned = i64(0)
        if g.count_minimum[ret] >= 0:
            returned = i64(a.frame_count[frame]) + 1
            if g.count_maximum[ret] < 0:
                # Past the minimum every count has the same future.
                returned = min(returned, i64(g.count_minimum[ret]))
        n = _add_position(memory, n, ret, returned, i64(a.frame_parent[frame]))
        if n < 0:
            break
    return n, accepts


@compiled
def _closed(memory: int, n: int, accepts: int) -> int:
    """Return the configuration of the first n positions and of all that follows from them without a byte, or a code."""
    g, a, w = tables(memory), arena(memory), scratch(memory)
    i = i64(0)
    while i < n:
        state, count, node = i64(w.position_state[i]), i64(w.position_count[i]), i64(w.position_node[i])
        i += 1
        a.sizes[FUEL] -= 1
        if a.sizes[FUEL] < 0:
            return i64(OUT_OF_FUEL)
        for epsilon in range(g.epsilon_start[state], g.epsilon_start[state + 1]):
            n = _add_position(memory, n, i64(g.epsilon_target[epsilon]), i64(0), node)
            if n < 0:
                return n
        if g.is_accepting[state] == 1 or (g.count_minimum[state] >= 0 and count >= g.count_minimum[state]):
            n, is_end = _return(memory, n, node)
            if n < 0:
                return n
            accepts |= is_end
    items = i64(0)
    entries = i64(0)
    waiting = i64(0)
    for i in range(n):
        state = i64(w.position_state[i])
        has_edges = g.edge_start[state] < g.edge_start[state + 1]
        if w.position_done[i] == 1 or not (has_edges or g.call_start[state] < g.call_start[state + 1]):
            continue
        count, node = i64(w.position_count[i]), i64(w.position_node[i])
        merged = i64(0)
        j = w.state_head[state]
        steps = i64(0)
        while j >= 0:
            steps += 1
            if w.position_count[j] == count:
                w.position_done[j] = 1
                if j != i:
                    merged += 1
            j = w.position_next[j]
        if merged > 0:
            frames = i64(0)
            j = w.state_head[state]
            while j >= 0:
                if w.position_count[j] == count:
                    other = w.position_node[j]
                    steps += i64(a.node_start[other + 1] - a.node_start[other])
                    for frame in range(a.node_start[other], a.node_start[other + 1]):
                        if frames >= len(w.frame_return):
                            return GROW_SCRATCH
                        w.frame_return[frames] = a.frame_return[frame]
                        w.frame_count[frames] = a.frame_count[frame]
                        w.frame_parent[frames] = a.frame_parent[frame]
                        frames += 1
                j = w.position_next[j]
            node = intern_node(memory, w.frame_return, w.frame_count, w.frame_parent, frames)
            if node < 0:
                return node
        a.sizes[FUEL] -= steps // _STEPS_PER_FUEL
        if a.sizes[FUEL] < 0:
            return OUT_OF_FUEL
        if has_edges:
            if items >= len(w.item_state):
                return GROW_SCRATCH
            w.item_state[items] = state
            w.item_node[items] = node
            items += 1
        entries, waiting = _enter_calls(memory, state, count, node, entries, waiting)
        if waiting < 0:
            return waiting
    return _enter_rules(memory, entries, waiting, items, accepts)


@compiled
def transition(memory: int, configuration: int, byte: int) -> int:
    """As `step`, remembered for all bytes that do the same."""
    g, a = tables(memory), arena(memory)
    row = configuration * a.sizes[NUM_CLASSES]
    target = i64(a.transitions[row + g.byte_class[byte]])
    if target == UNKNOWN:
        target = step(memory, configuration, byte)
        if target > UNKNOWN:
            first, last = g.byte_class[a.sizes[LOW_BYTE]], g.byte_class[a.sizes[HIGH_BYTE]]
            for cell in range(row + first, row + last + 1):
                a.transitions[cell] = target
    return target


@compiled
def accept_token(memory: int, configuration: int, token_id: int) -> int:
    """Return the configuration after a token that stands for text: DEAD, a configuration, or a negative code."""
    v = vocabulary_arrays(memory)
    for at in range(v.text_start[token_id], v.text_start[token_id + 1]):
        configuration = transition(memory, configuration, i64(v.text[at]))
        if configuration <= DEAD:
            return configuration
    return configuration


@compiled
def forced_byte(memory: int, configuration: int) -> int:
    """Return the only byte that may follow, or -1 where the text may end or several may follow."""
    g, a = tables(memory), arena(memory)
    if a.configuration_accepts[configuration] == 1:
        return -1
    forced = -1
    for item in range(a.configuration_start[configuration], a.configuration_start[configuration + 1]):
        state = a.item_state[item]
        for edge in range(g.edge_start[state], g.edge_start[state + 1]):
            low = g.edge_low[edge]
            if low != g.edge_high[edge] or (forced >= 0 and low != forced):
                return -1
            forced = i64(low)
    return forced


@compiled
def forced_bytes(memory: int, configuration: int, out: Uint8s) -> tuple[int, int]:
    """Write the bytes that must follow to `out`, at most its length.

    Return how many and the configuration behind them, or a negative code as the first.
    """
    n = i64(0)
    while n < len(out):
        byte = forced_byte(memory, configuration)
        if byte < 0:
            break
        target = transition(memory, configuration, byte)
        if target < 0:
            return target, configuration
        out[n] = byte
        configuration = target
        n += 1
    return n, configuration


@compiled
def _readable(low: int, high: int, usable: Uint8s) -> int:
    """Choose a usable byte between low and high that reads well in a text that was closed early."""
    if low <= 97 <= high and usable[97] == 1:
        return 97  # a
    if low <= 48 <= high and usable[48] == 1:
        return 48  # 0
    while usable[low] == 0:
        low += 1
    return low


@compiled
def shortest_bytes(memory: int, configuration: int, usable: Uint8s, out: Uint8s) -> int:
    """Write the beginning of a shortest completion to `out`, at most its length.

    `usable` (256,) is 1 for the bytes that the vocabulary can write (`lowering.restrict`). Return how many bytes were
    written, or a negative code.
    """
    g, a = tables(memory), arena(memory)
    n = i64(0)
    while n < len(out) and a.configuration_distance[configuration] > 0:
        distance = a.configuration_distance[configuration]
        byte = -1
        for item in range(a.configuration_start[configuration], a.configuration_start[configuration + 1]):
            state = a.item_state[item]
            rest = a.node_distance[a.item_node[item]]
            if g.byte_distance[state] + rest == distance:
                for edge in range(g.edge_start[state], g.edge_start[state + 1]):
                    if g.distance[g.edge_target[edge]] + 1 + rest == distance:
                        byte = _readable(i64(g.edge_low[edge]), i64(g.edge_high[edge]), usable)
                        break
                if byte >= 0:
                    break
        if byte < 0:
            return INCONSISTENT
        target = transition(memory, configuration, byte)
        if target < 0:
            return target
        if a.configuration_distance[target] >= distance:
            return INCONSISTENT
        out[n] = byte
        configuration = target
        n += 1
    return n
