"""What strangers have us dial and look up neither delays nor forbids what the operator gave."""

import socket
import threading

import pytest
import trio
import trio.testing
from libp2p.network.exceptions import SwarmException
from multiaddr import Multiaddr

from hansa.node.network import libp2p_tcp
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_tcp import FAILURES_PER_MINUTE, LOOKUPS, Dialler

pytestmark = pytest.mark.trio


async def closed(_host: str, _port: int, _source_port: int | None) -> None:
    await trio.lowlevel.checkpoint()
    raise ConnectionRefusedError


async def fail(dialler: Dialler, times: int, *, is_punch: bool) -> None:
    for _ in range(times):
        with pytest.raises((OSError, SwarmException)):
            await dialler.dial(Multiaddr("/ip4/8.8.4.4/tcp/9"), given=False, is_punch=is_punch)


async def test_failures_on_a_host_do_not_forbid_what_the_operator_gave_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_tcp, "connect_from", closed)
    dialler = Dialler(Faults())
    await fail(dialler, FAILURES_PER_MINUTE, is_punch=False)
    with pytest.raises(SwarmException):
        await dialler.dial(Multiaddr("/ip4/8.8.4.4/tcp/4077"), given=False)
    with pytest.raises(ConnectionRefusedError):
        await dialler.dial(Multiaddr("/ip4/8.8.4.4/tcp/4077"), given=True)


async def test_holes_that_are_not_made_do_not_forbid_dials_and_have_a_brake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_tcp, "connect_from", closed)
    dialler = Dialler(Faults())
    await fail(dialler, FAILURES_PER_MINUTE, is_punch=True)
    with pytest.raises(SwarmException):
        await dialler.dial(Multiaddr("/ip4/8.8.4.4/tcp/9"), given=False, is_punch=True)
    with pytest.raises(ConnectionRefusedError):
        await dialler.dial(Multiaddr("/ip4/8.8.4.4/tcp/9"), given=False)


async def test_slow_names_of_strangers_do_not_delay_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    whole = socket.getaddrinfo

    def slow(host: str, *more: object) -> object:
        if host == "slow.example":
            over.wait(60)
            return []
        return whole(host, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    dialler = Dialler(Faults())

    async def of_a_stranger() -> None:
        with pytest.raises(SwarmException):
            await dialler.dial(Multiaddr("/dns4/slow.example/tcp/1"), given=False)

    async with trio.open_nursery() as nursery:
        for _ in range(LOOKUPS):
            nursery.start_soon(of_a_stranger)
        try:
            await trio.testing.wait_all_tasks_blocked(0.05)
            with trio.fail_after(20):
                assert await dialler._resolve("dns4", "localhost", given=True) == ["127.0.0.1"]
        finally:
            over.set()
