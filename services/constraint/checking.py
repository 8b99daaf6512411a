"""Runs the engine on cases and tells what it did and how long it took: no server, no model, no gRPC call.

What is made when: a `Checker` once per vocabulary, with memos that come from the vocabulary alone; everything about a
grammar when its case begins. A case is one line of JSON:

    {"id", "schema" | "lark" | "regex" | "choices" | "constraint", "options"?, "tests": [{"valid", "data" | "text"}]}

`constraint` is of any kind, as `contract.from_json` reads it. `data` stands for
`json.dumps(data, ensure_ascii=False)`. Options are the fields of `SourceOptions`, with documents as an object of
schemas by URI, and `forcing`.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final, Literal, Protocol, get_args, get_type_hints

import numpy as np

from services.constraint.checks import TokenClasses, checked
from services.constraint.composite_matcher import AnyMatcher, CompositeMatcher, PartMatcher
from services.constraint.contract import from_json, source_of
from services.constraint.core.engine import Forcing, Matcher, TokenTrie, compile_grammar, warm_up
from services.constraint.sources import (
    BuiltSource,
    ConstraintSource,
    KeywordReport,
    Kind,
    SourceOptions,
    build,
    common_grammar,
)
from services.constraint.special_token import SpecialToken
from services.rpckit.status import InvalidRequest, ServiceError, TokenRejected
from services.vocabulary import Vocabulary, bitmask_words, count_tokens, has_token
from services.vocabulary.files import TokenizerFileError, read_vocabulary

Status = Literal["ok", "rejected", "timeout", "error"]

_KIND_OF_FIELD: Final[dict[str, Kind]] = {
    "schema": "json_schema",
    "lark": "lark",
    "regex": "regex",
    "choices": "choices",
}
_FIELDS: Final = (*_KIND_OF_FIELD, "constraint")
_OPTIONS: Final[dict[str, Any]] = get_type_hints(SourceOptions) | {"forcing": Forcing}
# Levels of nesting that are read in a line: a stack of 8 MiB holds them.
_MAX_DEPTH: Final = 10_000
# Tokens of the shortest text that are shown at most.
_MAX_WITNESS_TOKENS: Final = 1000


class BadCaseError(ValueError):
    """A line is no case; the message says why."""


@dataclass(frozen=True, slots=True)
class CaseTest:
    """A text, and whether the constraint should accept it."""

    is_valid: bool
    text: str


@dataclass(frozen=True, slots=True)
class Case:
    """A constraint and texts to try on it. `forcing` None leaves the choice to who runs it."""

    case_id: Any
    source: ConstraintSource
    options: SourceOptions = field(default_factory=SourceOptions)
    forcing: Forcing | None = None
    tests: tuple[CaseTest, ...] = ()


@dataclass(frozen=True, slots=True)
class TextOutcome:
    """`failed_at` is the index of the first token that its mask does not allow.

    The number of tokens where that is the end token, None where the text is accepted, or where `note` says why it was
    not tried.
    """

    is_valid: bool
    is_accepted: bool
    failed_at: int | None
    note: str | None = None


@dataclass(slots=True)
class CaseOutcome:
    """What became of a case. Times are in microseconds; those that were not taken are None or missing.

    `mask_us` has one time per mask asked for, in the order of the tests; `warm_mask_us` the same for the last pass.
    """

    case_id: Any
    status: Status
    reason: str | None = None
    pointer: str | None = None
    message: str | None = None
    compile_us: float | None = None
    first_mask_us: float | None = None
    mask_us: list[float] = field(default_factory=list)
    warm_mask_us: list[float] = field(default_factory=list)
    tests: list[TextOutcome] = field(default_factory=list)

    @classmethod
    def refused(cls, case_id: Any, status: Status, error: ServiceError) -> CaseOutcome:
        """Make the outcome of a case that ended in an error."""
        return cls(case_id, status, error.reason, error.metadata.get("pointer"), error.message)

    def to_json(self) -> str:
        """Return the line that `espalier check --cases` writes."""
        tests = [
            {"valid": test.is_valid, "accepted": test.is_accepted, "failed_at": test.failed_at}
            | ({} if test.note is None else {"note": test.note})
            for test in self.tests
        ]
        row = {
            "id": self.case_id,
            "status": self.status,
            "reason": self.reason,
            "pointer": self.pointer,
            "message": self.message,
            "compile_us": self.compile_us,
            "first_mask_us": self.first_mask_us,
            "mask_us": self.mask_us,
            "warm_mask_us": self.warm_mask_us,
            "tests": tests,
        }
        return json.dumps(row)


@dataclass(frozen=True, slots=True)
class Report:
    """What there is to say about one constraint.

    `witness` is one shortest text as far as it is shown, `witness_num_tokens` its length. `failed_at_byte` is where the
    text that was asked about leaves the constraint, None where it does not.
    """

    keywords: tuple[KeywordReport, ...]
    compile_us: float
    first_mask_us: float
    num_allowed: int
    min_bytes: int
    witness: bytes
    witness_num_tokens: int
    failed_at_byte: int | None = None


def parse_case(line: str) -> Case:
    """Read a line.

    Raises:
        BadCaseError: it is no case.
    """
    try:
        with _deep_recursion():
            return _case(json.loads(line))
    except json.JSONDecodeError as error:
        raise BadCaseError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadCaseError(f"nested deeper than {_MAX_DEPTH} levels") from None
    except BadCaseError:
        raise
    except ValueError as error:  # a number of more digits than Python reads
        raise BadCaseError(str(error)) from None


def _case(row: Any) -> Case:
    if not isinstance(row, dict) or "id" not in row:
        raise BadCaseError("a case is an object with an `id`")
    kinds = [name for name in _FIELDS if name in row]
    if len(kinds) != 1:
        raise BadCaseError(f"a case has one of {', '.join(_FIELDS)}; this one has {', '.join(kinds) or 'none'}")
    options, forcing = _options(row.get("options", {}))
    tests = row.get("tests", [])
    if not isinstance(tests, list):
        raise BadCaseError("`tests` is a list")
    return Case(
        row["id"],
        _source(kinds[0], row[kinds[0]]),
        options,
        forcing,
        tuple(_test(test, index) for index, test in enumerate(tests)),
    )


def _source(name: str, value: Any) -> ConstraintSource:
    if name == "constraint":
        try:
            return source_of(from_json(value))
        except ServiceError as error:
            raise BadCaseError(error.message) from None
    kind = _KIND_OF_FIELD[name]
    if kind == "json_schema":
        return ConstraintSource(kind, json.dumps(value))
    if kind == "choices":
        if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
            raise BadCaseError("`choices` is a list of texts")
        return ConstraintSource(kind, choices=tuple(value))
    if not isinstance(value, str):
        raise BadCaseError(f"`{name}` is a text")
    return ConstraintSource(kind, value)


def _options(options: Any) -> tuple[SourceOptions, Forcing | None]:
    if not isinstance(options, dict):
        raise BadCaseError("`options` is an object")
    given = dict(options)
    for name, value in options.items():
        if name not in _OPTIONS:
            raise BadCaseError(f"no option is named {name!r}; there are: {', '.join(_OPTIONS)}")
        allowed = get_args(_OPTIONS[name])
        if name == "documents":
            if not isinstance(value, dict):
                raise BadCaseError("the option documents is an object of schemas by URI")
            given[name] = tuple((uri, json.dumps(schema)) for uri, schema in value.items())
        elif name == "whitespace_pattern":
            if not isinstance(value, str):
                raise BadCaseError("the option whitespace_pattern is a text")
        elif value not in allowed:
            raise BadCaseError(f"the option {name} is one of {', '.join(map(str, allowed))}, not {value!r}")
    forcing = given.pop("forcing", None)
    try:
        return SourceOptions(**given), forcing
    except InvalidRequest as error:
        raise BadCaseError(error.message) from None


def _test(test: Any, index: int) -> CaseTest:
    if not isinstance(test, dict) or not isinstance(test.get("valid"), bool) or ("data" in test) == ("text" in test):
        raise BadCaseError(f"test {index} is not an object with `valid` and one of `data` and `text`")
    text = json.dumps(test["data"], ensure_ascii=False) if "data" in test else test["text"]
    if not isinstance(text, str):
        raise BadCaseError(f"the `text` of test {index} is not a text")
    return CaseTest(test["valid"], text)


@contextmanager
def _deep_recursion() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _MAX_DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class Checker:
    """Runs cases against one vocabulary, one after another."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Make all that comes from the vocabulary alone, and load what is loaded when first used."""
        self.vocabulary = vocabulary
        self._trie = TokenTrie(vocabulary)
        self._classes = TokenClasses(self._trie)
        self._classes.warm_up()
        self._row = np.zeros(bitmask_words(vocabulary.vocab_size), np.int32)
        warm_up(self._trie, common_grammar())
        for source in (
            ConstraintSource("json_schema", '{"type": "object"}'),
            ConstraintSource("lark", 'start: "a"'),
            ConstraintSource("regex", "a"),
            ConstraintSource("choices", choices=("a",)),
        ):
            self.run(Case(None, source, tests=(CaseTest(True, "{}"),)))
        # What lives as long as the process need not be looked at by each collection.
        gc.collect()
        gc.freeze()

    def run(self, case: Case, *, forcing: Forcing = "off", num_passes: int = 2) -> CaseOutcome:
        """Compile the constraint and walk the texts, `num_passes` times.

        An error of the constraint or of its masks is an outcome, not an exception.
        """
        with no_collection():
            try:
                matcher, _, compile_us = self._compile(case.source, case.options, case.forcing or forcing)
            except ServiceError as error:
                return CaseOutcome.refused(case.case_id, "rejected", error)
            outcome = CaseOutcome(case.case_id, "ok", compile_us=compile_us)
            try:
                texts = [self._cut(matcher, test.text) for test in case.tests]
                for number in range(num_passes):
                    times: list[float] = []
                    found = [self._walk(matcher, token_ids, times) for token_ids in texts]
                    if number == 0:
                        outcome.mask_us = times
                        outcome.tests = list(map(text_outcome, case.tests, texts, found))
                    elif number == num_passes - 1:
                        outcome.warm_mask_us = times
                outcome.first_mask_us = (
                    outcome.mask_us[0] if outcome.mask_us else self._timed_mask(matcher, matcher.start)
                )
            except ServiceError as error:
                return CaseOutcome.refused(case.case_id, "error", error)
        return outcome

    def report(self, case: Case, *, forcing: Forcing = "off") -> Report:
        """Compile the constraint and describe it; its first test, if any, is the text that is asked about.

        Raises:
            ServiceError: the constraint is refused, or its masks are beyond a limit.
        """
        with no_collection():
            matcher, keywords, compile_us = self._compile(case.source, case.options, case.forcing or forcing)
            first_mask_us = self._timed_mask(matcher, matcher.start)
        start = matcher.guidance(matcher.start)
        return Report(
            keywords=keywords,
            compile_us=compile_us,
            first_mask_us=first_mask_us,
            num_allowed=count_tokens(self._row),
            min_bytes=matcher.min_bytes,
            witness=self._witness(matcher),
            witness_num_tokens=len(start.forced_token_ids) + start.witness_num_tokens,
            failed_at_byte=self._failed_at_byte(matcher, case.tests[0].text) if case.tests else None,
        )

    def matcher(self, schema: str) -> AnyMatcher:
        """Compile a JSON Schema for the vocabulary, with every cut open.

        Raises:
            ServiceError: the schema is refused.
        """
        return self._compile(ConstraintSource("json_schema", schema), SourceOptions(), "off")[0]

    def _compile(
        self, source: ConstraintSource, options: SourceOptions, forcing: Forcing
    ) -> tuple[AnyMatcher, tuple[KeywordReport, ...], float]:
        started = perf_counter_ns()
        built = build(source, options)
        matcher = matcher_of_built(built, options, self._trie, self._classes, forcing)
        return matcher, built.keywords, (perf_counter_ns() - started) / 1e3

    def _walk(self, matcher: AnyMatcher, token_ids: Sequence[int] | None, times_us: list[float]) -> int | None:
        """Return the index of the first token that is not allowed, the end token included; None when all are."""
        if token_ids is None:
            return None
        state = matcher.start
        for index, token_id in enumerate(token_ids):
            times_us.append(self._timed_mask(matcher, state))
            if not self._allows(token_id):
                return index
            state = matcher.accept(state, (token_id,))
        times_us.append(self._timed_mask(matcher, state))
        return None if any(map(self._allows, self.vocabulary.eos_token_ids)) else len(token_ids)

    def _timed_mask(self, matcher: AnyMatcher, state: int) -> float:
        row = self._row
        started = perf_counter_ns()
        matcher.fill_bitmask(state, row)
        return (perf_counter_ns() - started) / 1e3

    def _allows(self, token_id: int) -> bool:
        return has_token(self._row, token_id)

    def _witness(self, matcher: AnyMatcher) -> bytes:
        token_ids: list[int] = []
        guidance = matcher.guidance(matcher.start)
        while len(token_ids) < _MAX_WITNESS_TOKENS:
            token_ids += guidance.forced_token_ids
            if guidance.witness_token_id is None:
                break
            token_ids.append(guidance.witness_token_id)
            guidance = matcher.guidance(matcher.accept(guidance.after_forced, token_ids[-1:]))
        return b"".join(map(self.vocabulary.spelling, token_ids))

    def _failed_at_byte(self, matcher: AnyMatcher, text: str) -> int | None:
        token_ids = self._cut(matcher, text)
        if token_ids is None:
            raise InvalidRequest("no tokens of this vocabulary spell the text", field="text")
        failed_at = self._walk(matcher, token_ids, [])
        return None if failed_at is None else len(b"".join(map(self.vocabulary.spelling, token_ids[:failed_at])))

    def _cut(self, matcher: AnyMatcher, text: str) -> list[int] | None:
        """Cut a text; None when no tokens spell it."""
        usual = spell(self.vocabulary, text)
        if usual is None or not isinstance(matcher, CompositeMatcher):
            return usual
        return cut_finely(matcher, self.vocabulary, text)


