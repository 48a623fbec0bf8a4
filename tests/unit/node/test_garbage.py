"""The collector of garbage leaves alone what a node has when it has started."""

import gc

import pytest
import trio
from trio.testing import MockClock

from hansa.node.daemon.garbage import STARTED_S, set_started_things_aside


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_what_a_node_has_when_it_has_started_is_not_looked_at_again():
    gc.collect()  # what earlier tests have dropped is not what a node has
    before = len(gc.get_objects())

    async def scenario():
        await set_started_things_aside()
        assert trio.current_time() >= STARTED_S

    trio.run(scenario, clock=MockClock(autojump_threshold=0))
    assert gc.get_freeze_count() > 0.9 * before
    assert len(gc.get_objects()) < 0.1 * before


def test_what_comes_later_is_collected_as_before():
    trio.run(set_started_things_aside, clock=MockClock(autojump_threshold=0))
    ring: list[object] = []
    ring.append(ring)
    del ring
    assert gc.collect() >= 1
