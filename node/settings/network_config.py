"""``[network]``: where a node listens, whom it starts from, and what it does for others."""

import re
from dataclasses import dataclass

from hansa.node.toml_reader import TomlTable

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
        if part not in address:
            tail = "/ip4/203.0.113.7/tcp/4001" + ("/p2p/16Uiu2HAm..." if part == "/p2p/" else "")
            raise table.fault(key, f"holds an address without {part}", f'for example "{tail}"')
    return addresses
