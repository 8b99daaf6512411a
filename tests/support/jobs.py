"""Jobs for tests of processes that run jobs."""

import os
from typing import Any

from services.rpckit.status import GrammarSyntax


def job(what: str, argument: Any = None) -> Any:
    """Run in the process."""
    match what:
        case "echo":
            print("noise on stdout")
            return argument
        case "pid":
            return os.getpid()
        case "fail":
            raise GrammarSyntax("bad", field="f", line=3)
        case "hang":
            while True:
                pass
        case "exit":
            os._exit(3)
        case "eat":
            return len(bytearray(4 << 30))
        case "recurse":
            return job("recurse")
        case "bug":
            raise KeyError("x")
