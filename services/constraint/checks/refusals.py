"""Takes off a mask what the checks of a JSON text refuse, asking as few tokens as it can. See docs/checks.md."""

from __future__ import annotations

import sys
from bisect import bisect_left
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from services.constraint.checks.outlook import FREE, UNKNOWN, Lookout, Outlook
from services.constraint.checks.progress import (
    ENDS_WHOLE,
    Frame,
    JsonChecks,
    Place,
    Progress,
    begun_string,
)
from services.constraint.checks.token_classes import Action, Start, TokenClass, TokenClasses
from services.constraint.core.engine import TokenTrie
from services.constraint.sources.json_schema.keys import key_bytes
from services.constraint.sources.json_schema.nodes import String
from services.constraint.sources.json_schema.obligations import Obligations, bounded_strings
from services.constraint.sources.json_schema.strings import longest_rest
from services.vocabulary.bitmask import Bitmask, has_token, have_tokens

# By place, and whether that is in an object.
_START_OF: Final = {
    (Place.IN_KEY, True): Start.IN_KEY,
    (Place.KEY, True): Start.KEY,
    (Place.VALUE, True): Start.VALUE,
    (Place.VALUE, False): Start.VALUE,
    (Place.IN_STRING, True): Start.IN_MEMBER_STRING,
    (Place.IN_STRING, False): Start.IN_ITEM_STRING,
    (Place.IN_SCALAR, True): Start.IN_MEMBER_SCALAR,
    (Place.IN_SCALAR, False): Start.IN_ITEM_SCALAR,
    (Place.AFTER, True): Start.AFTER_MEMBER,
    (Place.AFTER, False): Start.AFTER_ITEM,
}
_LITERALS: Final = (b"true", b"false", b"null")


