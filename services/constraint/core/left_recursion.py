"""Left recursion becomes a loop, so that entering rules always comes to an end.

A rule *calls to the left* when it may call another before it has read a byte. Let C be rules that call each other to
the left in a circle, and A one of them. A text of A begins at some X in C whose first part is not a left call into C;
when X ends, it was the left call of some Z in C, which goes on behind that call; and so on, until A itself ends. So A
is the automaton with copies of all rules of C that

- begins at the consuming starts of all X,
- goes by an epsilon from the end of X to every place behind a left call of X,
- and ends at the end of A.

Calls of C's rules further inside stay calls. This is the left-corner idea (Rosenkrantz and Lewis, 1970) on automata; it
needs |C| squared copies, within the limit on states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.rpckit.status import GrammarTooLarge, UnsupportedConstruct

if TYPE_CHECKING:
    from services.constraint.core.lowering import Network


def remove(network: Network, *, max_states: int) -> list[int]:
    """Rewrite the rules of `network` that call themselves to the left; calls of nullable rules have their epsilons.

    Return all rules, callers to the left before their callees.

    Raises:
        GrammarTooLarge: the copies take more than `max_states` states.
        UnsupportedConstruct: a counted repetition is part of a circle.
    """
    graph = _LeftCalls(network)
    components = _circles(graph)
    circles = [circle for circle in components if len(circle) > 1 or circle[0] in graph.callees(circle[0])]
    if circles:
        if any(network.rule_start[rule] in network.counting for circle in circles for rule in circle):
            raise UnsupportedConstruct(
                "a rule calls itself to the left through a repetition with a large count; write the recursion "
                "to the right",
                construct="counted repetition in left recursion",
            )
        rewriter = _Rewriter(network, graph, max_states)
        rewritten = {rule: rewriter.loop(rule, frozenset(circle)) for circle in circles for rule in circle}
        for rule, (start, accept) in rewritten.items():
            network.rule_start[rule], network.rule_accept[rule] = start, accept
        components = _circles(_LeftCalls(network))
    # Components come callees first.
    return [rule for component in reversed(components) for rule in component]


class _LeftCalls:
    """What each rule can do before it reads a byte."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.epsilons: dict[int, list[int]] = {}
        for source, target in network.epsilons:
            self.epsilons.setdefault(source, []).append(target)
        self.calls: dict[int, list[tuple[int, int]]] = {}
        for state, rule, ret in network.calls:
            self.calls.setdefault(state, []).append((rule, ret))
        self._frontiers: dict[int, list[int]] = {}

    def frontier(self, rule: int) -> list[int]:
        """Return the states that `rule` can be in before it reads a byte."""
        known = self._frontiers.get(rule)
        if known is None:
            known = [self.network.rule_start[rule]]
            reached = set(known)
            for state in known:
                for target in self.epsilons.get(state, ()):
                    if target not in reached:
                        reached.add(target)
                        known.append(target)
            self._frontiers[rule] = known
        return known

    def callees(self, rule: int) -> list[int]:
        """Return the rules that `rule` calls to the left."""
        return [callee for state in self.frontier(rule) for callee, _ in self.calls.get(state, ())]


def _circles(graph: _LeftCalls) -> list[list[int]]:
    """Return the strongly connected components of the left calls, callees first (Tarjan 1972, without recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    components: list[list[int]] = []
    for root in range(len(graph.network.rule_start)):
        if root in number:
            continue
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(graph.callees(root)))]
        while work:
            rule, callees = work[-1]
            for callee in callees:
                if callee not in number:
                    number[callee] = low[callee] = len(number)
                    stack.append(callee)
                    on_stack.add(callee)
                    work.append((callee, iter(graph.callees(callee))))
                    break
                if callee in on_stack:
                    low[rule] = min(low[rule], number[callee])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[rule])
                if low[rule] == number[rule]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == rule:
                            break
                    components.append(component)
    return components


class _Rewriter:
    """Makes the loops.

    The network's own rules stay as they are until all are made, because each loop copies the originals.
    """

    def __init__(self, network: Network, graph: _LeftCalls, max_states: int) -> None:
        self._network = network
        self._graph = graph
        self._max_states = max_states
        self._edges: dict[int, list[tuple[int, int, int]]] = {}
        for source, low, high, target in network.edges:
            self._edges.setdefault(source, []).append((low, high, target))

    def loop(self, rule: int, circle: frozenset[int]) -> tuple[int, int]:
        """Return start and end of an automaton that matches what `rule` does and calls none of `circle` to the left."""
        network, graph = self._network, self._graph
        members = self._reached_to_the_left(rule, circle)
        copies: dict[int, int] = {}
        start, accept = network.new_state(), network.new_state()
        for member in members:
            for state in graph.frontier(member):
                for low, high, target in self._edges.get(state, ()):
                    network.edges.append((start, low, high, self._copy(target, copies)))
                for callee, ret in graph.calls.get(state, ()):
                    behind = self._copy(ret, copies)
                    if callee in circle:
                        end = self._copy(network.rule_accept[callee], copies)
                        network.epsilons.append((end, behind))
                    else:
                        network.calls.append((start, callee, behind))
        network.epsilons.append((self._copy(network.rule_accept[rule], copies), accept))
        return start, accept

    def _reached_to_the_left(self, rule: int, circle: frozenset[int]) -> list[int]:
        members = [rule]
        for member in members:
            members += [c for c in dict.fromkeys(self._graph.callees(member)) if c in circle and c not in members]
        return members

    def _copy(self, state: int, copies: dict[int, int]) -> int:
        """Return the copy of `state`, with all that follows it inside its rule."""
        if state in copies:
            return copies[state]
        network, graph = self._network, self._graph
        copies[state] = network.new_state()
        todo = [state]
        while todo:
            original = todo.pop()
            copy = copies[original]

            def copy_of(target: int) -> int:
                if target not in copies:
                    copies[target] = network.new_state()
                    todo.append(target)
                return copies[target]

            for low, high, target in self._edges.get(original, ()):
                network.edges.append((copy, low, high, copy_of(target)))
            network.epsilons.extend((copy, copy_of(target)) for target in graph.epsilons.get(original, ()))
            network.calls.extend((copy, callee, copy_of(ret)) for callee, ret in graph.calls.get(original, ()))
            if network.num_states > self._max_states:
                raise GrammarTooLarge(
                    f"without left recursion the grammar needs more than {self._max_states} states (limit max_states)",
                    limit="max_states",
                    value=self._max_states,
                )
        return copies[state]
