"""`espalier score` and `tokenize`: a text by its tokens, as a running gateway sees it."""

from __future__ import annotations

from typing import Any

from gateway.cli.client import GatewayClient, print_json


def score(text: str, *, prompt: str, num_top: int, address: str, timeout_s: float, prints_json: bool) -> None:
    """Print how probable a text is behind a prompt: each token, then all of it.

    Raises:
        ServiceError: as the gateway answers.
    """
    with GatewayClient(address, timeout_s=timeout_s) as client:
        response = client.score(prompt=prompt, text=text, num_top=num_top)
    if prints_json:
        print_json(response)
        return
    for token in response.tokens:
        others = "  ".join(f"{shown(top.token)} {top.logprob:.3f}" for top in token.top)
        print(f"{token.logprob:9.3f}  {shown(token.token)}" + (f"    of {others}" if others else ""))
    print(f"{response.logprob:9.3f}  in all, {len(response.tokens)} tokens behind {response.num_prompt_tokens}")


def tokenize(text: str, *, address: str, timeout_s: float, prints_json: bool) -> None:
    """Print a prompt's tokens and their number.

    Raises:
        ServiceError: as the gateway answers.
    """
    with GatewayClient(address, timeout_s=timeout_s) as client:
        response = client.tokenize(prompt=text)
    if prints_json:
        print_json(response)
        return
    for token in response.tokens:
        print(f"{token.id:8}  {shown(token)}")
    print(f"{len(response.tokens)} of {response.context_length} tokens")


def shown(token: Any) -> str:
    """Spell a token in quotes, what cannot be seen in it escaped."""
    return repr(token.spelling.decode(errors="backslashreplace"))
