"""Writes `tests/unit/constraint/core/regex/ecma_cases.json`: what Node.js says of patterns and texts.

With Node.js on the path, after a change of the patterns below: `python -m tests.support.ecma_cases`. The tests read the
file only.

It has `texts`; `found`, from "pattern/flags" to a hexadecimal number whose bit i says whether the pattern is found in
text i; and `errors`, what Node.js does not take for a pattern.
"""

import itertools
import json
import random
import subprocess
from pathlib import Path

PATH = Path("tests/unit/constraint/core/regex/ecma_cases.json")
NUM_RANDOM_PATTERNS = 400

WRITTEN = [
    # edges
    *["^", "$", "^$", "^a", "a$", "a^b", "(?:^|-)a(?:$|-)", "(^a)+", "(?:^)*a", "(?:a$|b)*", r"a$\s", r"^\s|b^"],
    # word boundaries
    *[
        r"\b",
        r"\B",
        r"\bab\b",
        r"\Ba",
        r"a\B",
        r"a\b-",
        r"\b-",
        r"^\B",
        r"\B$",
        r"^\b\w+\b$",
        r"(?:\b|-)a",
        r"\b\B",
        r"(?:\ba)+",
    ],
    # look-ahead
    *[
        "(?=a)",
        "(?!a)",
        "^(?=a)",
        "^(?!a)",
        "(?=b)a",
        "^(?!.*ab)",
        "^(?=.*a)(?=.*b).{3}$",
        "^(?!ab$).*$",
        "a(?!b)",
        "a(?=$)",
    ],
    *[
        r"^(?!\s*$).+",
        "^(?:(?!ab).)*$",
        "^(?:(?=a)ab|b)*$",
        "(?=(?=a)[ab]b)",
        "(?!(?!a)b)",
        "(?=a(?!b)).-",
        "^(?=(?:ab)*$)a*",
    ],
    *[r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d).{8,}$", "^(?!.*(?:ab|ba)).*b$", "(?=)", "(?!)", "a(?!)|b"],
    # look-behind
    *[
        "(?<=a)",
        "(?<!a)",
        "(?<=a)b",
        "(?<!a)b",
        "(?<=^)a",
        "(?<=^|-)a",
        "(?<=a*)b",
        "(?<=a.*)b",
        "(?<!a.*)b",
        "(?<=a|bb)-",
    ],
    *[
        r"(?<=\ba)b",
        "(?<=(?<=a)b)-",
        "(?<!(?<!a)b)-",
        "(?<=a(?=b))",
        "(?<=a(?=.*-))b",
        "(?<!a(?!b)).$",
        "(?<=[^a]{2})b",
        "(?<=)a",
    ],
    *[
        "^.*(?<!a)$",
        r'(?<!\\)"',
        r'^"(?:.*?)(?<!\\)(?:\\\\)*"$',
        "(?<=(?=a)(?:a|b))b",
        "(?<=(?<!-)a)(?!-)",
        "(?<=a{2,3})b",
    ],
    # what an escape and a class mean
    *[
        r"^\s$",
        r"^\S$",
        r"^\w$",
        r"^\W$",
        r"^\d$",
        "^.$",
        "^[^]$",
        "[]",
        r"^\p{L}$",
        r"^\P{L}$",
        r"^\p{Lu}$",
        r"^\p{gc=Nd}$",
    ],
    *[
        r"^\p{Letter}+$",
        r"^\p{General_Category=Lowercase_Letter}$",
        r"^\p{Any}$",
        r"^\p{ASCII}+$",
        r"^\p{White_Space}$",
    ],
    *[
        r"^[\p{L}\d]$",
        r"^[^\p{L}\d]$",
        r"^\p{Uppercase}$",
        r"^\p{XID_Start}$",
        r"^\u{1F99C}$",
        r"^\uD83E\uDD9C$",
        r"^[\cA\cJ]$",
    ],
    # counts, greedy and lazy
    *[
        "^a{2}$",
        "^a{1,}$",
        "^a{1,2}$",
        "^a{0}$",
        "^(?:a|b-){1,2}?$",
        "^a??b$",
        "^(?:a*)*b$",
        "^(?:a?){3}$",
        "^(?:|a)+$",
    ],
]
# Patterns with other flags than `u`.
FLAGGED = [
    *[(pattern, "iu") for pattern in ("^a$", "^[^a]$", r"^\w$", r"^\W$", "^\u017f$", "^k$", r"^\p{Lu}$", r"^\P{Lu}$")],
    *[(pattern, "iu") for pattern in (r"^[^\P{Lu}]$", "^ß$", "^İ$", "^i$", r"\bk\b", r"^[\w-]$")],
    *[(pattern, "mu") for pattern in ("^a$", "^$", "a$", "(?<=^)b", "(?=$)", "(?!^).$", "^-|b$")],
]
WRONG = [
    "a{5,0}",
    "(?=a)*",
    "(?!a)?",
    "(?<=a)+",
    r"\b*",
    r"\B{2}",
    "^*",
    "$+",
    "a**",
    "a{2}{3}",
    "(",
    "(?=a",
    "[b-a]",
    "*",
    "(?<=",
    ")",
]

