"""``[egress]``: where jobs are let out to, and how much they may carry."""

import ipaddress
from dataclasses import dataclass

from hansa.node.toml_reader import TomlTable
from hansa.proto.egress import normalise


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressConfig:
    """Where jobs may be let out to.

    Attributes:
        allow: patterns of hosts as in ``hansa.proto.egress``; none means that no job has any network.
        deny: networks that no job reaches, public or not.
        bytes_per_s: of all jobs together, both ways together.
        bytes_per_run: what one run may exchange at most, both ways together.
    """

    allow: tuple[str, ...]
    deny: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    bytes_per_s: int
    bytes_per_run: int


def read_egress(table: TomlTable) -> EgressConfig:
    """Read and check the table."""
    egress = EgressConfig(
        allow=_hosts(table, "allow"),
        deny=_networks(table, "deny"),
        bytes_per_s=table.size_bytes("rate", "16 MiB", least=16 << 10),
        bytes_per_run=table.size_bytes("max_per_run", "20 GiB", least=1),
    )
    table.finish()
    return egress


def _hosts(table: TomlTable, key: str) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(normalise(text) for text in table.texts(key, ())))
    except ValueError as fault:
        hint = f'for example {key} = ["*.huggingface.co", "pypi.org:443"], or ["*"] for every public host'
        raise table.fault(key, f"holds something that is no host: {fault}", hint) from None


def _networks(table: TomlTable, key: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    try:
        return tuple(ipaddress.ip_network(text) for text in table.texts(key, ()))
    except ValueError as fault:
        raise table.fault(key, f"holds something that is no network: {fault}", f'{key} = ["11.22.0.0/16"]') from None
