"""What honest peers say on each protocol that a daemon serves, and how a stranger bends it.

A test holds that every protocol which a daemon serves is here, so that a new one without sound frames goes red.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import msgpack
from libp2p.host.autonat.pb.autonat_pb2 import Message as NatMessage
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from hansa.node.messaging.key_exchange import KeysWanted
from hansa.node.messaging.peer_exchange import PeersWanted
from hansa.node.network.libp2p_autonat import AUTONAT, IDENTIFY
from hansa.node.network.libp2p_dcutr import DCUTR
from hansa.node.network.libp2p_kad_host import KAD_PROTOCOL
from hansa.node.network.libp2p_relay import HOP, STOP
from hansa.node.storage.blob_exchange import ChunkWanted, TreeWanted
from hansa.node.storage.bulk_messages import CallOffered, CallWanted, ChannelWanted
from hansa.proto.binding import Role, bind
from hansa.proto.blob import BlobRef
from hansa.proto.book_messages import AdvertsWanted, BookCompared, OwnAdvertWanted, ShelfDigests
from hansa.proto.codec import encode
from hansa.proto.history import HISTORY, HistoryRequested
from hansa.proto.messages import BookRequested
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import (
    BLOB,
    BOOK,
    BOOK_SYNC,
    BULK,
    HELLO,
    KEYS,
    MARKET,
    OLDER_MARKET,
    PEERS,
    SHELL,
    advert_topic,
)
from hansa.proto.shell_messages import ShellAwaited, ShellClosed, ShellTyped, ShellWanted
from hansa.proto.signing import SigningKey
from hansa.proto.units import Address
from hansa.scheduler.advert_classes import CLASSES

FRAMES = Path(__file__).parents[1] / "unit" / "proto"
PING = "/ipfs/ping/1.0.0"
MESH = "/meshsub/1.1.0"
ADDR = Multiaddr("/ip4/203.0.113.7/tcp/4001").to_bytes()
REF = BlobRef(root=b"r" * 32, size_bytes=3 << 20)
BIG = 300 << 10


def hello_of(secret: bytes, now_ms: int) -> bytes:
    """A sound hello of the node with this key, which is its account's too."""
    key = SigningKey(secret)
    binding = bind(
        SigningKey(bytes(reversed(secret))),
        key,
        DOMAIN,
        roles=Role.BUYER,
        spend_limit=0,
        not_before_ms=now_ms - 60_000,
        not_after_ms=now_ms + 3_600_000,
        epoch=1,
    )
    return encode(binding)


def _golden(name: str) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(frame) for frame in json.loads((FRAMES / name).read_text())["frames"].values())


def requests(hello: bytes) -> dict[str, tuple[bytes, ...]]:
    """The bodies of sound requests on each protocol of our own framing."""
    shelf = ShelfDigests(name=CLASSES[0], bits=0, digests=bytes(8))
    shell = b"s" * 16
    return {
        HELLO: (hello,),
        MARKET: _golden("golden_frames.json"),
        OLDER_MARKET: _golden("golden_frames_4.json"),
        BOOK: (encode(BookRequested(most=100)),),
        BOOK_SYNC: (
            encode(BookCompared(shelves=(shelf,), after=Address(bytes(20)))),
            encode(AdvertsWanted(accounts=(Address(b"a" * 20),))),
            encode(OwnAdvertWanted()),
        ),
        PEERS: (encode(PeersWanted(addrs=("/ip4/203.0.113.7/tcp/4001",))),),
        BLOB: (encode(TreeWanted(ref=REF, first=0)), encode(ChunkWanted(ref=REF, index=1))),
        BULK: (
            encode(ChannelWanted(ref=REF, certificate=b"c" * 300)),
            encode(CallWanted(ref=REF)),
            encode(CallOffered(certificate=b"c" * 300)),
        ),
        KEYS: (encode(KeysWanted(lease=bytes(32), public_key=b"k" * 32)),),
        SHELL: (
            encode(ShellWanted(shell=shell, lease=bytes(32), argv=("ls",), piped=False, columns=80, rows=24)),
            encode(ShellTyped(shell=shell, sequence=1, data=b"ls\n", columns=80, rows=24)),
            encode(ShellAwaited(shell=shell, sequence=0)),
            encode(ShellClosed(shell=shell)),
        ),
        HISTORY: (encode(HistoryRequested(account=Address(b"a" * 20))),),
    }