def matcher_of_built(
    built: BuiltSource, options: SourceOptions, trie: TokenTrie, classes: TokenClasses, forcing: Forcing
) -> AnyMatcher:
    """Compile what was built of a constraint, and what stands in its holes.

    Raises:
        ServiceError: it is refused, or something in its holes is.
    """
    matcher = Matcher(compile_grammar(built.grammar), trie, forcing=forcing, has_holes=bool(built.holes))
    if built.holes:
        parts: list[PartMatcher] = [
            SpecialToken(hole.text or "", trie.vocabulary)
            if hole.kind == "special_token"
            else matcher_of_built(build(hole, options), options, trie, classes, forcing)
            for hole in built.holes
        ]
        min_bytes = compile_grammar(built.grammar, are_holes_filled=True).min_bytes
        return CompositeMatcher(matcher, parts, min_bytes=min_bytes)
    if built.schema is not None and built.inexact is not None:
        return checked(matcher, built.schema, built.inexact, classes)
    return matcher


def spell(vocabulary: Vocabulary, text: str) -> list[int] | None:
    """Cut a text; None when no tokens spell it."""
    try:
        token_ids = vocabulary.encode(text)
        return token_ids if vocabulary.decode(token_ids) == text.encode() else None
    except UnicodeEncodeError:
        return None


