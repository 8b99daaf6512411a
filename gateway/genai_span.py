"""A generation in the terms of OpenTelemetry's conventions for generative AI: attributes of its call's span.

The conventions are those of the client side, which are all there are: the span is a SERVER one, and says the same.
Neither prompts nor texts are in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gateway.generation import GenerationResult
from gateway.request import ChatPrompt, GenerationRequest

if TYPE_CHECKING:
    from services.rpckit.spans import AttributeValue, CallSpan

_MAX_INT: Final = 2**63 - 1


def describe_request(span: CallSpan, request: GenerationRequest, model_name: str) -> None:
    """Say what is asked for, and name the span by the conventions: operation and model."""
    operation = "chat" if isinstance(request.prompt, ChatPrompt) else "text_completion"
    sampling = request.sampling
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "espalier",
        "gen_ai.request.model": model_name,
        "gen_ai.output.type": "json" if request.constraint and request.constraint.kind == "json_schema" else "text",
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.choice.count": request.n,
        "espalier.constraint.kind": "none" if request.constraint is None else request.constraint.kind,
    }
    if request.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = request.max_tokens
    if sampling.top_k:
        attributes["gen_ai.request.top_k"] = float(sampling.top_k)
    if request.stops:
        attributes["gen_ai.request.stop_sequences"] = request.stops
    if sampling.seed <= _MAX_INT:  # an attribute holds no larger one
        attributes["gen_ai.request.seed"] = sampling.seed
    if request.beam is not None:
        attributes["espalier.beam.width"] = request.beam.width
    span.describe(attributes, name=f"{operation} {model_name}")


def describe_results(span: CallSpan, model_name: str, results: Sequence[GenerationResult]) -> None:
    """Say what came of it; output tokens are those of all texts."""
    span.describe(
        {
            "gen_ai.response.model": model_name,
            "gen_ai.response.finish_reasons": [result.finish_reason for result in results],
            "gen_ai.response.time_to_first_chunk": min(result.ttft_s for result in results),
            "gen_ai.usage.input_tokens": results[0].num_prompt_tokens,
            "gen_ai.usage.output_tokens": sum(len(result.token_ids) for result in results),
            "espalier.usage.num_forced_tokens": sum(result.num_forced_tokens for result in results),
            "espalier.usage.num_steps": sum(result.num_steps for result in results),
            "espalier.usage.num_dead_ends": sum(result.num_dead_ends for result in results),
            "espalier.mask_wait_us": round(1e6 * sum(result.mask_wait_s for result in results)),
        }
    )
