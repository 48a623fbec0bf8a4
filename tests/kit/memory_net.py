"""The port to the network, ``hansa.node.network.net.Net``, within one process and without sockets, for tests.

It passes the same contract tests as the real one (tests/integration/test_net_contract.py). A hub carries everything;
links can be cut and nodes killed. Time is trio's, so a mock clock works; nothing here uses a thread. Whom it knows and
what it thinks of them is kept by the real one's own book. There are no sockets: ``dialled`` never names an address, so
nobody comes with TLS either, as if everybody sat behind relays.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from hansa.node.network.libp2p_acquaintances import Acquaintances
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.neighbourhood import Neighbourhood
from hansa.node.network.net import (
    Context,
    Gossip,
    Handler,
    NetConfig,
    NotSpoken,
    Path,
    PeerStat,
    Reach,
    Refused,
    RemoteFault,
    Timeout,
    TlsHandler,
    TooBig,
    Unreachable,
    Validator,
    Verdict,
)
from hansa.proto.errors import ProtocolError
from hansa.proto.peer_id import address_of_peer_text, peer_id_of_key


class MemoryHub:
    """The wire between all memory nets: who listens where, which links are cut, how long a message takes."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.nets: dict[str, MemoryNet] = {}
        self.cut: set[frozenset[str]] = set()
        self._next_port = 20_000

    @asynccontextmanager
    async def open_net(self, config: NetConfig, node_key: bytes) -> AsyncIterator["MemoryNet"]:
        """One node on this hub, for as long as the context lasts."""
        async with trio.open_nursery() as nursery:
            self._next_port += 1
            net = MemoryNet(self, config, node_key, self._next_port, nursery)
            self.nets[net.peer_id] = net
            try:
                for addr in config.bootstrap:
                    net.learn_full(addr)
                    net.keep(addr.rpartition("/p2p/")[2])
                yield net
            finally:
                self.kill(net.peer_id)
                nursery.cancel_scope.cancel()

    def kill(self, peer_id: str) -> None:
        """The node is gone without a word; its neighbours notice."""
        net = self.nets.pop(peer_id, None)
        if net is not None:
            for other in list(net.linked):
                self.unlink(net, other)

    def link_cut(self, one: str, other: str) -> None:
        """Nothing passes between these two any more."""
        self.cut.add(frozenset((one, other)))
        first, second = self.nets.get(one), self.nets.get(other)
        if first is not None and second is not None and other in first.linked:
            self.unlink(first, other)

    def link_healed(self, one: str, other: str) -> None:
        """They can reach each other again."""
        self.cut.discard(frozenset((one, other)))

    def link(self, one: "MemoryNet", other: "MemoryNet") -> None:
        """A connection stands; both sides hear of it."""
        one.linked.add(other.peer_id)
        other.linked.add(one.peer_id)
        one.on_linked(other.peer_id)
        other.on_linked(one.peer_id)

    def unlink(self, one: "MemoryNet", other_id: str) -> None:
        """The connection is gone; both sides hear of it."""
        other = self.nets.get(other_id)
        one.linked.discard(other_id)
        one.on_unlinked(other_id)
        if other is not None:
            other.linked.discard(one.peer_id)
            other.on_unlinked(one.peer_id)