def cut_finely(matcher: CompositeMatcher, vocabulary: Vocabulary, text: str) -> list[int]:
    """Cut a text into the smallest tokens that a matcher allows, so that its parts may begin and end anywhere.

    The name of a special token is that token where one is allowed. From where on nothing is allowed, any will do.
    """
    rest, token_ids, state = text.encode(), list[int](), matcher.start
    while rest:
        special = [token_id for name, token_id in vocabulary.special_tokens.items() if rest.startswith(name.encode())]
        ordinary = vocabulary.tokens_at(rest)
        for token_id in (*special, *ordinary):
            try:
                state = matcher.accept(state, (token_id,))
                break
            except TokenRejected:
                continue
        else:
            return [*token_ids, ordinary[-1]]
        token_ids.append(token_id)
        rest = rest[len(vocabulary.spelling(token_id)) :]
    return token_ids


def text_outcome(test: CaseTest, token_ids: Sequence[int] | None, failed_at: int | None) -> TextOutcome:
    """Say what became of a text that was cut into these tokens, or that none spell."""
    if token_ids is None:
        return TextOutcome(test.is_valid, False, None, "no tokens of this vocabulary spell the text")
    return TextOutcome(test.is_valid, failed_at is None, failed_at)


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of what is timed."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class TokenizerChoice:
    """Whose tokens to check with; fields as of `read_vocabulary`."""

    path: Path
    eos_tokens: tuple[str, ...] = ()
    vocab_size: int | None = None


