"""A toy model for tests and first steps: real mixture of experts, byte vocabulary, weights from a seed, no file.

It writes noise, the same noise for the same seed. What it exercises is everything around the weights.
"""

from __future__ import annotations

from typing import Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from services.model_worker.model.checkpoint import fill
from services.model_worker.model.config import ModelConfig
from services.model_worker.model.device import CPU
from services.model_worker.model.transformer import Transformer
from services.model_worker.tokenizer import TokenizerFiles

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

MERGES: Final = (
    *(("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("a", "n"), ("o", "n"), ("r", "e"), ("Ġ", "a")),
    *(('"', ":"), (",", '"'), ("Ġ", '"'), ('":', 'Ġ"'), ('"', "}"), ("{", '"'), ("1", "0"), ("2", "0"), ("20", "2")),
    # The first two of three UTF-8 bytes of many Hangul syllables, one whole syllable, and the front of an emoji.
    *(("ê", "°"), ("ê°", "Ģ"), ("ë", "ĭ"), ("ð", "Ł"), ("ðŁ", "ĺ")),
)
"""Pairs in the byte-level alphabet: some English, some JSON, some halves of characters."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CONFIG: Final = ModelConfig(
    architecture="toy",
    num_hidden_layers=2,
    hidden_size=64,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    # The tokenizer knows 282 ids: the rest are padding, as many real checkpoints have it.
    vocab_size=300,
    context_length=4096,
    num_experts=4,
    num_experts_per_tok=2,
)


def toy_tokenizer() -> TokenizerFiles:
    """Make the toy's tokenizer: special tokens, then 256 bytes, then merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in MERGES)]
    tokenizer = Tokenizer(BPE({token: token_id for token_id, token in enumerate(tokens)}, list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return TokenizerFiles(
        tokenizer_json=tokenizer.to_str().encode(), bos_token_id=None, eos_token_ids=(0, 2), chat_template=CHAT_TEMPLATE
    )


def toy_model(
    seed: int, dtype: torch.dtype = torch.float32, config: ModelConfig = CONFIG, device: torch.device = CPU
) -> Transformer:
    """Make a model with weights drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            state[name] = torch.ones(parameter.shape, dtype=dtype)
        else:
            # Keeps every layer's output about as large as its input; the head is larger, so that logits differ.
            scale = 1.0 if name.startswith("embedding") else parameter.shape[-1] ** -0.5
            scale = 2 * scale if name.startswith("head") else scale
            state[name] = (torch.randn(parameter.shape, generator=generator) * scale).to(dtype)
    fill(model, state, device)
    return model
