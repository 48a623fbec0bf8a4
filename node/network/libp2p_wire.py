"""Small protobufs on streams, as libp2p's own protocols have them: a length, a message, and a limit on both."""

from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.stream_muxer.exceptions import MuxedStreamError

from hansa.node.network.libp2p_guards import read_header_line
from hansa.node.network.libp2p_requests import MULTISTREAM, header_line, read_exactly
from hansa.node.network.libp2p_stream import BoundedStream

MAX_MESSAGE_BYTES = 4 << 10
MessageT = TypeVar("MessageT", bound=Message)


class WireFault(Exception):
    """What the peer sent is not what its protocol allows, or it does not speak it."""


class EndedEarly(WireFault):
    """The stream ended or was reset within a message: no wrong, and a relay hands on that an asker has gone."""


async def open_protocol(muxed_conn: Any, protocol_id: str) -> BoundedStream:
    """A stream on which a protocol has been agreed. Raises ``WireFault`` and the stream's own errors."""
    stream: BoundedStream = await muxed_conn.open_stream()
    try:
        await stream.write(header_line(MULTISTREAM) + header_line(protocol_id))
        if await read_header_line(stream) != MULTISTREAM or await read_header_line(stream) != protocol_id:
            raise WireFault("does not speak this protocol")  # noqa: TRY301
    except MultiselectCommunicatorError as fault:
        stream.abort()
        raise WireFault("does not negotiate") from fault
    except BaseException:
        stream.abort()
        raise
    return stream


async def send_message(stream: BoundedStream, message: Message) -> None:
    """One message with its length before it."""
    body = message.SerializeToString()
    length, head = len(body), bytearray()
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    await stream.write(bytes(head) + body)


async def receive_message(
    stream: BoundedStream, kind: type[MessageT], limit_bytes: int = MAX_MESSAGE_BYTES
) -> MessageT:
    """One message. Raises ``WireFault`` for whatever is none, before a byte beyond the limit is kept."""
    try:
        length, shift = 0, 0
        while True:
            byte = (await read_exactly(stream, 1))[0]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 21:
                raise WireFault("a length that is none")
        if length > limit_bytes:
            raise WireFault("a message longer than allowed")
        message = kind()
        message.ParseFromString(await read_exactly(stream, length))
    except DecodeError as fault:
        raise WireFault("not a message of this protocol") from fault
    except MuxedStreamError as fault:
        raise EndedEarly("the stream ended early") from fault
    return message
