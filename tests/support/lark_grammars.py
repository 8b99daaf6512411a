"""Random small Lark grammars whose terminals get in each other's way."""

from __future__ import annotations

from hypothesis import strategies as st

ALPHABET = "ab."
TERMINALS = ("A", "B", "C", "D")
RULES = ("start", "x", "y")

_PATTERNS = (
    *('"a"', '"b"', '"ab"', '"ba"', '"aa"', '"."', '"a"i', '"a."'),
    *("/a+/", "/[ab]+/", "/a|ab/", "/ab?/", "/a+?b?/", r"/a(\.a)?/", "/a+b/", r"/\.+/", "/b(?=a)a/", "/[ab]+!?/"),
)


_LOOKING_AHEAD = (
    *("/a(?!b)/", "/a(?=b)/", r"/[ab]+(?!\.)/", r"/[ab]+(?=\.)\.?/", "/a(?!a)a?/", r"/b(?:a(?!\.))*/", "/a*b(?!a|b)/"),
    *(r"/a(?=[ab]*\.)/", "/(?!ab)[ab]/", r"/a\b/", r"/(?:a|ab)(?!b)\.?/"),
)


def lark_grammars(*, look_ahead: bool = False) -> st.SearchStrategy[str]:
    """Grammars in Lark's language over the characters of ALPHABET, ambiguous and left-recursive ones among them.

    With `look_ahead`, what is behind a terminal's text counts too.
    """
    patterns = (*_PATTERNS, *_LOOKING_AHEAD) if look_ahead else _PATTERNS
    terminals = st.tuples(*(st.tuples(st.sampled_from(patterns), st.sampled_from(("", "", ".1"))) for _ in TERMINALS))
    symbols = st.sampled_from((*TERMINALS, *TERMINALS, *RULES[1:]))
    productions = st.lists(st.tuples(symbols, st.sampled_from(("", "", "", "?", "*", "+"))), max_size=3)
    rules = st.tuples(*(st.lists(productions, min_size=1, max_size=3) for _ in RULES))
    return st.builds(_text, terminals, rules, st.sampled_from(("", "", "C", "D", "C D")))


def _text(terminals: tuple[tuple[str, str], ...], rules: tuple[list[list[tuple[str, str]]], ...], ignored: str) -> str:
    lines = [
        f"{name}: " + " | ".join(" ".join(symbol + times for symbol, times in parts) for parts in options)
        for name, options in zip(RULES, rules, strict=True)
    ]
    lines += [f"{name}{priority}: {pattern}" for name, (pattern, priority) in zip(TERMINALS, terminals, strict=True)]
    return "\n".join([*lines, *(f"%ignore {name}" for name in ignored.split())]) + "\n"
