"""A checker's process that some cases hang or kill, by their ids."""

from __future__ import annotations

import os
from typing import Any

from services.constraint import checking
from services.constraint.checking import RunCase, Task, TokenizerChoice


def answer(choice: TokenizerChoice, task: Task) -> Any:
    """Do a task as `checking.answer`, but obey the ids `hang`, `exit` and `eat`."""
    match task.case.case_id if isinstance(task, RunCase) else None:
        case "hang":
            while True:
                pass
        case "exit":
            os._exit(3)
        case "eat":
            return len(bytearray(4 << 30))
    return checking.answer(choice, task)
