"""Sockets: where we listen, and from where and to whom we connect.

The library listens in system tasks, where an error ends the program, and dials whatever a name turns out to be. Here a
listener belongs to the swarm's nursery, what was looked up is judged before it is dialled, and IPv4 and IPv6 have
sockets of their own.
"""

import contextlib
import socket
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.network.exceptions import SwarmException
from multiaddr import Multiaddr

from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.neighbourhood import NAMES, host_of, is_circuit, place_of

BACKLOG = 128
LOOKED_UP = 4
"""So many of a name's addresses are tried."""
LOOKUPS = 8
GIVEN_LOOKUPS = 4
"""Beside those for strangers' names, which may be as slow as whoever serves them likes."""
DIALS_TO_ONE_HOST = 8
FAILURES_PER_MINUTE = 30
"""Connections to one public address that may fail in a minute, before it is left alone for the rest of it."""
MOST_HOSTS = 4096
_ABANDON: Any = {"abandon_on_cancel": True}  # the type stubs that come with py-libp2p's dependencies do not know it


def port_of(addr: Multiaddr) -> int:
    """The TCP port of an address."""
    return int(str(addr.value_for_protocol("tcp")))


def open_listener(addr: Multiaddr) -> trio.SocketListener:
    """A socket that listens; its port can be dialled from as well, which is what makes holes in a router's wall."""
    family, host = host_of(str(addr))
    sock = socket.socket(socket.AF_INET if family == "ip4" else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        _share_port(sock)
        if family == "ip6":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port_of(addr)))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _share_port(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


class TcpStream(TrioTCPStream):  # type: ignore[misc]  # the library comes without types
    """A connected socket that knows its other end on IPv6 as well: the library's own gives None there."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Ask at once: a socket that is closed knows no more."""
        super().__init__(stream)
        self._remote: tuple[str, int] | None = None
        with contextlib.suppress(OSError):
            host, port, *_ = stream.socket.getpeername()
            self._remote = (str(host).partition("%")[0], int(port))

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other end; None if it was gone before anybody could ask."""
        return self._remote


async def connect_from(host: str, port: int, source_port: int | None) -> TcpStream:
    """A connection to an IP address; from ``source_port`` if that can be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source_port:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                await sock.bind(("::" if family == socket.AF_INET6 else "", source_port))
        await sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return TcpStream(trio.SocketStream(sock))


def rank(addr: str) -> tuple[int, int]:
    """What is tried first: the network that we share, then IPv6, then IPv4, then names; relays come last of all."""
    kind, host = host_of(addr)
    if is_circuit(addr):
        return (2, 0)
    if kind in NAMES:
        return (1, 2)
    near = place_of(host) in ("private", "loopback")
    return (0 if near else 1, 0 if kind == "ip6" else 1)


class Dialler:
    """Connects to addresses: to one host so often at once, and so often in vain, that we are no means of an attack."""

    def __init__(self, faults: Faults) -> None:
        """``faults`` counts what is not dialled.

        ``spoken_to`` may be another life's: routers remember whom we dialled for longer than the library lives.
        """
        self._faults = faults
        self._now: Counter[str] = Counter()
        self._failed: dict[str, list[float]] = {}
        self.spoken_to: OrderedDict[str, None] = OrderedDict()
        self._lookups = trio.CapacityLimiter(LOOKUPS)
        self._given_lookups = trio.CapacityLimiter(GIVEN_LOOKUPS)

    async def dial(
        self, addr: Multiaddr, *, given: bool, source_port: int | None = None, is_punch: bool = False
    ) -> TcpStream:
        """A connection. ``given``: the address is no stranger's word. Raises ``OSError``, ``SwarmException``.

        ``is_punch``: it is one of many tries to make a hole in a router's wall, most of which fail.
        """
        kind, host = host_of(str(addr))
        fault: Exception = SwarmException("the name has no address that may be dialled")
        for found in await self._resolve(kind, host, given=given):
            try:
                self._spoke_to(found)
                async with self._place(found, given=given, is_punch=is_punch):
                    # Only a router's outside is worth our own port; among neighbours both would use it at once.
                    return await connect_from(
                        found, port_of(addr), source_port if place_of(found) == "public" else None
                    )
            except (OSError, SwarmException) as failed:
                fault = failed
        raise fault

    def has_spoken_to(self, host: str) -> bool:
        """Whether we ever tried a connection to this address, after which many a router lets it in."""
        return host in self.spoken_to

    def _spoke_to(self, host: str) -> None:
        self.spoken_to[host] = None
        self.spoken_to.move_to_end(host)
        while len(self.spoken_to) > MOST_HOSTS:
            self.spoken_to.popitem(last=False)

    async def _resolve(self, kind: str, host: str, *, given: bool) -> list[str]:
        if kind not in NAMES:
            return [host]
        family = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}.get(kind, socket.AF_UNSPEC)

        def look_up() -> list[str]:
            return [str(each[4][0]) for each in socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)]

        found = await trio.to_thread.run_sync(
            look_up, limiter=self._given_lookups if given else self._lookups, **_ABANDON
        )
        allowed = [each for each in dict.fromkeys(found) if given or place_of(each) == "public"]
        if len(allowed) < len(set(found)):
            self._faults.count("dial.name_leads_inside")
        return allowed[:LOOKED_UP]

    @asynccontextmanager
    async def _place(self, found: str, *, given: bool, is_punch: bool) -> AsyncIterator[None]:
        """One connection's place among those to a host; a failure is remembered for a minute.

        What the operator gave needs no place: strangers, who name other ports of its host, could use all of them up.
        Nor do tries to make a hole, which peers ask for, use up the places of dials.
        """
        if given:
            yield
            return
        public = place_of(found) == "public"
        now = trio.current_time()
        host = f"hole to {found}" if is_punch else found
        failed = [at for at in self._failed.get(host, ()) if at > now - 60]
        if public and (self._now[host] >= DIALS_TO_ONE_HOST or len(failed) >= FAILURES_PER_MINUTE):
            self._faults.count("dial.one_host_too_often")
            raise SwarmException("this address was dialled too often")
        self._now[host] += 1
        try:
            yield
        except BaseException:
            if public:
                while len(self._failed) >= MOST_HOSTS:
                    del self._failed[next(iter(self._failed))]
                self._failed[host] = [*failed, now][-FAILURES_PER_MINUTE:]
            raise
        finally:
            self._now[host] -= 1
            if not self._now[host]:
                del self._now[host]
