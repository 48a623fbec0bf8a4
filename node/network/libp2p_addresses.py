"""Where to listen and what to tell others. The library shares a taken port in silence and advertises 0.0.0.0."""

import errno
import socket
from collections.abc import Sequence

from libp2p.utils.address_validation import get_available_interfaces
from multiaddr import Multiaddr

from hansa.node.faults import ConfigError, PortInUse
from hansa.node.network.neighbourhood import NAMES, host_of, is_circuit, place_of
from hansa.node.network.net import NetConfig
from hansa.proto.peer_id import parse_peer_id


def split_addr(addr: str) -> tuple[str, str]:
    """A full multiaddr as the peer id and the address without it.

    Raises:
        ConfigError: it does not name a peer, or is no multiaddr.
    """
    bare, mark, peer_id = addr.rpartition("/p2p/")
    try:
        parse_peer_id(peer_id)
        Multiaddr(bare)
    except Exception as fault:
        raise ConfigError(
            f"{addr!r} is not the full address of a node", "give it as /ip4/1.2.3.4/tcp/4077/p2p/16Uiu2..."
        ) from fault
    assert mark, "a peer id was found without its mark"
    return peer_id, bare


async def choose_listen_addrs(config: NetConfig) -> list[Multiaddr]:
    """The addresses with real ports, each proven to be free.

    Raises:
        PortInUse: somebody listens there.
        ConfigError: the address is none, or not this machine's, or the port is not ours to use.
    """
    for addr in config.bootstrap:
        split_addr(addr)
    found = [addr for addr in map(_probe, config.listen) if addr is not None]
    if not found:
        raise ConfigError(
            "no address to listen on is left without IPv6", "add /ip4/0.0.0.0/tcp/4001 to [network] listen"
        )
    return found


def _probe(text: str) -> Multiaddr | None:
    """The address with a real port; None for all of IPv6 where this machine has none."""
    try:
        addr = Multiaddr(text)
        names = [each.name for each in addr.protocols()]
        if names not in (["ip4", "tcp"], ["ip6", "tcp"]):
            raise ValueError("only TCP")  # noqa: TRY301
        host, port = str(addr.value_for_protocol(names[0])), int(str(addr.value_for_protocol("tcp")))
    except Exception as fault:
        raise ConfigError(f"{text!r} is no address to listen on", "give it as /ip4/0.0.0.0/tcp/4077") from fault
    family = socket.AF_INET if names[0] == "ip4" else socket.AF_INET6
    # The library binds with SO_REUSEPORT, under which two nodes would share a port and lose half their callers each.
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError as fault:
        if host == "::":
            return None
        raise ConfigError(f"cannot listen on {text}: {fault.strerror}", "use an address of this machine") from fault
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as fault:
            if host == "::" and fault.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return None
            raise _as_operator_error(text, port, fault) from fault
        chosen = probe.getsockname()[1]
    return Multiaddr(f"/{names[0]}/{host}/tcp/{chosen}")


def _as_operator_error(text: str, port: int, fault: OSError) -> PortInUse | ConfigError:
    if fault.errno == errno.EADDRINUSE:
        return PortInUse(
            f"port {port} of {text} is taken by another program",
            "choose another port under [network] listen, or 0 for a free one, or stop the other program",
        )
    if fault.errno == errno.EACCES:
        return ConfigError(f"port {port} needs rights that this user lacks", "choose a port above 1023")
    return ConfigError(f"cannot listen on {text}: {fault.strerror}", "use an address of this machine, or 0.0.0.0")


def advertised(listening: Sequence[Multiaddr], announce: Sequence[str]) -> list[Multiaddr]:
    """What others are told: what the operator says, or every interface behind an unspecified address."""
    if announce:
        return [Multiaddr(addr) for addr in announce]
    found: dict[str, Multiaddr] = {}
    for addr in listening:
        text = str(addr)
        spread = [addr]
        for any_host, family in (("/ip4/0.0.0.0/", "/ip4/"), ("/ip6/::/", "/ip6/")):
            if text.startswith(any_host):
                port = int(str(addr.value_for_protocol("tcp")))
                spread = [each for each in get_available_interfaces(port) if str(each).startswith(family)]
        found.update({str(each): each for each in spread})
    return list(found.values())


def sorted_addrs(here: Sequence[str], found: Sequence[str]) -> list[str]:
    """What is told first: public addresses, then relays, then those of our own networks; loopback last."""
    order = {"public": 0, "private": 2, "loopback": 3, "nowhere": 4}

    def rank(addr: str) -> int:
        kind, host = host_of(addr)
        if is_circuit(addr):
            return 1
        return 0 if kind in NAMES else order[place_of(host)]

    return sorted(dict.fromkeys((*found, *here)), key=rank)
