r"""Reads a pattern in Python's `re` syntax or in that of ECMA-262 (with the `u` flag) into the syntax tree.

The two differ in what `\d`, `\w`, `\s` and `.` mean, in group syntax and in escapes; the rest is shared. Where
ECMA-262 with `u` refuses a pattern that has only one sensible meaning (`\-` outside a class, a lone `]` or `{`), the
meaning of Annex B is taken, because schemas are full of them.

What no automaton expresses, or none of ours yet (back-references, conditionals, possessive and atomic matching), is
refused by name and position.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Literal, NoReturn, TypeAlias

from services.constraint.core.regex import charset
from services.constraint.core.regex.ast import EMPTY, Anchor, Characters, Look, Node, Repetition, choice, concatenation
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.properties import property_ranges
from services.constraint.core.regex.widths import lengths
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, UnsupportedConstruct

Dialect: TypeAlias = Literal["python", "ecma"]

# Groups within groups; each level costs a few Python stack frames.
MAX_GROUP_DEPTH = 100
MAX_PATTERN_CHARACTERS = 20_000
# A count in braces. CPython's own limit is 2**32 - 2; no text is that long.
MAX_COUNT = 1_000_000

_CONTROL_ESCAPES = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
# How look-around begins; what it is called; is it ahead; is it negated.
_LOOK_HEADS = (
    ("(?=", "look-ahead", True, False),
    ("(?!", "negative look-ahead", True, True),
    ("(?<=", "look-behind", False, False),
    ("(?<!", "negative look-behind", False, True),
)
# Before Python 3.14, `\B` is not found in the empty text.
_IS_EMPTY_A_NON_BOUNDARY = re.search(r"\B", "") is not None


@dataclass(frozen=True, slots=True)
class Flags:
    """Python's inline flags, as far as they change what is matched."""

    ignore_case: bool = False
    multiline: bool = False
    dot_all: bool = False
    verbose: bool = False
    ascii: bool = False