class Refusals:
    """What the checks of one schema refuse of a vocabulary's tokens."""

    def __init__(self, obligations: Obligations, checks: JsonChecks, classes: TokenClasses, trie: TokenTrie) -> None:
        self._checks = checks
        self._needs_no_space = obligations.needs_no_space
        # What any token may do to a string that it begins itself; the others are few.
        self._least_room = min(map(_room, obligations.bounded_strings), default=sys.maxsize)
        self._lookout = Lookout(obligations, checks)
        self._classes = classes
        self._trie = trie
        self._vocabulary = trie.vocabulary
        self._longest: dict[bytes, int] = {}  # of the rest of a key: the most of its bytes that a token spells

    def forget(self) -> None:
        """Let go of what was remembered."""
        self._longest.clear()

    def refuse(self, progress: Progress, row: Bitmask) -> None:
        """Take off a mask (words,) what the checks refuse."""
        frame, place = progress.frame, progress.place
        if frame is None and not progress.nodes:
            return
        if frame is None:
            ends = [token_id for token_id in self._vocabulary.eos_token_ids if has_token(row, token_id)]
            if ends and not self._checks.may_end(progress):
                for token_id in ends:
                    _clear(row, token_id)
        if place is Place.COLON:
            return
        if place is Place.IN_KEY or place is Place.KEY:
            assert frame is not None
            self._refuse_keys(progress, frame, row)
        self._refuse_long(progress, row)
        start = _start_of(progress)
        table = self._classes.of(start)
        situation = self._situation(progress) if start is not Start.IN_ESCAPE else _ESCAPED
        actions, is_any = table.actions(situation, partial(situation.action, start))
        if not is_any:
            return
        for token_id, token_class in table.sift(actions, row):
            if self._is_refused(progress, start, situation, token_id, token_class):
                _clear(row, token_id)
        is_stuck = place is Place.AFTER and situation.behind.may_close is False
        if is_stuck and self._needs_no_space and not (row & ~self._classes.spaces).any():
            row[:] = 0  # white space leads nowhere else

    def _refuse_long(self, progress: Progress, row: Bitmask) -> None:
        """Take off the tokens behind which a string has no room for its end: those that are too long for what is left.

        A token is looked at where it has more bytes than are left when the longest way to an end is set aside.
        """
        bounded = bounded_strings(progress.nodes) if progress.place is Place.IN_STRING else ()
        begun = len(begun_string(progress.text)[0]) if bounded else 0
        room = min((_room(node) - begun for node in bounded), default=self._least_room)
        if room >= self._classes.most_bytes:
            return
        longer = self._classes.longer_than(room)
        for token_id in longer[have_tokens(row, longer)].tolist():
            text = self._vocabulary.token_bytes[token_id]
            assert text is not None
            if self._checks.feed(progress, text) is None:
                _clear(row, token_id)

    def _is_refused(
        self, progress: Progress, start: Start, situation: Situation, token_id: int, token_class: TokenClass
    ) -> bool:
        """Look at one token."""
        text = self._vocabulary.token_bytes[token_id]
        assert text is not None
        value = self._lookout.value_ended_by(progress, text) if token_class.ends_value(start) else None
        outlook = None if value is None else self._lookout.behind(progress, value)
        if outlook is not None:
            # As if the token began behind the value.
            may_end, behind = outlook
            action = Situation(situation.around, may_end, behind, may_end, behind).behind_value(token_class, start)
            if action is not Action.LOOK:
                return action is Action.REFUSE
        return self._checks.feed(progress, text) is None

    def _situation(self, progress: Progress) -> Situation:
        checks, lookout, frame, place = self._checks, self._lookout, progress.frame, progress.place
        around = self._around(frame)
        if place is Place.IN_STRING or place is Place.IN_SCALAR:
            may_end, behind = lookout.behind_some(progress)
            may_end_now, now = may_end, behind
            if (may_end is None or behind.may_close is None) and _is_whole(progress):
                ended = checks.ended(progress)
                may_end_now = ended is not None
                now = behind if ended is None else lookout.of(ended.frame)
            return Situation(around, may_end_now, now, may_end, behind)
        if place is Place.VALUE:
            kinds = lookout.judged_kinds(progress.nodes, frame)
            _, behind = lookout.behind_some(progress)
            return Situation(around, True, lookout.of(frame), True, behind, kinds)
        assert frame is not None
        container = frame.container
        if place is Place.IN_KEY:
            may_end = None if container.has_judged_names else True
            if not container.may_refuse:
                return Situation(around, may_end, FREE, may_end, FREE)
            # What is there is a key, or becomes some other one, whose value must satisfy whatever that may be.
            kinds = "sn{" if container.is_judged or container.objects else ""
            ended = checks.ended(progress) if _is_whole(progress) else None
            if ended is None:
                return Situation(around, may_end, UNKNOWN, may_end, UNKNOWN, kinds, kinds)
            kinds_now = lookout.judged_kinds(ended.nodes, frame)
            _, now = lookout.behind_some(ended)
            return Situation(around, True, now, may_end, UNKNOWN, kinds_now, kinds)
        return Situation(around, True, lookout.of(frame), True, UNKNOWN)

    def _around(self, frame: Frame | None) -> Around:
        """Return what does not depend on where in a container a token begins."""
        if frame is None:
            return Around()
        around: Around | None = frame.remembered.get("around")
        if around is None:
            container = frame.container
            around = frame.remembered["around"] = Around(
                self._lookout.judged_kinds(self._lookout.next_item_nodes(frame), frame),
                container.has_judged_names or not self._classes.whole_strings.isdisjoint(frame.members),
                container.has_judged_names,
                container.may_refuse,
            )
        return around

    def _refuse_keys(self, progress: Progress, frame: Frame, row: Bitmask) -> None:
        """Take off the tokens that would end a key that is there already, and those that lead to nothing else."""
        if not frame.members:
            return
        begun = progress.text if progress.place is Place.KEY else b'"' + progress.text
        only_names = frame.container.only_names
        left: list[bytes] = []
        if only_names is not None:
            names = map(key_bytes, only_names - frame.members.keys())
            left = sorted(text[len(begun) :] for text in names if text.startswith(begun))
        trie = self._trie
        for text in _key_texts(frame):
            if not text.startswith(begun):
                continue
            rest = text[len(begun) :]
            longest = self._longest.get(rest)
            if longest is None:
                longest = self._longest[rest] = trie.longest_along(rest)
            first = len(rest)
            if only_names is not None:
                # What no key that is left begins with leads to this one alone.
                at = bisect_left(left, rest)
                first = 1 + max((_num_common(rest, other) for other in left[max(at - 1, 0) : at + 1]), default=0)
            if first <= longest:
                trie.clear_along(rest, first, row)


class Around(NamedTuple):
    """What is to be seen to in a container, wherever a token begins.

    `item_kinds` are the kinds of the item behind the next comma that are judged, as in `JsonChecks.judged_kinds`.
    """

    item_kinds: str = ""
    may_refuse_names: bool = False
    has_judged_names: bool = False
    may_refuse: bool = False


