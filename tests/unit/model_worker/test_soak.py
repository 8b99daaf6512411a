"""The soak of `make soak-worker`, for some seconds."""

import pytest

from tests.bench.soak_worker import soak


@pytest.mark.slow
def test_many_sequences_at_once_leave_nothing_behind() -> None:
    report = soak(8)
    assert report.failures == []
    assert report.num_checked > 10
