"""The side of a bulk channel that gives: who may have it, and no more than one thread and a few mebibytes for each."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import trio

from hansa.market.bandwidth import THERE
from hansa.node.network.net import Context, Net
from hansa.node.storage.blob_shelf import BlobMissing
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.bulk_chunks import NONE_FOR_YOU, REQUEST, parse_request, send_chunks
from hansa.node.storage.bulk_line import BulkLine, LineBroken
from hansa.node.storage.line_meter import LineMeter
from hansa.proto.blob import BlobRef, chunk_size_bytes
from hansa.proto.errors import ProtocolError

Allow = Callable[[Context, BlobRef], bool]
"""Who may have which blob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkLimits:
    """How much of this machine bulk channels may use. Each channel holds some 2 MiB and, while bytes move, a thread."""

    channels: int = 32
    channels_per_peer: int = 4
    handshake_s: float = 10.0
    agree_s: float = 5.0
    dial_s: float = 5.0
    idle_s: float = 30.0
    chunk_s: float = 30.0
    first_pause_s: float = 30.0
    longest_pause_s: float = 3_600.0
    """After a channel could not be made, the next attempt with this peer waits so long, each time twice as long."""


class ChunkServer:
    """Answers requests on channels that are agreed on and proven."""

    def __init__(
        self,
        *,
        net: Net,
        store: BlobStore,
        allow: Allow,
        limits: BulkLimits,
        threads: trio.CapacityLimiter,
        counters: Counter[str],
        meter: LineMeter,
    ) -> None:
        """All of it is shared with whoever makes the channels."""
        self._meter = meter
        self._net = net
        self._store = store
        self._allow = allow
        self._limits = limits
        self._threads = threads
        self._counters = counters

    async def serve(self, context: Context, line: BulkLine) -> None:
        """Answer what the peer asks on this channel until it is over."""
        try:
            while await self._serve_one(context, line):
                pass
        except LineBroken as broken:
            self._counters[f"bulk.served_until {broken.why}"] += 1
        except ProtocolError:
            self._counters["bulk.bad_request"] += 1
            self._net.strike(context.peer_id, "bulk.bad_request")
        except Exception:  # noqa: BLE001  # one peer's channel must not end the service for all
            self._counters["bulk.serve_failed"] += 1

    async def _serve_one(self, context: Context, line: BulkLine) -> bool:
        data = b""
        with trio.move_on_after(self._limits.idle_s):
            data = await line.receive(REQUEST.size)
        if not data:
            self._counters["bulk.idle"] += 1
            return False
        ref, indices = parse_request(data)
        if not self._net.is_live(context.peer_id):
            # The channel is worth what the connection is that vouched for it: a peer that was barred has none.
            self._counters["bulk.no_connection"] += 1
            return False
        try:
            with self._meter.underway(context.peer_id, THERE):
                sent = self._allow(context, ref) and await self._send(context.peer_id, line, ref, indices)
        except OSError:
            self._counters["bulk.disk_failed"] += 1
            return False
        if not sent:
            self._counters["bulk.refused"] += 1
            with trio.move_on_after(self._limits.chunk_s):
                await line.send(bytes((NONE_FOR_YOU,)))
            return False
        self._counters["bulk.chunks_sent"] += len(indices)
        return True

    async def _send(self, peer_id: str, line: BulkLine, ref: BlobRef, indices: range) -> bool:
        try:
            file = self._store.reader(ref)
        except BlobMissing:
            return False
        unsent_bytes = line.unsent_bytes
        with file:
            await line.in_thread(
                lambda: send_chunks(line, file.fileno(), ref, indices, self._limits.chunk_s), self._threads
            )
        # What the kernel took and still holds has not moved: it counts with the next request.
        size_bytes = sum(chunk_size_bytes(ref.size_bytes, index) for index in indices)
        self._meter.moved(peer_id, THERE, max(0, size_bytes + unsent_bytes - line.unsent_bytes))
        return True