class MemoryNet:
    """A ``hansa.node.network.net.Net`` on a ``MemoryHub``."""

    def __init__(self, hub: MemoryHub, config: NetConfig, key: bytes, port: int, nursery: trio.Nursery) -> None:
        self._hub = hub
        self._config = config
        self._nursery = nursery
        self._peer_id = peer_id_of_key(key)
        self._port = port
        self._faults = Faults(self._struck)
        self._acquaintances = Acquaintances(
            self._peer_id,
            config.limits,
            self._faults,
            Neighbourhood((*config.listen, *config.bootstrap, *config.announce)),
            connect=self.connect,
            is_connected=self.is_live,
            hang_up=lambda peer_id: nursery.start_soon(self.disconnect, peer_id),
            remote_ip=lambda peer_id: "127.0.0.1" if self.is_live(peer_id) else None,
            path=lambda _peer_id: "direct",
        )
        # Not by its own ``run``, whose clock would have a mock clock jump on while a thread works.
        self._acquaintances._nursery = nursery
        self._servers: dict[str, tuple[Handler, int, int, int, int]] = {}
        self._names: dict[str, str] = {}
        self._running: Counter[tuple[str, str]] = Counter()
        self._topics: dict[str, tuple[Validator, trio.MemorySendChannel[tuple[Context, bytes]]]] = {}
        self._seen: set[tuple[str, int]] = set()
        self._published = 0
        self._counters = self._faults.counters
        self._broken: dict[str, trio.Event] = {}
        self.linked: set[str] = set()
        self.names: tuple[str, ...] = ()

    @property
    def peer_id(self) -> str:
        return self._peer_id

    @property
    def context(self) -> Context:
        return Context(peer_id=self._peer_id, address=address_of_peer_text(self._peer_id))

    def addrs(self) -> tuple[str, ...]:
        bare = self._config.announce or (f"/ip4/127.0.0.1/tcp/{self._port}",)
        return tuple(f"{addr}/p2p/{self._peer_id}" for addr in bare)

    # Requests.

    def serve(
        self,
        protocol_id: str,
        handler: Handler,
        *,
        max_request_bytes: int = 256 << 10,
        timeout_ms: int = 10_000,
        per_peer: int = 8,
        total: int = 64,
        older: tuple[str, ...] = (),
    ) -> None:
        for each in (protocol_id, *older):
            self._servers[each] = (handler, max_request_bytes, timeout_ms, per_peer, total)
            self._names[each] = protocol_id

    async def request(
        self,
        peer_id: str,
        protocol_id: str,
        data: bytes,
        *,
        timeout_ms: int = 10_000,
        max_response_bytes: int = 1 << 20,
        agree_first: bool = False,
    ) -> bytes:
        if agree_first:
            await trio.sleep(self._hub.delay_s)
        try:
            with trio.fail_after(timeout_ms / 1000):
                other = await self._reach(peer_id)
                answer = await self._while_linked(other, protocol_id, data)
        except trio.TooSlowError as late:
            self._counters[f"request.timeout {protocol_id}"] += 1
            raise Timeout(peer_id, f"no response within {timeout_ms} ms") from late
        if len(answer) > max_response_bytes:
            raise TooBig(peer_id, f"a response of {len(answer)} bytes, and at most {max_response_bytes} are allowed")
        return answer

    async def _while_linked(self, other: "MemoryNet", protocol_id: str, data: bytes) -> bytes:
        """The answer, or a fault if the connection breaks meanwhile."""
        broken = self._broken.setdefault(other.peer_id, trio.Event())
        answers: list[bytes | Exception] = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                try:
                    answers.append(await other.answer(self.context, protocol_id, data))
                except (Refused, TooBig, RemoteFault) as told:
                    answers.append(told)
                nursery.cancel_scope.cancel()

            nursery.start_soon(ask)
            await broken.wait()
            nursery.cancel_scope.cancel()
        if not answers:
            raise RemoteFault(other.peer_id, "the stream broke before the response was complete")
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    async def answer(self, caller: Context, protocol_id: str, data: bytes) -> bytes:
        """Run the handler as the real one would."""
        await trio.sleep(self._hub.delay_s)
        if protocol_id not in self._servers:
            raise NotSpoken(self._peer_id)
        if protocol_id != self._names[protocol_id]:
            protocol_id = self._names[protocol_id]
            self._counters[f"serve.older {protocol_id}"] += 1
        handler, max_request_bytes, timeout_ms, per_peer, total = self._servers[protocol_id]
        key = (protocol_id, caller.peer_id)
        if self._running[key] >= per_peer or sum(n for k, n in self._running.items() if k[0] == protocol_id) >= total:
            self._counters[f"serve.busy {protocol_id}"] += 1
            raise Refused("busy: too many requests at once", self._peer_id)
        if len(data) > max_request_bytes:
            self.strike(caller.peer_id, f"serve.too_big {protocol_id}")
            raise TooBig(self._peer_id, "the peer takes no request of this size")
        self._running[key] += 1
        try:
            with trio.move_on_after(timeout_ms / 1000):
                answer = await handler(caller, data)
                await trio.sleep(self._hub.delay_s)
                return answer
            self._counters[f"serve.timeout {protocol_id}"] += 1
        except Refused as no:
            raise Refused(no.why, self._peer_id) from None
        except ProtocolError:
            self.strike(caller.peer_id, f"serve.protocol_error {protocol_id}")
        except Exception:  # noqa: BLE001
            self._counters[f"serve.handler_failed {protocol_id}"] += 1
        finally:
            self._running[key] -= 1
        raise RemoteFault(self._peer_id, "the stream broke before the response was complete")

    # Gossip: a flood over the links that stand, each node validating before it passes on.

    def subscribe(self, topic: str, validate: Validator, *, queue: int = 256) -> Gossip:
        assert topic.startswith("/hansa/"), "a topic of ours starts with /hansa/"
        send, receive = trio.open_memory_channel[tuple[Context, bytes]](queue)
        self._topics[topic] = (validate, send)
        return receive

    def unsubscribe(self, topic: str) -> None:
        _, channel = self._topics.pop(topic, (None, None))
        if channel is not None:
            channel.close()

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if len(data) > self._config.limits.gossip_message_bytes:
            raise TooBig(self._peer_id, "a message longer than gossip carries")
        self._published += 1
        mark = (self._peer_id, self._published)
        self._seen.add(mark)
        self._pass_on(topic, self.context, data, mark, not_to=self._peer_id)

    def _pass_on(self, topic: str, author: Context, data: bytes, mark: tuple[str, int], not_to: str) -> None:
        for peer_id in sorted(self.linked):
            other = self._hub.nets.get(peer_id)
            if other is not None and peer_id != not_to:
                self._nursery.start_soon(other.hear, topic, author, data, mark, self._peer_id)

    async def hear(self, topic: str, author: Context, data: bytes, mark: tuple[str, int], forwarder: str) -> None:
        """A neighbour passes a message on."""
        await trio.sleep(self._hub.delay_s)
        if mark in self._seen or topic not in self._topics or forwarder not in self.linked:
            return
        self._seen.add(mark)
        validate, channel = self._topics[topic]
        try:
            verdict = validate(author, data)
        except Exception:  # noqa: BLE001
            self._counters[f"gossip.validator_failed {topic}"] += 1
            return
        if verdict is Verdict.REJECT:
            self.strike(forwarder, f"gossip.rejected {topic}")
        elif verdict is Verdict.ACCEPT:
            try:
                channel.send_nowait((author, data))
            except trio.WouldBlock:
                self._counters[f"gossip.queue_full {topic}"] += 1
            except trio.BrokenResourceError:
                self._counters[f"gossip.nobody_listens {topic}"] += 1
            self._pass_on(topic, author, data, mark, not_to=forwarder)
        else:
            self._counters[f"gossip.ignored {topic}"] += 1

    def listeners(self, topic: str) -> frozenset[str]:
        heard_by = (peer_id for peer_id in self.linked if topic in self._hub.nets[peer_id]._topics)
        return frozenset(heard_by)

    # Peers.

    def advertise(self, names: tuple[str, ...]) -> None:
        self.names = names

    async def find(self, name: str, limit: int = 20) -> tuple[str, ...]:
        await trio.sleep(self._hub.delay_s)
        reachable = [
            other
            for other in self._hub.nets.values()
            if other is not self and frozenset((other.peer_id, self._peer_id)) not in self._hub.cut
        ]
        found = [other for other in reachable if name in other.names][:limit]
        for other in found:
            self.learn(other.peer_id, other.addrs())
        return tuple(other.peer_id for other in found)

    def learn(self, peer_id: str, addrs: tuple[str, ...], told_by: str | None = None) -> None:
        self._acquaintances.learn(peer_id, addrs, told_by)

    def learn_full(self, addr: str) -> str:
        """Learn a full multiaddr; returns the peer id in it."""
        bare, _, peer_id = addr.rpartition("/p2p/")
        self.learn(peer_id, (bare,))
        return peer_id

    def known(self, limit: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return self._acquaintances.known(limit)

    def keep(self, peer_id: str) -> None:
        self._acquaintances.keep(peer_id)

    def release(self, peer_id: str) -> None:
        self._acquaintances.release(peer_id)

    async def _reach(self, peer_id: str) -> "MemoryNet":
        await trio.sleep(self._hub.delay_s)
        if self.bars(peer_id):
            raise Unreachable(peer_id, "barred")
        other = self._hub.nets.get(peer_id)
        if other is not None and peer_id in self.linked:
            return other
        if other is None or peer_id == self._peer_id or frozenset((peer_id, self._peer_id)) in self._hub.cut:
            raise Unreachable(peer_id, "no address of this peer answers")
        if not any(f"{addr}/p2p/{peer_id}" in other.addrs() for addr in self._acquaintances.addresses(peer_id)):
            raise Unreachable(peer_id, "no address of this peer answers")
        if other.bars(self._peer_id):
            raise Unreachable(peer_id, "no address of this peer answers")
        self._hub.link(self, other)
        return other

    async def connect(self, addr_or_peer_id: str, timeout_ms: int = 8_000) -> Path:
        peer_id = self.learn_full(addr_or_peer_id) if addr_or_peer_id.startswith("/") else addr_or_peer_id
        try:
            with trio.fail_after(timeout_ms / 1000):
                await self._reach(peer_id)
        except trio.TooSlowError as late:
            raise Timeout(peer_id, f"no connection within {timeout_ms} ms") from late
        return "direct"

    async def disconnect(self, peer_id: str) -> None:
        await trio.lowlevel.checkpoint()
        if peer_id in self.linked:
            self._hub.unlink(self, peer_id)

    def bars(self, peer_id: str) -> bool:
        """Whether we have nothing to do with this peer at present."""
        return self._acquaintances.is_barred(peer_id)

    def strike(self, peer_id: str, why: str) -> None:
        self._faults.blame(peer_id, why)

    def _struck(self, peer_id: str, why: str) -> None:
        self._acquaintances.struck(peer_id, why)

    def bar(self, peer_id: str, seconds: int, why: str) -> None:
        self._acquaintances.bar(peer_id, seconds, why)

    def peers(self) -> tuple[PeerStat, ...]:
        return self._acquaintances.stats()

    def phases(self) -> Mapping[str, str]:
        return {peer.peer_id: peer.phase for peer in self._acquaintances.book}

    def is_live(self, peer_id: str) -> bool:
        return peer_id in self.linked

    def dialled(self, peer_id: str) -> tuple[str, int] | None:  # noqa: ARG002
        """Nobody is reached by an address here."""
        return None

    def serve_tls(self, handler: TlsHandler) -> None:
        """Nobody comes with TLS here."""

    def reach(self) -> Reach:
        return Reach(addrs=self.addrs())

    def arrivals(self) -> trio.MemoryReceiveChannel[str]:
        return self._acquaintances.arrivals()

    def counters(self) -> Mapping[str, int]:
        book = self._acquaintances.book
        return {**self._counters, "peers.evicted": book.evicted}

    def on_linked(self, peer_id: str) -> None:
        """The hub says that a connection stands."""
        self._broken[peer_id] = trio.Event()
        self._acquaintances.connected(peer_id)

    def on_unlinked(self, peer_id: str) -> None:
        """The hub says that a connection is gone."""
        self._acquaintances.disconnected(peer_id)
        self._broken.pop(peer_id, trio.Event()).set()
