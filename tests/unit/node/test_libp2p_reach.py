"""Places at relays: one that others cannot use is none."""

import os
from types import SimpleNamespace

import pytest
import trio

from hansa.node.network import libp2p_reach
from hansa.node.network.libp2p_circuit import Place
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_reach import NO_RELAY_S, Reachability
from hansa.node.network.net import NetConfig
from hansa.proto.peer_id import peer_id_of_key

pytestmark = pytest.mark.trio
OWN, RELAY = (peer_id_of_key(os.urandom(31) + bytes((end,))) for end in (1, 2))


@pytest.mark.parametrize("addrs", [(), ("/ip4/45.33.9.2/tcp/4001/p2p-circuit",)], ids=["no address", "an address"])
async def test_a_relay_that_gives_no_address_is_held_for_nobody_and_left_alone_for_a_while(
    monkeypatch, autojump_clock, addrs
) -> None:
    held: set[str] = set()
    faults = Faults()
    known = SimpleNamespace(book=SimpleNamespace(kept=held), keep=held.add, release=held.discard)
    reachability = Reachability(NetConfig(), OWN, faults, known)
    muxed = SimpleNamespace(peer_id=SimpleNamespace(to_base58=lambda: RELAY))
    asked: list[float] = []

    async def reserve(_muxed) -> Place:
        asked.append(trio.current_time())
        return Place(relay=RELAY, until=trio.current_time() + 3_600, addrs=addrs)

    monkeypatch.setattr(libp2p_reach, "reserve", reserve)
    monkeypatch.setattr(reachability, "_direct", lambda _name: muxed)
    monkeypatch.setattr(reachability, "_dialled", lambda: [muxed])
    reachability._relays.add(RELAY)
    for _ in range(2):
        await reachability._hold_places()
    assert len(asked) == 1
    assert reachability.found_addrs() == addrs
    assert held == ({RELAY} if addrs else set())
    await trio.sleep(NO_RELAY_S)
    await reachability._hold_places()
    assert len(asked) == (1 if addrs else 2)
    assert faults.counters.get("reach.relay_without_address", 0) == (0 if addrs else 2)
