"""A launcher is listened to for as long as it speaks as one."""

import os
import socket

import pytest
import trio

from hansa.node.isolation.launcher_protocol import Ended, send
from hansa.node.runs import executor_launcher
from hansa.node.runs.executor_launcher import LauncherService

pytestmark = pytest.mark.trio
ENDED = Ended(run=b"run", status=0, memory_kills=0, peak_bytes=1, words="")


async def test_one_that_says_what_no_launcher_says_is_lost_and_another_is_begun(monkeypatch):
    monkeypatch.setattr(executor_launcher, "AGAIN_S", 0.0)
    begun, heard, lost = [], [], []

    def launch():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        begun.append(theirs)
        return None, ours

    async def hear(message, descriptors):
        heard.append((message, descriptors))

    async def until(holds):
        with trio.fail_after(10):
            while not holds():  # noqa: ASYNC110 - nothing tells it
                await trio.sleep(0.01)

    service = LauncherService(launch, hear=hear, lost=lambda: lost.append(True))
    read, write = os.pipe()
    async with trio.open_nursery() as nursery:
        await nursery.start(service.serve)
        socket.send_fds(begun[0], [b"\xc1 no message"], [write])
        os.close(write)
        await until(lambda: len(begun) == 2)
        assert (heard, lost) == ([], [True])
        assert begun[0].recv(1) == b"", "it is told to end what it has"
        assert os.read(read, 1) == b"", "what came with it is closed"
        await until(lambda: service.connected)
        send(begun[1], ENDED)
        await until(lambda: heard)
        assert heard == [(ENDED, [])]
        nursery.cancel_scope.cancel()
    os.close(read)
    for each in begun:
        each.close()
