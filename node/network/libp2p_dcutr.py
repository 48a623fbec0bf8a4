"""DCUtR: two nodes that meet through a relay make holes in their routers at the same moment, and meet directly.

The one that was called (and so is behind a router) begins: both tell from where others see them come, it measures the
way, says "now", and waits for half of it; then both connect, each from its listening port. Nothing is dialled that the
other did not say and that is not public, few addresses of one host, few times: a peer cannot make us attack somebody.
"""

from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from multiaddr import Multiaddr

from hansa.node.network.allowance import Allowances
from hansa.node.network.libp2p_connection import GuardedConn
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_stream import BoundedStream
from hansa.node.network.libp2p_swarm import GuardedSwarm
from hansa.node.network.libp2p_wire import EndedEarly, WireFault, open_protocol, receive_message, send_message
from hansa.node.network.neighbourhood import host_of, place_of

DCUTR = "/libp2p/dcutr"
ATTEMPTS = 3
ANSWER_S = 10.0
PUNCH_S = 4.0
AGAIN_S = 0.1
"""A router that is not ready refuses at once; within the same attempt we knock again."""
LONGEST_HALF_WAY_S = 2.0
TOLD = 4
HOSTS = 2
BEGIN_AFTER_S = 0.5
PUNCHES_PER_S = 0.1
PUNCHES_AT_ONCE = 6
"""For one peer, whichever of us begins."""
ALL_PUNCHES_PER_S = 1.0
ALL_PUNCHES_AT_ONCE = 30
"""For all of them: names cost nothing, and each try may knock at two hosts of the peer's choice. As often for those
that are kept; and for those whom one relay brought half as often."""
REST_S = 30.0
GOSSIP_STREAMS = 2


