"""A matcher of one special token and nothing else: what stands in such a hole of a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from services.constraint.core.engine import Guidance
from services.rpckit.status import TokenRejected, UnsupportedConstruct
from services.vocabulary import Vocabulary, bitmask_of

_MAX_NAMES_SHOWN: Final = 50


class SpecialToken:
    """As `Matcher`, as far as a hole needs it. The end token behind it is not its business."""

    start: Final = 0
    num_bytes: Final = 0
    _TAKEN: Final = 1

    def __init__(self, name: str, vocabulary: Vocabulary) -> None:
        """Find the token by its name.

        Raises:
            UnsupportedConstruct: the vocabulary has no special token of this name, or it ends every text.
        """
        token_id = vocabulary.special_tokens.get(name)
        if token_id is None:
            names = [repr(known) for known in vocabulary.special_tokens]
            more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
            raise UnsupportedConstruct(
                f"the model has no special token {name!r} that may stand inside a text; it has: "
                f"{', '.join(names[:_MAX_NAMES_SHOWN]) or 'none'}{more}",
                name="special_token",
                token=name,
            )
        self._token_id = token_id
        self._row = bitmask_of((token_id,), vocabulary.vocab_size)

    def accept(self, state: int, token_ids: Sequence[int]) -> int:
        """Return the state behind tokens.

        Raises:
            TokenRejected: another token, or one more.
        """
        for index, token_id in enumerate(token_ids):
            if state == self._TAKEN or token_id != self._token_id:
                raise TokenRejected(
                    f"token {token_id} at index {index} is outside the mask", index=index, token_id=token_id
                )
            state = self._TAKEN
        return state

    def fill_bitmask(self, state: int, out: npt.NDArray[np.int32]) -> None:
        """Write the mask of `state` to `out` (words,)."""
        out[:] = 0 if state == self._TAKEN else self._row

    def is_accepting(self, state: int) -> bool:
        """Tell whether the token was taken."""
        return state == self._TAKEN

    def guidance(self, state: int) -> Guidance:
        """Return what may follow `state`."""
        bitmask = np.empty_like(self._row)
        self.fill_bitmask(state, bitmask)
        if state == self._TAKEN:
            return Guidance(state, (), state, bitmask, 0, True, 0, None)
        return Guidance(state, (), state, bitmask, 1, False, 1, self._token_id)
