"""Gossip that a neighbour cannot end, flood or fool.

The library parses what a neighbour sends in the same task that keeps the service alive, so one RPC that is no protobuf,
one garbage key or one validator that raises ends the program. It starts a task for each message without a limit, and
a validator can only say yes or no.
"""

import time
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import Any

import trio
from google.protobuf.message import DecodeError
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.validators import signature_validator
from libp2p.stream_muxer.exceptions import MuxedStreamError

from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_requests import read_exactly
from hansa.node.network.libp2p_stream import BoundedStream
from hansa.node.network.net import Context, NetLimits, Validator, Verdict

MAX_RPC_BYTES = 256 << 10
FRAME_TIMEOUT_S = 30
"""From the first byte of an RPC to its last; between two of them a neighbour may be silent as long as it lives."""
RPCS_PER_S = 100
INBOUND_STREAMS = 3
"""From one neighbour: one is usual, two while it changes connections."""
MAX_TOPIC_CHARS = 128
TOPIC_PREFIX = "/hansa/"
SEEN_S = 300
AUTHOR_BYTES, SEQNO_BYTES = 64, 16
"""What names a message: the library keeps it for ``SEEN_S``, and to write an author's name of a quarter of a mebibyte
in base58 would keep everybody waiting for most of a minute."""
MAX_CONTROLS = 64
"""Control messages of one kind in one RPC."""
MAX_IDS = 32
ID_BYTES = 256
LONGEST_PAUSE_S = 3_600


class Bucket:
    """Tokens that refill with time; twice the rate may be taken in one burst."""

    def __init__(self, per_s: float) -> None:
        """A full bucket."""
        self.per_s = per_s
        self.tokens = 2 * per_s
        self.at = trio.current_time()

    def take(self) -> bool:
        """One token, if there is one."""
        now = trio.current_time()
        self.tokens = min(2 * self.per_s, self.tokens + (now - self.at) * self.per_s)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def cleaned_control(told: Any, heard: Collection[str]) -> Any:
    """An RPC with those of a neighbour's control messages that we have a use for, on topics that we hear.

    The library keeps a pause for every topic that anybody names, for ever; stores and dials whom a neighbour names in
    its farewell; takes signed records into its address book; and sends a message as often as one RPC asks for it.
    """
    clean = rpc_pb2.RPC()
    for each in told.graft[:MAX_CONTROLS]:
        if each.topicID in heard:
            clean.control.graft.add(topicID=each.topicID)
    for each in told.prune[:MAX_CONTROLS]:
        if each.topicID in heard:
            clean.control.prune.add(topicID=each.topicID, backoff=min(each.backoff, LONGEST_PAUSE_S))
    for each in told.ihave[:MAX_CONTROLS]:
        if each.topicID in heard:
            clean.control.ihave.add(topicID=each.topicID, messageIDs=_few(each.messageIDs))
    wanted = _few(name for each in told.iwant[:MAX_CONTROLS] for name in each.messageIDs)
    if wanted:
        clean.control.iwant.add(messageIDs=wanted)
    return clean


def _few(names: Iterable[bytes]) -> list[bytes]:
    """Each once, and no more than an honest neighbour has to say at a time."""
    return list(dict.fromkeys(islice((name for name in names if len(name) <= ID_BYTES), MAX_IDS)))


def new_gossip_router() -> GossipSub:
    """GossipSub 1.1 with a heartbeat of a second (the library's default is two minutes) and our own rate limits."""
    return GossipSub(
        [PROTOCOL_ID_V11],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        # On by default, these drop our own messages beyond ten a second and need peers on three networks.
        spam_protection_enabled=False,
        adaptive_gossip_enabled=False,
        eclipse_protection_enabled=False,
    )


