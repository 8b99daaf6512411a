"""The errors that may reach a caller, and their one mapping to gRPC codes.

ServiceError
├── InvalidRequest         INVALID_ARGUMENT     INVALID_REQUEST        a field out of range; names it
├── ContextExceeded        INVALID_ARGUMENT     CONTEXT_EXCEEDED
├── BudgetTooSmall         INVALID_ARGUMENT     BUDGET_TOO_SMALL
├── GrammarSyntax          INVALID_ARGUMENT     GRAMMAR_SYNTAX         line and column or pointer
├── UnsupportedConstruct   INVALID_ARGUMENT     UNSUPPORTED_CONSTRUCT  name and pointer
├── UnsatisfiableGrammar   INVALID_ARGUMENT     UNSATISFIABLE_GRAMMAR
├── GrammarTooLarge        INVALID_ARGUMENT     GRAMMAR_TOO_LARGE      limit and value
├── TokenRejected          INVALID_ARGUMENT     TOKEN_REJECTED         index and token id
├── UnknownGrammar         NOT_FOUND            UNKNOWN_GRAMMAR
├── LeaseExpired           NOT_FOUND            LEASE_EXPIRED
├── VocabularyMismatch     FAILED_PRECONDITION  VOCABULARY_MISMATCH
├── PositionMismatch       FAILED_PRECONDITION  POSITION_MISMATCH
├── OutOfCapacity          RESOURCE_EXHAUSTED   CAPACITY               with RetryInfo
├── OutOfFuel              RESOURCE_EXHAUSTED   FUEL
├── DeadEnd                RESOURCE_EXHAUSTED   DEAD_END               limit and value, where one was hit
├── NotReady               UNAVAILABLE          NOT_READY              with RetryInfo
├── DeadlineExceeded       DEADLINE_EXCEEDED    DEADLINE
└── ValidationFailed       INTERNAL             VALIDATION_FAILED

No gRPC server is needed to raise one: the classes are plain exceptions, and the codes are numbers from
`google.rpc.Code`.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class ServiceError(Exception):
    """An error with a gRPC code, a reason in UPPER_SNAKE and metadata, all of which reach the caller."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self, message: str, *, field: str | None = None, retry_after_s: float | None = None, **metadata: object
    ) -> None:
        """`field` becomes a BadRequest violation, `retry_after_s` a RetryInfo, `metadata` the ErrorInfo's, as str()."""
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.request_id: str | None = None
        """Of the call that it ended, once it has; a RequestInfo."""
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidRequest(ServiceError):
    """A field of the request is missing or out of range."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class ContextExceeded(ServiceError):
    """More tokens than the model's context holds."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "CONTEXT_EXCEEDED"


class BudgetTooSmall(ServiceError):
    """`max_tokens` is below what a complete text needs."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "BUDGET_TOO_SMALL"


class GrammarSyntax(ServiceError):
    """A schema or grammar does not parse."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "GRAMMAR_SYNTAX"


class UnsupportedConstruct(ServiceError):
    """A keyword or construct that is not enforced, so the whole constraint is refused."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "UNSUPPORTED_CONSTRUCT"


class UnsatisfiableGrammar(ServiceError):
    """No text can satisfy the constraint."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "UNSATISFIABLE_GRAMMAR"


class GrammarTooLarge(ServiceError):
    """A constraint beyond a fixed limit."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "GRAMMAR_TOO_LARGE"


class TokenRejected(ServiceError):
    """A token outside the mask was to be taken."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "TOKEN_REJECTED"


class UnknownGrammar(ServiceError):
    """No named grammar of that name."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_GRAMMAR"


class LeaseExpired(ServiceError):
    """A sequence, grammar or state that is not known here any more; the caller may rebuild it."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "LEASE_EXPIRED"


class VocabularyMismatch(ServiceError):
    """Two services speak of different vocabularies."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "VOCABULARY_MISMATCH"


class PositionMismatch(ServiceError):
    """A step for another position than the sequence's."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "POSITION_MISMATCH"


class OutOfCapacity(ServiceError):
    """No room now; say when to try again by `retry_after_s`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "CAPACITY"


class OutOfFuel(ServiceError):
    """One mask would cost more than the limit allows."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "FUEL"


class DeadEnd(ServiceError):
    """A constraint's checks refused every way on that was tried within the limits. Another seed may find one."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "DEAD_END"


class NotReady(ServiceError):
    """Loading, draining, or a service that this one needs is away."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "NOT_READY"


class DeadlineExceeded(ServiceError):
    """The caller's deadline, or a limit on one call, has passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE"


class ValidationFailed(ServiceError):
    """The independent validator disagrees with the mask: a bug of ours."""

    code = grpc.StatusCode.INTERNAL
    reason = "VALIDATION_FAILED"