TEXTS = [
    *("".join(text) for length in range(5) for text in itertools.product("ab- ", repeat=length)),
    *(
        "\n",
        "a\n",
        "\na",
        "a\nb",
        "\u2028",
        "a\u2028b",
        "\r",
        "é",
        "aé",
        "éa",
        "한",
        "한a",
        "🦜",
        "a🦜b",
        "\u00a0",
        "\ufeff",
    ),
    *(
        "A",
        "_",
        "7",
        "a_7",
        "Ab",
        "k",
        "K",
        "\u212a",
        "s",
        "S",
        "\u017f",
        "ß",
        "ẞ",
        "i",
        "I",
        "İ",
        "ı",
        "\x01",
        "ⅷ",
        "٣",
    ),
    *(
        "passw0rd",
        "Passw0rd",
        "PASSW0RD",
        "ab ab ab",
        "aab-bab-ab",
        '"',
        '\\"',
        '""',
        '"a"',
        '"\\"',
        '"\\\\"',
        '"a\\"b"',
        '""a"',
    ),
]


def main() -> None:
    """Ask Node.js and write the file."""
    patterns = [*((pattern, "u") for pattern in [*WRITTEN, *_random_patterns(), *WRONG]), *FLAGGED]
    # A match starts between characters. V8 also tries the place inside a surrogate pair, so each start is asked for.
    script = """
        const {patterns, texts} = JSON.parse(require("fs").readFileSync(0))
        const starts = text => [...text].reduce((all, char) => [...all, all.at(-1) + char.length], [0])
        const isFound = (regex, text) => starts(text).some(start => (regex.lastIndex = start, regex.test(text)))
        const answers = patterns.map(([pattern, flags]) => {
          let regex
          try { regex = new RegExp(pattern, flags + "y") } catch { return null }
          return texts.map(text => isFound(regex, text) ? 1 : 0)
        })
        console.log(JSON.stringify([process.version, process.versions.unicode, answers]))
    """
    asked = json.dumps({"patterns": patterns, "texts": TEXTS})
    output = subprocess.run(["node", "-e", script], input=asked, capture_output=True, text=True, check=True).stdout
    version, unicode_version, answers = json.loads(output)
    found, errors = {}, []
    for (pattern, flags), answer in zip(patterns, answers, strict=True):
        if answer is None:
            errors.append(pattern)
        else:
            found[f"{pattern}/{flags}"] = f"{sum(bit << index for index, bit in enumerate(answer)):x}"
    assert sorted(errors) == sorted(WRONG), set(errors) ^ set(WRONG)
    content = {
        "written by": f"tests/support/ecma_cases.py with Node.js {version}, Unicode {unicode_version}",
        "texts": TEXTS,
        "found": found,
        "errors": errors,
    }
    PATH.write_text(json.dumps(content, indent=0, ensure_ascii=True) + "\n")


def _random_patterns() -> list[str]:
    generator = random.Random(262)
    return [_pattern(generator, 4) for _ in range(NUM_RANDOM_PATTERNS)]


def _pattern(generator: random.Random, depth: int) -> str:
    kind = generator.random() if depth else 0.0
    if kind < 0.35:
        return generator.choice(["a", "b", "-", " ", ".", r"\w", r"\s", "[^a]", "[ab]", "(?:)", "^", "$", r"\b", r"\B"])
    first = _pattern(generator, depth - 1)
    if kind < 0.55:
        return first + _pattern(generator, depth - 1)
    if kind < 0.65:
        return f"(?:{first}|{_pattern(generator, depth - 1)})"
    if kind < 0.75:
        return f"(?:{first})" + generator.choice(["*", "+", "?", "{2}", "{1,3}", "*?", "+?", "??", "{0,2}?", "{2,}"])
    return generator.choice(["(?=", "(?!", "(?<=", "(?<!"]) + first + ")"


if __name__ == "__main__":
    main()
