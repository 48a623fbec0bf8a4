"""A network that is cut in two, and one whose bootstrap nodes die: both halves go on, and what was cut heals."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from kit.namespaces import Internet, NodeThread, Site, internet

from hansa.node.network.net import NetConfig, NetLimits

__all__ = ["internet"]
QUICK = NetLimits(ping_every_ms=1_000, ping_timeout_ms=2_000)
"""So that a cut is noticed within seconds; with the usual limits it takes most of a minute."""


@contextmanager
def living() -> Iterator[list[NodeThread]]:
    nodes: list[NodeThread] = []
    try:
        yield nodes
    finally:
        for node in reversed(nodes):
            node.stop()


def outside(node: NodeThread) -> str:
    return next(addr for addr in node.addrs if "45.33." in addr and "circuit" not in addr)


def agree(nodes: list[NodeThread], wanted: dict[bytes, int], patience_s: float) -> float:
    """Wait until every book has these adverts; gives how long it took."""
    began = time.monotonic()
    while not all(wanted.items() <= node.known().items() for node in nodes):
        waited = time.monotonic() - began
        assert waited < patience_s, [node.known() for node in nodes]
        time.sleep(0.2)
    return time.monotonic() - began


def test_both_halves_of_a_cut_network_go_on_and_agree_within_a_minute_when_it_heals(internet: Internet):
    sites: list[Site] = [internet.public_host() for _ in range(4)]
    with living() as nodes:
        nodes.append(NodeThread(sites[0], NetConfig(limits=QUICK)))
        start = NetConfig(bootstrap=(outside(nodes[0]),), limits=QUICK)
        nodes.extend(NodeThread(site, start) for site in sites[1:])
        agree(nodes, {node.account.address: node.advertise() for node in nodes}, 60)
        internet.cut(sites[:2], sites[2:])
        nodes[0].until(lambda net: sum(each.phase == "live" for each in net.peers()) == 1)
        nodes[3].until(lambda net: sum(each.phase == "live" for each in net.peers()) == 1)
        news = {node.account.address: node.advertise() for node in nodes}
        left = {node.account.address: news[node.account.address] for node in nodes[:2]}
        right = {node.account.address: news[node.account.address] for node in nodes[2:]}
        agree(nodes[:2], left, 30)
        agree(nodes[2:], right, 30)
        assert nodes[0].echo(nodes[1]) == nodes[3].echo(nodes[2]) == b"hello"
        assert not any(right.items() <= node.known().items() for node in nodes[:2])
        internet.heal()
        took_s = agree(nodes, news, 60)
        print(f"the books agreed {took_s:.1f} s after the cut was healed")


def test_when_every_bootstrap_node_is_dead_running_nodes_go_on(internet: Internet):
    with living() as nodes:
        firsts = [NodeThread(internet.public_host(), NetConfig(limits=QUICK)) for _ in range(2)]
        nodes.extend(firsts)
        start = tuple(outside(first) for first in firsts)
        relay = NodeThread(internet.public_host(), NetConfig(bootstrap=start, relay=True, limits=QUICK))
        nodes.append(relay)
        for _ in range(2):
            nodes.append(NodeThread(internet.home(symmetric=True), NetConfig(bootstrap=start, limits=QUICK)))
        one, other = nodes[3:]
        for home in (one, other):
            home.until(lambda net: net.reach().relays)
        one.until(lambda net: any(each.peer_id == other.peer_id and each.phase == "live" for each in net.peers()))
        dead = {first.peer_id for first in firsts}
        for first in firsts:
            first.site.unplug()
        for node in (relay, one, other):
            node.until(lambda net: not any(each.peer_id in dead and each.phase == "live" for each in net.peers()))
        assert one.echo(other) == other.echo(relay) == b"hello"
        agree([relay, one, other], {other.account.address: other.advertise()}, 60)
