"""Nodes that share one acquaintance find each other: whoever connects asks whom the other knows.

Protocol ``/hansa/peers/1``. The answer is hearsay: nothing in it is believed but that an address may be worth a dial,
and an authenticated connection then shows who lives there. So only the numbers are limited.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import trio

from hansa.node.network.net import Context, Net, NetError
from hansa.proto.codec import decode, encode
from hansa.proto.errors import ProtocolError
from hansa.proto.peer_id import parse_peer_id
from hansa.proto.protocols import PEERS
from hansa.proto.units import AtMost, Line

TOLD_PEERS = 32
"""How many peers one answer names."""
TOLD_ADDRS = 8
MAX_BYTES = 128 << 10
CONNECTIONS = 16
"""Below this many live peers a node looks for more."""
DIALS_AT_ONCE = 4
FIRST_ASK_AGAIN_S = 1.0
ASK_AGAIN_S = 60.0
TIMEOUT_MS = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersWanted:
    """Here is where I can be dialled; whom do you know?"""

    addrs: Annotated[tuple[Line, ...], AtMost(TOLD_ADDRS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPeer:
    """One peer and where it was last dialled or said to be."""

    peer_id: Line
    addrs: Annotated[tuple[Line, ...], AtMost(TOLD_ADDRS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersKnown:
    """Some of those whom I know, the connected ones first."""

    peers: Annotated[tuple[KnownPeer, ...], AtMost(TOLD_PEERS)]


class PeerExchange:
    """Answers who asks, and asks whoever connects while this node has few acquaintances."""

    def __init__(self, net: Net, *, connections: int = CONNECTIONS) -> None:
        """``connections`` is how many live peers are enough."""
        self._net = net
        self._enough = connections
        self._asked_at: dict[str, float] = {}

    async def run(self) -> None:
        """Serve and ask until cancelled."""
        self._net.serve(PEERS, self._answer, max_request_bytes=MAX_BYTES, per_peer=2, total=32)
        arrivals = self._net.arrivals()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_now_and_then)
            for peer_id in self._live():
                nursery.start_soon(self._ask, peer_id)
            async for peer_id in arrivals:
                nursery.start_soon(self._ask, peer_id)

    def _live(self) -> list[str]:
        return [peer_id for peer_id, phase in self._net.phases().items() if phase == "live"]

    async def _answer(self, context: Context, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        wanted: PeersWanted = decode(data, PeersWanted, limit_bytes=MAX_BYTES)
        # Its own word on itself; a lie costs those who believe it one failed dial.
        self._net.learn(context.peer_id, wanted.addrs, told_by=context.peer_id)
        known = self._net.known(TOLD_PEERS + 1)
        told = [
            KnownPeer(peer_id=peer_id, addrs=addrs[:TOLD_ADDRS])
            for peer_id, addrs in known
            if peer_id != context.peer_id
        ]
        return encode(PeersKnown(peers=tuple(told[:TOLD_PEERS])))

    async def _ask_now_and_then(self) -> None:
        # Soon at first: two newcomers who asked in the same moment have not heard of each other.
        pause_s = FIRST_ASK_AGAIN_S
        while True:
            await trio.sleep(pause_s)
            pause_s = min(ASK_AGAIN_S, 2 * pause_s)
            live = self._live()
            oldest = min(live, key=lambda peer_id: self._asked_at.get(peer_id, -1.0), default=None)
            self._asked_at = {peer_id: at for peer_id, at in self._asked_at.items() if peer_id in live}
            if oldest is not None and len(live) < self._enough:
                await self._ask(oldest)

    async def _ask(self, peer_id: str) -> None:
        """Tell a peer where we are, hear whom it knows, and dial some of them if we know few."""
        if trio.current_time() < self._asked_at.get(peer_id, float("-inf")) + FIRST_ASK_AGAIN_S / 2:
            return
        self._asked_at[peer_id] = trio.current_time()
        request = encode(PeersWanted(addrs=self._net.addrs()[:TOLD_ADDRS]))
        try:
            answer = await self._net.request(
                peer_id, PEERS, request, timeout_ms=TIMEOUT_MS, max_response_bytes=MAX_BYTES
            )
            told: PeersKnown = decode(answer, PeersKnown, limit_bytes=MAX_BYTES)
        except NetError:
            return
        except ProtocolError:
            self._net.strike(peer_id, "peers.malformed")
            return
        await self._dial({peer.peer_id: peer.addrs for peer in told.peers}, told_by=peer_id)

    async def _dial(self, told: Mapping[str, tuple[str, ...]], told_by: str) -> None:
        live = set(self._live())
        strangers = [peer_id for peer_id in told if peer_id not in live and peer_id != self._net.peer_id]
        room = trio.Semaphore(DIALS_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for peer_id in strangers[: max(0, self._enough - len(live))]:
                if _is_name(peer_id):
                    self._net.learn(peer_id, told[peer_id], told_by=told_by)
                    nursery.start_soon(self._dial_one, peer_id, room)

    async def _dial_one(self, peer_id: str, room: trio.Semaphore) -> None:
        async with room:
            try:
                await self._net.connect(peer_id)
            except NetError:
                return


def _is_name(peer_id: str) -> bool:
    try:
        parse_peer_id(peer_id)
    except ProtocolError:
        return False
    return True
