"""Bulk channels: a TLS connection of its own for the bytes of blobs, beside the libp2p connection that vouches for it.

Over libp2p two nodes agree on a channel: certificates, which say their node's peer id, and a token go over the
connection that has proven both peer ids. Then whoever dialled the libp2p connection dials the same address once more,
with TLS. So no address is ever taken from a peer, nothing else must listen, and where this cannot work (a relay, a NAT
that was punched through, a filter) blobs go over libp2p as before. Decision 0020 says why this is safe.
"""

import contextlib
import os
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from hansa.node.network.net import Context, Net, NetError, Refused
from hansa.node.storage.blob_partial import Partial
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.bulk_chunks import Lacking, bring_chunks
from hansa.node.storage.bulk_grants import TOKEN_BYTES, BulkGrants
from hansa.node.storage.bulk_identity import BulkIdentity, certificate_of
from hansa.node.storage.bulk_line import BulkLine, LineBroken
from hansa.node.storage.bulk_messages import MAX_MESSAGE_BYTES, CallOffered, CallWanted, ChannelGranted, ChannelWanted
from hansa.node.storage.bulk_serving import Allow, BulkLimits, ChunkServer
from hansa.node.storage.line_meter import LineMeter
from hansa.proto.blob import BlobRef
from hansa.proto.codec import decode, encode
from hansa.proto.errors import Malformed, ProtocolError
from hansa.proto.peer_id import address_of_peer_text
from hansa.proto.protocols import BULK

MOST_REMEMBERED: Final = 1024


@dataclass(slots=True, eq=False)
class BulkChannel:
    """One connection that may fetch. Made and closed by ``BulkChannels``, which counts it from the one to the other."""

    peer_id: str
    line: BulkLine
    leave: Callable[[str], None]
    since_s: float = field(default_factory=time.monotonic)
    over: trio.Event = field(default_factory=trio.Event)

    def close(self) -> None:
        """It is of no use any more."""
        if not self.over.is_set():
            self.over.set()
            self.line.close()
            self.leave(self.peer_id)