class GuardedPubsub(Pubsub):  # type: ignore[misc]  # the library comes without types
    """All topics of this node."""

    def __init__(
        self, host: Any, *, limits: NetLimits, faults: Faults, context_of: Callable[[str], Context | None]
    ) -> None:
        """``context_of`` gives the identity of a message's author."""
        super().__init__(host, new_gossip_router(), strict_signing=True, seen_ttl=SEEN_S)
        self.limits = limits
        self.faults = faults
        self._context_of = context_of
        self._validators: dict[str, Validator] = {}
        self._listeners: dict[str, list[trio.MemorySendChannel[tuple[Context, bytes]]]] = {}
        self._buckets: dict[ID, Bucket] = {}
        self._telling = trio.Lock()
        self._inbound: dict[ID, list[NetStream]] = {}
        self._opening: set[ID] = set()
        self._changes = 0
        self._changed: dict[str, int] = {}
        # The library starts at the seconds of the clock: a restarted node would repeat numbers that others have seen.
        self.counter = time.time_ns()

    def listen(self, topic: str, validate: Validator, channel: trio.MemorySendChannel[tuple[Context, bytes]]) -> None:
        """Validate and deliver this topic; that is told to others by ``follow``."""
        self._validators[topic] = validate
        self._listeners.setdefault(topic, []).append(channel)

    def unlisten(self, topic: str) -> None:
        """Deliver this topic no longer; that is told to others by ``follow``."""
        self._validators.pop(topic, None)
        for channel in self._listeners.pop(topic, ()):
            channel.close()

    def listeners(self, topic: str) -> frozenset[str]:
        """Neighbours that hear a topic, by their own word."""
        return frozenset(each.to_base58() for each in self.peer_topics.get(topic, ()))

    async def follow(self, topic: str) -> None:
        """Tell others whether we hear a topic, as it is now; one after the other, or an older word might come last."""
        async with self._telling:
            self._changes += 1
            self._changed[topic] = self._changes
            if topic in self._validators:
                await self.subscribe(topic)
            else:
                await self.unsubscribe(topic)

    # Reading from a neighbour.

    async def stream_handler(self, stream: NetStream) -> None:
        """Read a neighbour's RPCs until the stream ends; one that is wrong ends it at once."""
        peer_id = stream.muxed_conn.peer_id
        inbound = self._inbound.setdefault(peer_id, [])
        inbound.append(stream)
        if len(inbound) > INBOUND_STREAMS:
            inbound[0].muxed_stream.abort()
        try:
            await self._read_rpcs(stream.muxed_stream, peer_id)
        except MuxedStreamError:
            self.faults.count("gossip.stream_ended")
        except Exception as fault:  # noqa: BLE001  # the router's own handling of a neighbour's control messages
            self.faults.report("gossip.rpc_failed", fault)
            self.faults.strike(peer_id.to_base58(), "gossip.rpc_failed")
            stream.muxed_stream.abort()
        finally:
            # The library forgets what a neighbour hears when any of its streams ends, and so goes deaf to one who was
            # quickly back on another connection.
            inbound.remove(stream)
            if not inbound:
                del self._inbound[peer_id]
                self._buckets.pop(peer_id, None)
                self._forget_all_subscriptions(peer_id)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        """Open one stream towards a neighbour, however many connections to it come up at once."""
        if peer_id in self._opening:
            return
        self._opening.add(peer_id)
        changes = self._changes
        try:
            await super()._handle_new_peer(peer_id)
        finally:
            self._opening.discard(peer_id)
        self._tell_changes(peer_id, since=changes)

    def _tell_changes(self, peer_id: ID, *, since: int) -> None:
        """Tell a new neighbour what we began or ceased to hear while its stream was opened.

        The library writes what we hear first and counts the neighbour among those who are told of changes later: what
        changed in between the neighbour would never learn, and send us nothing of it. Twice told does no harm.
        """
        queue = self.peer_queues.get(peer_id)
        if queue is None:
            return
        for topic, change in self._changed.items():
            if change > since:
                self._enqueue_or_retry_announce(
                    peer_id, queue, *self._build_announce_rpc(topic, topic in self.topic_ids)
                )

    async def handle_dead_peer_queue(self) -> None:
        """Give up the stream towards a neighbour when its connection is gone, even if another one stands."""
        async with self.dead_peer_receive_channel:
            self.event_handle_dead_peer_queue_started.set()
            async for peer_id in self.dead_peer_receive_channel:
                stream = self.peers.get(peer_id)
                if stream is None or stream.muxed_conn.is_closed:
                    self._handle_dead_peer(peer_id)

    def _handle_dead_peer(self, peer_id: ID) -> None:
        """The stream towards a neighbour is gone; open another if it is still there."""
        self._clear_pending_announce_retries_for_peer(peer_id)
        self._replayed_recent_topics.pop(peer_id, None)
        if self.peers.pop(peer_id, None) is not None:
            self.peer_queues.pop(peer_id).close()
            self.router.remove_peer(peer_id)
            # The library keeps these for everybody who ever came.
            for pauses in self.router.back_off.values():
                pauses.pop(peer_id, None)
        if self._peer_is_connected(peer_id):
            self._schedule_peer_stream_retry(peer_id)

    async def _read_rpcs(self, stream: BoundedStream, peer_id: ID) -> None:
        rpcs = Bucket(RPCS_PER_S)
        while True:
            first = await read_exactly(stream, 1)
            with trio.move_on_after(FRAME_TIMEOUT_S) as deadline:
                frame = await self._read_frame(stream, first[0])
            if deadline.cancelled_caught:
                self.faults.count("gossip.rpc_too_slow")
                stream.abort()
                return
            if frame is None:
                self.faults.blame(peer_id.to_base58(), "gossip.rpc_too_big")
                stream.abort()
                return
            rpc = rpc_pb2.RPC()
            try:
                rpc.ParseFromString(frame)
            except DecodeError:
                self.faults.blame(peer_id.to_base58(), "gossip.not_protobuf")
                stream.abort()
                return
            if rpcs.take():
                await self._take_rpc(rpc, peer_id)
            else:
                self.faults.count("gossip.rpc_rate")

    async def _read_frame(self, stream: BoundedStream, first: int) -> bytes | None:
        length, shift, byte = first & 0x7F, 7, first
        while byte >= 0x80:
            byte = (await read_exactly(stream, 1))[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if shift > 28:
                return None
        return await read_exactly(stream, length) if length <= MAX_RPC_BYTES else None

    async def _take_rpc(self, rpc: Any, peer_id: ID) -> None:
        bucket = self._buckets.setdefault(peer_id, Bucket(self.limits.gossip_messages_per_s))
        for message in rpc.publish:
            if not bucket.take():
                self.faults.count("gossip.message_rate")
            elif self._is_subscribed_to_msg(message):
                await self.push_msg(peer_id, message)
        if len(rpc.subscriptions) > self.max_subscriptions_per_rpc:
            self.faults.blame(peer_id.to_base58(), "gossip.too_many_subscriptions")
        else:
            for subscription in rpc.subscriptions:
                if self._may_subscribe(subscription.topicid):
                    self.handle_subscription(peer_id, subscription)
                else:
                    self.faults.count("gossip.strange_topic")
        if rpc.HasField("control"):
            clean = cleaned_control(rpc.control, self._validators)
            if clean.ByteSize() < rpc.control.ByteSize():
                self.faults.count("gossip.control_cut")
            await self.router.handle_rpc(clean, peer_id)

    def _may_subscribe(self, topic: str) -> bool:
        return topic.startswith(TOPIC_PREFIX) and len(topic) <= MAX_TOPIC_CHARS

    # Judging a message.

    async def push_msg(self, msg_forwarder: ID, msg: Any) -> None:
        """Judge one message; keep it and pass it on only if everything about it is right."""
        is_own = msg_forwarder == self.my_id
        if not is_own:
            if len(msg.from_id) > AUTHOR_BYTES or len(msg.seqno) > SEQNO_BYTES:
                self.faults.blame(msg_forwarder.to_base58(), "gossip.malformed")
                return
            if self._is_msg_seen(msg):
                return
            verdict = self._judge(msg_forwarder.to_base58(), msg)
            if verdict is not Verdict.ACCEPT:
                return
        else:
            self._mark_msg_seen(msg)
        await self.router.publish(msg_forwarder, msg)

    def _judge(self, forwarder: str, msg: Any) -> Verdict:
        """What to make of it. Whoever handed us a message that is plainly wrong has not looked at it either."""
        topics = list(msg.topicIDs)
        if len(topics) != 1 or len(msg.data) > self.limits.gossip_message_bytes:
            self.faults.blame(forwarder, "gossip.malformed")
            return Verdict.REJECT
        # Only ids that carry their key are looked at, so the library never gets to parse a key that the message brings.
        author = self._context_of(ID(msg.from_id).to_base58())
        if author is None or not signature_validator(msg):
            self.faults.blame(forwarder, "gossip.bad_signature")
            return Verdict.REJECT
        # Not before: whoever forges an author's next number would silence what the author says under it.
        self._mark_msg_seen(msg)
        if author.peer_id == self.my_id.to_base58():
            return Verdict.IGNORE
        return self._validate(topics[0], forwarder, author, bytes(msg.data))

    def _validate(self, topic: str, forwarder: str, author: Context, data: bytes) -> Verdict:
        validate = self._validators.get(topic)
        if validate is None:
            return Verdict.IGNORE
        try:
            verdict = validate(author, data)
        except Exception as fault:  # noqa: BLE001  # a validator of ours on hostile input
            self.faults.report(f"gossip.validator_failed {topic}", fault)
            return Verdict.IGNORE
        if verdict is Verdict.REJECT:
            self.faults.blame(forwarder, f"gossip.rejected {topic}")
        elif verdict is Verdict.IGNORE:
            self.faults.count(f"gossip.ignored {topic}")
        else:
            self._deliver(topic, author, data)
        return verdict

    def _deliver(self, topic: str, author: Context, data: bytes) -> None:
        for channel in self._listeners.get(topic, ()):
            try:
                channel.send_nowait((author, data))
            except trio.WouldBlock:
                self.faults.count(f"gossip.queue_full {topic}")
            except trio.BrokenResourceError:
                self.faults.count(f"gossip.nobody_listens {topic}")
