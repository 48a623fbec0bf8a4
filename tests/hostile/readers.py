"""What reads strangers' bytes, each as a function of bytes: for hypothesis in every run, for hours by atheris.

Each may raise what its callers catch, and nothing else.
"""

import contextlib
import ipaddress
import json
import tempfile
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from kit.peer_frames import ADDR, protobufs, requests, varint
from libp2p.host.autonat.pb.autonat_pb2 import Message as NatMessage
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.pubsub.pb import rpc_pb2
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError

from hansa.market.equivocation import Equivocation
from hansa.node.messaging import lan_discovery, remembered_peers
from hansa.node.messaging.key_exchange import KeysWanted
from hansa.node.messaging.peer_exchange import PeersKnown, PeersWanted
from hansa.node.network.libp2p_autonat import _parsed
from hansa.node.network.libp2p_circuit import _addresses_of, split_circuit
from hansa.node.network.libp2p_dcutr import HolePuncher
from hansa.node.network.libp2p_guards import read_header_line
from hansa.node.network.libp2p_kad_messages import BadKad, KadStream, cleaned
from hansa.node.network.libp2p_pubsub import cleaned_control
from hansa.node.network.libp2p_wire import WireFault, receive_message
from hansa.node.network.neighbourhood import group_of, host_of, household_of, place_of
from hansa.node.storage.blob_exchange import ChunkWanted, TreeWanted
from hansa.node.storage.bulk_chunks import REQUEST, parse_request
from hansa.node.storage.bulk_messages import CallOffered, CallWanted, ChannelGranted, ChannelWanted
from hansa.proto.book_messages import AdvertsWanted, BookCompared, BookDifference, OwnAdvertWanted
from hansa.proto.codec import decode
from hansa.proto.errors import ProtocolError
from hansa.proto.history import HistoryRequested, HistorySent
from hansa.proto.messages import AdvertPublished, BookRequested, BookSent, Direct, Hello
from hansa.proto.peer_id import parse_peer_id, peer_id_of_key
from hansa.proto.protocols import BLOB, BOOK, BOOK_SYNC, BULK, KEYS, MARKET, PEERS, SHELL
from hansa.proto.shell_messages import ShellAwaited, ShellClosed, ShellSaid, ShellTaken, ShellTyped, ShellWanted

NAME = ID.from_base58(peer_id_of_key(bytes(31) + b"\x01"))
OTHER = ID.from_base58(peer_id_of_key(bytes(31) + b"\x02"))
LIMIT_BYTES = 1 << 20
UNIONS: dict[str, Any] = {
    "market": Direct,
    "hello": Hello,
    "book": BookRequested | BookSent,
    "book sync": BookCompared | AdvertsWanted | OwnAdvertWanted | BookDifference,
    "peers": PeersWanted | PeersKnown,
    "blob": TreeWanted | ChunkWanted,
    "bulk": ChannelWanted | CallWanted | CallOffered | ChannelGranted,
    "shell": ShellWanted | ShellTyped | ShellAwaited | ShellClosed | ShellTaken | ShellSaid,
    "history": HistoryRequested | HistorySent,
    "keys": KeysWanted,
    "advert": AdvertPublished,
    "proof": Equivocation,
}


