"""One request, one stream, one response; every length and every wait is bounded.

The caller sends the negotiation and the request in one write, so that a request costs one round trip::

    /multistream/1.0.0  <protocol>  u32 length  request      (the two lines as multistream-select has them)
    /multistream/1.0.0  <protocol>  u8 status  u32 length  response or reason

Whom it does not know to speak the protocol it may let answer the negotiation first: the other side takes what comes
behind a protocol that it does not speak for further proposals, and may end the stream over them before its ``na`` is
here.
"""

import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError

from hansa.node.fault_groups import one_fault
from hansa.node.network.libp2p_guards import Faults, read_header_line
from hansa.node.network.libp2p_stream import BoundedStream
from hansa.node.network.net import Context, Handler, NotSpoken, Refused, RemoteFault, TooBig, Unreachable
from hansa.proto.errors import ProtocolError

MULTISTREAM = "/multistream/1.0.0"
OK, REFUSED, TOO_BIG = range(3)
MAX_REASON_BYTES = 1 << 10
_LENGTH = struct.Struct(">I")
_ANSWER = struct.Struct(">BI")


def header_line(text: str) -> bytes:
    """A line of multistream-select."""
    line = text.encode() + b"\n"
    size = len(line)
    return (bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7))) + line


_GREETING = header_line(MULTISTREAM)


async def read_exactly(stream: BoundedStream, size_bytes: int) -> bytes:
    """Exactly so many bytes, or the stream's own error."""
    first = await stream.read(size_bytes) if size_bytes else b""
    if len(first) == size_bytes:
        return first
    whole = bytearray(first)
    while len(whole) < size_bytes:
        whole += await stream.read(size_bytes - len(whole))
    return bytes(whole)


async def ask(
    stream: BoundedStream,
    peer_id: str,
    protocol_id: str,
    data: bytes,
    max_response_bytes: int,
    *,
    agree_first: bool = False,
) -> bytes:
    """Send one request on a fresh stream and read its response. The caller sets the deadline; the stream is used up."""
    answer = b""
    try:
        if agree_first:
            await stream.write(_proposal(protocol_id))
            await _read_agreement(stream, peer_id, protocol_id)
        request = _LENGTH.pack(len(data)) + data
        if not agree_first:
            request = _proposal(protocol_id) + request
        # The end of our side is said after the answer. A node of js-libp2p that finds it in the same moment as the
        # request takes the stream for closed, and loses what stood behind the negotiation.
        if stream.write_at_once(request):
            if not agree_first:
                await _read_agreement(stream, peer_id, protocol_id)
            return await _read_answer(stream, peer_id, max_response_bytes)
        async with trio.open_nursery() as nursery:
            # Beside the reading, because a refusal may come while most of a large request is still unsent.
            nursery.start_soon(_send_request, stream, request)
            if not agree_first:
                await _read_agreement(stream, peer_id, protocol_id)
            answer = await _read_answer(stream, peer_id, max_response_bytes)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Not `except*`: Python before 3.11.4 wraps what is raised in there into a group again.
        raise _one_fault(group, peer_id) from None
    except (MuxedStreamError, MultiselectCommunicatorError) as fault:
        raise _told(fault, peer_id) from None
    finally:
        stream.finish()
        stream.muxed_conn.forget(stream)
        stream.abandon()
    return answer


def _one_fault(group: BaseExceptionGroup[BaseException], peer_id: str) -> BaseException:
    """What the caller is to hear of a failed request; anything unexpected stays the group that it is."""
    fault = one_fault(group, (MuxedStreamError, MultiselectCommunicatorError, Refused, TooBig, RemoteFault))
    return group if fault is None else _told(fault, peer_id)


def _told(fault: BaseException, peer_id: str) -> BaseException:
    """The same in the words of the port."""
    if isinstance(fault, MuxedStreamError):
        return RemoteFault(peer_id, "the stream broke before the response was complete")
    if isinstance(fault, MultiselectCommunicatorError):
        return RemoteFault(peer_id, "the response does not follow the protocol")
    return fault


def _proposal(protocol_id: str) -> bytes:
    return header_line(MULTISTREAM) + header_line(protocol_id)


async def _send_request(stream: BoundedStream, request: bytes) -> None:
    try:
        await stream.write(request)
    except MuxedStreamError:
        # Whatever the reason is, the reader beside us will find it.
        return


async def _read_agreement(stream: BoundedStream, peer_id: str, protocol_id: str) -> None:
    if await read_header_line(stream) != MULTISTREAM:
        raise RemoteFault(peer_id, "the response does not follow the protocol")
    if await read_header_line(stream) != protocol_id:
        raise NotSpoken(peer_id)


