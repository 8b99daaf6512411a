"""Hugging Face directories good and bad; `transformers`, which writes them, is the oracle."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from services.model_worker.loading import load_model
from services.model_worker.model.checkpoint import CheckpointError
from services.model_worker.toy import CHAT_TEMPLATE, toy_tokenizer
from tests.support.toy_model import prefill_logits, random_tokens

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "bos_token_id": 1,
    "eos_token_id": [0, 2],
}


def llama(**fields: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE | fields))
    return with_random_norms(model)


def mixtral(**fields: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(2)
    config = transformers.MixtralConfig(**SHAPE | {"num_local_experts": 8, "num_experts_per_tok": 2} | fields)
    return with_random_norms(transformers.MixtralForCausalLM(config))


def with_random_norms(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Norms are all ones at first, so that two could be exchanged unseen."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.train(False)
    return model


def save(model: transformers.PreTrainedModel, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    (directory / "tokenizer.json").write_bytes(toy_tokenizer().tokenizer_json)
    return directory


@pytest.fixture(scope="module")
def saved_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def saved_mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(mixtral(), tmp_path_factory.mktemp("mixtral"), max_shard_size="100KB")


@pytest.fixture
def llama_copy(saved_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved_llama, tmp_path / "llama")


@pytest.fixture
def mixtral_copy(saved_mixtral: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved_mixtral, tmp_path / "mixtral")


def edit_json(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({key: value for key, value in (content | changes).items() if value != "absent"}))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def refuses(directory: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(str(directory), torch.float32)


def assert_same_logits(directory: Path, oracle: transformers.PreTrainedModel) -> None:
    token_ids = random_tokens(70)
    with torch.inference_mode():
        expected = oracle(torch.tensor([token_ids])).logits[0]
    assert expected.abs().max() > 0.1
    loaded = load_model(str(directory), torch.float32)
    assert loaded.num_parameters == oracle.num_parameters()
    logits = torch.from_numpy(prefill_logits(token_ids, loaded.model))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "fields", "options"),
    [
        (llama, {}, {}),
        (llama, {"tie_word_embeddings": True}, {}),
        (llama, {"head_dim": 16, "num_key_value_heads": 3}, {"max_shard_size": "20KB"}),
        (mixtral, {}, {}),
        (mixtral, {"tie_word_embeddings": True}, {"max_shard_size": "100KB"}),
    ],
)
def test_a_directory_has_the_logits_of_transformers(
    tmp_path: Path, make: Callable[..., Any], fields: dict[str, Any], options: dict[str, Any]
) -> None:
    oracle = make(**fields)
    directory = save(oracle, tmp_path, **options)
    assert (directory / "model.safetensors.index.json").is_file() == bool(options)
    assert_same_logits(directory, oracle)


def test_configs_from_before_transformers_5_mean_the_same(llama_copy: Path, mixtral_copy: Path) -> None:
    for directory, oracle in ((llama_copy, llama()), (mixtral_copy, mixtral())):
        edit_json(
            directory / "config.json", rope_parameters="absent", rope_scaling=None, rope_theta=5000, head_dim="absent"
        )
        assert_same_logits(directory, oracle)
    edit_json(llama_copy / "config.json", rope_theta="absent")
    assert load_model(str(llama_copy), torch.float32).model.config.rope_theta == 10_000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_the_width_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    model = llama()
    torch.nn.Module.to(model, dtype)
    directory = save(model, tmp_path)
    # Read anew, because `to` also rounds the oracle's rotary frequencies.
    oracle = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert_same_logits(directory, oracle)
    assert load_model(str(directory), torch.bfloat16).model.dtype is torch.bfloat16


def test_tensors_that_say_nothing_new_are_passed_over(tmp_path: Path) -> None:
    oracle = llama(tie_word_embeddings=True)
    directory = save(oracle, tmp_path)
    edit_tensors(
        directory,
        lambda tensors: tensors.update(
            {
                "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
            }
        ),
    )
    assert_same_logits(directory, oracle)
    edit_tensors(directory, lambda tensors: tensors["lm_head.weight"].add_(1))
    refuses(directory, r"`tie_word_embeddings` = true, but `lm_head.weight` differs")


def test_the_tokenizer_is_the_file_and_the_rest_what_the_files_beside_it_say(llama_copy: Path) -> None:
    edit_json(llama_copy / "config.json", eos_token_id=0)
    edit_json(llama_copy / "generation_config.json", eos_token_id=[2])
    loaded = load_model(str(llama_copy), torch.float32)
    toy = toy_tokenizer()
    assert loaded.name == "llama"
    assert loaded.tokenizer.tokenizer_json == toy.tokenizer_json
    assert (loaded.tokenizer.bos_token_id, loaded.tokenizer.eos_token_ids) == (1, (0, 2))
    assert loaded.tokenizer.chat_template is None
    assert loaded.vocabulary_digest == load_model("toy", torch.float32).vocabulary_digest
    config = llama_copy / "tokenizer_config.json"
    for template in (CHAT_TEMPLATE, [{"name": "rag", "template": "x"}, {"name": "default", "template": CHAT_TEMPLATE}]):
        edit_json(config, chat_template=template)
        assert load_model(str(llama_copy), torch.float32).tokenizer.chat_template == CHAT_TEMPLATE
    (llama_copy / "chat_template.jinja").write_text("from the file")
    assert load_model(str(llama_copy), torch.float32).tokenizer.chat_template == "from the file"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "Gemma.*; supported are: LlamaForCausalLM, Mistral.*, Mixtral.*"),
        ({"architectures": "absent"}, "`architectures` = None; supported are"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "`rope_scaling` = .*yarn.* the rope types `default`, `linear` and `llama3`",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "`rope_parameters` = .*llama3"),
        ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "`rope_parameters` = .*partial"),
        ({"rope_theta": 4000}, "rotary bases that differ"),
        ({"rope_parameters": {"rope_theta": "much"}}, "rope_theta` = 'much', it must be a positive number"),
        ({"sliding_window": 64}, "asks for `sliding_window` = 64, which this decoder does not implement"),
        ({"attention_bias": True}, "asks for `attention_bias` = True"),
        ({"mlp_bias": True}, "asks for `mlp_bias` = True"),
        ({"hidden_act": "gelu"}, "asks for `hidden_act` = gelu"),
        ({"quantization_config": {"bits": 4}}, "asks for `quantization_config`"),
        ({"num_local_experts": 8}, "asks for `num_local_experts` = 8"),
        ({"num_key_value_heads": 4}, r"num_attention_heads \(6\) must be a multiple"),
        ({"num_attention_heads": 0}, "`num_attention_heads` = 0, it must be an integer of at least 1"),
        ({"num_attention_heads": 5, "head_dim": None}, r"`hidden_size` \(48\) is no multiple"),
        ({"hidden_size": True}, "`hidden_size` = True, it must be an integer"),
        ({"vocab_size": "absent"}, "`vocab_size` = None"),
        ({"rms_norm_eps": "absent"}, "`rms_norm_eps` = None, it must be a positive number"),
        ({"tie_word_embeddings": 1}, "`tie_word_embeddings` = 1, it must be true or false"),
        ({"num_hidden_layers": 3}, r"lacks 9 tensors: model.layers.2.input_layernorm.weight, .*…"),
        ({"num_hidden_layers": 1}, r"9 tensors that this decoder does not implement: model.layers.1.input"),
        ({"intermediate_size": 41}, r"mlp.gate_proj.weight` has the shape \(40, 48\), config.json asks for \(41, 48\)"),
        ({"vocab_size": 200}, "a vocabulary of 200 has no room"),
        ({"bos_token_id": 300}, "`bos_token_id` = 300, but only 300 tokens"),
    ],
)
def test_settings_that_cannot_be_run_are_refused_by_name(
    llama_copy: Path, changes: dict[str, Any], message: str
) -> None:
    (llama_copy / "generation_config.json").unlink()
    edit_json(llama_copy / "config.json", **changes)
    refuses(llama_copy, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 0}, "`sliding_window` = 0, it must be an integer of at least 1"),
        ({"num_local_experts": 1}, "`num_local_experts` = 1, it must be an integer of at least 2"),
        ({"num_local_experts": 9}, r"lacks 6 tensors: model.layers.0.block_sparse_moe.experts.8.w1.weight"),
        ({"num_experts_per_tok": 9}, r"num_experts_per_tok \(9\) exceeds num_experts \(8\)"),
        ({"rope_parameters": "absent"}, "`rope_theta` = None"),
        ({"num_key_value_heads": "absent"}, "`num_key_value_heads` = None"),
    ],
)
def test_settings_of_experts_that_cannot_be_run_are_refused(
    mixtral_copy: Path, changes: dict[str, Any], message: str
) -> None:
    edit_json(mixtral_copy / "config.json", **changes)
    refuses(mixtral_copy, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("lm_head.weight"), r"lacks 1 tensors: lm_head.weight"),
        (
            lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(48)}),
            r"1 tensors that this decoder does not implement: model.layers.0.self_attn.q_proj.bias",
        ),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(1, 48)}),
            r"`model.norm.weight` has the shape \(1, 48\), config.json asks for \(48,\)",
        ),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}),
            r"`model.norm.weight` is stored as I8; supported are: F32, F16, BF16",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    llama_copy: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    edit_tensors(llama_copy, change)
    refuses(llama_copy, message)


def test_files_that_are_cut_are_refused(llama_copy: Path) -> None:
    file = llama_copy / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refuses(llama_copy, "model.safetensors is damaged or was not downloaded whole")
    file.write_text("version https://git-lfs.github.com/spec/v1")
    refuses(llama_copy, "model.safetensors is damaged")


def test_shards_that_are_not_there_or_not_as_indexed_are_refused(mixtral_copy: Path) -> None:
    index = mixtral_copy / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=weight_map | {"another.weight": weight_map["lm_head.weight"]})
    refuses(mixtral_copy, r"do not agree on 1 tensors: another.weight")
    edit_json(index, weight_map=weight_map | {"lm_head.weight": "../model.safetensors"})
    refuses(mixtral_copy, r"names the file '../model.safetensors', it must be one in the same directory")
    edit_json(index, weight_map={})
    refuses(mixtral_copy, "has no `weight_map`")
    edit_json(index, weight_map=weight_map)
    (mixtral_copy / weight_map["lm_head.weight"]).unlink()
    refuses(mixtral_copy, f"{weight_map['lm_head.weight']} is missing")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused(llama_copy: Path, name: str) -> None:
    (llama_copy / "model.safetensors").rename(llama_copy / name)
    refuses(llama_copy, rf"weights only as pickles \({name}\), which are never read")


def test_directories_that_lack_a_file_or_hold_two_models_are_refused(llama_copy: Path) -> None:
    refuses(llama_copy / "model.safetensors", "is one file of a Hugging Face directory: give the directory")
    (llama_copy / "model.gguf").write_bytes(b"GGUF")
    refuses(llama_copy, "holds both safetensors and GGUF files")
    (llama_copy / "model.gguf").unlink()
    (llama_copy / "tokenizer.json").rename(llama_copy / "tokenizer.model")
    refuses(llama_copy, "has no tokenizer.json")
    (llama_copy / "config.json").write_text("[1]")
    refuses(llama_copy, "config.json holds a list, it must be a JSON object")
    (llama_copy / "config.json").write_text("{")
    refuses(llama_copy, "config.json is not JSON")
    (llama_copy / "config.json").unlink()
    refuses(llama_copy, "cannot read .*config.json: No such file")
