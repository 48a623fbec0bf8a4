"""What a daemon does now and then goes on after a file could not be opened."""
# ruff: noqa: ASYNC110 - it is seen in files and in the log, which tell no event

import errno
import json
import logging
import os
from dataclasses import replace

import pytest
import trio
from kit.descriptors import none_left
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub

from hansa.node.daemon import chores
from hansa.node.engine.events import InventoryChanged

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


async def test_a_node_with_more_devices_than_an_advert_carries_tells_of_some_of_each_sort(tmp_path):
    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as daemon:
        (own,) = daemon.state.capacity.devices
        many = [replace(own, id=number.to_bytes(32, "big")) for number in range(1024)]
        last = replace(own, id=b"g" * 32, kind="gpu", model="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30)
        daemon.tell(InventoryChanged(devices=(*many, last), at_ms=daemon.now_ms()))

        def told():
            known = daemon.book.adverts.get(daemon.account.address)
            return known.advert if known is not None else None

        with trio.fail_after(20):
            while told() is None or last.id not in {device.id for device in told().devices}:
                await trio.sleep(0.01)
        assert 300 < len(told().devices) == told().free < 1025
        sequence = told().sequence
        await daemon.take(InventoryChanged(devices=(own,), at_ms=daemon.now_ms()))
        with trio.fail_after(20):
            while told().sequence == sequence:
                await trio.sleep(0.01)
        assert [device.id for device in told().devices] == [own.id], "and it goes on telling what changes"
