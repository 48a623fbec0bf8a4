"""The node's own end of the network: addresses, ports, identity, restarts and real processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack, suppress

import pytest
import trio

from hansa.node.faults import ConfigError, PortInUse
from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import Context, NetConfig, NetError, NetLimits
from hansa.proto.errors import Malformed
from hansa.proto.peer_id import address_of_peer_text, parse_peer_id, peer_id_of_key

pytestmark = pytest.mark.trio
ECHO = "/hansa/echo/1"


async def echo(_context: Context, data: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return data


def listen(port: int, host: str = "127.0.0.1") -> NetConfig:
    return NetConfig(listen=(f"/ip4/{host}/tcp/{port}",))


def port_of(addr: str) -> int:
    return int(addr.split("/")[4])


async def test_the_key_gives_the_peer_id_of_the_library_and_the_address_of_the_ethereum_tools():
    from eth_account import Account
    from libp2p.crypto import secp256k1
    from libp2p.peer.id import ID

    for _ in range(20):
        key = os.urandom(32)
        name = peer_id_of_key(key)
        assert name == ID.from_pubkey(secp256k1.create_new_key_pair(key).public_key).to_base58()
        assert "0x" + address_of_peer_text(name).hex() == Account.from_key(key).address.lower()


@pytest.mark.parametrize(
    "name", ["", "16Uiu2", "0OIl", "x" * 10_000, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "é"]
)
async def test_what_is_no_peer_id_of_ours_is_malformed(name):
    with pytest.raises(Malformed):
        parse_peer_id(name)


async def test_port_0_becomes_a_real_port_and_the_same_one_can_be_taken_again_at_once():
    async with open_net(NetConfig(), os.urandom(32)) as net:
        port = port_of(net.addrs()[0])
        assert port > 0
    async with open_net(listen(port), os.urandom(32)) as net:
        assert port_of(net.addrs()[0]) == port


async def test_a_port_that_another_program_or_another_node_has_is_an_operators_error_with_a_hint():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortInUse) as caught:
            async with open_net(listen(other.getsockname()[1]), os.urandom(32)):
                pass
        assert "another port" in caught.value.hint
    async with open_net(NetConfig(), os.urandom(32)) as net:
        with pytest.raises(PortInUse):
            async with open_net(listen(port_of(net.addrs()[0])), os.urandom(32)):
                pass


@pytest.mark.parametrize(
    "config",
    [
        NetConfig(listen=("nonsense",)),
        NetConfig(listen=("/ip4/127.0.0.1/udp/4001/quic-v1",)),
        NetConfig(listen=("/ip4/192.0.2.1/tcp/0",)),
        NetConfig(bootstrap=("/ip4/127.0.0.1/tcp/1",)),
        NetConfig(bootstrap=("/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",)),
    ],
)
async def test_an_address_that_cannot_be_is_an_operators_error_with_a_hint(config):
    with pytest.raises(ConfigError) as caught:
        async with open_net(config, os.urandom(32)):
            pass
    assert caught.value.hint


async def test_every_interface_is_told_when_all_are_listened_on():
    async with open_net(listen(0, "0.0.0.0"), os.urandom(32)) as net:
        assert any("/ip4/127.0.0.1/" in addr for addr in net.addrs())
        assert all("/ip4/0.0.0.0/" not in addr for addr in net.addrs())


async def test_connecting_takes_a_few_milliseconds_and_not_the_librarys_quarter_second():
    async with open_net(NetConfig(), os.urandom(32)) as one, open_net(NetConfig(), os.urandom(32)) as other:
        took = []
        for _ in range(5):
            start = trio.current_time()
            await one.connect(other.addrs()[0])
            took.append(trio.current_time() - start)
            await one.disconnect(other.peer_id)
            await trio.sleep(0.05)
        assert min(took) < 0.15


async def test_a_dead_address_beside_a_good_one_costs_no_time():
    async with open_net(NetConfig(), os.urandom(32)) as one, open_net(NetConfig(), os.urandom(32)) as other:
        other.serve(ECHO, echo)
        dead = ("/ip4/127.0.0.1/tcp/1", "/ip4/192.0.2.1/tcp/1", "/ip6/::1/tcp/1", "/dns4/x/udp/1", "nonsense")
        one.learn(other.peer_id, (*dead, *other.addrs()))
        with trio.fail_after(2):
            assert await one.request(other.peer_id, ECHO, b"x") == b"x"


async def test_a_peer_that_was_restarted_is_reached_again_within_a_second():
    key = os.urandom(32)
    async with open_net(NetConfig(), os.urandom(32)) as one:
        async with open_net(NetConfig(), key) as other:
            other.serve(ECHO, echo)
            one.learn(other.peer_id, other.addrs())
            config = listen(port_of(other.addrs()[0]))
            assert await one.request(other.peer_id, ECHO, b"x") == b"x"
        # While it is away requests fail, which must not be held against it when it is back.
        for _ in range(3):
            with pytest.raises(NetError):
                await one.request(peer_id_of_key(key), ECHO, b"x", timeout_ms=1000)
        async with open_net(config, key) as again:
            again.serve(ECHO, echo)
            with trio.fail_after(1):
                while True:
                    with suppress(NetError):
                        assert await one.request(again.peer_id, ECHO, b"x", timeout_ms=1000) == b"x"
                        break
                    await trio.sleep(0.02)


NODE = """
import sys, trio
from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig
async def main():
    async with open_net(NetConfig(listen=(sys.argv[2],)), bytes.fromhex(sys.argv[1])) as net:
        async def echo(context, data):
            return data
        net.serve("/hansa/echo/1", echo)
        print(net.addrs()[0], flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def start_node(key: bytes, port: int) -> tuple[subprocess.Popen[str], str]:
    arguments = [sys.executable, "-c", NODE, key.hex(), f"/ip4/127.0.0.1/tcp/{port}"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    addr = process.stdout.readline().strip()
    return process, addr


async def test_a_process_killed_is_noticed_at_once_and_kept_when_it_comes_back():
    key = os.urandom(32)
    process, addr = await trio.to_thread.run_sync(start_node, key, 0)
    try:
        async with open_net(NetConfig(bootstrap=(addr,)), os.urandom(32)) as net:
            name = peer_id_of_key(key)
            assert await net.request(name, ECHO, b"x") == b"x"
            process.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            while net.peers()[0].phase == "live":  # noqa: ASYNC110
                await trio.sleep(0.005)
            assert time.monotonic() - killed < 1
            process.wait()
            process.stdout.close()
            process, addr = await trio.to_thread.run_sync(start_node, key, port_of(addr))
            # It was away for some seconds, so our next attempt may be some seconds off; a request does not wait for it.
            with trio.fail_after(2):
                assert await net.request(name, ECHO, b"y") == b"y"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_many_requests_leave_no_stream_and_no_held_byte_behind():
    async def handler(_context: Context, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        if data[:1] == b"!":
            raise KeyError("a fault of ours")
        return data

    async with open_net(NetConfig(), os.urandom(32)) as one, open_net(NetConfig(), os.urandom(32)) as other:
        other.serve(ECHO, handler, max_request_bytes=10_000)
        one.learn(other.peer_id, other.addrs())
        await one.connect(other.peer_id)
        await trio.sleep(0.3)
        before = [len(net._swarm.get_connections()[0].muxed_conn._streams) for net in (one, other)]
        for number in range(200):
            size = (1, 9_000)[number % 2]
            with suppress(NetError):
                await one.request(other.peer_id, ECHO, (b"!" if number % 7 == 0 else b"x") * size, timeout_ms=500)
        await trio.sleep(0.1)
        connections = [net._swarm.get_connections()[0] for net in (one, other)]
        assert [len(connection.muxed_conn._streams) for connection in connections] == before
        assert [net._budget.held_bytes for net in (one, other)] == [0, 0]


async def test_on_ipv6_too_it_is_known_who_calls_and_where_we_called():
    """The library knows no other end on IPv6: all of its callers would be one, and share one's few places."""
    config = NetConfig(listen=("/ip6/::1/tcp/0", "/ip4/127.0.0.1/tcp/0"), limits=NetLimits(connections_per_ip=2))
    async with open_net(config, os.urandom(32)) as net, AsyncExitStack() as stack:
        six, four = net.addrs()
        first = await stack.enter_async_context(open_net(NetConfig(), os.urandom(32)))
        await first.connect(six)
        assert first.dialled(net.peer_id) == ("::1", port_of(six))
        assert set(net._swarm._admission._standing) == {"::/64"}
        for addr in (six, four):
            other = await stack.enter_async_context(open_net(NetConfig(), os.urandom(32)))
            await other.connect(addr)
        late = await stack.enter_async_context(open_net(NetConfig(), os.urandom(32)))
        with pytest.raises(NetError):
            await late.connect(six)
        assert net.counters()["inbound.ip_full"] == 1