class HolePuncher:
    """Makes relayed connections direct, where routers allow it."""

    def __init__(self, swarm: GuardedSwarm, faults: Faults, seen_at: Callable[[], Sequence[tuple[str, int]]]) -> None:
        """``seen_at`` gives the addresses from which others see us come."""
        self._swarm = swarm
        self._faults = faults
        self._seen_at = seen_at
        self._allowed = Allowances(PUNCHES_PER_S, PUNCHES_AT_ONCE, trio.current_time)
        self._relays = Allowances(ALL_PUNCHES_PER_S / 2, ALL_PUNCHES_AT_ONCE // 2, trio.current_time)
        self._all = Allowances(ALL_PUNCHES_PER_S, ALL_PUNCHES_AT_ONCE, trio.current_time)

    def _may_punch(self, relayed: Any) -> bool:
        """Whether one more try is allowed over a relayed connection. Strangers use up nobody's who is kept."""
        name = relayed.peer_id.to_base58()
        if not self._allowed.take(name):
            return False
        if self._swarm.is_kept(name):
            return self._all.take("kept")
        return self._relays.take(relayed.relay) and self._all.take("all")

    async def upgrade(self, relayed: GuardedConn) -> None:
        """Begin, as the one that was called."""
        await trio.sleep(BEGIN_AFTER_S)
        for _ in range(ATTEMPTS):
            if relayed.is_closed or self._is_direct(relayed) or not self._seen_at():
                break
            if not self._may_punch(relayed.muxed_conn):
                self._faults.count("dcutr.too_often")
                break
            try:
                await self._begin(relayed)
            except (WireFault, MuxedStreamError, MuxedConnUnavailable, trio.TooSlowError):
                self._faults.count("dcutr.broke_off")
                break
        if self._is_direct(relayed):
            self._faults.count("dcutr.direct")
            await self._rest(relayed)
        elif not relayed.is_closed:
            self._faults.count("dcutr.stays_relayed")

    def _is_direct(self, relayed: GuardedConn) -> bool:
        standing = self._swarm.live_connections(relayed.muxed_conn.peer_id)
        return any(each.muxed_conn.path == "direct" for each in standing)

    async def _rest(self, relayed: GuardedConn) -> None:
        """Give the relay its circuit back when nothing but gossip uses it; new requests go directly already."""
        while not relayed.is_closed and self._is_direct(relayed):
            await trio.sleep(REST_S)
            if self._is_direct(relayed) and relayed.muxed_conn.open_streams <= GOSSIP_STREAMS:
                await relayed.close()

    async def _begin(self, relayed: GuardedConn) -> None:
        with trio.fail_after(ANSWER_S):
            stream = await open_protocol(relayed.muxed_conn, DCUTR)
            try:
                sent_at = trio.current_time()
                await send_message(stream, HolePunch(type=HolePunch.CONNECT, ObsAddrs=self._own()))
                answer = await receive_message(stream, HolePunch)
                way_s = trio.current_time() - sent_at
                if answer.type != HolePunch.CONNECT:
                    raise WireFault("not an answer")
                await send_message(stream, HolePunch(type=HolePunch.SYNC))
                await trio.sleep(min(LONGEST_HALF_WAY_S, way_s / 2))
            finally:
                stream.finish()
                stream.muxed_conn.forget(stream)
        # By the protocol the one that was called is the server of what comes of it, whoever's packet was first.
        await self._punch(relayed.muxed_conn.peer_id, answer.ObsAddrs, as_client=False)

    async def on_stream(self, stream: NetStream) -> None:
        """Answer, as the one that called."""
        muxed: BoundedStream = stream.muxed_stream
        connection = stream.muxed_conn
        name = connection.peer_id.to_base58()
        if connection.path != "relayed" or not self._may_punch(connection):
            self._faults.count("dcutr.refused")
            muxed.abort()
            return
        try:
            with trio.fail_after(ANSWER_S):
                wanted = await receive_message(muxed, HolePunch)
                if wanted.type != HolePunch.CONNECT:
                    raise WireFault("not a request")  # noqa: TRY301
                await send_message(muxed, HolePunch(type=HolePunch.CONNECT, ObsAddrs=self._own()))
                if (await receive_message(muxed, HolePunch)).type != HolePunch.SYNC:
                    raise WireFault("not the word to begin")  # noqa: TRY301
        except (EndedEarly, trio.TooSlowError, MuxedStreamError):
            self._faults.count("dcutr.broke_off")
            muxed.abort()
            return
        except WireFault:
            self._faults.blame(name, "dcutr.malformed")
            muxed.abort()
            return
        await self._punch(connection.peer_id, wanted.ObsAddrs, as_client=True)

    def _own(self) -> list[bytes]:
        return [Multiaddr(_text(host, port)).to_bytes() for host, port in self._seen_at()[:TOLD]]

    async def _punch(self, peer_id: ID, told: Any, *, as_client: bool) -> None:
        targets = self._targets(told)
        if not targets:
            self._faults.count("dcutr.nowhere_to_go")
            return
        with trio.move_on_after(PUNCH_S):
            async with trio.open_nursery() as nursery:

                async def knock(host: str, port: int) -> None:
                    while True:
                        try:
                            await self._swarm.punch(host, port, peer_id, as_client=as_client)
                        except Exception:  # noqa: BLE001  # whatever is at that address
                            self._faults.count("dcutr.knocked_in_vain")
                            await trio.sleep(AGAIN_S)
                        else:
                            nursery.cancel_scope.cancel()
                            return

                for host, port in targets:
                    nursery.start_soon(knock, host, port)

    def _targets(self, told: Any) -> list[tuple[str, int]]:
        """Where to knock: public, one or two hosts, and not where we live ourselves."""
        own = {host for host, _ in self._seen_at()}
        found: list[tuple[str, int]] = []
        for raw in list(told)[: 2 * TOLD]:
            try:
                addr = Multiaddr(bytes(raw))
                kind, host = host_of(str(addr))
                port = int(str(addr.value_for_protocol("tcp")))
            except Exception:  # noqa: BLE001, S112  # the library raises many kinds for what is no multiaddr
                continue
            hosts = {each for each, _ in found} | {host}
            if kind in ("ip4", "ip6") and place_of(host) == "public" and host not in own and len(hosts) <= HOSTS:
                found.append((host, port))
        return list(dict.fromkeys(found))[:TOLD]


def _text(host: str, port: int) -> str:
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"