def parse(pattern: str, dialect: Dialect, flags: Flags = Flags()) -> Node:
    """Parse a pattern.

    Raises:
        GrammarSyntax: the pattern is not one of the dialect; metadata has the position (characters from 0).
        UnsupportedConstruct: it is, but has a construct that no automaton of ours expresses; metadata has its name
        and position. GrammarTooLarge: beyond MAX_PATTERN_CHARACTERS, MAX_GROUP_DEPTH or MAX_COUNT.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        _too_large("max_pattern_characters", MAX_PATTERN_CHARACTERS, f"the pattern has {len(pattern)} characters")
    return _Parser(pattern, dialect, flags).parse()


def _too_large(limit: str, value: int, what: str) -> NoReturn:
    raise GrammarTooLarge(f"{what}; the limit {limit} is {value}", limit=limit, value=value)


class _Parser:
    def __init__(self, pattern: str, dialect: Dialect, flags: Flags) -> None:
        self._text = pattern
        self._at = 0
        self._is_python = dialect == "python"
        self._flags = flags
        self._depth = 0
        self._character_cache: dict[str, Characters] = {}

    def parse(self) -> Node:
        if self._is_python:
            self._global_flags()
        node = self._alternatives()
        if self._at < len(self._text):
            self._syntax("unbalanced parenthesis: this ) closes nothing")
        return node

    # Errors

    def _syntax(self, message: str, at: int | None = None) -> NoReturn:
        position = self._at if at is None else at
        raise GrammarSyntax(
            f"pattern {self._shown()}: {message}, at character {position}", position=position, pattern=self._text[:200]
        )

    def _unsupported(self, name: str, advice: str, at: int) -> NoReturn:
        raise UnsupportedConstruct(
            f"pattern {self._shown()}: {name} at character {at} is not supported; {advice}",
            name=name,
            position=at,
            pattern=self._text[:200],
        )

    def _shown(self) -> str:
        return repr(self._text) if len(self._text) <= 60 else repr(self._text[:57] + "...")

    # Structure

    def _peek(self, length: int = 1) -> str:
        return self._text[self._at : self._at + length]

    def _take(self, expected: str) -> bool:
        if self._text.startswith(expected, self._at):
            self._at += len(expected)
            return True
        return False

    def _global_flags(self) -> None:
        """Take flags such as `(?i)` at the very start, where alone Python allows them."""
        while self._peek(2) == "(?" and (end := self._text.find(")", self._at)) > 0:
            letters = self._text[self._at + 2 : end]
            if not letters or not set(letters) <= set("aiLmsux"):
                return
            self._flags = self._with_flags(letters, "", self._at)
            self._at = end + 1

    def _with_flags(self, on: str, off: str, at: int) -> Flags:
        if "L" in on:
            self._syntax("the L flag is for bytes patterns only", at)
        names = {"i": "ignore_case", "m": "multiline", "s": "dot_all", "x": "verbose", "a": "ascii"}
        changes = {names[letter]: True for letter in on if letter in names} | {
            names[letter]: False for letter in off if letter in names
        }
        if "u" in on:
            changes["ascii"] = False
        return replace(self._flags, **changes)

    def _alternatives(self) -> Node:
        self._depth += 1
        if self._depth > MAX_GROUP_DEPTH:
            _too_large("max_group_depth", MAX_GROUP_DEPTH, "groups are nested deeper")
        options = [self._terms()]
        while self._take("|"):
            options.append(self._terms())
        self._depth -= 1
        return choice(options)

    def _terms(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            if self._flags.verbose and self._skip_verbose():
                continue
            start = self._at
            atom = self._atom()
            if atom is not None:
                parts.append(self._quantified(atom, start))
        return concatenation(parts) if parts else EMPTY

    def _skip_verbose(self) -> bool:
        char = self._text[self._at]
        if char in " \t\n\r\f\v":
            self._at += 1
            return True
        if char == "#":
            end = self._text.find("\n", self._at)
            self._at = len(self._text) if end < 0 else end + 1
            return True
        return False

    def _quantified(self, atom: Node, start: int) -> Node:
        is_repeated = False
        while True:
            if self._flags.verbose:
                while self._at < len(self._text) and self._skip_verbose():
                    pass
            at = self._at
            bounds = self._quantifier()
            if bounds is None:
                return atom
            if is_repeated:
                self._syntax("multiple repeat", at)
            if self._is_assertion(start):
                self._syntax("nothing to repeat: an anchor, word boundary or look-around stands before it", at)
            if self._peek() == "+" and self._is_python:
                self._unsupported("possessive quantifier", "a plain one matches the same text in most patterns", at)
            is_lazy = self._take("?")
            minimum, maximum = bounds
            atom = Repetition(atom, minimum, maximum, is_lazy)
            is_repeated = True

    def _is_assertion(self, start: int) -> bool:
        """Tell whether what starts there may not be repeated; Python repeats look-around, but not what is shorter."""
        if self._text[start] in "^$" or self._text[start : start + 2] in (r"\b", r"\B", r"\A", r"\Z"):
            return True
        return not self._is_python and self._text.startswith(tuple(head for head, *_ in _LOOK_HEADS), start)

    def _quantifier(self) -> tuple[int, int | None] | None:
        char = self._peek()
        if char and char in "*+?":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        if char != "{":
            return None
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : max(end, 0)].partition(",")
        is_count = (
            end > 0
            and (low or (comma and self._is_python))
            and all(part == "" or (part.isascii() and part.isdigit()) for part in (low, high))
        )
        if not is_count:
            return None  # a literal brace
        at = self._at
        self._at = end + 1
        if max(len(low), len(high)) > 12:
            _too_large("max_count", MAX_COUNT, f"the count at character {at} is larger")
        minimum = int(low or 0)
        maximum = (int(high) if high else None) if comma else minimum
        if max(minimum, maximum or 0) > MAX_COUNT:
            _too_large("max_count", MAX_COUNT, f"the count at character {at} is larger")
        if maximum is not None and maximum < minimum:
            self._syntax("the minimum of a repeat is greater than its maximum", at)
        return minimum, maximum

    def _atom(self) -> Node | None:
        """Take one atom; None for something that stands for nothing, such as a comment."""
        char = self._text[self._at]
        at = self._at
        if char == "(":
            return self._group()
        if char == "[":
            self._at += 1
            return Characters(self._class(at))
        if char == "\\":
            return self._escape_atom()
        if char in "*+?":
            self._syntax("nothing to repeat")
        if char == "{" and self._quantifier() is not None:
            if self._is_python:
                self._at = at
            else:
                self._syntax("nothing to repeat", at)
        self._at = at + 1
        if char == ".":
            if self._flags.dot_all:
                return Characters(charset.EVERYTHING)
            return Characters(charset.complement(charset.LINE_FEED if self._is_python else charset.ECMA_LINE_ENDS))
        if char in "^$":
            return self._anchor(char, at)
        if (node := self._character_cache.get(char)) is None:
            node = self._character_cache[char] = Characters(self._literal(ord(char)))
        return node

    def _anchor(self, char: str, at: int) -> Node:
        if self._flags.multiline:
            line_ends = charset.LINE_FEED if self._is_python else charset.ECMA_LINE_ENDS
            return Look(Characters(charset.complement(line_ends)), char == "$", True, char, at)
        if char == "^":
            return Anchor("start", at)
        return Anchor("last line" if self._is_python else "end", at)

    def _word_boundary(self, at: int, *, is_negated: bool) -> Node:
        def look(ranges: Ranges, *, is_ahead: bool, is_negated: bool = False) -> Node:
            return Look(Characters(ranges), is_ahead, is_negated, "word boundary", at)

        word = self._class_of_letter("w")
        # No word character before and one behind, or the other way round; or (`is_negated`) both or neither.
        sides = [
            [
                look(word, is_ahead=False, is_negated=is_first_none),
                look(word, is_ahead=True, is_negated=is_first_none is is_negated),
            ]
            for is_first_none in (False, True)
        ]
        if is_negated and self._is_python and not _IS_EMPTY_A_NON_BOUNDARY:
            sides[1].append(choice([look(charset.EVERYTHING, is_ahead=is_ahead) for is_ahead in (False, True)]))
        return choice([concatenation(side) for side in sides])

    def _literal(self, code_point: int) -> Ranges:
        if 0xD800 <= code_point <= 0xDFFF:
            return charset.NOTHING  # not a character: no text has it
        return self._cased(((code_point, code_point),))

    def _cased(self, ranges: Ranges) -> Ranges:
        if not self._flags.ignore_case:
            return ranges
        if self._is_python:
            return charset.python_ignore_case(ranges, is_ascii=self._flags.ascii)
        return charset.ecma_ignore_case(ranges)

    # Groups

    def _group(self) -> Node | None:
        at = self._at
        self._at += 1
        outer = self._flags
        if self._take("?"):
            if self._is_python and self._take("#"):
                end = self._text.find(")", self._at)
                if end < 0:
                    self._syntax("missing ), unterminated comment", at)
                self._at = end + 1
                return None
            if look := next((look for look in _LOOK_HEADS if self._text.startswith(look[0], at)), None):
                return self._look(*look, at)
            self._group_head(at)
        elif self._peek() == "*":
            self._syntax("nothing to repeat")
        body = self._alternatives()
        self._flags = outer
        if not self._take(")"):
            self._syntax("missing ), unterminated group", at)
        return body

    def _look(self, head: str, name: str, is_ahead: bool, is_negated: bool, at: int) -> Node:
        self._at = at + len(head)
        outer = self._flags
        body = self._alternatives()
        self._flags = outer
        if not self._take(")"):
            self._syntax("missing ), unterminated group", at)
        if self._is_python and not is_ahead:
            shortest, longest = lengths(body)
            if shortest != longest:
                self._syntax("look-behind requires fixed-width pattern", at)
        return Look(body, is_ahead, is_negated, name, at)

    def _group_head(self, at: int) -> None:
        if self._take(":"):
            return
        if self._is_python and self._take("P"):
            if self._take("="):
                self._unsupported("back-reference", "what an earlier group matched cannot be repeated", at)
            if self._peek() != "<":
                self._syntax("unknown extension ?P" + self._peek(), at)
            self._group_name()
        elif not self._is_python and self._peek() == "<":
            self._group_name()
        elif self._is_python and self._peek() == "(":
            self._unsupported("conditional group", "write the cases as alternatives", at)
        elif self._is_python and self._peek() == ">":
            self._unsupported("atomic group", "a plain group (?:...) matches the same text in most patterns", at)
        else:
            self._flag_group(at)

    def _group_name(self) -> None:
        end = self._text.find(">", self._at)
        name = self._text[self._at + 1 : max(end, 0)]
        if end < 0 or not name.replace("$", "_").isidentifier():
            self._syntax(f"bad group name {name!r}")
        self._at = end + 1

    def _flag_group(self, at: int) -> None:
        end = self._at
        while end < len(self._text) and (self._text[end].isalpha() or self._text[end] == "-"):
            end += 1
        letters, closing = self._text[self._at : end], self._text[end : end + 1]
        if not letters or not closing or closing not in ":)":
            self._syntax("unknown group " + self._text[at : end + 1], at)
        if not self._is_python:
            self._unsupported("inline flag", "write both cases as a class such as [Aa]", at)
        if closing == ")":
            self._syntax("global flags not at the start of the expression", at)
        on, _, off = letters.partition("-")
        if not set(on) <= set("aiLmsux") or not set(off) <= set("imsx"):
            self._syntax("unknown flag", at)
        self._flags = self._with_flags(on, off, at)
        self._at = end + 1

    # Escapes

    def _escape_atom(self) -> Node:
        at = self._at
        following = self._text[at + 1 : at + 2]
        if following == "":
            self._syntax("bad escape (end of pattern)")
        if following in "bB":
            self._at += 2
            return self._word_boundary(at, is_negated=following == "B")
        if self._is_python and following in "AZ":
            self._at += 2
            return Anchor("start" if following == "A" else "end", at)
        if following in "123456789" and not (self._is_python and self._octal(at + 1)):
            self._unsupported("back-reference", "what an earlier group matched cannot be repeated", at)
        if not self._is_python and following == "k":
            self._unsupported("back-reference", "what an earlier group matched cannot be repeated", at)
        named = self._named_class()
        if named is not None:
            return Characters(named)
        return Characters(self._literal(self._escaped_code_point(in_class=False)))

    def _octal(self, at: int) -> bool:
        digits = self._text[at : at + 3]
        return len(digits) == 3 and all(digit in "01234567" for digit in digits)

    def _named_class(self) -> Ranges | None:
        r"""Take a `\d`, `\p{L}` or the like; None where something else stands."""
        letter = self._text[self._at + 1 : self._at + 2]
        if letter and letter in "dDwWsS":
            self._at += 2
            ranges = self._class_of_letter(letter.lower())
            return charset.complement(ranges) if letter.isupper() else ranges
        if letter and letter in "pP" and not self._is_python:
            return self._property(is_negated=letter == "P")
        return None

    def _class_of_letter(self, letter: str) -> Ranges:
        if self._is_python:
            return charset.python_class(f"\\{letter}", is_ascii=self._flags.ascii)
        if letter == "w":
            return self._cased(charset.ASCII_WORD)  # with `i`, two characters outside ASCII fold into it
        return charset.ASCII_DIGITS if letter == "d" else charset.ECMA_SPACE

    def _property(self, *, is_negated: bool) -> Ranges:
        at = self._at
        end = self._text.find("}", at)
        if self._text[at + 2 : at + 3] != "{" or end < 0:
            self._syntax("a property escape needs braces, as in \\p{L}")
        name = self._text[at + 3 : end]
        self._at = end + 1
        ranges = property_ranges(name)
        if ranges is None:
            self._unsupported(
                f"property {name}", "general categories such as \\p{L} and a few binary properties are supported", at
            )
        return self._cased(charset.complement(ranges) if is_negated else ranges)

    def _escaped_code_point(self, *, in_class: bool) -> int:
        """Take an escape that stands for one character."""
        at = self._at
        letter = self._text[at + 1 : at + 2]
        if letter == "":
            self._syntax("bad escape (end of pattern)")
        self._at += 2
        if letter in _CONTROL_ESCAPES:
            return _CONTROL_ESCAPES[letter]
        if letter == "u" and not self._is_python:
            return self._ecma_unicode(at)
        if letter in _HEX_ESCAPES and (self._is_python or letter != "U"):
            return self._hex(_HEX_ESCAPES[letter], at)
        if self._is_python:
            return self._python_code_point(letter, at, in_class=in_class)
        if letter == "b" and in_class:
            return 0x08
        if letter == "0" and not self._peek().isdigit():
            return 0
        if letter == "c" and self._peek().isascii() and self._peek().isalpha():
            self._at += 1
            return ord(self._text[self._at - 1]) % 32
        if letter.isalnum():
            advice = {"A": "; write ^", "Z": "; write $", "z": "; write $"}.get(letter, "")
            self._syntax(f"bad escape \\{letter}{advice}", at)
        return ord(letter)

    def _python_code_point(self, letter: str, at: int, *, in_class: bool) -> int:
        if letter == "a":
            return 0x07
        if letter == "b" and in_class:
            return 0x08
        if letter == "N" and self._peek() == "{" and (end := self._text.find("}", self._at)) > 0:
            name = self._text[self._at + 1 : end]
            self._at = end + 1
            try:
                return ord(unicodedata.lookup(name))
            except (KeyError, TypeError):
                self._syntax(f"undefined character name {name!r}", at)
        if letter in "01234567" and letter.isascii():
            # re: an octal escape starts with 0 or has three digits; in a class, any octal digits.
            digits = letter
            longest = 2 if letter == "0" or in_class or self._octal(at + 1) else 0
            while len(digits) <= longest and self._peek() and self._peek() in "01234567":
                digits += self._peek()
                self._at += 1
            value = int(digits, 8)
            if value > 0o377:
                self._syntax("octal escape value outside of range 0-0o377", at)
            return value
        if letter.isascii() and letter.isalnum():
            self._syntax(f"bad escape \\{letter}", at)
        return ord(letter)

    def _hex(self, length: int, at: int) -> int:
        digits = self._peek(length)
        if len(digits) != length or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
            self._syntax(f"incomplete escape, {length} hexadecimal digits must follow", at)
        self._at += length
        value = int(digits, 16)
        if value > charset.MAX_CODE_POINT:
            self._syntax("an escape beyond U+10FFFF", at)
        return value

    def _ecma_unicode(self, at: int) -> int:
        if self._take("{"):
            end = self._text.find("}", self._at)
            digits = self._text[self._at : max(end, 0)]
            if (
                end < 0
                or not digits
                or len(digits) > 20
                or not all(digit in "0123456789abcdefABCDEF" for digit in digits)
            ):
                self._syntax("bad \\u{...} escape", at)
            self._at = end + 1
            if int(digits, 16) > charset.MAX_CODE_POINT:
                self._syntax("an escape beyond U+10FFFF", at)
            return int(digits, 16)
        value = self._hex(4, at)
        if 0xD800 <= value <= 0xDBFF and self._peek(2) == "\\u":
            before = self._at
            self._at += 2
            low = self._hex(4, before) if self._peek() != "{" else 0
            if 0xDC00 <= low <= 0xDFFF:
                return 0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00)
            self._at = before
        return value

    # Classes

    def _class(self, start: int) -> Ranges:
        is_negated = self._take("^")
        # Case is ignored for characters; a class such as `\w` says itself what belongs to it.
        ranges: list[tuple[int, int]] = []
        named: list[tuple[int, int]] = []
        is_first = True
        while True:
            if self._at >= len(self._text):
                self._syntax("unterminated character class", start)
            if self._peek() == "]" and not (is_first and self._is_python):
                self._at += 1
                break
            is_first = False
            at = self._at
            low = self._class_member()
            if self._peek() == "-" and self._peek(2) not in ("-]", "-"):
                self._at += 1
                high = self._class_member()
                if isinstance(low, int) and isinstance(high, int):
                    if low > high:
                        self._syntax("bad character range: its ends are the wrong way round", at)
                    ranges.append((low, high))
                    continue
                if self._is_python:
                    self._syntax("bad character range: a class such as \\d cannot be an end", at)
                # Annex B: the dash is a literal there.
                ranges.append((0x2D, 0x2D))
                members = [low, high]
            else:
                members = [low]
            for member in members:
                if isinstance(member, int):
                    ranges.append((member, member))
                else:
                    named.extend(member)
        result = charset.normalise([*self._cased(charset.normalise(ranges)), *named])
        return charset.complement(result) if is_negated else result

    def _class_member(self) -> int | Ranges:
        if self._at >= len(self._text):
            self._syntax("unterminated character class")
        if self._peek() != "\\":
            self._at += 1
            return ord(self._text[self._at - 1])
        named = self._named_class()
        return named if named is not None else self._escaped_code_point(in_class=True)
