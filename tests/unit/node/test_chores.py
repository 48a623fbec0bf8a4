"""What a daemon does now and then goes on after a file could not be opened."""
# ruff: noqa: ASYNC110 - it is seen in files and in the log, which tell no event

import errno
import json
import logging
import os

import pytest
import trio
from kit.descriptors import none_left
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub

from hansa.node.daemon import chores

pytestmark = pytest.mark.trio


async def test_keeping_blobs_goes_on_where_descriptors_have_run_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(chores, "KEEP_EVERY_S", 0.05)
    caplog.set_level(logging.INFO, "hansa")
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon, trio.open_nursery() as nursery:
        blob = daemon.store.put_bytes(b"of the state")
        monkeypatch.setattr(chores, "wanted_blobs", lambda *_: {blob})
        with none_left(), trio.fail_after(20):
            nursery.start_soon(chores.keep_blobs, daemon)
            while "keeping blobs failed and is tried again" not in caplog.text:
                await trio.sleep(0.01)
        pins = daemon.store.directory / "pins.json"
        with trio.fail_after(20):
            while not pins.exists() or str(blob) not in json.loads(pins.read_text()):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT])
async def test_keeping_blobs_ends_the_daemon_where_the_disk_is_full(tmp_path, monkeypatch, full):
    def no_room(*_):
        raise OSError(full, os.strerror(full))

    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        monkeypatch.setattr(daemon.store, "pin_exactly", no_room)
        with pytest.raises(OSError, match=os.strerror(full)), trio.fail_after(20):
            await chores.keep_blobs(daemon)
