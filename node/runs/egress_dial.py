"""Connections from a job to the public internet: the name is resolved here, and what was checked is what is dialled.

Between the check of an address and the connection to it no name is looked up again, so a name that changes its mind
(DNS rebinding) gains nothing. Nothing of the daemon's own environment is used: no proxy, no search domain.
"""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from typing import Any

import trio

from hansa.proto.egress import IpAddress, is_literal, is_public

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str], Awaitable[Collection[str]]]
"""Gives a name's addresses as texts; raises ``OSError`` where it has none."""

MOST_ADDRESSES = 4
"""So many of a name's addresses are tried."""
RESOLVE_S = 10.0
CONNECT_S = 8.0
LOOKUPS = 16
"""Names that are looked up at once, each in a thread of its own."""


class Refusal(Exception):
    """A connection that is not made.

    Attributes:
        status: what the job is answered.
        kind: the counter's name, one of a few.
        why: in words, for the job and its log.
    """

    def __init__(self, status: HTTPStatus, kind: str, why: str) -> None:
        """Keep the facts as fields."""
        super().__init__(why)
        self.status = status
        self.kind = kind
        self.why = why


_lookups = trio.CapacityLimiter(LOOKUPS)
_ABANDON: Any = {"abandon_on_cancel": True}  # the type stubs that come with py-libp2p's dependencies do not know it


async def resolve_name(name: str) -> Collection[str]:
    """The addresses that this machine's resolver knows for a full name."""

    def look_up() -> list[str]:
        # The final dot makes the name full: no search domain of the owner's network is tried.
        found = socket.getaddrinfo(f"{name}.", None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    # A resolver that hangs must not hold threads that the daemon's other rooms wait for.
    return await trio.to_thread.run_sync(look_up, limiter=_lookups, **_ABANDON)


def is_ours(address: IpAddress) -> bool:
    """Whether an address is this machine's own: only then can a socket be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as fault:
        # Not ours, or of a family that this machine does not speak; in any other doubt it counts as ours.
        return fault.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def networks_of(multiaddrs: Collection[str]) -> tuple[IpNetwork, ...]:
    """The addresses that stand in multiaddrs, each as a network of its own."""
    found: list[IpNetwork] = []
    for each in multiaddrs:
        kind, _, rest = each.removeprefix("/").partition("/")
        if kind in ("ip4", "ip6"):
            with contextlib.suppress(ValueError):  # whoever opens the network complains of it
                found.append(ipaddress.ip_network(rest.partition("/")[0]))
    return tuple(found)


class Dialler:
    """Connects to public hosts and to nothing else."""

    def __init__(
        self,
        *,
        denied: Collection[IpNetwork] = (),
        resolve: Resolve = resolve_name,
        public: Callable[[IpAddress], bool] = is_public,
        ours: Callable[[IpAddress], bool] = is_ours,
    ) -> None:
        """``denied`` are networks that the owner keeps jobs away from. The other arguments are for tests only."""
        self._denied = tuple(denied)
        self._resolve = resolve
        self._public = public
        self._ours = ours

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        """A connection to a normalised host.

        Raises:
            Refusal: there is none to be had, and why.
        """
        addresses = await self._addresses(host)
        allowed = [address for address in addresses if self._allows(address)]
        if not allowed:
            raise Refusal(HTTPStatus.FORBIDDEN, "private", f"{host} is at no public address, and no others are reached")
        for address in allowed[:MOST_ADDRESSES]:
            stream = await _connect(address, port)
            if stream is not None:
                return stream
        raise Refusal(HTTPStatus.BAD_GATEWAY, "unreachable", f"{host}:{port} does not answer")

    async def _addresses(self, host: str) -> list[IpAddress]:
        if is_literal(host):
            return [ipaddress.ip_address(host.strip("[]"))]
        try:
            with trio.fail_after(RESOLVE_S):
                found = await self._resolve(host)
        except (OSError, UnicodeError, trio.TooSlowError):
            raise Refusal(HTTPStatus.BAD_GATEWAY, "unknown-name", f"{host} cannot be found") from None
        return [ipaddress.ip_address(text) for text in found]

    def _allows(self, address: IpAddress) -> bool:
        denied = any(address in network for network in self._denied if network.version == address.version)
        return self._public(address) and not denied and not self._ours(address)


async def _connect(address: IpAddress, port: int) -> trio.SocketStream | None:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        connection = trio.socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        with trio.fail_after(CONNECT_S):
            await connection.connect((str(address), port))
        return trio.SocketStream(connection)
    except (OSError, trio.TooSlowError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
