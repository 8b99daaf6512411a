"""A vocabulary is fetched from the worker that has the wanted one; any worker will do where none has."""

from pathlib import Path

import pytest

from services.rpckit.status import NotReady
from services.vocabulary import Vocabulary
from services.vocabulary.client import fetch_from_any
from tests.support.fake_services import vocabulary
from tests.support.vocabulary_worker import serving

AWAY = "unix:/nowhere/worker.sock"


async def test_any_worker_that_answers(tmp_path: Path) -> None:
    known = vocabulary()
    with serving(known, tmp_path) as address:
        for wanted in (None, known.digest, "another"):
            assert (await fetch_from_any({AWAY: None, address: None}, wanted)).digest == known.digest


async def test_the_wanted_one_of_two(tmp_path: Path) -> None:
    first = vocabulary()
    second = Vocabulary(first.tokenizer_json, first.vocab_size + 32, list(first.eos_token_ids))
    (tmp_path / "other").mkdir()
    with serving(first, tmp_path) as one, serving(second, tmp_path / "other") as other:
        for wanted in (first.digest, second.digest) * 3:
            assert (await fetch_from_any({one: None, other: None}, wanted)).digest == wanted


async def test_no_address() -> None:
    with pytest.raises(NotReady):
        await fetch_from_any({}, None)
