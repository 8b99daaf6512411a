"""What holds for all tests."""

import os

# Before a test loads torch: two test processes whose threads spin while they wait take many times as long on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
