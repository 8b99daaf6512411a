"""Finds and loads the model that the settings name."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from services.model_worker.model.checkpoint import CheckpointError
from services.model_worker.model.cost import Cost, cost_of
from services.model_worker.model.device import CPU
from services.model_worker.model.gguf_file import GgufFile, gguf_config, load_gguf
from services.model_worker.model.huggingface import holds_safetensors, huggingface_config, load_huggingface
from services.model_worker.model.transformer import Transformer
from services.model_worker.tokenizer import TokenizerFiles, gguf_tokenizer, huggingface_tokenizer
from services.model_worker.toy import toy_model, toy_tokenizer
from services.vocabulary import UnsupportedTokenizerError, Vocabulary

_log = structlog.get_logger()

TOY_PATTERN = re.compile(r"toy(?::(\d{1,9}))?")

_PICKLES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, and what others need to know of it."""

    name: str
    model: Transformer
    tokenizer: TokenizerFiles
    vocabulary_digest: str
    num_parameters: int
    num_active_parameters: int
    cost: Cost
    dtype: str


def load_model(spec: str, dtype: torch.dtype, device: torch.device = CPU) -> LoadedModel:
    """Load `toy`, `toy:<seed>`, a GGUF file, a directory that holds exactly one, or a Hugging Face directory.

    Raises:
        CheckpointError: there is no such model, or it cannot be used.
    """
    started = time.perf_counter()
    if toy := TOY_PATTERN.fullmatch(spec):
        name, model, tokenizer = spec, toy_model(int(toy[1] or 0), dtype, device=device), toy_tokenizer()
    elif holds_safetensors(directory := Path(spec).expanduser()):
        if any(directory.glob("*.gguf")):
            raise CheckpointError(
                f"the directory {directory} holds both safetensors and GGUF files: name the GGUF file if you mean it, "
                "or move it elsewhere"
            )
        _log.info("reading the model directory", path=str(directory))
        config = huggingface_config(directory)
        tokenizer = huggingface_tokenizer(directory, config.vocab_size)
        model = load_huggingface(directory, config, dtype, device)
        name = directory.resolve().name
    else:
        path = find_gguf(Path(spec).expanduser())
        _log.info("reading the model file", path=str(path), megabytes=round(path.stat().st_size / 1e6))
        file = GgufFile(path)
        config = gguf_config(file)
        tokenizer = gguf_tokenizer(file)
        model = load_gguf(file, config, dtype, device)
        name = file.get("general.name") or path.stem
    try:
        vocabulary = Vocabulary(tokenizer.tokenizer_json, model.config.vocab_size, tokenizer.eos_token_ids)
    except (UnsupportedTokenizerError, ValueError) as error:
        raise CheckpointError(f"the tokenizer of {spec} cannot be used: {error}") from None
    loaded = LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        vocabulary_digest=vocabulary.digest,
        num_parameters=model.num_parameters(),
        num_active_parameters=model.num_active_parameters(),
        cost=cost_of(model),
        dtype=str(dtype).removeprefix("torch."),
    )
    _log.info(
        "model loaded",
        model=name,
        parameters=loaded.num_parameters,
        dtype=loaded.dtype,
        device=str(device),
        seconds=round(time.perf_counter() - started, 2),
    )
    return loaded


def find_gguf(path: Path) -> Path:
    """Return the GGUF file that a path means.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    if path.is_file():
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{path} is one file of a Hugging Face directory: give the directory, {path.parent}")
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"there is no model at {path}: give a GGUF file, a directory that holds one, "
            "a Hugging Face directory with safetensors, or `toy` (--model, ESPALIER_MODEL)"
        )
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"the directory {path} holds {len(files)} GGUF files ({names}): name the one you mean")
    if pickles := sorted(file.name for pattern in _PICKLES for file in path.glob(pattern)):
        raise CheckpointError(
            f"the model directory {path} holds weights only as pickles ({', '.join(pickles)}), which are never read "
            "because they can run code: give safetensors or GGUF"
        )
    raise CheckpointError(
        f"the model directory {path} holds no weights: no *.gguf file, no model.safetensors and no "
        "model.safetensors.index.json is in it"
    )
