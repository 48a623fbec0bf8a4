"""Which addresses a node may dial that somebody told it: no stranger makes it knock at doors of its own network.

An address on the public internet may be dialled whoever names it: nothing counts there but a peer that proves itself.
One that is not public (loopback, a home or company network) may be dialled only if the operator gave it or one of its
kind, or if whoever tells it is connected from such an address itself.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from hansa.proto.egress import is_public

Place = Literal["public", "private", "loopback", "nowhere"]
NAMES: Final = frozenset({"dns", "dns4", "dns6", "dnsaddr"})
CIRCUIT: Final = "/p2p-circuit"
BY_CIRCUIT: Final = "by circuit"


def place_of(host: str) -> Place:
    """Where an IP address is, seen from here. ``nowhere``: no single machine can be there."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "nowhere"
    wrapped = getattr(address, "ipv4_mapped", None)
    if wrapped is not None:
        return place_of(str(wrapped))
    if address.is_loopback:
        return "loopback"
    if is_public(address):
        return "public"
    if address.is_multicast or address.is_unspecified or address.is_link_local or str(address) == "255.255.255.255":
        return "nowhere"
    return "private"


def host_of(addr: str) -> tuple[str, str]:
    """The kind (``ip4``, ``dns`` …) and the host that a multiaddr begins with; two empty texts if it does not."""
    parts = addr.split("/", 3)
    return (parts[1], parts[2]) if len(parts) == 4 and not parts[0] else ("", "")


def is_circuit(addr: str) -> bool:
    """Whether an address leads through a relay."""
    return CIRCUIT in addr


def group_of(host: str) -> str:
    """What counts as one party among observers: the network of an address, or a private address itself."""
    if place_of(host) != "public":
        return host
    prefix = 24 if ipaddress.ip_address(host).version == 4 else 48
    return str(ipaddress.ip_network(f"{host}/{prefix}", strict=False))


def household_of(host: str) -> str:
    """What counts as one caller: an IPv4 address, or the 64 bits of IPv6 that every household has for itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network(f"{host}/64", strict=False))


def circles_of(host: str) -> tuple[str, ...]:
    """The parties that an address belongs to, the largest first: its family, its region, its network, its household.

    Of IPv4 16, 24 and 32 bits, of IPv6 32, 48 and 64: what one who rents addresses gets of each is about as much. Who
    comes by no address (through a relay) belongs to those who come so, and to those who come through the same.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return (BY_CIRCUIT, host, host, host)
    if address.version == 4:
        one, two, three, _ = host.split(".")
        return ("ip4", f"{one}.{two}.0.0/16", f"{one}.{two}.{three}.0/24", host)
    bits = address.packed.hex()
    return ("ip6", f"{bits[:8]}/32", f"{bits[:12]}/48", household_of(host))


class Neighbourhood:
    """The kinds of place that the operator has named, and so are nothing that a stranger could find out."""

    def __init__(self, given: Iterable[str]) -> None:
        """``given`` are the multiaddrs that the operator wrote."""
        self.places: set[Place] = {place_of(host_of(addr)[1]) for addr in given} - {"nowhere"}

    def may_dial(self, host: str, told_from: str | None) -> bool:
        """Whether an IP address may be dialled that a peer named which is connected from ``told_from``, if it is."""
        place = place_of(host)
        if place == "nowhere":
            return False
        if place == "public" or place in self.places:
            return True
        teller = place_of(told_from) if told_from is not None else "nowhere"
        return teller == "loopback" or (place, teller) == ("private", "private")

    def sift(self, addrs: Sequence[str], told_from: str | None) -> tuple[str, ...]:
        """Those of a stranger's addresses that may be dialled. Names are judged when they have been looked up."""
        found = []
        for addr in addrs:
            kind, host = host_of(addr)
            # Through a relay it is the relay that is dialled, and its address is as much a stranger's word.
            if (
                kind in NAMES
                or (kind in ("ip4", "ip6") and self.may_dial(host, told_from))
                or (kind == "p2p" and is_circuit(addr))
            ):
                found.append(addr)
        return tuple(found)
