"""One connection, whose handlers may raise anything."""

import trio
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from hansa.node.network.doorway import ACQUAINTED_S
from hansa.node.network.libp2p_stream import BoundedStream
from hansa.node.network.libp2p_yamux import BoundedYamux

USUAL_OWN_STREAMS = 1
"""Gossip's."""


class GuardedConn(SwarmConn):  # type: ignore[misc]  # the library comes without types
    """A connection whose stream handlers may raise anything."""

    muxed_conn: BoundedYamux
    on_hearsay = False
    """We made it, to an address that is some stranger's word."""
    for_circuits = False
    """To a relay that somebody named, which is left when nothing goes through it any more."""
    circuits = 0
    """That we have through it, or are about to have."""
    household = ""
    """Of whom is at the other end: an address or a network of IPv6, or a name where a relay is between us."""
    entered_at = 0.0
    began_at = 0.0

    @property
    def is_acquainted(self) -> bool:
        """Whether it has lasted for so long that whoever is at the other end is no passer-by."""
        return trio.current_time() - self.began_at >= ACQUAINTED_S

    @property
    def is_idle(self) -> bool:
        """Whether we want nothing of it now. What the other side has open does not count: it could hold us for ever."""
        return not self.circuits and self.muxed_conn.own_streams <= USUAL_OWN_STREAMS

    async def start(self) -> None:
        """Handle the peer's streams until the connection ends, which ends their handlers too."""
        self.event_started.set()
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    stream = await self.muxed_conn.accept_stream()
                    if not self.is_acquainted:
                        async with self.swarm.turns:
                            pass
                    nursery.start_soon(self._handle_muxed_stream, stream)
            except MuxedConnUnavailable:
                nursery.cancel_scope.cancel()
        await self.close()

    async def _handle_muxed_stream(self, muxed_stream: BoundedStream) -> None:
        stream = None
        try:
            handler = self.swarm.at_once.agree(muxed_stream)
            if handler is not None:
                await handler(muxed_stream)
            else:
                stream = await self._add_stream(muxed_stream)
                await self.swarm.common_stream_handler(stream)
        except Exception as fault:  # noqa: BLE001  # any protocol's handler, ours or the library's, on a peer's bytes
            self.swarm.stream_failed(self.muxed_conn.peer_id.to_base58(), fault)
            muxed_stream.abort()
        finally:
            # Whoever handled it is done with it: nothing may stay buffered or half open on a handler's neglect.
            if stream is not None:
                self.remove_stream(stream)
            muxed_stream.finish()
            muxed_stream.abandon()

    async def _add_stream(self, muxed_stream: BoundedStream) -> NetStream:
        stream = NetStream(muxed_stream, self, None)
        await stream.set_state(StreamState.OPEN)
        self.streams.add(stream)
        return stream

    async def close(self) -> None:
        """End it, and tell those who want to know in the background."""
        if self.event_closed.is_set():
            return
        self.event_closed.set()
        self.swarm.remove_conn(self)
        self.swarm.conn_closed(self)
        await self.muxed_conn.close()
