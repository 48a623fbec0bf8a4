"""What is said to the network's table and by it, a message at a time: small, and cleaned of what is not believed."""

from collections.abc import Callable
from typing import Any

from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError
from multiaddr import Multiaddr

from hansa.node.network.libp2p_acquaintances import author_of

MESSAGES_PER_STREAM = 16
QUESTION_BYTES = 16 << 10
ANSWER_BYTES = 64 << 10
KEY_BYTES = 64
TOLD_PEERS = 20
TOLD_ADDRS = 8
ADDR_BYTES = 256

Learn = Callable[[str, tuple[str, ...], str], None]


class BadKad(Exception):
    """A message that no node of ours sends."""


def cleaned(message: Any, peer_id: str, learn: Learn, *, is_question: bool) -> Any:
    """A message without all that we neither want nor believe; raises ``BadKad`` for one that is not for us.

    Signed records go: addresses are learnt where they are limited and attributable. So does everybody who is no node.
    """
    kinds = Message.MessageType
    if message.type not in (kinds.FIND_NODE, kinds.GET_PROVIDERS, kinds.ADD_PROVIDER, kinds.PING):
        raise BadKad("kad.values")
    if len(message.key) > KEY_BYTES:
        raise BadKad("kad.long_key")
    clean = Message(type=message.type, key=message.key)
    for told, kept in (
        (message.closerPeers, clean.closerPeers),
        (message.providerPeers, clean.providerPeers),
    ):
        for peer in told[:TOLD_PEERS]:
            name = ID(peer.id).to_base58() if len(peer.id) <= KEY_BYTES else ""
            addrs = sound(peer.addrs)
            if author_of(name) is None or not addrs:
                continue
            if not is_question or name == peer_id:
                kept.add(id=peer.id, addrs=[addr.to_bytes() for addr in addrs], connection=peer.connection)
                learn(name, tuple(str(addr) for addr in addrs), peer_id)
    return clean


def sound(addrs: Any) -> list[Multiaddr]:
    """Those of some addresses that are some, up to a few."""
    found = []
    for data in addrs[:TOLD_ADDRS]:
        if 0 < len(data) <= ADDR_BYTES:
            try:
                addr = Multiaddr(data)
                str(addr), addr.to_bytes()
            except Exception:  # noqa: BLE001, S112  # the library raises many kinds for what is no multiaddr
                continue
            found.append(addr)
    return found


class KadStream:
    """A stream as the library's table sees it: whole, small, clean messages in, and nothing signed out."""

    def __init__(self, stream: Any, peer_id: str, learn: Learn, *, is_question: bool) -> None:
        """``is_question``: what comes in are questions, and not answers to ours."""
        self._muxed = stream.muxed_stream
        self.muxed_conn = stream.muxed_conn
        self._peer_id, self._learn, self._is_question = peer_id, learn, is_question
        self._incoming, self._outgoing = bytearray(), bytearray()
        self._messages = 0
        self.metric_send_channel = None

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes of the next clean message; nothing at the end."""
        if not self._incoming:
            self._incoming += await self._next()
        part = bytes(self._incoming[:n])
        del self._incoming[: len(part)]
        return part

    async def _next(self) -> bytes:
        try:
            size = await self._size()
            if size is None:
                return b""
            self._messages += 1
            if size > (QUESTION_BYTES if self._is_question else ANSWER_BYTES) or self._messages > MESSAGES_PER_STREAM:
                raise BadKad("kad.too_much")
            data = bytearray()
            while len(data) < size:
                data += await self._muxed.read(size - len(data))
        except MuxedStreamError:
            return b""
        message = Message()
        try:
            message.ParseFromString(bytes(data))
        except Exception as fault:
            raise BadKad("kad.not_protobuf") from fault
        return _framed(cleaned(message, self._peer_id, self._learn, is_question=self._is_question))

    async def _size(self) -> int | None:
        size = shift = 0
        while True:
            try:
                byte: int = (await self._muxed.read(1))[0]
            except MuxedStreamError:
                return None
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                return size
            shift += 7
            if shift > 21:
                raise BadKad("kad.too_much")

    async def write(self, data: bytes) -> None:
        """Send a message when all of it is there, in one piece and without signed records."""
        self._outgoing += data
        size = shift = used = 0
        for byte in self._outgoing:
            size, used, shift = size | (byte & 0x7F) << shift, used + 1, shift + 7
            if byte < 0x80:
                break
        else:
            return
        if len(self._outgoing) < used + size:
            return
        message = Message()
        message.ParseFromString(bytes(self._outgoing[used:]))
        message.ClearField("senderRecord")
        for peer in (*message.closerPeers, *message.providerPeers):
            peer.ClearField("signedRecord")
        self._outgoing.clear()
        await self._muxed.write(_framed(message))

    async def close(self) -> None:
        """Nothing more will be said."""
        self._muxed.finish()

    async def reset(self) -> None:
        """Give it up."""
        self._muxed.abort()


def _framed(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    size, head = len(data), bytearray()
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(head) + bytes((size,)) + data
