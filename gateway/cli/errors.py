"""Errors as the command shows them, and the exit code of each.

| code | means                                                                        |
|------|------------------------------------------------------------------------------|
| 0    | done                                                                         |
| 1    | it failed: a service died or would not start, a file cannot be read, a bug   |
| 2    | the command line or a setting is wrong                                       |
| 3    | the request was refused: its constraint, a field, a name that is not known;  |
|      | a text is invalid, a document has no record                                  |
| 4    | a service is not there, not ready or full: try again                         |
| 5    | it took too long                                                             |
| 130  | interrupted                                                                  |
"""

from __future__ import annotations

from typing import Final

import grpc
from rich.console import Console
from rich.markup import escape

from services.rpckit.status import ServiceError

FAILED: Final = 1
BAD_USAGE: Final = 2
REFUSED: Final = 3
UNAVAILABLE: Final = 4
TIMED_OUT: Final = 5
INTERRUPTED: Final = 130

_EXIT_CODES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: REFUSED,
    grpc.StatusCode.NOT_FOUND: REFUSED,
    grpc.StatusCode.FAILED_PRECONDITION: REFUSED,
    grpc.StatusCode.UNIMPLEMENTED: REFUSED,
    grpc.StatusCode.UNAVAILABLE: UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: TIMED_OUT,
    grpc.StatusCode.CANCELLED: INTERRUPTED,
}


class CommandError(Exception):
    """The command cannot go on; the message says why and what to do."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of(error: ServiceError) -> int:
    """Give the exit code for what a service answered."""
    return _EXIT_CODES.get(error.code, FAILED)


def show(error: ServiceError | CommandError) -> None:
    """Print an error to stderr: what happened, and for a service's answer its code, reason, field and metadata."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    message = error.message if isinstance(error, ServiceError) else str(error)
    console.print(f"[bold red]error:[/] {escape(message)}")
    if isinstance(error, ServiceError):
        facts = {"code": error.code.name, "reason": error.reason, "field": error.field, **error.metadata}
        if error.retry_after_s is not None:
            facts["retry after"] = f"{error.retry_after_s:g} s"
        facts["request id"] = error.request_id
        for name, value in facts.items():
            if value:
                console.print(f"  [dim]{escape(name)}:[/] {escape(value)}")
