"""What holds for every test."""

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A suite that a script started in the background inherits an ignored SIGINT, and so would every daemon that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

HERE = Path(__file__).resolve().parent
USE_THE_MACHINE = (HERE / "integration", HERE / "e2e")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep tests in one line that use more of the machine than a process: users, control groups, namespaces, time.

    Not later: whoever deals out the tests reads the mark as soon as all are collected.
    """
    if any(item.path.is_relative_to(place) for place in USE_THE_MACHINE):
        item.add_marker(pytest.mark.xdist_group("machine"))
