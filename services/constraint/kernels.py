"""Compiles the mask kernels ahead of time: `NUMBA_CACHE_DIR=DIR python -m services.constraint.kernels`.

For images. What is compiled depends on the processor that Numba compiles for: where NUMBA_CPU_NAME names one, as
`generic`, the result serves every machine that runs with the same name, and is compiled anew elsewhere.
"""

from __future__ import annotations

import time

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from services.constraint.service import derive
from services.vocabulary import Vocabulary


def byte_vocabulary() -> Vocabulary:
    """Make a vocabulary of an end token and a token for each byte: kernels are the same for all vocabularies."""
    tokens = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({token: token_id for token_id, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return Vocabulary(tokenizer.to_str().encode(), len(tokens), [0])


def main() -> None:
    """Run what the service runs when it starts."""
    started = time.monotonic()
    derive(byte_vocabulary())
    print(f"kernels are ready after {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