class Situation(NamedTuple):
    """What a token may do, by whether it ends at once the string, key or scalar in which it begins, or goes on with it.

    `value_kinds` are the kinds that are judged of the value that begins here, or behind the key. `behind_later` is also
    what may follow a value that a token begins and ends itself.
    """

    around: Around
    may_end: bool | None
    behind: Outlook
    may_end_later: bool | None
    behind_later: Outlook
    value_kinds: str = ""
    value_kinds_later: str = ""

    def action(self, start: Start, token_class: TokenClass) -> Action:
        """Return what to do with the tokens of a class."""
        events = token_class.events
        if token_class.has_ended:
            may_end = self.may_end if token_class.is_prompt else self.may_end_later
            behind = self.behind if token_class.is_prompt else self.behind_later
            if may_end is not True:
                return Action.REFUSE if may_end is False else Action.LOOK
            if start is Start.IN_KEY:
                kinds = self.value_kinds if token_class.is_prompt else self.value_kinds_later
                return self._value(events, kinds, behind)
            return self._behind(events, behind)
        if events[:1] in "},":
            return self._behind(events, self.behind)
        if start is Start.KEY:
            # A key that begins at once is seen to before, unless it is judged.
            is_seen_to = token_class.is_prompt and not self.around.has_judged_names
            return self._behind_key(events[1:]) if is_seen_to else self._key(events)
        return self._value(events, self.value_kinds, self.behind_later)

    def behind_value(self, token_class: TokenClass, start: Start) -> Action:
        """Return what to do with the tokens of a class that end the value that they begin in or before."""
        if self.may_end is not True:
            return Action.REFUSE
        return self._behind(token_class.events[start is Start.VALUE :], self.behind)

    def _behind(self, events: str, outlook: Outlook) -> Action:
        """Read events behind a value."""
        match events[:1]:
            case "":
                return Action.PASS
            case "}":
                if outlook.may_close is not True:
                    return Action.REFUSE if outlook.may_close is False else Action.LOOK
                return self._outside(events[1:], outlook)
            case _:
                if outlook.may_go_on is not True:
                    return Action.REFUSE if outlook.may_go_on is False else Action.LOOK
                if events[1:2] == "k":
                    return self._key(events[1:])
                return self._value(events[1:], self.around.item_kinds, UNKNOWN)

    def _key(self, events: str) -> Action:
        return Action.LOOK if self.around.may_refuse_names else self._behind_key(events[1:])

    def _behind_key(self, events: str) -> Action:
        is_more = events.rstrip("{") != ""
        return Action.LOOK if is_more and (self.around.may_refuse or "k" in events) else Action.PASS

    def _value(self, events: str, judged_kinds: str, behind: Outlook) -> Action:
        """Read events before a value."""
        if not events.rstrip("{"):
            return Action.PASS
        if events[0] in judged_kinds:
            return Action.LOOK
        if events[0] != "{":
            return self._behind(events[1:], behind if self.around.may_refuse else FREE)
        if events[1] == "}":
            return self._behind(events[2:], behind if self.around.may_refuse else FREE)
        return Action.LOOK if self.around.may_refuse or events.count("k") > 1 else Action.PASS

    def _outside(self, events: str, outlook: Outlook) -> Action:
        """Read events behind the container."""
        if not events:
            return Action.PASS
        may = outlook.may_close_outer if events[0] == "}" else outlook.may_go_on_outer
        if may is not True:
            return Action.REFUSE if may is False else Action.LOOK
        rest = events[1:].rstrip("{")
        return Action.LOOK if rest and (outlook.may_refuse_outer or "k" in rest) else Action.PASS


_ESCAPED: Final = Situation(Around(), None, UNKNOWN, None, UNKNOWN)


def _room(node: String) -> int:
    """Return how many characters a string may have before its end must be thought of; one more may be begun."""
    assert node.max_length is not None
    return node.max_length - longest_rest(node) - 1


def _start_of(progress: Progress) -> Start:
    if progress.text.endswith(b"\\") and not ENDS_WHOLE.fullmatch(progress.text):
        return Start.IN_ESCAPE
    is_member = progress.frame is not None and progress.frame.container.is_object
    return _START_OF[progress.place, is_member]


def _is_whole(progress: Progress) -> bool:
    """Tell whether the string or scalar that is being read could end as it is."""
    text = progress.text
    if progress.place is Place.IN_SCALAR:
        return text in _LITERALS or text[-1:].isdigit()
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return b"\\" not in text or ENDS_WHOLE.fullmatch(text) is not None


def _key_texts(frame: Frame) -> list[bytes]:
    """Return the keys of an object as they are written, quotes included."""
    if "keys" not in frame.remembered:
        frame.remembered["keys"] = [key_bytes(name) for name in frame.members]
    texts: list[bytes] = frame.remembered["keys"]
    return texts


def _clear(row: Bitmask, token_id: int) -> None:
    row[token_id >> 5] &= ~np.uint32(1 << (token_id & 31)).astype(np.int32)


def _num_common(a: bytes, b: bytes) -> int:
    number = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        number += 1
    return number
