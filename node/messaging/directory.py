"""Who is who: which account a peer speaks for, proved by both keys, and which peer speaks for an account.

The first words between two nodes are their bindings (``/hansa/hello/1``). An advert or a tender only says where an
account may be found; nothing is sent to, or believed from, a peer before it has proved itself.
"""

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from hansa.node.engine.gate import HELLO_EVERY_MS, HELLOS_AT_ONCE, PeerRate
from hansa.node.network.net import Context, Net, NetError, Refused
from hansa.proto.binding import check_binding, holds_at
from hansa.proto.codec import decode, encode
from hansa.proto.documents import NodeBinding
from hansa.proto.errors import BadSignature, NotForUs, ProtocolError
from hansa.proto.messages import Hello
from hansa.proto.network import DOMAIN
from hansa.proto.peer_id import parse_peer_id
from hansa.proto.protocols import HELLO, MAX_HELLO_BYTES

MOST_KNOWN = 10_000
MOST_DOUBTS = 100
ENOUGH_TAKEN = 3
CLOCKS_DIFFER = "directory.clocks_differ"
OUT_OF_DATE = "the clocks differ"
"""How a refusal for a date begins. Whom a peer refuses so learns in no other way that its own clock is ahead."""


class Stranger(Exception):
    """A peer that could not, or did not, prove the account that it is taken for."""


def _out_of_date(binding: NodeBinding, now_ms: int) -> str:
    """Why a binding does not hold now, for the one whose it is."""
    ahead_ms = binding.not_before - now_ms
    if ahead_ms > 0:
        return f"{OUT_OF_DATE} by {ahead_ms // 1000} s or more: your binding begins in the future by mine"
    return f"{OUT_OF_DATE}: by mine your binding ended {(now_ms - binding.not_after) // 1000} s ago"


def _remember(peers: OrderedDict[str, None], peer_id: str) -> None:
    peers[peer_id] = None
    while len(peers) > MOST_DOUBTS:
        peers.popitem(last=False)


