"""``[network]``: where a node listens, whom it starts from, and what it does for others."""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

from hansa.node.toml_reader import TomlTable
from hansa.proto.errors import ProtocolError
from hansa.proto.peer_id import parse_peer_id

_MULTIADDR = re.compile(r"/(ip4|ip6|dns|dns4|dns6|dnsaddr)/[A-Za-z0-9:._\-%]+(/[A-Za-z0-9\-]+(/[A-Za-z0-9:._\-]+)?)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Where this node listens and whom it starts from, as multiaddrs; and whether it looks for others nearby."""

    listen: tuple[str, ...]
    announce: tuple[str, ...]
    bootstrap: tuple[str, ...]
    lan: bool = True
    relay: bool = False
    """Whether it hands on the bytes of nodes that cannot be dialled."""
    upnp: bool = False
    """Whether it may ask its router to forward its port."""


def read_network(table: TomlTable) -> NetworkConfig:
    """Read and check the table."""
    network = NetworkConfig(
        listen=_multiaddrs(table, "listen", ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"), "/tcp/"),
        announce=_multiaddrs(table, "announce", (), "/tcp/"),
        bootstrap=_multiaddrs(table, "bootstrap", (), "/p2p/"),
        lan=table.boolean("lan", default=True),
        relay=table.boolean("relay", default=False),
        upnp=table.boolean("upnp", default=True),
    )
    if not network.listen:
        raise table.fault("listen", "must name at least one address", 'for example ["/ip4/0.0.0.0/tcp/4001"]')
    table.finish()
    return network


def _multiaddrs(table: TomlTable, key: str, default: tuple[str, ...], part: str) -> tuple[str, ...]:
    addresses = table.texts(key, default, most=64)
    for address in addresses:
        if not _MULTIADDR.fullmatch(address):
            raise table.fault(key, "holds something that is no multiaddr", 'for example "/ip4/0.0.0.0/tcp/4001"')
        example = "/ip4/203.0.113.7/tcp/4001" + ("/p2p/16Uiu2HAm..." if part == "/p2p/" else "")
        if part not in address:
            raise table.fault(key, f"holds an address without {part}", f'for example "{example}"')
        if wrong := _wrong_in(address):
            raise table.fault(key, f'"{address}" {wrong}', f'for example "{example}"')
        if key == "listen" and re.fullmatch(r"/ip[46]/[^/]+/tcp/[^/]+", address) is None:
            raise table.fault(
                key, f'"{address}" is not an IP address and a TCP port', 'such as "/ip4/0.0.0.0/tcp/4001"'
            )
    return addresses


def _wrong_in(address: str) -> str:
    """What is wrong with a multiaddr, in words; nothing where everything in it is what its name says."""
    parts = iter(address.split("/")[1:])
    for name in parts:
        if name not in _VALUES:
            return f"has a part that is not known here: {name}"
        read = _VALUES[name]
        if read is None:
            continue
        value = next(parts, "")
        try:
            read(value)
        except (ValueError, ProtocolError):
            return f"has a part that is none: /{name}/{value}"
    return ""


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise ValueError(text)
    return number


_VALUES: dict[str, Callable[[str], object] | None] = {
    "ip4": ipaddress.IPv4Address,
    "ip6": ipaddress.IPv6Address,
    **dict.fromkeys(("dns", "dns4", "dns6", "dnsaddr"), str),
    "tcp": _port,
    "p2p": parse_peer_id,
    "p2p-circuit": None,
}
"""What may stand in an address, and how the value after it is read; ``None`` for a word without one."""
