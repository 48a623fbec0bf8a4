"""The daemon's HTTP servers on loopback: any user of the machine reaches them, and takes no room."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from starlette.applications import Starlette
from starlette.routing import Route

from hansa.node.api import http_server
from hansa.node.api.http_server import serve_loopback

CROWD = 200


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def scraped(port: int) -> bytes:
    """What one gets who asks at once."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
        return await stream.receive_some(100)


@pytest.mark.trio
@pytest.mark.parametrize("said", [b"", b"GET /metrics HTT", b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"])
async def test_whoever_holds_all_places_and_asks_for_nothing_shuts_nobody_out(monkeypatch, said):
    monkeypatch.setattr(http_server, "LOOPBACK_S", 600.0)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_loopback, Starlette(), 0)
        with ExitStack() as crowd:
            for _ in range(CROWD):
                silent = crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
                silent.sendall(said)
                await trio.sleep(0.001)
            for _ in range(3):
                with trio.fail_after(30):
                    assert (await scraped(port)).startswith(b"HTTP/1.1 404")
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_who_is_being_answered_keeps_the_place_and_who_takes_no_answer_loses_it(monkeypatch):
    """All places are taken by who has asked for something; as long as that is new, the newcomer is turned away."""
    asked = 0

    async def never(_request):
        nonlocal asked
        asked += 1
        await trio.sleep_forever()

    app = Starlette(routes=[Route("/never", never)])
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_loopback, app, 0)
        with ExitStack() as crowd:
            for _ in range(http_server.MOST_ON_LOOPBACK):
                slow = crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
                slow.sendall(b"GET /never HTTP/1.1\r\nhost: here\r\n\r\n")
            with trio.fail_after(30):
                while asked < http_server.MOST_ON_LOOPBACK:  # noqa: ASYNC110 - the kernel brings them
                    await trio.sleep(0.01)
            monkeypatch.setattr(http_server, "ANSWER_S", 600.0)
            with pytest.raises((trio.BrokenResourceError, AssertionError)):
                assert await scraped(port)
            monkeypatch.setattr(http_server, "ANSWER_S", 0.0)
            with trio.fail_after(30):
                assert (await scraped(port)).startswith(b"HTTP/1.1 404")
        nursery.cancel_scope.cancel()


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
                assert (await scraped(port)).startswith(b"HTTP/1.1 404")
        nursery.cancel_scope.cancel()
