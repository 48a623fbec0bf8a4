"""Nodes behind routers, in network namespaces: reached through relays, and directly where their routers allow it."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from kit.namespaces import Internet, NodeThread, Site, enter, internet

from hansa.node.network.net import NetConfig, NetError
from hansa.proto.peer_id import peer_id_of_key

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


def socket_in(namespace: str, host: str) -> socket.socket:
    """A socket that listens in a namespace and does not wait."""
    made: list[socket.socket] = []

    def make() -> None:
        enter(namespace)
        made.append(socket.create_server((host, 0)))
        made[0].setblocking(False)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


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


def test_what_two_public_observers_agree_on_is_believed_and_a_liar_alone_is_not(internet: Internet):
    with living(*((internet.public_host(), NetConfig(relay=True)) for _ in range(2))) as [one, other]:
        start = NetConfig(bootstrap=(first_addr(one), first_addr(other)))
        with living((internet.public_host(), start), (internet.home(), start)) as [public, hidden]:
            public.until(lambda net: net.reach().verdict == "public")
            # What is public needs nobody's place, and is told first.
            public.until(lambda net: not any("p2p-circuit" in addr for addr in net.addrs()))
            assert public.addrs[0].startswith(f"/ip4/{public.site.address}/tcp/")
            hidden.until(lambda net: net.reach().verdict == "private" and len(net.reach().relays) >= 2)
            assert not any(addr.startswith(f"/ip4/{hidden.site.address}/") for addr in hidden.addrs)

            def lie(net):
                said = net.reach().opinions[0]
                address = f"/ip4/{hidden.site.address}/tcp/4077"
                net._reachability._opinions = net._reachability._opinions.with_new(replace(said, reached_at=address))

            hidden.ask(lie, hidden.net)
            assert hidden.ask(hidden.net.reach).verdict != "public"
            assert any("p2p-circuit" in addr for addr in hidden.addrs)


def test_a_router_that_lets_in_whoever_was_spoken_to_makes_nobody_unreachable(internet: Internet):
    """All its observers get through to such a home, since it dialled them, and say that it is public."""
    with living(*((internet.public_host(), NetConfig(relay=True)) for _ in range(2))) as [one, other]:
        start = NetConfig(bootstrap=(first_addr(one), first_addr(other)))
        with living((internet.home(lets_in_known=True), start)) as [hidden]:
            hidden.until(lambda net: net.reach().verdict == "public")
            hidden.until(lambda net: any("p2p-circuit" in addr for addr in net.addrs()))
            told = hidden.addrs
            assert any(addr.startswith(f"/ip4/{hidden.site.address}/") for addr in told)
            with living((internet.public_host(), NetConfig())) as [stranger]:
                stranger.ask(lambda: stranger.net.learn(hidden.peer_id, told, told_by=one.peer_id))
                assert stranger.call(stranger.net.connect, hidden.peer_id) == "relayed"
                assert stranger.echo(hidden) == b"hello"


def test_without_a_relay_a_home_can_still_ask_and_says_that_it_only_dials_out(internet: Internet):
    with living((internet.public_host(), NetConfig()), (internet.public_host(), NetConfig())) as [one, other]:
        start = NetConfig(bootstrap=(first_addr(one), first_addr(other)))
        with living((internet.home(), start)) as [hidden]:
            hidden.until(lambda net: net.reach().verdict == "private")
            assert hidden.ask(hidden.net.reach).relays == ()
            assert hidden.echo(one) == b"hello"
            # Whom it dialled can ask it too, over the connection that it made.
            assert one.echo(hidden) == b"hello"


def test_strangers_make_nobody_knock_inside_its_own_home(internet: Internet):
    with living((internet.public_host(), NetConfig(relay=True))) as [stranger]:
        start = NetConfig(bootstrap=(first_addr(stranger),))
        with living((internet.home(), start)) as [hidden]:
            knocked = []
            with socket_in(hidden.site.router, f"192.168.{hidden.site.number}.1") as door:
                port = door.getsockname()[1]
                inner = f"/ip4/192.168.{hidden.site.number}.1/tcp/{port}"
                name = peer_id_of_key(os.urandom(32))

                def tell(net, told_by):
                    net.learn(name, (inner, f"/ip4/127.0.0.1/tcp/{port}"), told_by=told_by)

                async def dial():
                    with suppress(NetError):
                        await hidden.net.connect(name, timeout_ms=2_000)

                hidden.ask(tell, hidden.net, stranger.peer_id)
                hidden.call(dial)
                with suppress(BlockingIOError):
                    knocked.append(door.accept())
                assert not knocked
                assert hidden.ask(hidden.net.counters)["addresses.not_theirs_to_name"]
                # The same on the operator's word.
                hidden.ask(tell, hidden.net, None)
                hidden.call(dial)
                connection, _ = door.accept()
                connection.close()


def test_a_slow_line_slows_and_breaks_nothing(internet: Internet):
    with living((internet.public_host(), NetConfig(relay=True))) as [relay]:
        start = NetConfig(bootstrap=(first_addr(relay),))
        homes = [internet.home(symmetric=True) for _ in range(2)]
        with living(*((site, start) for site in homes)) as [one, other]:
            one.until(lambda net: any(each.peer_id == other.peer_id and each.phase == "live" for each in net.peers()))
            homes[0].slow_down("16mbit")
            data = os.urandom(2 << 20)
            began = time.monotonic()
            assert one.echo(other, data, timeout_ms=60_000) == data
            # Two mebibytes at two a second, less what a burst and a token bucket let through.
            assert time.monotonic() - began > 0.7


def test_nodes_on_lines_with_delay_and_loss_find_each_other_and_lose_no_byte(internet: Internet):
    try:
        far = [internet.public_host(delay_s=0.04, loss=0.02) for _ in range(2)]
    except OSError as fault:
        pytest.skip(f"no tap devices here: {fault}")
    with living((internet.public_host(), NetConfig())) as [first]:
        start = NetConfig(bootstrap=(first_addr(first),))
        with living(*((site, start) for site in far)) as [one, other]:
            one.until(lambda net: any(each.peer_id == other.peer_id and each.phase == "live" for each in net.peers()))
            began = time.monotonic()
            assert one.echo(other) == b"hello"
            assert time.monotonic() - began > 0.15
            data = os.urandom(256 << 10)
            assert one.echo(other, data, timeout_ms=60_000) == data
            assert sum(wire.lost for wire in internet.wires) > 0
