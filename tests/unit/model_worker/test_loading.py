"""Checkpoints good and bad, tokenizers out of GGUF, the toy; `transformers` on the same file is the oracle."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from services.model_worker.loading import load_model
from services.model_worker.model.checkpoint import CheckpointError
from services.model_worker.toy import toy_model
from services.vocabulary import Vocabulary
from tests.support.gguf_files import random_tensors, write_gguf
from tests.support.toy_model import prefill_logits, random_tokens


@pytest.mark.parametrize("quantised_as", [None, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1])
def test_a_gguf_file_has_the_logits_of_transformers(
    tmp_path: Path, quantised_as: gguf.GGMLQuantizationType | None
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", random_tensors(), quantised_as=quantised_as)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    token_ids = random_tokens(40)
    with torch.inference_mode():
        expected = oracle(torch.tensor([token_ids])).logits[0].numpy()
    loaded = load_model(str(path), torch.float32)
    np.testing.assert_allclose(prefill_logits(token_ids, loaded.model), expected, atol=1e-4)
    assert loaded.num_parameters == loaded.num_active_parameters == oracle.num_parameters()


def test_experts_are_read_as_they_were_written(tmp_path: Path) -> None:
    tensors = random_tensors(num_experts=3)
    loaded = load_model(str(write_gguf(tmp_path / "m.gguf", tensors, num_experts=3)), torch.float32)
    state = loaded.model.state_dict()
    gate_up = state["blocks.1.feed_forward.gate_up"].numpy()
    np.testing.assert_array_equal(gate_up[:, :96], tensors["blk.1.ffn_gate_exps.weight"])
    np.testing.assert_array_equal(gate_up[:, 96:], tensors["blk.1.ffn_up_exps.weight"])
    np.testing.assert_array_equal(state["blocks.0.feed_forward.down"], tensors["blk.0.ffn_down_exps.weight"])
    np.testing.assert_array_equal(state["blocks.0.feed_forward.router.weight"], tensors["blk.0.ffn_gate_inp.weight"])
    assert loaded.model.config.num_experts_per_tok == 2
    assert loaded.num_parameters - loaded.num_active_parameters == 2 * 1 * 3 * 64 * 96
    assert np.isfinite(prefill_logits(random_tokens(20), loaded.model)).all()


def test_a_file_without_an_output_matrix_ties_it_to_the_embedding(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["output.weight"]
    loaded = load_model(str(write_gguf(tmp_path / "m.gguf", tensors)), torch.float32)
    assert loaded.model.head.weight is loaded.model.embedding.weight


def test_a_directory_means_the_file_in_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", random_tensors(), general__name="Tiny")
    assert load_model(str(tmp_path), torch.float32).name == "Tiny"
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files \(m.gguf, other.gguf\)"):
        load_model(str(tmp_path), torch.float32)


def test_a_model_that_is_not_there_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model at .*nowhere"):
        load_model(str(tmp_path / "nowhere"), torch.float32)
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(str(tmp_path), torch.float32)


def test_a_file_that_is_no_gguf_and_one_that_is_cut_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_tensors())
    whole = path.read_bytes()
    for size in (5, 200, 3000, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged or was not downloaded whole"):
            load_model(str(path), torch.float32)
    path.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CheckpointError, match="is not a GGUF file: it begins with b'vers'"):
        load_model(str(path), torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, "architecture `mamba`; supported are: llama"),
        ({"pre": "tekken"}, "pre-tokenizer `tekken`; supported are: smollm, gpt-2, llama-bpe, qwen2"),
        ({"tokenizer__ggml__model": "bert"}, "tokenizer of kind `bert`; supported are: gpt2 .* and llama"),
        ({"tokenizer__ggml__eos_token_id": 5000}, "eos_token_id` = 5000, but only 282 tokens"),
        ({"tokenizer__ggml__token_type": [1, 1]}, "282 tokens but 2 token types"),
        ({"tokenizer__ggml__merges": ["x yzzy"]}, "do not fit together"),
        (
            {"llama__rope__scaling__type": "yarn"},
            "`llama.rope.scaling.type` = yarn; supported are none, linear",
        ),
        ({"llama__block_count": None}, "no `llama.block_count`"),
        ({"llama__block_count": 3}, "lacks 9 tensors: blk.2.attn_k.weight, .*…"),
        ({"llama__block_count": 1}, "9 tensors that this decoder does not implement: blk.1.attn_k.weight"),
        ({"llama__feed_forward_length": 95}, r"ffn_gate.weight \+ blk.0.ffn_up.weight has the shape \(192, 64\)"),
        ({"llama__attention__head_count_kv": 3}, r"num_attention_heads \(4\) must be a multiple"),
        (
            {"llama__rope__dimension_count": 8},
            "`llama.rope.dimension_count` = 8, this decoder needs the head dimension 16",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_tensors(), **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(str(path), torch.float32)


def test_a_missing_embedding_is_named(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["token_embd.weight"]
    path = write_gguf(tmp_path / "m.gguf", tensors)
    with pytest.raises(CheckpointError, match=r"no tensor `token_embd.weight`"):
        load_model(str(path), torch.float32)


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_the_tokenizer_keeps_bytes_and_puts_the_start_token_where_the_file_says_so(
    tmp_path: Path, add_bos_token: bool
) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        random_tensors(),
        pre="smollm",
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__add_bos_token=add_bos_token,
    )
    loaded = load_model(str(path), torch.float32)
    tokenizer = loaded.tokenizer
    vocabulary = Vocabulary(tokenizer.tokenizer_json, 282, tokenizer.eos_token_ids)
    text = 'the year 2024 "말씀" 가나 😀 <|im_end|>\n'
    assert vocabulary.decode(vocabulary.encode(text)) == text.encode()
    # `smollm` splits digits one by one, so that the merges of digits never happen.
    assert [vocabulary.token_bytes[i] for i in vocabulary.encode("2024")] == [b"2", b"0", b"2", b"4"]
    assert vocabulary.encode_prompt("a") == [1] * add_bos_token + vocabulary.encode("a")
    assert vocabulary.encode_chat("<|im_end|>") == [2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (0, 2))


def test_the_toy_is_the_same_for_the_same_seed() -> None:
    token_ids = random_tokens(30)
    first, again, other = (prefill_logits(token_ids, toy_model(seed)) for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes()
    assert np.abs(first - other).max() > 1
    assert load_model("toy:5", torch.float32).vocabulary_digest == load_model("toy", torch.float32).vocabulary_digest


def test_the_toy_has_padding_merges_and_halves_of_characters() -> None:
    loaded = load_model("toy", torch.float32)
    vocabulary = Vocabulary(loaded.tokenizer.tokenizer_json, 300, loaded.tokenizer.eos_token_ids)
    assert vocabulary.token_bytes[282:] == (None,) * 18
    assert {b" the", b"\xea\xb0", "가".encode(), b"\xf0\x9f"} <= set(vocabulary.token_bytes)
    text = 'the "가" 😀 {"year": 2024}'
    assert vocabulary.decode(vocabulary.encode(text)) == text.encode()


def test_bfloat16_runs() -> None:
    token_ids = random_tokens(30)
    logits = prefill_logits(token_ids, load_model("toy", torch.bfloat16).model)
    reference = prefill_logits(token_ids, load_model("toy", torch.float32).model)
    # Routing may choose another expert where two are nearly equal; most rows stay close.
    assert np.median(np.abs(logits - reference).max(axis=1)) < 0.3
