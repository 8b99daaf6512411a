"""One document to a validated record, or to the reason why there is none."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from gateway import metrics
from gateway.clients.peer import Metadata
from gateway.extraction.fields import Field, Interval, mean_removed_mass, read_fields
from gateway.extraction.prompt import prompt_of
from gateway.extraction.request import Document, Extraction
from gateway.generation import GenerationResult
from gateway.service import Gateway
from services.rpckit.status import (
    BudgetTooSmall,
    DeadlineExceeded,
    GrammarSyntax,
    GrammarTooLarge,
    InvalidRequest,
    LeaseExpired,
    NotReady,
    OutOfCapacity,
    PositionMismatch,
    ServiceError,
    UnsatisfiableGrammar,
    UnsupportedConstruct,
    VocabularyMismatch,
)

if TYPE_CHECKING:
    from services.rpckit.spans import CallSpan

Status = Literal["valid", "budget_closed", "failed"]

_OF_THE_SERVICES: Final = (NotReady, OutOfCapacity, LeaseExpired, VocabularyMismatch, PositionMismatch)
_OF_THE_EXTRACTION: Final = (GrammarSyntax, UnsupportedConstruct, UnsatisfiableGrammar, GrammarTooLarge)
_FIELDS_OF_A_DOCUMENT: Final = ("generation.prompt", "generation.chat")


@dataclass(frozen=True, slots=True)
class ExtractionResult:
    """What came of a document: `generation` with its record, or the `error` that is the document's own."""

    document_id: str
    status: Status
    seed: int
    total_s: float
    generation: GenerationResult | None = None
    fields: tuple[Field, ...] = ()
    removed_mass: Interval | None = None
    error: ServiceError | None = None


class Extractor:
    """Makes records over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def extract(
        self,
        extraction: Extraction,
        document: Document,
        *,
        deadline_s: float | None = None,
        metadata: Metadata = (),
        span: CallSpan | None = None,
        is_patient: bool = False,
    ) -> ExtractionResult:
        """Make a document's record; what is named is as for `Gateway.generate`.

        Raises:
            ServiceError: one that is not the document's own: of the extraction, or of a service that is away.
        """
        started = time.perf_counter()
        limits = [limit for limit in (deadline_s, extraction.timeout_s) if limit is not None]
        seed = extraction.sampling.seed
        try:
            if not document.text.strip():
                raise InvalidRequest("the document is empty", field="document.text")
            (generation,) = await self._gateway.generate(
                extraction.generation(prompt_of(extraction, document.text)),
                None,
                deadline_s=min(limits, default=None),
                metadata=metadata,
                span=span,
                is_patient=is_patient,
            )
        except ServiceError as error:
            if not _is_of_the_document(error):
                raise
            metrics.EXTRACTIONS.labels("failed").inc()
            return ExtractionResult(document.id, "failed", seed, time.perf_counter() - started, error=error)
        status: Status = "budget_closed" if generation.finish_reason == "budget_closed" else "valid"
        metrics.EXTRACTIONS.labels(status).inc()
        seen = generation.logprobs or generation.draws
        # Looks for each string in the document, which may be long: not on the event loop.
        fields = await asyncio.to_thread(
            read_fields,
            generation.text,
            generation.spellings,
            [None if token is None else token.logprob for token in seen],
            document=document.text if extraction.provenance else None,
        )
        return ExtractionResult(
            document.id,
            status,
            seed,
            time.perf_counter() - started,
            generation=generation,
            fields=fields,
            removed_mass=mean_removed_mass([None if token is None else token.removed_mass for token in seen]),
        )


def _is_of_the_document(error: ServiceError) -> bool:
    """Tell whether asking again, or asking for another document, would change nothing about an error."""
    match error:
        case InvalidRequest():
            return (error.field or "").startswith((*_FIELDS_OF_A_DOCUMENT, "document."))
        case BudgetTooSmall():
            return "num_needed" not in error.metadata  # else no record at all would fit
        case DeadlineExceeded():
            return "service" not in error.metadata  # else a service did not answer
    return not isinstance(error, _OF_THE_SERVICES + _OF_THE_EXTRACTION)
