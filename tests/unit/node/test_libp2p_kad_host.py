"""The library's table, as it is let near the network: whom it may have dialled."""

import os
from types import SimpleNamespace

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID

from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_kad_host import KAD_PROTOCOL, LOOKUP, Lookup, NarrowHost
from hansa.proto.peer_id import peer_id_of_key

BARRED = ID.from_base58(peer_id_of_key(os.urandom(31) + b"\x01"))
OF_ANOTHER_KIND = ID.from_pubkey(create_new_key_pair().public_key)


@pytest.mark.trio
@pytest.mark.parametrize("named", [BARRED, OF_ANOTHER_KIND])
async def test_who_is_barred_or_has_no_key_of_ours_costs_a_lookup_none_of_its_dials(named: ID) -> None:
    dialled: list[ID] = []

    async def dial(peer_id: ID) -> None:
        dialled.append(peer_id)

    swarm = SimpleNamespace(live_connections=lambda _peer_id: [], dial_peer=dial)
    known = SimpleNamespace(is_barred=lambda name: name == BARRED.to_base58())
    host = NarrowHost(SimpleNamespace(swarm=swarm), known, Faults(), lambda _peer_id: None)
    lookup = Lookup()
    token = LOOKUP.set(lookup)
    try:
        with pytest.raises(SwarmException, match="nobody to ask"):
            await host.new_stream(named, [KAD_PROTOCOL])
    finally:
        LOOKUP.reset(token)
    assert (lookup, dialled) == (Lookup(), [])
