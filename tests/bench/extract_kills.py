"""Kills everything under an extraction job, again and again: `python -m tests.bench.extract_kills`.

500 real documents, the toy model, `espalier up`, which starts again what died; 20 times the command, the worker, the
constraint service, the gateway or the cache is killed (SIGKILL) at a random point, the command is started again with
`--resume`. Every document must have exactly one result, in order, valid or failed with a reason. Exits with 1 where
that is not so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import extract_kills
from tests.support.up import Up


def main() -> int:
    """Run one job and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="esp") as name:
        directory = Path(name)
        up = Up(directory).wait_until_ready()
        try:
            report = extract_kills.run(
                up, directory, num_documents=arguments.documents, num_kills=arguments.kills, seed=arguments.seed
            )
        finally:
            up.stop()
    kills = ", ".join(f"{target} {count}" for target, count in sorted(report.kills.items()))
    print(f"killed {report.kills.total()} times in {report.seconds:.0f} s: {kills}")
    print(f"results: {dict(report.statuses)}; reasons of failures: {dict(report.reasons)}")
    for problem in report.problems:
        print(f"PROBLEM: {problem}")
    return 1 if report.problems or report.kills.total() < arguments.kills else 0


if __name__ == "__main__":
    sys.exit(main())
