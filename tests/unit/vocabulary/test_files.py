"""A vocabulary out of the files that a model is published with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from services.vocabulary.files import TokenizerFileError, read_vocabulary
from tests.support.grammars import vocabulary

BYTES = vocabulary((("a", "b"),))
(END,) = BYTES.eos_token_ids


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tokenizer = Tokenizer.from_str(BYTES.tokenizer_json.decode())
    tokenizer.add_special_tokens(["<|turn|>", "</s>"])
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    return tmp_path


def test_a_file_and_its_directory_are_the_same(directory: Path) -> None:
    by_file = read_vocabulary(directory / "tokenizer.json", eos_tokens=["<|end|>"])
    assert by_file.digest == read_vocabulary(directory, eos_tokens=["<|end|>"]).digest
    assert (by_file.vocab_size, by_file.eos_token_ids) == (END + 3, (END,))


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("tokenizer_config.json", {"eos_token": "<|end|>"}, (END,)),
        ("tokenizer_config.json", {"eos_token": {"content": "<|turn|>"}}, (END + 1,)),
        ("special_tokens_map.json", {"eos_token": "<|turn|>"}, (END + 1,)),
        ("generation_config.json", {"eos_token_id": [END, END + 1]}, (END, END + 1)),
        ("config.json", {"eos_token_id": END}, (END,)),
        ("tokenizer_config.json", {"eos_token": None}, (END, END + 2)),
        ("tokenizer_config.json", {"eos_token": "<|gone|>"}, (END, END + 2)),
        ("tokenizer_config.json", [], (END, END + 2)),
    ],
)
def test_end_tokens_are_found_beside_it(directory: Path, name: str, content: object, ids: tuple[int, ...]) -> None:
    (directory / name).write_text(json.dumps(content))
    assert read_vocabulary(directory).eos_token_ids == ids


def test_all_files_count(directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": END}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|turn|>"}))
    assert read_vocabulary(directory).eos_token_ids == (END, END + 1)


def test_end_tokens_that_are_given_are_all(directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": END}))
    assert read_vocabulary(directory, eos_tokens=["<|turn|>", str(END + 2)]).eos_token_ids == (END + 1, END + 2)


def test_a_padded_vocabulary_has_ids_without_text(directory: Path) -> None:
    padded = read_vocabulary(directory, vocab_size=1000)
    assert padded.vocab_size == 1000
    assert set(padded.token_bytes[END:]) == {None}


def test_refusals_name_the_file(directory: Path) -> None:
    (directory / "broken.json").write_text("{")
    (directory / "model.gguf").write_bytes(b"GGUF\x03")
    (directory / "alone").mkdir()
    (directory / "alone" / "tokenizer.json").write_bytes(BYTES.tokenizer_json.replace(b"<|end|>", b"<|fin|>"))
    lossy = json.loads((directory / "tokenizer.json").read_text()) | {"normalizer": {"type": "Lowercase"}}
    (directory / "lossy.json").write_text(json.dumps(lossy))
    for path, options, says in [
        (directory / "gone.json", {}, "gone.json: No such file"),
        (directory / "broken.json", {}, "broken.json is not a tokenizer.json"),
        (directory / "model.gguf", {}, "is a GGUF file"),
        (directory / "alone", {}, "--eos-token"),
        (directory / "lossy.json", {}, "lossy.json: the normalizer Lowercase"),
        (directory, {"eos_tokens": ["<|no|>"]}, "has no token '<|no|>'"),
        (directory, {"eos_tokens": ["100000"]}, "has no token '100000'"),
        (directory, {"vocab_size": 10}, "no room"),
    ]:
        with pytest.raises(TokenizerFileError) as refused:
            read_vocabulary(path, **options)  # type: ignore[arg-type]
        assert says in str(refused.value)


def test_a_broken_file_beside_it_is_named(directory: Path) -> None:
    (directory / "generation_config.json").write_text("{")
    with pytest.raises(TokenizerFileError, match=r"generation_config\.json is not JSON"):
        read_vocabulary(directory)
