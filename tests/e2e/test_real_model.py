"""SmolLM2 against `transformers` on the same file: logits, greedy tokens, where text is cut."""

from copy import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from services.model_worker.loading import LoadedModel, load_model
from services.vocabulary import Vocabulary
from tests.support.real_model import real_model_path
from tests.support.toy_model import prefill_logits

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

TOLERANCE = 1e-3
TEXT = """<|im_start|>user
Extract the invoice. No. 2024-0117, 19.99 EUR, due 2024-02-01; 서울 😀 "quoted"<|im_end|>
<|im_start|>assistant
"""


@cache
def loaded() -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(str(real_model_path()), torch.float32)


@cache
def oracle() -> transformers.PreTrainedModel:
    path = real_model_path()
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@cache
def vocabulary() -> Vocabulary:
    tokenizer = loaded().tokenizer
    return Vocabulary(tokenizer.tokenizer_json, loaded().model.config.vocab_size, tokenizer.eos_token_ids)


def test_logits_are_those_of_transformers() -> None:
    token_ids = vocabulary().encode_chat(TEXT)
    with torch.inference_mode():
        expected = oracle()(torch.tensor([token_ids])).logits[0].numpy()
    np.testing.assert_allclose(prefill_logits(token_ids, loaded().model), expected, atol=TOLERANCE)


def test_greedy_tokens_are_those_of_transformers() -> None:
    token_ids = vocabulary().encode_chat("<|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n")
    with torch.inference_mode():
        expected = (
            oracle()
            .generate(
                torch.tensor([token_ids]),
                attention_mask=torch.ones(1, len(token_ids), dtype=torch.int64),
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, len(token_ids) :]
            .tolist()
        )
    logits = prefill_logits([*token_ids, *expected], loaded().model)
    assert logits[len(token_ids) - 1 : -1].argmax(axis=1).tolist() == expected


def test_the_gguf_file_is_its_safetensors_twin(tmp_path: Path) -> None:
    config = copy(oracle().config)
    del config.quantization_config  # `transformers` saves no model that came from GGUF
    plain = transformers.LlamaForCausalLM(config)
    plain.load_state_dict(oracle().state_dict())
    plain.save_pretrained(tmp_path, max_shard_size="200MB")
    (tmp_path / "tokenizer.json").write_bytes(loaded().tokenizer.tokenizer_json)
    twin = load_model(str(tmp_path), torch.float32)
    assert twin.num_parameters == loaded().num_parameters
    token_ids = vocabulary().encode_chat(TEXT)
    np.testing.assert_allclose(
        prefill_logits(token_ids, twin.model), prefill_logits(token_ids, loaded().model), atol=1e-4
    )


def test_the_model_knows_a_capital() -> None:
    token_ids = vocabulary().encode_chat(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    answer: list[int] = []
    while not answer or answer[-1] not in loaded().tokenizer.eos_token_ids:
        answer.append(int(prefill_logits([*token_ids, *answer], loaded().model)[-1].argmax()))
        assert len(answer) < 20
    assert vocabulary().decode(answer) == b"The capital of France is Paris."


def test_text_comes_back_byte_for_byte() -> None:
    assert vocabulary().decode(vocabulary().encode(TEXT)) == TEXT.encode()
    assert vocabulary().decode(vocabulary().encode_chat("<|im_start|>가<|im_end|>")) == "가".encode()
    pieces = [vocabulary().token_bytes[token_id] for token_id in vocabulary().encode("in 2024, don't")]
    assert pieces == [b"in", b" ", b"2", b"0", b"2", b"4", b",", b" don", b"'t"]


def test_what_the_model_is() -> None:
    config = loaded().model.config
    assert (config.vocab_size, config.context_length, config.num_experts) == (49152, 8192, 1)
    assert loaded().tokenizer.eos_token_ids == (0, 2)
    assert loaded().num_parameters == loaded().num_active_parameters == 134_515_008
    assert "<|im_start|>" in (loaded().tokenizer.chat_template or "")