def protobufs(own: ID, node: ID) -> dict[str, tuple[bytes, ...]]:
    """Sound messages, without their length, on each protocol of the library's framing; ``own`` is who sends them."""
    nat = NatMessage(type=NatMessage.DIAL)
    nat.dial.peer.id = own.to_bytes()
    nat.dial.peer.addrs.append(ADDR)
    kinds = KadMessage.MessageType
    find = KadMessage(type=kinds.FIND_NODE, key=node.to_bytes())
    provide = KadMessage(type=kinds.ADD_PROVIDER, key=b"\x12\x20" + b"k" * 32)
    provide.providerPeers.add(id=own.to_bytes(), addrs=[ADDR])
    topic = advert_topic(CLASSES[0])
    said = rpc_pb2.Message(
        data=b"x", topicIDs=[topic], from_id=own.to_bytes(), seqno=os.urandom(8), signature=b"s" * 64, key=b""
    )
    gossip = (
        rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic)]),
        rpc_pb2.RPC(publish=[said]),
        rpc_pb2.RPC(
            control=rpc_pb2.ControlMessage(
                graft=[rpc_pb2.ControlGraft(topicID=topic)],
                prune=[rpc_pb2.ControlPrune(topicID=topic, backoff=60)],
                ihave=[rpc_pb2.ControlIHave(topicID=topic, messageIDs=[b"id"])],
                iwant=[rpc_pb2.ControlIWant(messageIDs=[b"id"])],
            )
        ),
    )
    return {
        AUTONAT: (nat.SerializeToString(),),
        DCUTR: (
            HolePunch(type=HolePunch.CONNECT, ObsAddrs=[ADDR]).SerializeToString(),
            HolePunch(type=HolePunch.SYNC).SerializeToString(),
        ),
        HOP: (
            HopMessage(type=HopMessage.RESERVE).SerializeToString(),
            HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=node.to_bytes())).SerializeToString(),
        ),
        STOP: (StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=own.to_bytes())).SerializeToString(),),
        KAD_PROTOCOL: (
            find.SerializeToString(),
            KadMessage(type=kinds.GET_PROVIDERS, key=b"\x12\x20" + b"k" * 32).SerializeToString(),
            provide.SerializeToString(),
            KadMessage(type=kinds.PING).SerializeToString(),
        ),
        MESH: tuple(rpc.SerializeToString() for rpc in gossip),
    }


PLAIN = {PING: (b"p" * 32,), IDENTIFY: (b"",)}
"""Protocols without messages of a length."""


def varint(number: int) -> bytes:
    """As protobuf writes it."""
    head = bytearray()
    while number >= 0x80:
        head.append(number & 0x7F | 0x80)
        number >>= 7
    head.append(number)
    return bytes(head)


NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 127, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)),
    *(1.5, float("nan"), float("inf"), "", "\x00", "\u202e\ud7ff", "x" * 5_000, b"", b"\xff" * 20, b"\xff" * 33),
    *(bytes(70_000), [], [[]] * 5_000, {}, {"": {"": {}}}),
)


def _replaced(tree: Any, chance: random.Random) -> Any:
    """The same tree with one node of it something else, missing, doubled or moved."""
    if isinstance(tree, (list, dict)) and tree and chance.random() < 0.8:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = chance.choice(keys)
        fresh = dict(tree) if isinstance(tree, dict) else list(tree)
        match chance.randrange(8):
            case 0:
                del fresh[key]
            case 1 if isinstance(fresh, list):
                fresh.append(fresh[key])
            case 1:
                fresh["more"] = fresh[key]
            case 2:
                fresh[key], fresh[other] = fresh[other := chance.choice(keys)], fresh[key]
            case _:
                fresh[key] = _replaced(fresh[key], chance)
        return fresh
    return chance.choice(NASTY)


def bent(body: bytes, chance: random.Random) -> bytes:
    """A sound message with something wrong about it; now and then nothing is."""
    at, until = sorted(chance.randrange(len(body) + 1) for _ in range(2))
    match chance.randrange(10):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + chance.randbytes(chance.choice((1, 4, 60))) + body[until:]
        case 2:
            return body[:until] + body[at:]
        case 3:
            return body[until:] + body[:until]
        case 4:
            return body + bytes(chance.choice((1, 1_000, BIG)))
        case 5:
            return chance.randbytes(chance.choice((0, 1, 12, 300)))
        case 6:
            return body
        case 7:
            fresh = bytearray(body or b"\x00")
            for _ in range(chance.randint(1, 4)):
                fresh[chance.randrange(len(fresh))] ^= 1 << chance.randrange(8)
            return bytes(fresh)
    return msgpack_bent(body, chance)


def msgpack_bent(body: bytes, chance: random.Random) -> bytes:
    """A sound message with another value somewhere in it; what is no msgpack becomes some bytes."""
    try:
        return bytes(msgpack.packb(_replaced(msgpack.unpackb(body, strict_map_key=False), chance), use_bin_type=True))
    except (ValueError, TypeError, msgpack.UnpackException, UnicodeEncodeError):
        return chance.randbytes(20)


def framed(protocol: str, body: bytes, chance: random.Random | None = None) -> bytes:
    """What goes onto a stream behind the negotiation. With ``chance`` the length is now and then a lie."""
    if protocol in PLAIN:
        return body
    said = len(body)
    if chance is not None and chance.random() < 0.15:
        said = chance.choice((0, max(0, said - 1), said + 1, 65_536, (1 << 32) - 1))
    return (
        said.to_bytes(4, "big") if protocol.startswith("/hansa/") and protocol != KAD_PROTOCOL else varint(said)
    ) + body