class BulkChannels:
    """All bulk channels of this node, those that it fetches on and those that it serves."""

    def __init__(
        self,
        net: Net,
        store: BlobStore,
        allow: Allow,
        *,
        limits: BulkLimits | None = None,
        meter: LineMeter | None = None,
    ) -> None:
        """``allow`` says who may have which blob, as in ``BlobExchange``; ``meter`` measures what is sent to whom."""
        self._meter = meter or LineMeter()
        self.counters: Counter[str] = Counter()
        self._net = net
        self._allow = allow
        self._limits = limits or BulkLimits()
        self._threads = trio.CapacityLimiter(self._limits.channels)
        self._server = ChunkServer(
            net=net,
            store=store,
            allow=allow,
            limits=self._limits,
            threads=self._threads,
            counters=self.counters,
            meter=self._meter,
        )
        self._identity = BulkIdentity(net.peer_id)
        self._grants = BulkGrants(self._count)
        self._standing: Counter[str] = Counter()
        self._idle: list[BulkChannel] = []
        self._awaited: dict[str, trio.MemorySendChannel[BulkChannel]] = {}
        self._paused: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until cancelled."""
        self._net.serve(
            BULK,
            self._answer,
            max_request_bytes=MAX_MESSAGE_BYTES,
            timeout_ms=int((self._limits.agree_s + self._limits.dial_s) * 1000),
            per_peer=4,
            total=32,
        )
        self._net.serve_tls(self._knocked)
        try:
            async with trio.open_nursery() as self._nursery:
                while True:
                    await trio.sleep(self._limits.idle_s / 4)
                    self._close_idle()
                    self._meter.sweep()
        finally:
            self._nursery = None
            for channel in self._idle:
                channel.close()
            self._idle.clear()
            self.close()

    def close(self) -> None:
        """Forget the key, also if it never ran."""
        self._identity.close()

    def _count(self, reason: str) -> None:
        self.counters[reason] += 1

    # Fetching.

    async def open(self, peer_id: str, ref: BlobRef) -> BulkChannel | None:
        """A channel to fetch this blob from that peer on, or None if there is none to be had now. Give it back."""
        return (self._take_idle(peer_id) if self._net.is_live(peer_id) else None) or await self._open(peer_id, ref)

    def give_back(self, channel: BulkChannel) -> None:
        """Nothing is underway on this channel; whoever fetches next may have it."""
        if channel.line.broken or self._nursery is None:
            channel.close()
        else:
            channel.since_s = time.monotonic()
            self._idle.append(channel)

    async def bring(self, channel: BulkChannel, partial: Partial, lacking: Lacking, chunk_s: float) -> None:
        """Fetch on this channel what is lacking; see ``bring_chunks`` for what it raises."""
        self._count("bulk.fetches")
        await channel.line.in_thread(lambda: bring_chunks(channel.line, partial, lacking, chunk_s), self._threads)

    def _take_idle(self, peer_id: str) -> BulkChannel | None:
        self._close_idle()
        for channel in self._idle:
            if channel.peer_id == peer_id:
                self._idle.remove(channel)
                return channel
        return None

    def _close_idle(self) -> None:
        """The other side closes what was idle for ``idle_s``; a request sent just then would be lost."""
        oldest_s = time.monotonic() - self._limits.idle_s / 2
        for channel in [channel for channel in self._idle if channel.since_s < oldest_s]:
            self._idle.remove(channel)
            channel.close()

    async def _open(self, peer_id: str, ref: BlobRef) -> BulkChannel | None:
        if self._nursery is None or not self._may_try(peer_id):
            return None
        self._enter(peer_id)
        channel = None
        try:
            with trio.fail_after(2 * (self._limits.agree_s + self._limits.dial_s)):
                if not self._net.is_live(peer_id):
                    await self._net.connect(peer_id, int(self._limits.dial_s * 1000))
                if self._net.dialled(peer_id) is not None:
                    wanted = ChannelWanted(ref=ref, certificate=self._identity.certificate)
                    channel = BulkChannel(peer_id=peer_id, line=await self._dial(peer_id, wanted), leave=self._leave)
                elif peer_id not in self._awaited:
                    channel = await self._be_called(peer_id, ref)
                else:
                    return None
                self._paused.pop(peer_id, None)
                self._count("bulk.opened")
                return channel
        except Refused:
            # It does not want to, or has no such thing: not a matter of the way between us.
            self._failed(peer_id, "bulk.open_refused")
        except (NetError, LineBroken, OSError, ProtocolError, trio.TooSlowError):
            self._failed(peer_id, "bulk.open_failed")
        finally:
            if channel is None:
                self._leave(peer_id)
        return None

    def _enter(self, peer_id: str) -> None:
        self._standing[peer_id] += 1

    def _leave(self, peer_id: str) -> None:
        self._standing[peer_id] -= 1
        if self._standing[peer_id] <= 0:
            del self._standing[peer_id]

    def _may_try(self, peer_id: str) -> bool:
        if self._paused.get(peer_id, (0.0, 0.0))[0] > time.monotonic():
            self._count("bulk.paused")
            return False
        return self._has_room(peer_id)

    def _has_room(self, peer_id: str) -> bool:
        if self._standing[peer_id] >= self._limits.channels_per_peer:
            self._count("bulk.peer_full")
            return False
        if self._standing.total() >= self._limits.channels:
            self._count("bulk.full")
            return False
        return True

    def _failed(self, peer_id: str, reason: str) -> None:
        self._count(reason)
        _, pause_s = self._paused.pop(peer_id, (0.0, 0.0))
        pause_s = min(self._limits.longest_pause_s, max(self._limits.first_pause_s, pause_s * 2))
        self._paused[peer_id] = (time.monotonic() + pause_s, pause_s)
        while len(self._paused) > MOST_REMEMBERED:
            self._paused.popitem(last=False)

    async def _dial(self, peer_id: str, message: ChannelWanted | CallOffered) -> BulkLine:
        at = self._net.dialled(peer_id)
        if at is None:
            raise LineBroken("we did not dial this peer")
        answer = await self._net.request(
            peer_id,
            BULK,
            encode(message),
            timeout_ms=int(self._limits.agree_s * 1000),
            max_response_bytes=MAX_MESSAGE_BYTES,
        )
        granted: ChannelGranted = decode(answer, ChannelGranted, limit_bytes=MAX_MESSAGE_BYTES)
        certificate = certificate_of(peer_id, granted.certificate)
        if len(granted.token) != TOKEN_BYTES:
            raise Malformed("bulk", "a token of another length")
        with trio.fail_after(self._limits.dial_s):
            stream = await trio.open_tcp_stream(*at)
            line = BulkLine(_own(stream), self._identity.dialling(certificate), serving=False)
            await stream.aclose()
            try:
                await line.shake_hands()
                line.check_certificate(certificate)
                await line.send(granted.token)
            except BaseException:
                line.close()
                raise
        return line

    async def _be_called(self, peer_id: str, ref: BlobRef) -> BulkChannel:
        # Which is counted already, as one that is being opened.
        send, receive = trio.open_memory_channel[BulkChannel](1)
        self._awaited[peer_id] = send
        try:
            await self._net.request(
                peer_id,
                BULK,
                encode(CallWanted(ref=ref)),
                timeout_ms=int((2 * self._limits.agree_s + self._limits.dial_s) * 1000),
                max_response_bytes=0,
            )
            with trio.fail_after(self._limits.dial_s):
                return await receive.receive()
        finally:
            del self._awaited[peer_id]
            with contextlib.suppress(trio.WouldBlock):
                receive.receive_nowait().over.set()
            receive.close()
            send.close()

    # Agreeing.

    async def _answer(self, context: Context, data: bytes) -> bytes:
        message: ChannelWanted | CallWanted | CallOffered = decode(
            data, ChannelWanted | CallWanted | CallOffered, limit_bytes=MAX_MESSAGE_BYTES
        )
        peer_id = context.peer_id
        if isinstance(message, CallOffered):
            if peer_id not in self._awaited:
                raise Refused("nobody wants to be called by you")
            return self._grant(peer_id, message.certificate, serves=True)
        if not self._allow(context, message.ref):
            raise Refused("no such blob for you")
        if isinstance(message, ChannelWanted):
            return self._grant(peer_id, message.certificate, serves=False)
        if self._nursery is None or self._net.dialled(peer_id) is None:
            raise Refused("this node did not dial you")
        if not self._has_room(peer_id):
            raise Refused("too many channels")
        self._enter(peer_id)
        line = None
        try:
            line = await self._dial(peer_id, CallOffered(certificate=self._identity.certificate))
        except (NetError, LineBroken, OSError, ProtocolError, trio.TooSlowError):
            self._count("bulk.call_failed")
            raise Refused("the call came to nothing") from None
        finally:
            if line is None:
                self._leave(peer_id)
        self._nursery.start_soon(self._serve, context, line)
        return b""

    def _grant(self, peer_id: str, certificate: bytes, *, serves: bool) -> bytes:
        if not serves and not self._has_room(peer_id):
            raise Refused("too many channels")
        theirs = certificate_of(peer_id, certificate)
        grant = self._grants.give(peer_id, theirs, "serve" if serves else "fetch", time.monotonic())
        if grant is None:
            raise Refused("too many channels")
        return encode(ChannelGranted(certificate=self._identity.certificate, token=grant.token))

    # Being dialled.

    async def _knocked(self, stream: trio.SocketStream, proven: Callable[[], None]) -> None:
        """A stranger began with TLS at our libp2p address. Returns when the connection is over."""
        expected = self._grants.certificates(time.monotonic())
        if not expected or self._nursery is None:
            self._count("bulk.uninvited")
            return
        line = BulkLine(_own(stream), self._identity.serving(expected), serving=True)
        grant = None
        try:
            try:
                with trio.fail_after(self._limits.handshake_s):
                    await line.shake_hands()
                    token = await line.receive(TOKEN_BYTES)
            except (LineBroken, trio.TooSlowError):
                self._count("bulk.handshake_failed")
                return
            grant = self._grants.redeem(token, line.certificate, time.monotonic())
            if grant is None or (grant.purpose == "fetch" and not self._has_room(grant.peer_id)):
                return
            proven()
            if grant.purpose == "fetch":
                self._enter(grant.peer_id)
                await self._serve(Context(peer_id=grant.peer_id, address=address_of_peer_text(grant.peer_id)), line)
            else:
                await self._use_call(grant.peer_id, line)
        finally:
            line.close()

    async def _use_call(self, peer_id: str, line: BulkLine) -> None:
        """The peer dialled us because we cannot dial it: whoever waits for that fetches on this connection."""
        awaited = self._awaited.get(peer_id)
        if awaited is None:
            self._count("bulk.call_too_late")
            return
        channel = BulkChannel(peer_id=peer_id, line=line, leave=self._leave)
        try:
            awaited.send_nowait(channel)
        except trio.WouldBlock:
            self._count("bulk.call_too_late")
        else:
            await channel.over.wait()

    async def _serve(self, context: Context, line: BulkLine) -> None:
        """Serve a channel that was counted already."""
        try:
            await self._server.serve(context, line)
        finally:
            self._leave(context.peer_id)
            line.close()


def make_bulk(net: Net, store: BlobStore, allow: Allow, meter: LineMeter | None = None) -> BulkChannels | None:
    """The channels of a node; None where keys cannot be kept in memory only, which leaves libp2p alone."""
    return BulkChannels(net, store, allow, meter=meter) if hasattr(os, "memfd_create") else None


def _own(stream: trio.SocketStream) -> socket.socket:
    """The socket of a stream for ourselves, so that whoever else holds the stream may close it."""
    return socket.fromfd(stream.socket.fileno(), stream.socket.family, stream.socket.type)
