"""Nodes behind routers, in network namespaces: reached through relays, and directly where their routers allow it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kit.namespaces import Internet, NodeThread, Site, internet

from hansa.node.net import NetConfig

__all__ = ["internet"]


@contextmanager
def living(*starts: tuple[Site, NetConfig]) -> Iterator[list[NodeThread]]:
    nodes: list[NodeThread] = []
    try:
        for site, config in starts:
            nodes.append(NodeThread(site, config))
        yield nodes
    finally:
        for node in reversed(nodes):
            node.stop()


def first_addr(node: NodeThread) -> str:
    return next(addr for addr in node.addrs if "45.33." in addr and "circuit" not in addr)


@pytest.mark.parametrize("symmetric", [False, True])
def test_two_homes_meet_through_a_relay_and_directly_where_their_routers_allow_it(internet: Internet, symmetric):
    with living((internet.public_host(), NetConfig(relay=True))) as [relay]:
        start = NetConfig(bootstrap=(first_addr(relay),))
        with living((internet.home(symmetric=symmetric), start), (internet.home(symmetric=symmetric), start)) as [
            one,
            other,
        ]:
            other.until(lambda net: any("p2p-circuit" in addr for addr in net.addrs()))
            assert all("192.168." in addr or "127.0.0.1" in addr or "p2p-circuit" in addr for addr in other.addrs)
            one.until(lambda net: any(each.peer_id == other.peer_id and each.phase == "live" for each in net.peers()))
            assert one.echo(other) == b"hello"
            if symmetric:
                assert one.path_to(other) == other.path_to(one) == "relayed"
                assert {context.path for context in other.heard} == {"relayed"}
                assert other.until(
                    lambda net: (
                        net.counters().get("dcutr.stays_relayed", 0) or one.net.counters().get("dcutr.stays_relayed", 0)
                    )
                )
                assert one.path_to(other) == "relayed"
            else:
                one.until(
                    lambda net: any(
                        each.peer_id == other.peer_id and each.path == "direct" and each.phase == "live"
                        for each in net.peers()
                    )
                )
                assert one.echo(other) == b"hello"
                other.until(
                    lambda net: any(each.peer_id == one.peer_id and each.path == "direct" for each in net.peers())
                )
                assert other.heard[-1].path == "direct"
