"""Being reachable: others are asked from where they see us and whether they can dial us; if not, relays help.

Only peers that we dialled ourselves are asked, so that nobody makes himself our observer. What is believed of them is
in ``reachability.py``. But there are routers that let in whoever was spoken to: there all observers get through, and
nobody else. So places at relays are held until enough of them say that we are public *and* somebody has come in to whom
we never spoke; they are renewed in good time, and another relay is asked when one is lost.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError

from hansa.node.network.libp2p_acquaintances import Acquaintances
from hansa.node.network.libp2p_autonat import AUTONAT, DialBack, ask_for_dial_back, ask_who
from hansa.node.network.libp2p_circuit import Place, StopService, reserve
from hansa.node.network.libp2p_dcutr import DCUTR, HolePuncher
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_relay import HOP, STOP, RelayService
from hansa.node.network.libp2p_stack import Stack
from hansa.node.network.libp2p_tcp import port_of
from hansa.node.network.libp2p_wire import WireFault
from hansa.node.network.neighbourhood import group_of, host_of, household_of, place_of
from hansa.node.network.net import NetConfig, Reach, RelayStat
from hansa.node.network.reachability import Opinion, Opinions
from hansa.node.network.upnp import Forwarding, forward, withdraw

LOOK_EVERY_S = 5.0
OBSERVERS = 6
ASKED_FOR_RELAYS = 24
ASK_AGAIN_S = 600.0
PLACES = 3
"""So many relays are enough; circuits to us can then be had while one or two of them are away."""
RENEW_BEFORE_S = 120.0
NO_RELAY_S = 120.0
"""How long a peer is left alone that is no relay, or has no place."""
MOST_REMEMBERED = 1024
FORWARD_AGAIN_S = 1_200.0
WIRE_FAULTS = (WireFault, MuxedStreamError, MuxedConnUnavailable, trio.TooSlowError)


class Reachability:
    """What is known of how others reach this node, and what is done about it. Outlives the library's parts."""

    def __init__(self, config: NetConfig, own: str, faults: Faults, acquaintances: Acquaintances) -> None:
        """Nothing is known yet."""
        self._config = config
        self._own = ID.from_base58(own)
        self._faults = faults
        self._acquaintances = acquaintances
        self._opinions = Opinions()
        self._asked_at: dict[str, float] = {}
        self._no_relay: dict[str, float] = {}
        self._relays: set[str] = set()
        self._places: dict[str, Place] = {}
        self._held: set[str] = set()
        self._look = trio.Event()
        # Over which family of addresses somebody came, and where we lived then as far as we know.
        self._strangers: dict[str, frozenset[str]] = {}
        # Routers let in whom we dialled, whichever life of the library it was in.
        self._spoken_to: OrderedDict[str, None] = OrderedDict()
        self.forwarding: Forwarding | None = None
        self._forwarded: tuple[int, int] | None = None
        self.relay: RelayService | None = None
        self.stack: Stack | None = None

    # What is known.

    @property
    def opinions(self) -> Opinions:
        """What is not too old."""
        return self._opinions.at(trio.current_time())

    @property
    def is_public(self) -> bool:
        """Whether enough others reached us, and one of them to whom we had never spoken."""
        opinions = self.opinions
        came_over = self._came_over()
        return opinions.verdict() == "public" and any(host_of(addr)[0] in came_over for addr in opinions.confirmed())

    def _on_stranger_in(self, host: str) -> None:
        """Somebody came from the internet whom our router cannot have known. Our own outside is a neighbour of ours."""
        family = _family(host)
        if family not in self._came_over() and host not in {seen for seen, _ in self.seen_at()}:
            self._strangers[family] = self._outside(family)
            self._faults.count("reach.stranger_came_in")
            self._look.set()

    def _outside(self, family: str) -> frozenset[str]:
        """The households from which others see us come."""
        return frozenset(household_of(host) for host, _ in self.seen_at() if _family(host) == family)

    def _came_over(self) -> set[str]:
        """The families over which a stranger came in to where we live now."""
        found = set()
        for family, then in self._strangers.items():
            now = self._outside(family)
            if not now or not then or now & then:
                found.add(family)
        return found

    @property
    def is_hidden(self) -> bool:
        """Whether enough others found that they cannot reach us, and the operator does not know better."""
        return not self._config.announce and self.opinions.verdict() == "private"

    def places(self) -> tuple[Place, ...]:
        """Those that hold now."""
        now = trio.current_time()
        return tuple(place for place in self._places.values() if place.until > now and self._direct(place.relay))

    def found_addrs(self) -> tuple[str, ...]:
        """Where we can be reached that no interface of ours says: from outside, and through relays."""
        relayed = () if self.is_public else tuple(addr for place in self.places() for addr in place.addrs)
        return tuple(dict.fromkeys((*self.opinions.confirmed(), *relayed)))

    def seen_at(self) -> tuple[tuple[str, int], ...]:
        """From where others see us come, if that is on the internet."""
        return tuple(each for each in self.opinions.seen_at() if place_of(each[0]) == "public")

    def describe(self, addrs: tuple[str, ...], restarts: int) -> Reach:
        """All of it, for the operator."""
        opinions = self.opinions
        verdict = opinions.verdict()
        if verdict == "unknown" and self._came_over():
            # Nobody was asked, or too few; but who came in is proof enough for words.
            verdict = "public"
        return Reach(
            verdict=verdict,
            addrs=addrs,
            opinions=opinions.said,
            hides_ports=opinions.hides_ports(),
            relays=tuple(
                RelayStat(peer_id=place.relay, left_s=int(place.until - trio.current_time())) for place in self.places()
            ),
            upnp=self.forwarding.says if self.forwarding is not None else "",
            serves_as_relay=self.relay is not None,
            reservations=self.relay.reservations if self.relay is not None else 0,
            circuits=self.relay.circuits if self.relay is not None else 0,
            relayed_bytes=self.relay.relayed_bytes if self.relay is not None else 0,
            restarts=restarts,
        )

    # What is done.

    def furnish(self, stack: Stack, addrs: Callable[[], Sequence[str]]) -> None:
        """Serve the protocols of a new life of the library's parts."""
        self.stack = stack
        self._places.clear()
        swarm, host = stack.swarm, stack.host
        swarm.dials_from_its_port = lambda: not self.is_public and not self._config.announce
        host.set_stream_handler(AUTONAT, DialBack(self._faults, swarm.try_address).on_stream)
        stop = StopService(self._faults, has_place=lambda relay: relay in self._places, take=swarm.take_circuit)
        host.set_stream_handler(STOP, stop.on_stream)
        puncher = HolePuncher(swarm, self._faults, self.seen_at)
        host.set_stream_handler(DCUTR, puncher.on_stream)
        swarm.on_stranger_in = self._on_stranger_in
        swarm.go_on_from(self._spoken_to)
        swarm.on_relayed = lambda connection: stack.soon(puncher.upgrade, connection)
        if self._config.relay:
            self.relay = RelayService(
                self._config.relay_limits,
                self._faults,
                addrs=lambda: [addr for addr in addrs() if "/p2p-circuit" not in addr],
                connections=swarm.live_connections,
                barred=self._acquaintances.is_barred,
            )
            host.set_stream_handler(HOP, self.relay.on_stream)

    async def run(self, _stack: Stack) -> None:
        """Look now and then, and soon when somebody has come or gone."""
        async with trio.open_nursery() as nursery:
            if self._config.upnp:
                nursery.start_soon(self._forward)
            nursery.start_soon(self._watch_arrivals)
            while True:
                await self._ask_observers(nursery)
                await self._hold_places()
                self._look = trio.Event()
                with trio.move_on_after(LOOK_EVERY_S):
                    await self._look.wait()
                # A crowd of arrivals is looked at once.
                await trio.sleep(0.05)

    async def _watch_arrivals(self) -> None:
        with self._acquaintances.arrivals() as arrivals:
            async for _ in arrivals:
                self._look.set()

    def _dialled(self) -> list[Any]:
        """Direct connections that we made ourselves, one for each peer; those to whom the operator sent us first."""
        assert self.stack is not None
        swarm = self.stack.swarm
        found: dict[str, Any] = {}
        for connection in swarm.get_connections():
            muxed = connection.muxed_conn
            if muxed.path == "direct" and muxed.is_initiator and muxed.is_established:
                found[muxed.peer_id.to_base58()] = muxed
        kept = self._acquaintances.book.kept
        return [found[name] for name in sorted(found, key=lambda name: (name not in kept, name))]

    def _direct(self, peer_id: str) -> Any:
        if self.stack is None:
            return None
        standing = self.stack.swarm.live_connections(ID.from_base58(peer_id))
        return next((each.muxed_conn for each in standing if each.muxed_conn.path == "direct"), None)

    # Observers.

    async def _ask_observers(self, background: trio.Nursery) -> None:
        now = trio.current_time()
        due = [
            muxed
            for muxed in self._dialled()
            if now - self._asked_at.get(muxed.peer_id.to_base58(), float("-inf")) > ASK_AGAIN_S
        ]
        fresh = sum(now - at <= ASK_AGAIN_S for at in self._asked_at.values())
        # While relays are looked for, more are asked who they are.
        most = OBSERVERS if self.is_public or len(self._places) >= PLACES else ASKED_FOR_RELAYS
        async with trio.open_nursery() as nursery:
            for muxed in due[: max(0, most - fresh)]:
                nursery.start_soon(self._ask_one, muxed, background)

    async def _ask_one(self, muxed: Any, background: trio.Nursery) -> None:
        name, remote = muxed.peer_id.to_base58(), muxed.get_remote_address()
        _remember(self._asked_at, name, trio.current_time())
        if remote is None:
            return
        try:
            seen, protocols = await ask_who(muxed)
        except WIRE_FAULTS:
            self._faults.count("reach.observer_failed")
            return
        if HOP in protocols:
            if len(self._relays) >= MOST_REMEMBERED:
                self._relays.clear()
            self._relays.add(name)
        opinion = Opinion(
            observer=name, network=group_of(remote[0]), seen_at=seen, reached_at=None, at_s=trio.current_time()
        )
        self._opinions = self._opinions.with_new(opinion)
        if AUTONAT in protocols and seen is not None:
            # A dial in vain takes seconds, and our place at a relay does not wait for them.
            background.start_soon(self._ask_for_dial_back, muxed, opinion, self._candidates(seen))

    async def _ask_for_dial_back(self, muxed: Any, opinion: Opinion, candidates: list[str]) -> None:
        was_public = self.is_public
        try:
            reached = await ask_for_dial_back(muxed, self._own, candidates)
        except WIRE_FAULTS:
            self._faults.count("reach.observer_failed")
            return
        self._opinions = self._opinions.with_new(replace(opinion, reached_at=reached, at_s=trio.current_time()))
        if self.is_public != was_public:
            self._look.set()

    def _candidates(self, seen: tuple[str, int]) -> list[str]:
        """Where we might be dialled, seen from outside: our own port first, then that of our connection."""
        assert self.stack is not None
        family = "ip6" if ":" in seen[0] else "ip4"
        ports = [port_of(addr) for addr in self.stack.swarm.listening if str(addr).startswith(f"/{family}/")]
        forwarded = self.forwarding
        if forwarded is not None and forwarded.port:
            ports.insert(0, forwarded.port)
        return [f"/{family}/{seen[0]}/tcp/{port}" for port in dict.fromkeys((*ports, seen[1]))]

    # Relays.

    async def _hold_places(self) -> None:
        self._places = {place.relay: place for place in self.places()}
        if self.opinions.verdict() == "private":
            # Another network than before, perhaps: who came in there says nothing of this one.
            self._strangers.clear()
        for family in [each for each, then in self._strangers.items() if not then]:
            self._strangers[family] = self._outside(family)  # which nobody had told us yet
        if self.is_public or self._config.announce:
            return
        now = trio.current_time()
        for place in list(self._places.values()):
            if place.until - now < RENEW_BEFORE_S:
                await self._reserve(place.relay)
        if len(self._places) >= PLACES:
            return
        for muxed in self._dialled():
            name = muxed.peer_id.to_base58()
            if name in self._relays and name not in self._places and now >= self._no_relay.get(name, 0):
                await self._reserve(name)
                if len(self._places) >= PLACES:
                    return

    async def _reserve(self, name: str) -> None:
        muxed = self._direct(name)
        if muxed is None:
            return
        try:
            place = await reserve(muxed)
        except WIRE_FAULTS:
            self._no_place(name, "reach.no_place")
            return
        if not place.addrs:
            self._no_place(name, "reach.relay_without_address")
            return
        self._faults.count("reach.place")
        self._places[name] = place
        # Its connection is what others reach us by; it is worth holding.
        if name not in self._acquaintances.book.kept:
            self._held.add(name)
            self._acquaintances.keep(name)

    def _no_place(self, name: str, why: str) -> None:
        self._faults.count(why)
        _remember(self._no_relay, name, trio.current_time() + NO_RELAY_S)
        if name in self._held:
            self._held.discard(name)
            self._acquaintances.release(name)

    # The router.

    async def _forward(self) -> None:
        """Ask the router for our port, again and again: what it grants ends with its lease or its next start."""
        assert self.stack is not None
        while True:
            ports = [
                port_of(addr)
                for addr in self.stack.swarm.listening
                if str(addr).startswith("/ip4/") and place_of(host_of(str(addr))[1]) != "loopback"
            ]
            if ports and not self._config.announce:
                before = self.forwarding
                self.forwarding = await forward(ports[0])
                if self.forwarding.port:
                    self._forwarded = (self.forwarding.port, ports[0])
                self._faults.count("reach.upnp_forwarded" if self.forwarding.port else "reach.upnp_nothing")
                if self.forwarding.port and (before is None or before.port != self.forwarding.port):
                    self._asked_at.clear()
                    self._look.set()
            await trio.sleep(FORWARD_AGAIN_S)

    async def withdraw(self) -> None:
        """The node stops: have the router send nobody here any more. Takes seconds at the most."""
        if self._forwarded is not None:
            outside, port = self._forwarded
            self._forwarded = None
            await withdraw(outside, port)


def _family(host: str) -> str:
    return "ip6" if ":" in host else "ip4"


def _remember(table: dict[str, float], name: str, at: float) -> None:
    table[name] = at
    while len(table) > MOST_REMEMBERED:
        del table[next(iter(table))]
