"""Making holes, as the one that is asked: nothing but the two words of the protocol is taken for them."""

import os
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from kit.noted_stream import noted_stream
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from hansa.node.network import libp2p_dcutr
from hansa.node.network.libp2p_dcutr import HolePuncher
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_wire import WireFault
from hansa.proto.peer_id import peer_id_of_key

pytestmark = pytest.mark.trio
ASKER = ID.from_base58(peer_id_of_key(os.urandom(31) + b"\x01"))


def said(*kinds: int, told: Sequence[bytes] = ()) -> bytes:
    words = [HolePunch(type=kind, ObsAddrs=told).SerializeToString() for kind in kinds]
    return b"".join(bytes([len(word)]) + word for word in words)


@pytest.mark.parametrize("kinds", [(HolePunch.SYNC, HolePunch.SYNC), (HolePunch.CONNECT, HolePunch.CONNECT)])
async def test_a_word_in_the_place_of_another_is_a_strike_and_makes_no_hole(kinds: tuple[int, int]) -> None:
    punched, struck = [], []

    class Noting(HolePuncher):
        async def _punch(self, *arguments, **_more) -> None:
            punched.append(arguments)

    faults = Faults(lambda peer_id, why: struck.append((peer_id, why)))
    puncher = Noting(SimpleNamespace(is_kept=lambda _name: False), faults, lambda: [("45.33.9.2", 4077)])
    stream, _ = noted_stream(said(*kinds))
    relayed = SimpleNamespace(path="relayed", peer_id=ASKER, relay="a relay")
    await puncher.on_stream(SimpleNamespace(muxed_stream=stream, muxed_conn=relayed))
    assert struck == [(ASKER.to_base58(), "dcutr.malformed")]
    assert punched == []


async def test_who_is_asked_and_says_another_word_is_not_knocked_at(monkeypatch) -> None:
    stream, _ = noted_stream(said(HolePunch.SYNC, told=[Multiaddr("/ip4/45.33.9.3/tcp/4001").to_bytes()]))

    async def opened(*_arguments) -> object:
        return stream

    async def punch(*_arguments, **_more) -> None:
        raise AssertionError("nobody has agreed to it")

    monkeypatch.setattr(libp2p_dcutr, "open_protocol", opened)
    swarm = SimpleNamespace(is_kept=lambda _name: False, live_connections=lambda _peer_id: [], punch=punch)
    puncher = HolePuncher(swarm, Faults(), lambda: [("45.33.9.2", 4077)])
    with pytest.raises(WireFault, match="not an answer"):
        await puncher._begin(SimpleNamespace(muxed_conn=SimpleNamespace(path="relayed", peer_id=ASKER)))


async def test_a_peer_has_us_knock_at_two_public_hosts_at_most_and_never_at_our_own(autojump_clock) -> None:
    knocked: set[tuple[str, int]] = set()

    async def punch(host: str, port: int, *_rest, **_more) -> None:
        knocked.add((host, port))
        raise OSError("nobody is there")

    swarm = SimpleNamespace(is_kept=lambda _name: False, live_connections=lambda _peer_id: [], punch=punch)
    puncher = HolePuncher(swarm, Faults(), lambda: [("45.33.9.2", 4077)])
    hosts = ("192.168.1.1", "45.33.9.2", "45.33.9.3", "45.33.9.4", "45.33.9.5", "45.33.9.6")
    told = [Multiaddr(f"/ip4/{host}/tcp/4001").to_bytes() for host in hosts]
    stream, _ = noted_stream(said(HolePunch.CONNECT, told=told) + said(HolePunch.SYNC))
    relayed = SimpleNamespace(path="relayed", peer_id=ASKER, relay="a relay")
    await puncher.on_stream(SimpleNamespace(muxed_stream=stream, muxed_conn=relayed))
    assert knocked == {("45.33.9.3", 4001), ("45.33.9.4", 4001)}
