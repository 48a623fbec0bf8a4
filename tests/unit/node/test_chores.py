"""What a daemon does now and then goes on after a file could not be opened."""

import errno
from collections.abc import Collection
from types import SimpleNamespace

import pytest
import trio

from hansa.node.daemon import chores


class Failing:
    """Keys of jobs on a machine where an error comes of every look."""

    def __init__(self, number: int) -> None:
        self.number, self.asked = number, 0

    def keep_only(self, _jobs: Collection[bytes]) -> None:
        self.asked += 1
        raise OSError(self.number, "no")


def daemon_with(keys: Failing) -> SimpleNamespace:
    jobs = SimpleNamespace(live={}, all=list)
    lists = SimpleNamespace(keep_only=list)
    return SimpleNamespace(state=SimpleNamespace(jobs=jobs), file_lists=lists, job_keys=keys)


@pytest.mark.trio
async def test_keeping_blobs_goes_on_where_descriptors_have_run_out(monkeypatch):
    monkeypatch.setattr(chores, "KEEP_EVERY_S", 0.01)
    monkeypatch.setattr(chores, "wanted_blobs", lambda *_: frozenset())
    keys = Failing(errno.EMFILE)
    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chores.keep_blobs, daemon_with(keys))
            while keys.asked < 2:  # noqa: ASYNC110 - it is counted in a thread
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert keys.asked >= 2


@pytest.mark.trio
@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT])
async def test_keeping_blobs_ends_the_daemon_where_the_disk_is_full(monkeypatch, full):
    monkeypatch.setattr(chores, "wanted_blobs", lambda *_: frozenset())
    with pytest.raises(OSError, match="no"), trio.fail_after(20):
        await chores.keep_blobs(daemon_with(Failing(full)))