async def _read_answer(stream: BoundedStream, peer_id: str, max_response_bytes: int) -> bytes:
    status, size = _ANSWER.unpack(await read_exactly(stream, _ANSWER.size))
    limit = max_response_bytes if status == OK else MAX_REASON_BYTES
    if size > limit:
        raise TooBig(peer_id, f"a response of {size} bytes, and at most {limit} are allowed")
    body = await read_exactly(stream, size)
    if status == OK:
        return body
    if status == TOO_BIG:
        raise TooBig(peer_id, "the peer takes no request of this size")
    if status == REFUSED:
        raise Refused(body.decode("utf-8", "replace"), peer_id)
    raise RemoteFault(peer_id, "a status that is none")


StreamHandler = Callable[[BoundedStream], Awaitable[None]]


class AtOnce:
    """Agrees on our own protocols where the whole proposal lies there already, which is how we propose.

    The library would do the same in a dozen turns of the event loop, a lock taken and a line written in most of them.
    Whatever is proposed in any other way is left to it.
    """

    def __init__(self) -> None:
        """No protocols yet."""
        self._handlers: dict[bytes, StreamHandler] = {}

    def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        """Have the streams of this protocol handled so."""
        self._handlers[header_line(protocol_id)] = handler

    def agree(self, stream: BoundedStream) -> StreamHandler | None:
        """Whoever handles what follows on this stream, where that is agreed on now. Nothing is read otherwise."""
        first = stream.first
        if not first.startswith(_GREETING) or len(first) == len(_GREETING):
            return None
        end = len(_GREETING) + 1 + first[len(_GREETING)]
        handler = self._handlers.get(first[len(_GREETING) : end])
        if handler is None or not stream.write_at_once(first[:end]):
            return None
        stream.skip(end)
        return handler


class RequestServer:
    """Answers one protocol, so many requests at once and no more."""

    def __init__(
        self,
        handler: Handler,
        faults: Faults,
        *,
        name: str,
        max_request_bytes: int,
        timeout_ms: int,
        per_peer: int,
        total: int,
    ) -> None:
        """``name`` is the protocol id, for the counters."""
        self.handler = handler
        self.faults = faults
        self.name = name
        self.max_request_bytes = max_request_bytes
        self.timeout_ms = timeout_ms
        self.per_peer = per_peer
        self.total = total
        self._running: Counter[str] = Counter()

    async def handle(self, stream: BoundedStream, context: Context, *, is_older: bool = False) -> None:
        """Read the request, run the handler, send what came of it."""
        peer_id = context.peer_id
        if is_older:
            self.faults.count(f"serve.older {self.name}")
        if self._running[peer_id] >= self.per_peer or self._running.total() >= self.total:
            self.faults.count(f"serve.busy {self.name}")
            await self._send(stream, REFUSED, b"busy: too many requests at once")
            return
        self._running[peer_id] += 1
        try:
            with trio.move_on_after(self.timeout_ms / 1000) as deadline:
                await self._answer(stream, context)
            if deadline.cancelled_caught:
                self.faults.count(f"serve.timeout {self.name}")
                stream.abort()
        finally:
            self._running[peer_id] -= 1
            if not self._running[peer_id]:
                del self._running[peer_id]

    async def _answer(self, stream: BoundedStream, context: Context) -> None:
        try:
            (size,) = _LENGTH.unpack(await read_exactly(stream, _LENGTH.size))
            if size > self.max_request_bytes:
                self.faults.blame(context.peer_id, f"serve.too_big {self.name}")
                await self._send(stream, TOO_BIG, b"")
                return
            data = await read_exactly(stream, size)
        except MuxedStreamError:
            self.faults.count(f"serve.cut_short {self.name}")
            stream.abort()
            return
        status, body = await self._run(context, data)
        if status is None:
            stream.abort()
            return
        try:
            await self._send(stream, status, body)
        except MuxedStreamError:
            self.faults.count(f"serve.caller_gone {self.name}")

    async def _run(self, context: Context, data: bytes) -> tuple[int | None, bytes]:
        try:
            return OK, await self.handler(context, data)
        except Refused as no:
            return REFUSED, no.why.encode()[:MAX_REASON_BYTES]
        except ProtocolError:
            self.faults.blame(context.peer_id, f"serve.protocol_error {self.name}")
        except Exception as fault:  # noqa: BLE001  # one peer's request must not end the service for all
            self.faults.report(f"serve.handler_failed {self.name}", fault)
        return None, b""

    async def _send(self, stream: BoundedStream, status: int, body: bytes) -> None:
        answer = _ANSWER.pack(status, len(body)) + body
        if not stream.write_last(answer):
            await stream.write(answer)
            stream.finish()


async def open_and_ask(
    connections: Any,
    peer_id: str,
    protocol_id: str,
    data: bytes,
    max_response_bytes: int,
    *,
    agree_first: bool = False,
) -> bytes:
    """Ask on the first connection that still takes a stream; what was once sent is not sent again."""
    for connection in connections:
        if connection.muxed_conn.is_established:
            try:
                stream = await connection.muxed_conn.open_stream()
            except MuxedConnUnavailable:
                continue  # it closed in this very moment, and nothing was sent
            return await ask(stream, peer_id, protocol_id, data, max_response_bytes, agree_first=agree_first)
    raise Unreachable(peer_id, "the connection closed at once")
