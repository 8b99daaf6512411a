"""A process that can be killed and keeps what its first job made, such as a vocabulary."""

from __future__ import annotations

from typing import Any, Final

from services.constraint.job_processes import JobCrashedError, JobProcesses, JobTimedOutError


class PreparedProcess:
    """One process of `JobProcesses` that does a job for preparation before any other, and anew when it was replaced.

    The target is called as `target(setup, task)`.
    """

    def __init__(
        self, target: str, setup: Any, preparation: Any, *, max_memory_bytes: int, max_prepare_s: float = 600.0
    ) -> None:
        """Take `preparation` for the first task; kernels may have to be compiled in it, so it has its own time."""
        self._jobs: Final = JobProcesses(target, num_processes=1, max_memory_bytes=max_memory_bytes)
        self._setup = setup
        self._preparation = preparation
        self._max_prepare_s = max_prepare_s
        self._is_prepared = False

    async def prepare(self) -> Any:
        """Do the first task and return its result.

        Raises:
            JobTimedOutError, JobCrashedError, ServiceError: as `JobProcesses.run`.
        """
        prepared = await self._jobs.run(self._setup, self._preparation, timeout_s=self._max_prepare_s)
        self._is_prepared = True
        return prepared

    async def run(self, task: Any, *, timeout_s: float) -> Any:
        """Do a task; preparation is not part of its time.

        Raises:
            JobTimedOutError, JobCrashedError, ServiceError: as `JobProcesses.run`.
        """
        if not self._is_prepared:
            await self.prepare()
        try:
            return await self._jobs.run(self._setup, task, timeout_s=timeout_s)
        except (JobTimedOutError, JobCrashedError):
            self._is_prepared = False
            raise

    async def stop(self) -> None:
        """End the process."""
        await self._jobs.stop()
