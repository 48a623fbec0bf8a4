"""What is neither malformed nor large: half a message and no more, another's words, names that point in circles."""

import os
from types import ModuleType

import pytest
import trio
from hostile.stranger import a_stranger
from kit.peer_frames import MESH, framed, hello_of
from kit.whole_daemon import a_whole_daemon

from hansa.node.messaging import lan_discovery
from hansa.node.network import libp2p_autonat, libp2p_circuit, libp2p_kad, libp2p_kad_host, libp2p_pubsub, libp2p_relay
from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig, Verdict
from hansa.proto.protocols import HELLO

SOON_S = 0.3


@pytest.mark.trio
@pytest.mark.parametrize(
    ("module", "deadline", "protocol"),
    [
        (libp2p_relay, "HANDSHAKE_S", libp2p_relay.HOP),
        (libp2p_circuit, "ANSWER_S", libp2p_relay.STOP),
        (libp2p_autonat, "ASK_S", libp2p_autonat.AUTONAT),
        (libp2p_kad, "STREAM_S", libp2p_kad_host.KAD_PROTOCOL),
        (libp2p_pubsub, "FRAME_TIMEOUT_S", MESH),
    ],
    ids=["relay", "circuit", "autonat", "kad", "gossip"],
)
async def test_half_a_message_is_waited_for_until_the_deadline_and_no_longer(
    module: ModuleType, deadline: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, deadline, SOON_S)
    async with open_net(NetConfig(relay=True), os.urandom(32)) as net:
        net.subscribe("/hansa/adverts/1/cpu", lambda _context, _data: Verdict.ACCEPT)
        async with a_stranger(net.addrs()[0]) as stranger:
            await trio.sleep(0.1)
            stream = await stranger.say(protocol, b"\x20half", ends=False)
            began = trio.current_time()
            await stranger.await_ends([stream], 15)
            assert trio.current_time() - began < 12


@pytest.mark.trio
async def test_anothers_hello_proves_nothing_however_often_it_is_said():
    """A hello is bound to the name under which its bringer is connected."""
    async with a_whole_daemon() as daemon, a_stranger(daemon.net.addrs()[0]) as stranger:
        stolen = hello_of(os.urandom(32), daemon.now_ms())
        heard = await stranger.await_ends([await stranger.say(HELLO, framed(HELLO, stolen)) for _ in range(3)], 10)
        assert not any(b"binding" in each for each in heard.values())
        assert daemon.counters()[f"serve.protocol_error {HELLO}"] == 3
        assert not daemon.directory._bindings


def test_names_that_point_in_circles_and_at_one_another_are_read_in_no_time():
    """The compression of names is the one decompression of strangers' bytes that needs no leave."""
    header = bytes((0, 0, 0x84, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0))
    circle = header + b"\xc0\x0c" * 2_000
    chain = header + b"".join(b"\x01a" + (0xC000 | max(12, at - 4)).to_bytes(2, "big") for at in range(12, 4_000, 4))
    deep = header + b"\x3f" + b"a" * 63 + b"\xc0\x0c" + b"\xc0\x0c" * 1_900
    for packet in (circle, chain, deep):
        assert lan_discovery.read(packet[: lan_discovery.MOST_BYTES]) == (False, ())
