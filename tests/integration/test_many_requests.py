"""Many requests at once, some left by their callers: a short run of `make soak-gateway`."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.soak_gateway import soak, start


async def test_answers_are_those_alone_and_nothing_is_left_behind() -> None:
    with TemporaryDirectory(prefix="esp") as directory:
        stack = start(Path(directory))
        try:
            report = await soak(stack, num_requests=120, num_in_flight=32)
        finally:
            stack.stop()
    assert report.problems == []
    assert report.outcomes["answered"] > 40
    assert report.outcomes["cancelled"] > 15
