"""What holds for every test."""

import contextlib
import gc
import signal
import sys

from hypothesis import HealthCheck, settings

# A suite that a script started in the background inherits an ignored SIGINT, and so would every daemon that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Some tests import eth-account as their oracle, which raises the recursion limit to where Python is no longer stopped
# before the stack is full (hansa.node.chain.keystore): deeply nested JSON would end the whole run with a segmentation
# fault.
_limit = sys.getrecursionlimit()
with contextlib.suppress(ImportError):
    import eth_account  # noqa: F401
sys.setrecursionlimit(_limit)

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_collection_finish() -> None:
    """Seven thousand tests stay in memory to the end: no collection of garbage needs to look through them again."""
    gc.collect()
    gc.freeze()
