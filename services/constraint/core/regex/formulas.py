"""Boolean functions as integers: equal functions are the same integer.

Reduced ordered binary decision diagrams (R. E. Bryant, "Graph-Based Algorithms for Boolean Function Manipulation",
IEEE Transactions on Computers 35(8), 1986), with a table of nodes that only grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.rpckit.status import GrammarTooLarge

# Nodes of all functions of one pattern; about 2 us each.
MAX_FORMULA_NODES = 200_000
# Variables of one function: each costs a level of recursion. A pattern hardly waits for so much at once.
MAX_FORMULA_DEPTH = 150

FALSE = 0
TRUE = 1


class Formulas:
    """The functions over variables 0, 1, 2, ..."""

    def __init__(self) -> None:
        # A node is (variable, the function where it is false, the function where it is true). A variable stands above
        # all with larger numbers.
        self._nodes: list[tuple[int, int, int]] = [(-1, FALSE, FALSE), (-1, TRUE, TRUE)]
        self._depth = [0, 0]
        self._numbers: dict[tuple[int, int, int], int] = {}
        self._chosen: dict[tuple[int, int, int], int] = {}

    def variable(self, index: int) -> int:
        """Return the function that is the variable."""
        return self._node(index, FALSE, TRUE)

    def negate(self, a: int) -> int:
        """Return `not a`."""
        return self.choose(a, FALSE, TRUE)

    def both(self, a: int, b: int) -> int:
        """Return `a and b`."""
        return self.choose(a, b, FALSE)

    def either(self, a: int, b: int) -> int:
        """Return `a or b`."""
        return self.choose(a, TRUE, b)

    def choose(self, condition: int, then: int, otherwise: int) -> int:
        """Return `then` where the condition holds and `otherwise` where it does not."""
        if condition == TRUE or then == otherwise:
            return then
        if condition == FALSE:
            return otherwise
        if then == TRUE and otherwise == FALSE:
            return condition
        key = (condition, then, otherwise)
        result = self._chosen.get(key)
        if result is None:
            top = min(self._nodes[formula][0] for formula in key if formula > TRUE)
            low, high = zip(*(self._cofactors(formula, top) for formula in key), strict=True)
            result = self._chosen[key] = self._node(top, self.choose(*low), self.choose(*high))
        return result

    def _cofactors(self, formula: int, variable: int) -> tuple[int, int]:
        at, low, high = self._nodes[formula]
        return (low, high) if at == variable else (formula, formula)

    def _node(self, variable: int, low: int, high: int) -> int:
        if low == high:
            return low
        key = (variable, low, high)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._nodes)
            depth = 1 + max(self._depth[low], self._depth[high])
            if depth > MAX_FORMULA_DEPTH:
                _too_large("max_formula_depth", MAX_FORMULA_DEPTH)
            if number >= MAX_FORMULA_NODES:
                _too_large("max_formula_nodes", MAX_FORMULA_NODES)
            self._nodes.append(key)
            self._depth.append(depth)
        return number

    def variables(self, formulas: Iterable[int]) -> set[int]:
        """Return the variables that some function depends on."""
        seen: set[int] = set()
        todo = list(formulas)
        while todo:
            formula = todo.pop()
            if formula > TRUE and formula not in seen:
                seen.add(formula)
                todo.extend(self._nodes[formula][1:])
        return {self._nodes[formula][0] for formula in seen}

    def substitute(self, formula: int, value: Callable[[int], int], known: dict[int, int]) -> int:
        """Return the function with `value(variable)` for each variable; `known` remembers results."""
        if formula <= TRUE:
            return formula
        result = known.get(formula)
        if result is None:
            variable, low, high = self._nodes[formula]
            result = known[formula] = self.choose(
                value(variable), self.substitute(high, value, known), self.substitute(low, value, known)
            )
        return result

    def is_true_of_nothing(self, formula: int) -> bool:
        """Tell whether the function is true where all variables are false."""
        while formula > TRUE:
            formula = self._nodes[formula][1]
        return formula == TRUE


def _too_large(limit: str, value: int) -> None:
    raise GrammarTooLarge(
        f"look-around in a pattern waits for too many conditions at once (limit {limit} is {value}); use less of it",
        limit=limit,
        value=value,
    )