class Directory:
    """Bindings that were proved, and hints where other accounts may be."""

    def __init__(self, net: Net, hello: Hello, now_ms: Callable[[], int]) -> None:
        """``hello`` is what this node says of itself."""
        self._net = net
        self._hello = encode(hello)
        self._now_ms = now_ms
        self._bindings: OrderedDict[str, NodeBinding] = OrderedDict()
        self._peers: dict[bytes, str] = {}
        self._hints: OrderedDict[bytes, str] = OrderedDict()
        self._rate = PeerRate(HELLOS_AT_ONCE, HELLO_EVERY_MS)
        self.counters: Counter[str] = Counter()
        self._other_times: OrderedDict[str, None] = OrderedDict()
        self._refused_by: OrderedDict[str, None] = OrderedDict()
        self._taken_by: set[str] = set()

    def serve(self) -> None:
        """Answer every hello with ours."""
        self._net.serve(HELLO, self._answer, max_request_bytes=MAX_HELLO_BYTES)

    async def introduce(self, hello: Hello, peer_ids: Iterable[str]) -> None:
        """Say something newer of this node from now on, and at once to those who know the older.

        One after the other, so that a node with many neighbours does not fall over all of them at once.
        """
        self._hello = encode(hello)
        self._taken_by.clear()
        for peer_id in [each for each in peer_ids if each in self._bindings]:
            with contextlib.suppress(Stranger):
                await self._greet(peer_id)

    async def _answer(self, context: Context, data: bytes) -> bytes:
        # A hello is two signatures to recover, and anybody may say it.
        if not self._rate.admits(context.peer_id.encode(), self._now_ms()):
            raise Refused("busy: more hellos than one peer may say")
        self._learn(context.peer_id, data)
        return self._hello

    def _learn(self, peer_id: str, data: bytes) -> bytes:
        hello: Hello = decode(data, Hello, limit_bytes=MAX_HELLO_BYTES)
        binding = check_binding(DOMAIN, hello, parse_peer_id(peer_id))
        if not holds_at(binding, self._now_ms()):
            # Both keys signed it, so the peer is who it says. A wrong clock, be it theirs or ours, is no attack.
            self.counters[CLOCKS_DIFFER] += 1
            _remember(self._other_times, peer_id)
            raise Refused(_out_of_date(binding, self._now_ms()))
        known = self._bindings.get(peer_id)
        if known is not None and known.account != binding.account and known.epoch >= binding.epoch:
            raise BadSignature("hello", "the node changed its account without a newer binding")
        other = self._bindings.get(self._peers.get(binding.account, ""))
        if other is not None and other.peer_id != binding.peer_id and other.epoch >= binding.epoch:
            # An account that moved must not be drawn back to a node whose binding it has replaced.
            raise NotForUs("hello", "the account has bound itself to another node since")
        self._other_times.pop(peer_id, None)
        self._bindings[peer_id] = binding
        self._bindings.move_to_end(peer_id)
        self._peers[binding.account] = peer_id
        while len(self._bindings) > MOST_KNOWN:
            old, forgotten = self._bindings.popitem(last=False)
            if self._peers.get(forgotten.account) == old:
                del self._peers[forgotten.account]
        return binding.account

    @property
    def clocks_differ(self) -> bool:
        """Whether most of the peers that were heard of last have another time, by our clock or by theirs.

        Strangers can say so together and be wrong: it is worth a word to the owner, and nothing else.
        """
        others = self._other_times.keys() | self._refused_by.keys()
        now_ms = self._now_ms()
        ours = sum(holds_at(binding, now_ms) for peer_id, binding in self._bindings.items() if peer_id not in others)
        return len(others) > min(ours, MOST_DOUBTS - 1)

    def account_of(self, peer_id: str) -> bytes | None:
        """The account that a peer proved to speak for, as long as its binding holds."""
        binding = self._bindings.get(peer_id)
        return binding.account if binding is not None and holds_at(binding, self._now_ms()) else None

    def peers_of(self, account: bytes) -> tuple[str, ...]:
        """Where an account may be found: the peer that proved to speak for it, then the one that is said to."""
        known = (self._peers.get(account), self._hints.get(account))
        return tuple(dict.fromkeys(peer_id for peer_id in known if peer_id is not None))

    def hint(self, account: bytes, peer_id: str) -> None:
        """A signed document says that this peer speaks for the account; it will have to prove it."""
        self._hints[account] = peer_id
        self._hints.move_to_end(account)
        while len(self._hints) > MOST_KNOWN:
            self._hints.popitem(last=False)

    async def meet(self, peer_id: str) -> bytes:
        """The account of a connected or known peer; it is required to prove it now if it has not yet.

        Raises:
            Stranger: it did not.
        """
        account = self.account_of(peer_id)
        if account is not None:
            return account
        return await self._greet(peer_id)

    async def welcome(self, peer_id: str) -> bytes:
        """As ``meet``, for one that has just connected; until a few have taken our date it is told to each of them.

        A node whose clock is ahead finds nobody's date wrong: that its own is refused is all that it can hear.

        Raises:
            Stranger: it did not prove its account.
        """
        account = self.account_of(peer_id)
        if account is not None and len(self._taken_by) < ENOUGH_TAKEN:
            with contextlib.suppress(Stranger):
                return await self._greet(peer_id)
        return account if account is not None else await self._greet(peer_id)

    async def _greet(self, peer_id: str) -> bytes:
        try:
            answer = await self._say_hello(peer_id)
            return self._learn(peer_id, answer)
        except ProtocolError as fault:
            self._net.strike(peer_id, "a hello that proves nothing")
            raise Stranger(str(fault)) from fault
        except NetError as fault:
            raise Stranger(str(fault)) from fault

    async def _say_hello(self, peer_id: str) -> bytes:
        try:
            answer = await self._net.request(peer_id, HELLO, self._hello, max_response_bytes=MAX_HELLO_BYTES)
        except Refused as no:
            if no.why.startswith(OUT_OF_DATE):
                self.counters[CLOCKS_DIFFER] += 1
                _remember(self._refused_by, peer_id)
            raise
        self._refused_by.pop(peer_id, None)
        if len(self._taken_by) < ENOUGH_TAKEN:
            self._taken_by.add(peer_id)
        return answer

    async def reach(self, account: bytes) -> str:
        """The peer that speaks for an account, connected and proved.

        Raises:
            Stranger: nobody does, or it cannot be reached or proved now.
        """
        why = "no node is known that speaks for this account"
        # A node that has a new key proves nothing under its old one, and its newest advert says where it is now.
        for peer_id in reversed(self.peers_of(account)):
            try:
                if await self.meet(peer_id) == account:
                    return peer_id
                why = "the node that was said to speak for this account speaks for another"
            except Stranger as fault:
                why = str(fault)
        raise Stranger(why)

    async def require(self, peer_id: str) -> bytes:
        """As ``meet``, inside a request's handler: who cannot prove its account is refused."""
        try:
            return await self.meet(peer_id)
        except Stranger as fault:
            raise Refused("prove your account first") from fault
