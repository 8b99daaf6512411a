"""Runs validators in processes that are killed when they take too long: `re`, `regex` and Lark backtrack."""

from __future__ import annotations

import sys

from services.constraint.job_processes import JobCrashedError, JobProcesses, JobTimedOutError
from services.constraint.sources import ConstraintSource, SourceOptions
from services.constraint.validation.validators import Violation, validate
from services.rpckit.status import DeadlineExceeded, OutOfCapacity

# Of one process. The libraries take 60 MB; a text of a megabyte takes some tens more.
MAX_VALIDATOR_MEMORY_BYTES = 1 << 30


def validate_in_process(source: ConstraintSource, options: SourceOptions, text: bytes) -> list[Violation]:
    """Judge a text where the process is ours alone: integers of any length are read."""
    sys.set_int_max_str_digits(0)
    return validate(source, options, text)


class ValidatorPool:
    """A few validator processes; a request that hangs one costs its own time only."""

    def __init__(self, num_processes: int = 1) -> None:
        self._processes = JobProcesses(
            f"{__name__}:validate_in_process", num_processes=num_processes, max_memory_bytes=MAX_VALIDATOR_MEMORY_BYTES
        )

    async def start(self) -> None:
        """Start the processes, so that the first request does not wait for their imports.

        Without it they start when needed.
        """
        await self._processes.start()

    async def validate(
        self, source: ConstraintSource, options: SourceOptions, text: bytes, *, timeout_s: float
    ) -> list[Violation]:
        """Judge a text as `validators.validate` does.

        Raises:
            DeadlineExceeded: it took longer than `timeout_s`, waiting for a free process included.
            OutOfCapacity: it took more memory than a validator may have, or nested deeper than it can.
            ServiceError: as `validators.validate` does.
        """
        try:
            violations: list[Violation] = await self._processes.run(source, options, text, timeout_s=timeout_s)
        except JobTimedOutError:
            raise DeadlineExceeded(
                f"validating the text took longer than {timeout_s} s; the constraint may make its "
                "validator backtrack without end",
                limit="timeout_s",
                value=timeout_s,
            ) from None
        except JobCrashedError as error:
            raise OutOfCapacity(f"the validator of this text failed: {error}") from None
        return violations

    async def close(self) -> None:
        """End the processes."""
        await self._processes.stop()
