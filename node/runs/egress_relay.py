"""Bytes between a job and a host outside, counted to the last one and at the owner's pace."""

from http import HTTPStatus
from typing import Any

import h11
import trio

from hansa.node.runs.egress_dial import Refusal
from hansa.node.runs.egress_request import LARGEST_HEAD_BYTES, end_to_end
from hansa.node.runs.pace import Pace

CHUNK_BYTES = 64 << 10
IDLE_S = 300.0
"""A connection on which nothing passes for so long is closed."""
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class UsedUp(Exception):
    """The run has no bytes left; in words for its log."""


class Meter:
    """What one run has sent and received, and how much it may."""

    def __init__(self, limit_bytes: int, pace: Pace) -> None:
        """``limit_bytes`` holds for both ways together."""
        self._limit_bytes = limit_bytes
        self._pace = pace
        self.used_bytes = 0

    @property
    def left_bytes(self) -> int:
        """What may still pass."""
        return self._limit_bytes - self.used_bytes

    def used_up(self) -> UsedUp:
        """The fault, in words."""
        return UsedUp(f"the job has used the {self._limit_bytes} bytes that it may exchange with the outside")

    async def pass_on(self, data: bytes, sink: trio.abc.SendStream) -> None:
        """Count and hand on. Raises ``UsedUp`` when the last byte that may pass has passed."""
        passing = data[: max(0, self.left_bytes)]
        self.used_bytes += len(passing)
        await self._pace.wait(len(passing))
        await sink.send_all(passing)
        if len(passing) < len(data):
            raise self.used_up()

    async def take(self, source: trio.abc.ReceiveStream) -> bytes:
        """Receive and count. Raises ``UsedUp`` when more came than may."""
        data = bytes(await source.receive_some(CHUNK_BYTES))
        room = max(0, self.left_bytes)
        self.used_bytes += min(len(data), room)
        await self._pace.wait(min(len(data), room))
        if len(data) > room:
            raise self.used_up()
        return data


class _Link:
    """Two copies that end together, when both are done or either has failed, or when nothing passes any more."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.fault: Exception | None = None
        self.touch()

    def touch(self) -> None:
        """Something has passed."""
        self.scope.deadline = trio.current_time() + IDLE_S

    def end(self, fault: Exception | None = None) -> None:
        """It is over. The first fault is the one that counts."""
        self.fault = self.fault or fault
        self.scope.cancel()


async def _run(link: _Link, *copies: Any) -> None:
    """Run copies to their end and raise what ended them, unwrapped."""

    async def guarded(copy: Any) -> None:
        try:
            await copy
        except _GONE:
            link.end()
        except (UsedUp, Refusal) as fault:
            link.end(fault)

    with link.scope:
        async with trio.open_nursery() as nursery:
            for copy in copies:
                nursery.start_soon(guarded, copy)
    if link.fault is not None:
        raise link.fault


async def tunnel(meter: Meter, client: trio.SocketStream, upstream: trio.SocketStream, early: bytes) -> None:
    """Pass bytes both ways until both sides have ended. ``early`` is what the job sent behind its request.

    Raises:
        UsedUp: the run's last byte has passed.
    """
    link = _Link()

    async def outwards() -> None:
        data = early or bytes(await client.receive_some(CHUNK_BYTES))
        while data:
            await meter.pass_on(data, upstream)
            link.touch()
            data = bytes(await client.receive_some(CHUNK_BYTES))
        await upstream.send_eof()

    async def inwards() -> None:
        await client.send_all(ESTABLISHED)
        while data := await meter.take(upstream):
            await client.send_all(data)
            link.touch()
        await client.send_eof()

    await _run(link, outwards(), inwards())


async def forward(
    meter: Meter,
    asked: h11.Connection,
    client: trio.SocketStream,
    upstream: trio.SocketStream,
    request: h11.Request,
) -> None:
    """Carry out one plain HTTP request, whose framing is read and written anew on both sides.

    So there is one reading of where it ends, and nothing behind it is ever sent.

    Raises:
        UsedUp: the run's last byte has passed.
        Refusal: one of the two does not speak HTTP, and nothing was answered yet.
    """
    link = _Link()
    asking = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGEST_HEAD_BYTES)

    async def outwards() -> None:
        try:
            await meter.pass_on(asking.send(request) or b"", upstream)
            while True:
                event = asked.next_event()
                if event is h11.NEED_DATA:
                    asked.receive_data(bytes(await client.receive_some(CHUNK_BYTES)))
                    continue
                piece = asking.send(event if isinstance(event, h11.Data) else h11.EndOfMessage())
                await meter.pass_on(piece or b"", upstream)
                link.touch()
                if not isinstance(event, h11.Data):
                    return
        except (h11.RemoteProtocolError, h11.LocalProtocolError):
            raise _broken(asked, HTTPStatus.BAD_REQUEST, "the request's body is no HTTP") from None

    async def inwards() -> None:
        try:
            while True:
                event = asking.next_event()
                if event is h11.NEED_DATA:
                    asking.receive_data(await meter.take(upstream))
                    continue
                await client.send_all(asked.send(_answered(event)) or b"")
                link.touch()
                if isinstance(event, h11.EndOfMessage):
                    link.end()
                    return
        except (h11.RemoteProtocolError, h11.LocalProtocolError):
            raise _broken(asked, HTTPStatus.BAD_GATEWAY, "the host's answer is no HTTP") from None

    await _run(link, outwards(), inwards())


def _answered(event: Any) -> Any:
    """What the job is told of an event of the host's answer."""
    if isinstance(event, h11.Response):
        headers = [*end_to_end(event), (b"Connection", b"close")]
        return h11.Response(status_code=event.status_code, reason=event.reason, headers=headers)
    return h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event


def _broken(asked: h11.Connection, status: HTTPStatus, why: str) -> Exception:
    """Said to the job as long as nothing else was; then the connection just ends."""
    if asked.our_state is h11.SEND_RESPONSE:
        return Refusal(status, "no-http", why)
    return trio.BrokenResourceError(why)
