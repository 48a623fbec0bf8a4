"""The daemon's HTTP servers on loopback: any user of the machine reaches them, and takes no room."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from starlette.applications import Starlette

from hansa.node.api import http_server
from hansa.node.api.http_server import serve_loopback

CROWD = 200


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.trio
async def test_a_crowd_at_the_metrics_port_takes_no_descriptors_from_the_daemon(monkeypatch):
    monkeypatch.setattr(http_server, "LOOPBACK_S", 3.0)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_loopback, Starlette(), 0)
        before = descriptors()
        with ExitStack() as crowd:
            for _ in range(CROWD):
                crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
                await trio.sleep(0.001)
            await trio.sleep(0.2)
            assert descriptors() - before - CROWD <= 32
            with trio.fail_after(30):
                # Who says nothing goes, with all of the crowd still there.
                while descriptors() - before > CROWD:  # noqa: ASYNC110 - the kernel counts them
                    await trio.sleep(0.1)
            with trio.fail_after(30):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
                assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 404")
                await stream.aclose()
        nursery.cancel_scope.cancel()