class Bytes:
    """A stream on which these come, in pieces, and no more."""

    def __init__(self, data: bytes) -> None:
        """All that there is."""
        self._data, self._at = data, 0

    async def read(self, size: int) -> bytes:
        """Never waits."""
        if self._at >= len(self._data):
            raise MuxedStreamEOF("the peer has finished")
        part = self._data[self._at : self._at + max(1, size // 2)]
        self._at += len(part)
        return part

    @property
    def muxed_stream(self) -> "Bytes":
        """What the library calls it."""
        return self

    muxed_conn = None


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """What comes of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


def _union(kinds: Any) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        with contextlib.suppress(ProtocolError):
            decode(data, kinds, limit_bytes=LIMIT_BYTES)

    return read


def _line(data: bytes) -> None:
    with contextlib.suppress(MultiselectCommunicatorError, MuxedStreamError):
        at_once(read_header_line(Bytes(data)))


def _messages(data: bytes) -> None:
    for kind in (HopMessage, StopMessage, NatMessage, HolePunch, Identify):
        try:
            message = at_once(receive_message(Bytes(data), kind))
        except WireFault:
            continue
        match message:
            case HopMessage():
                _addresses_of(message.reservation.addrs, str(NAME), ("203.0.113.7", 1))
            case NatMessage():
                _parsed(message.dial.peer.addrs)
            case HolePunch():
                HolePuncher(None, None, lambda: (("203.0.113.9", 1),))._targets(message.ObsAddrs)  # type: ignore[arg-type]
            case Identify():
                _parsed([message.observed_addr])


def _kad(data: bytes) -> None:
    told: list[tuple[str, tuple[str, ...], str]] = []
    for is_question in (True, False):
        stream = KadStream(Bytes(data), NAME.to_base58(), lambda *each: told.append(each), is_question=is_question)
        with contextlib.suppress(BadKad):
            while at_once(stream.read(1 << 16)):
                pass
    message = KadMessage()
    try:
        message.ParseFromString(data)
    except Exception:  # noqa: BLE001  # no protobuf, as the stream would find
        return
    with contextlib.suppress(BadKad):
        cleaned(message, NAME.to_base58(), lambda *each: told.append(each), is_question=False)
    assert all(parse_peer_id(peer_id) for peer_id, _, _ in told)


def _gossip(data: bytes) -> None:
    rpc = rpc_pb2.RPC()
    try:
        rpc.ParseFromString(data)
    except Exception:  # noqa: BLE001  # no protobuf, as the neighbour's reader would find
        return
    assert cleaned_control(rpc.control, {"/hansa/adverts/1/cpu"}).ByteSize() <= rpc.control.ByteSize() + 64


def _mdns(data: bytes) -> None:
    heard: list[tuple[str, str]] = []
    believing = lan_discovery.Believing(
        NAME.to_base58(), [ipaddress.IPv4Network("192.0.2.0/24")], lambda *each: heard.append(each)
    )
    believing.hears("192.0.2.5", data, 1)
    assert all("192.0.2.5" in addr for _, addr in heard)


def _remembered(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        (Path(folder) / remembered_peers.FILE_NAME).write_bytes(data)
        for peer_id, addrs in remembered_peers.load_peers(Path(folder)):
            assert parse_peer_id(peer_id)
            assert all(isinstance(addr, str) for addr in addrs)


def _bulk_request(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        ref, indices = parse_request((data + bytes(REQUEST.size))[: REQUEST.size])
        assert len(indices) > 0
        assert ref.size_bytes >= 0


def _addresses(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for told in (text, f"/ip4/{text}/tcp/1", f"/ip6/{text}/tcp/1"):
        kind, host = host_of(told)
        if kind in ("ip4", "ip6"):
            place_of(host), group_of(host), household_of(host)
    with contextlib.suppress(ProtocolError):
        parse_peer_id(text)
    with contextlib.suppress(Exception):  # what is no circuit is the library's exception, and only that is looked at
        split_circuit(text)


READERS: dict[str, Callable[[bytes], None]] = {
    **{f"{name} messages": _union(kinds) for name, kinds in UNIONS.items()},
    "negotiation": _line,
    "relay, autonat, dcutr and identify": _messages,
    "kad": _kad,
    "gossip": _gossip,
    "mdns": _mdns,
    "remembered peers": _remembered,
    "bulk requests": _bulk_request,
    "addresses": _addresses,
}


def seeds() -> dict[str, tuple[bytes, ...]]:
    """Sound bytes for each reader, to begin from."""
    said, told = requests(b""), protobufs(OTHER, NAME)
    of = {"market": MARKET, "book": BOOK, "book sync": BOOK_SYNC, "peers": PEERS, "blob": BLOB, "bulk": BULK}
    of |= {"shell": SHELL, "history": "/hansa/history/1", "keys": KEYS}
    known = json.dumps([{"peer_id": NAME.to_base58(), "addrs": ["/ip4/203.0.113.7/tcp/4001"]}]).encode()
    at = f"/ip4/192.0.2.5/tcp/4001/p2p/{OTHER.to_base58()}"
    small: Iterable[bytes] = (each for kind in told.values() for each in kind)
    found: dict[str, tuple[bytes, ...]] = {f"{name} messages": said[protocol] for name, protocol in of.items()}
    found["negotiation"] = (b"\x13/multistream/1.0.0\n",)
    found["relay, autonat, dcutr and identify"] = tuple(varint(len(each)) + each for each in small)
    kad = told["/hansa/kad/1.0.0"]
    found["kad"] = (*kad, *(varint(len(each)) + each for each in kad))
    found["gossip"] = told["/meshsub/1.1.0"]
    found["mdns"] = (lan_discovery.question(), lan_discovery.answer("name", [at]))
    found["remembered peers"] = (known,)
    found["bulk requests"] = (REQUEST.pack(b"r" * 32, 3 << 20, 0, 2),)
    found["addresses"] = (at.encode(), b"203.0.113.7", b"2001:db8::1", ADDR)
    return {name: found.get(name, (b"",)) for name in READERS}