class Task(Protocol):
    """What a process does with its checker."""

    def run(self, checker: Checker) -> Any:
        """Return what can be pickled."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Have the checker made, and tell (vocabulary size, end tokens)."""

    def run(self, checker: Checker) -> tuple[int, tuple[int, ...]]:
        """Run in the process."""
        return checker.vocabulary.vocab_size, checker.vocabulary.eos_token_ids


@dataclass(frozen=True, slots=True)
class RunCase:
    """Run a case."""

    case: Case
    forcing: Forcing = "off"
    num_passes: int = 2

    def run(self, checker: Checker) -> CaseOutcome:
        """Run in the process."""
        return checker.run(self.case, forcing=self.forcing, num_passes=self.num_passes)


@dataclass(frozen=True, slots=True)
class Describe:
    """Report on the constraint of a case."""

    case: Case
    forcing: Forcing = "off"

    def run(self, checker: Checker) -> Report:
        """Run in the process."""
        return checker.report(self.case, forcing=self.forcing)


def answer(choice: TokenizerChoice, task: Task) -> Any:
    """Do a task, in a process that can be killed; the first one reads the tokenizer.

    Raises:
        ServiceError: as the task says; InvalidRequest: the tokenizer cannot be read.
    """
    return task.run(_checker(choice))


@lru_cache(maxsize=1)
def _checker(choice: TokenizerChoice) -> Checker:
    try:
        return Checker(read_vocabulary(choice.path, eos_tokens=choice.eos_tokens, vocab_size=choice.vocab_size))
    except TokenizerFileError as error:
        raise InvalidRequest(str(error), field="tokenizer") from None
