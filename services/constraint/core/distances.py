"""Fewest bytes to the end: what says which states can be completed at all, and by what.

Derived from the other tables by relaxation. Whatever has no way to the end is cut off, so that every configuration that
is alive can be completed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiling import compiled
from services.constraint.core.tables import TOO_FAR, UNREACHABLE, Int32s, Tables, Uint8s


def unmeasured(num_states: int, num_calls: int) -> dict[str, Any]:
    """Return the derived fields of `Tables` as they are before `measured` fills them."""
    return {
        "call_is_tail": np.zeros(num_calls, np.uint8),
        "is_plain": np.zeros(num_states, np.uint8),
        "distance": np.full(num_states, UNREACHABLE, np.int32),
        "byte_distance": np.full(num_states, UNREACHABLE, np.int32),
        "body_distance": np.full(num_states, UNREACHABLE, np.int32),
        "byte_class": np.zeros(256, np.uint8),
    }


def measured(tables: Tables, start_rule: int) -> tuple[Tables, int]:
    """Return the tables with all derived fields, without what has no way to the end, and the shortest length.

    The length is UNREACHABLE where `start_rule` matches nothing but, perhaps, the empty text; TOO_FAR where it has no
    shorter text than that.
    """
    tables = tables._replace(**unmeasured(len(tables.is_accepting), len(tables.call_rule)))
    if not _measure(tables):
        tables = _pruned(tables)
    _describe(tables)
    return tables, int(tables.distance[tables.rule_start[start_rule]])


def with_bytes(tables: Tables, usable_bytes: Uint8s) -> Tables | None:
    """Return the tables without the edges that none of these bytes follows, unmeasured; None where there are none such.

    `usable_bytes` (256,) is 1 for each usable byte.
    """
    usable_before = np.zeros(257, np.int32)
    np.cumsum(usable_bytes, out=usable_before[1:])
    keep_edge = usable_before[tables.edge_high.astype(np.int32) + 1] > usable_before[tables.edge_low]
    return None if keep_edge.all() else _with_edges(tables, keep_edge)


@compiled
def _measure(g: Tables) -> bool:
    """Fill the distances, and mark tail calls; tell whether everything has a way to the end.

    Label-correcting: when a state gets nearer, those that lead to it are looked at again. A state leads to another by
    an edge, an epsilon, a call that returns there, or a call of the rule that begins there.
    """
    num_states = len(g.is_accepting)
    start, source = _leading_to(g)
    waiting = np.empty(num_states, np.int32)  # a ring of states to look at
    is_waiting = np.ones(num_states, np.bool_)
    for state in range(num_states):
        # Chains run forwards, so going backwards settles most of them at once.
        waiting[num_states - 1 - state] = state
    first, count = 0, num_states
    while count > 0:
        state = waiting[first]
        first = first + 1 if first + 1 < num_states else 0
        count -= 1
        is_waiting[state] = False
        best = _distance_of(g, state)
        if best < g.distance[state]:
            g.distance[state] = best
            for i in range(start[state], start[state + 1]):
                if not is_waiting[source[i]]:
                    is_waiting[source[i]] = True
                    last = first + count
                    waiting[last if last < num_states else last - num_states] = source[i]
                    count += 1
    for state in range(num_states):
        for edge in range(g.edge_start[state], g.edge_start[state + 1]):
            there = g.distance[g.edge_target[edge]] + 1
            g.byte_distance[state] = min(g.byte_distance[state], there)
        for call in range(g.call_start[state], g.call_start[state + 1]):
            if g.count_minimum[state] < 0 and _only_ends(g, g.call_return[call]):
                g.call_is_tail[call] = 1
    is_whole = True
    for state in range(num_states):
        # A state that nothing leads to is in nobody's way.
        is_whole = is_whole and (start[state] == start[state + 1] or g.distance[state] < TOO_FAR)
    return is_whole


@compiled
def _describe(g: Tables) -> None:
    """Fill `is_plain` and `byte_class`."""
    begins = np.zeros(257, np.uint8)
    for state in range(len(g.is_accepting)):
        first, last = g.edge_start[state], g.edge_start[state + 1]
        if (
            first < last
            and g.epsilon_start[state] == g.epsilon_start[state + 1]
            and g.call_start[state] == g.call_start[state + 1]
            and g.is_accepting[state] == 0
            and g.count_minimum[state] < 0
        ):
            g.is_plain[state] = 1
        for edge in range(first, last):
            begins[g.edge_low[edge]] = 1
            begins[np.int64(g.edge_high[edge]) + 1] = 1
    number = np.int64(0)
    for byte in range(1, 256):
        number += begins[byte]
        g.byte_class[byte] = number


@compiled
def _distance_of(g: Tables, state: int) -> np.int64:
    """Return the distance of a state by the present ones of those that it leads to."""
    best = np.int64(UNREACHABLE)
    if g.count_minimum[state] >= 0:
        call = g.call_start[state]
        if call == g.call_start[state + 1]:
            return best  # its body was cut off
        body = np.int64(g.distance[g.rule_start[g.call_rule[call]]])
        g.body_distance[state] = body
        return min(body * g.count_minimum[state], np.int64(TOO_FAR)) if body < UNREACHABLE else best
    if g.is_accepting[state] == 1:
        return np.int64(0)
    for edge in range(g.edge_start[state], g.edge_start[state + 1]):
        there = np.int64(g.distance[g.edge_target[edge]])
        if there < UNREACHABLE:
            best = min(best, there + 1, np.int64(TOO_FAR))
    for epsilon in range(g.epsilon_start[state], g.epsilon_start[state + 1]):
        best = min(best, np.int64(g.distance[g.epsilon_target[epsilon]]))
    for call in range(g.call_start[state], g.call_start[state + 1]):
        inside = np.int64(g.distance[g.rule_start[g.call_rule[call]]])
        behind = np.int64(g.distance[g.call_return[call]])
        if inside < UNREACHABLE and behind < UNREACHABLE:
            best = min(best, inside + behind, np.int64(TOO_FAR))
    return best


@compiled
def _leading_to(g: Tables) -> tuple[Int32s, Int32s]:
    """Return as rows (S + 1,) and (N,) the states that lead to each state."""
    num_states = len(g.is_accepting)
    start = np.zeros(num_states + 2, np.int32)
    source = np.empty(len(g.edge_target) + len(g.epsilon_target) + 2 * len(g.call_rule), np.int32)
    for is_filling in range(2):
        for state in range(num_states):
            for edge in range(g.edge_start[state], g.edge_start[state + 1]):
                _note(start, source, int(g.edge_target[edge]), state, is_filling)
            for epsilon in range(g.epsilon_start[state], g.epsilon_start[state + 1]):
                _note(start, source, g.epsilon_target[epsilon], state, is_filling)
            for call in range(g.call_start[state], g.call_start[state + 1]):
                _note(start, source, g.call_return[call], state, is_filling)
                _note(start, source, g.rule_start[g.call_rule[call]], state, is_filling)
        if is_filling == 0:
            for state in range(num_states):
                start[state + 2] += start[state + 1]
    return start[: num_states + 1], source


@compiled
def _note(start: Int32s, source: Int32s, target: int, state: int, is_filling: int) -> None:
    """Count one more that leads to `target`, or write it down: rows begin one place late, and move as they fill."""
    if is_filling == 1:
        source[start[target + 1]] = state
        start[target + 1] += 1
    else:
        start[target + 2] += 1


@compiled
def _only_ends(g: Tables, state: int) -> bool:
    """Tell whether nothing but the end of the rule follows a state."""
    for _ in range(len(g.is_accepting)):
        if g.edge_start[state] < g.edge_start[state + 1] or g.call_start[state] < g.call_start[state + 1]:
            return False
        if g.is_accepting[state] == 1:
            return True
        if g.epsilon_start[state + 1] - g.epsilon_start[state] != 1:
            return False
        state = g.epsilon_target[g.epsilon_start[state]]
    return False


def _pruned(g: Tables) -> Tables:
    """Cut off the edges, epsilons and calls that have no way to the end."""
    is_productive = g.distance < TOO_FAR
    keep_edge = is_productive[g.edge_target]
    keep_epsilon = is_productive[g.epsilon_target]
    keep_call = is_productive[g.call_return] & is_productive[g.rule_start[g.call_rule]]
    if keep_edge.all() and keep_epsilon.all() and keep_call.all():
        return g
    return _with_edges(g, keep_edge)._replace(
        epsilon_start=_kept_rows(g.epsilon_start, keep_epsilon),
        epsilon_target=g.epsilon_target[keep_epsilon],
        call_start=_kept_rows(g.call_start, keep_call),
        call_rule=g.call_rule[keep_call],
        call_return=g.call_return[keep_call],
        call_is_tail=g.call_is_tail[keep_call],
    )


def _with_edges(g: Tables, keep_edge: npt.NDArray[np.bool_]) -> Tables:
    return g._replace(
        edge_start=_kept_rows(g.edge_start, keep_edge),
        edge_low=g.edge_low[keep_edge],
        edge_high=g.edge_high[keep_edge],
        edge_target=g.edge_target[keep_edge],
    )


def _kept_rows(starts: Int32s, keep: npt.NDArray[np.bool_]) -> Int32s:
    kept_before = np.zeros(len(keep) + 1, np.int32)
    np.cumsum(keep, out=kept_before[1:])
    return kept_before[starts]
