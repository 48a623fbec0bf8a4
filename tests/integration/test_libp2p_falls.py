"""When the library's parts fall, the node stands up again: same key, same port, everything served as before."""

import os
import socket

import pytest
import trio
from kit.echo import ECHO, echo
from kit.waiting import until
from libp2p.peer.id import ID

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig, NetError, Verdict

pytestmark = pytest.mark.trio
TOPIC = "/hansa/topic/1"


async def fall() -> None:
    raise ExceptionGroup("something that no guard caught", [ValueError("a peer's doing")])


async def fall_when_stopped() -> None:
    try:
        await trio.sleep_forever()
    finally:
        await fall()


@pytest.mark.parametrize("where", ["swarm", "beside"])
async def test_a_fall_costs_connections_and_nothing_else(where):
    async with (
        open_net(NetConfig(), os.urandom(32)) as node,
        open_net(NetConfig(bootstrap=node.addrs()), os.urandom(32)) as other,
    ):
        node.serve(ECHO, echo)
        heard = node.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        other.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        assert await other.request(node.peer_id, ECHO, b"before") == b"before"
        addrs = node.addrs()
        nursery = node._swarm.background_nursery if where == "swarm" else node._stack.nursery
        nursery.start_soon(fall)
        await until(lambda: node.reach().restarts == 1 and node._swarm.listening)
        assert node.addrs() == addrs
        await until(lambda: other._swarm.live_connections(ID.from_base58(node.peer_id)))
        with trio.fail_after(10):
            while True:
                try:
                    assert await other.request(node.peer_id, ECHO, b"after") == b"after"
                except NetError:
                    await trio.sleep(0.1)
                else:
                    break
            while True:
                await other.publish(TOPIC, b"news")
                with trio.move_on_after(0.3):
                    assert (await heard.receive())[1] == b"news"
                    break
        assert node.counters()["net.restarted"] == 1


async def test_a_node_falls_as_often_as_it_likes():
    async with open_net(NetConfig(), os.urandom(32)) as node:
        node.serve(ECHO, echo)
        for times in range(1, 4):
            await until(lambda: node._swarm.background_nursery is not None and node._swarm.listening)
            node._swarm.background_nursery.start_soon(fall)
            await until(lambda times=times: node.reach().restarts == times)
        await until(lambda: node._swarm.background_nursery is not None and node._swarm.listening)
        async with open_net(NetConfig(), os.urandom(32)) as other:
            await other.connect(node.addrs()[0])
            assert await other.request(node.peer_id, ECHO, b"x") == b"x"


@pytest.mark.parametrize("where", ["swarm", "beside"])
async def test_a_fall_while_the_node_is_stopped_is_no_error(where):
    async with open_net(NetConfig(), os.urandom(32)) as node:
        nursery = node._swarm.background_nursery if where == "swarm" else node._stack.nursery
        nursery.start_soon(fall_when_stopped)
        await trio.sleep(0.05)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6, not even ::1")


@needs_ipv6
async def test_nodes_meet_over_ipv6():
    config = NetConfig(listen=("/ip6/::1/tcp/0",))
    async with open_net(config, os.urandom(32)) as one, open_net(config, os.urandom(32)) as other:
        other.serve(ECHO, echo)
        assert other.addrs()[0].startswith("/ip6/::1/tcp/")
        assert await one.connect(other.addrs()[0]) == "direct"
        assert await one.request(other.peer_id, ECHO, b"six") == b"six"


@needs_ipv6
async def test_one_port_is_listened_on_with_both_families():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = NetConfig(listen=(f"/ip4/127.0.0.1/tcp/{port}", f"/ip6/::/tcp/{port}"))
    async with open_net(config, os.urandom(32)) as node:
        for host in ("127.0.0.1", "::1"):
            stream = await trio.open_tcp_stream(host, port)
            await stream.aclose()
        async with open_net(NetConfig(listen=("/ip6/::1/tcp/0",)), os.urandom(32)) as other:
            assert await other.connect(f"/ip6/::1/tcp/{port}/p2p/{node.peer_id}") == "direct"


async def test_addresses_are_told_and_tried_in_a_sensible_order():
    from hansa.node.network.libp2p_addresses import sorted_addrs
    from hansa.node.network.libp2p_tcp import rank

    relay = "/ip4/45.33.1.2/tcp/1/p2p/16Uiu2relay/p2p-circuit"
    addrs = ["/ip4/127.0.0.1/tcp/1", relay, "/ip4/192.168.1.2/tcp/1", "/ip6/2a01:4f8::1/tcp/1", "/ip4/45.33.1.2/tcp/1"]
    assert sorted_addrs(addrs, ["/dns4/x.example/tcp/1"]) == [
        "/dns4/x.example/tcp/1",
        "/ip6/2a01:4f8::1/tcp/1",
        "/ip4/45.33.1.2/tcp/1",
        relay,
        "/ip4/192.168.1.2/tcp/1",
        "/ip4/127.0.0.1/tcp/1",
    ]
    assert max(addrs, key=rank) == relay
    assert min(("/ip4/45.33.1.2/tcp/1", "/ip6/2a01:4f8::1/tcp/1"), key=rank).startswith("/ip6")


async def test_a_name_that_leads_inside_is_dialled_only_on_the_operators_word(monkeypatch):
    async with open_net(NetConfig(), os.urandom(32)) as node, open_net(NetConfig(), os.urandom(32)) as stranger:
        await stranger.connect(node.addrs()[0])
        async with open_net(NetConfig(), os.urandom(32)) as victim:
            port = victim.addrs()[0].split("/")[4]
            addr = f"/dns4/localhost/tcp/{port}"
            node.learn(victim.peer_id, (addr,), told_by=stranger.peer_id)
            with pytest.raises(NetError):
                await node.connect(victim.peer_id)
            assert node.counters()["dial.name_leads_inside"]
            assert await node.connect(f"{addr}/p2p/{victim.peer_id}") == "direct"


async def test_what_the_operator_said_of_a_peer_is_not_crowded_out_by_talk():
    async with open_net(NetConfig(), os.urandom(32)) as node, open_net(NetConfig(), os.urandom(32)) as liar:
        await liar.connect(node.addrs()[0])
        async with open_net(NetConfig(), os.urandom(32)) as other:
            node.learn(other.peer_id, other.addrs())
            lies = tuple(f"/ip4/127.0.0.1/tcp/{number}" for number in range(1, 9))
            node.learn(other.peer_id, lies, told_by=liar.peer_id)
            assert await node.connect(other.peer_id) == "direct"


async def test_one_public_host_is_not_dialled_without_end():
    from hansa.node.network.libp2p_guards import Faults
    from hansa.node.network.libp2p_tcp import FAILURES_PER_MINUTE, Dialler, SwarmException

    dialler = Dialler(Faults())
    for _ in range(FAILURES_PER_MINUTE):
        with pytest.raises(OSError, match="in vain"):
            async with dialler._place("45.33.1.1", given=False, is_punch=False):
                raise OSError("in vain")
    with pytest.raises(SwarmException):
        async with dialler._place("45.33.1.1", given=False, is_punch=False):
            pass
    async with dialler._place("45.33.1.2", given=False, is_punch=False):
        pass


async def test_who_was_dialled_before_a_fall_is_no_stranger_after_it() -> None:
    async with open_net(NetConfig(), os.urandom(32)) as node:
        swarm = node._stack.swarm
        swarm._dialler._spoke_to("45.33.1.1")
        later = node._build().swarm
        assert later is not swarm
        assert later._dialler.has_spoken_to("45.33.1.1")
        assert not later._dialler.has_spoken_to("45.33.1.2")
