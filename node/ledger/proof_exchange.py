"""Proofs of lies between nodes: who finds one hands it on by itself, and who is handed one checks it before anything.

A proof carries all that its check needs, so nothing is believed but signatures. One that holds counts here as if it had
been found here, and goes on, once, to those with whom this node trades and to some of those that it is connected to.
One that does not hold is a strike against whoever brought it, since an honest node checks what it hands on.

Accounts cost nothing, and anybody can make accounts of their own lie. So of one liar one proof is taken from others;
how many come in and go out in a time is bounded, and so is what is kept of liars that nobody here ever heard of. None
of this is journaled: what is lost comes again with the next dealings, and what is kept lies in a store of its own.
"""

from collections import Counter
from collections.abc import Callable, Collection

from hansa.market.effects import Send
from hansa.market.equivocation import Equivocation, accused, in_words, proof_id
from hansa.node.engine.events import EquivocationProven
from hansa.node.engine.gate import PeerRate
from hansa.node.ledger.head_exchange import MOVES_MONEY
from hansa.node.ledger.head_store import HeadStore
from hansa.proto.codec import decode, encode
from hansa.proto.keccak import keccak256
from hansa.proto.messages import ProofSent

KEEP_MS = 3_600_000
"""Who is away for longer is shown it at the next dealings."""
MOST_BYTES = 65_536
"""A larger proof stays where it was found. It takes the bids of two leases of a thousand devices."""
MOST_TOLD, MOST_PARTNERS = 32, 24
"""A proof goes to so many others at the most, and to so many for whom money is at stake. Each hands it on too."""
MOST_SHOWN = 4
"""So many of the newest proofs go to an account at the first dealings with it since the start."""
HEARD_AT_ONCE, HEARD_EVERY_MS = 16, 30_000
"""Proofs of one bringer: more than an honest node hands on by what follows."""
STRANGERS_AT_ONCE, STRANGERS_EVERY_MS = 100, 100
"""Proofs of all bringers together with whom no money moves: four signatures to recover in a tenth of a second."""
FOUND_AT_ONCE, PASSED_AT_ONCE, HAND_ON_EVERY_MS = 8, 8, 120_000
"""Proofs that go out: those found here, and those of others, so that no flood keeps back what was found here."""
MOST_KEPT, MOST_KEPT_BYTES = 8_192, 64 << 20
"""Beyond this what others bring is kept only in place of the oldest that is about no account with dealings here, so
that nobody can fill the room up for ever. What is found here is always kept."""
MOST_OF_STRANGERS = 1_024
"""Of liars that are not known here otherwise only as long as fewer proofs than this are kept."""


class ProofExchange:
    """One node's part in it."""

    def __init__(
        self,
        heads: HeadStore,
        *,
        account: bytes,
        send: Callable[[Send], None],
        tell: Callable[[EquivocationProven], None],
        now_ms: Callable[[], int],
        partners: Callable[[], Collection[bytes]],
        connected: Callable[[], Collection[bytes]],
        deals_with: Callable[[bytes], bool],
        knows: Callable[[bytes], bool],
        refuses: Callable[[bytes], bool],
    ) -> None:
        """Stand between the store and the peers.

        Args:
            heads: the store of proofs.
            account: this node's own.
            send: brings messages to accounts.
            tell: has the engine know of a proof.
            now_ms: the clock.
            partners: accounts with which money moves, or moved.
            connected: accounts of the peers that are connected.
            deals_with: whether money moves, or moved, between this node and an account.
            knows: whether anything was heard of an account: an advert, a hello, dealings.
            refuses: whether an account is blocked here, or proven to lie.
        """
        self._heads, self._account = heads, account
        self._send, self._tell, self._now_ms = send, tell, now_ms
        self._partners, self._connected = partners, connected
        self._deals_with, self._knows, self._refuses = deals_with, knows, refuses
        self._heard = PeerRate(HEARD_AT_ONCE, HEARD_EVERY_MS)
        self._strangers = PeerRate(STRANGERS_AT_ONCE, STRANGERS_EVERY_MS)
        self._found = PeerRate(FOUND_AT_ONCE, HAND_ON_EVERY_MS)
        self._passed = PeerRate(PASSED_AT_ONCE, HAND_ON_EVERY_MS)
        self._shown: set[bytes] = set()
        self.counters: Counter[str] = Counter()

    # What this node says.

    def found(self, proof: Equivocation) -> None:
        """A proof was found here, kept, and told to the engine: hand it on, unless its liar is known for one."""
        liar = accused(proof)
        # One that is too large to be handed on is none that others know.
        if self._heads.proofs_against(liar, MOST_BYTES) == 1 or self._heads.proofs_against(liar) == 1:
            self._hand_on(proof, liar, self._found, besides=self._account)

    def _hand_on(self, proof: Equivocation, liar: bytes, rate: PeerRate, *, besides: bytes) -> None:
        data = encode(proof)
        if len(data) > MOST_BYTES:
            self.counters["proofs: one that is too large to be handed on"] += 1
            return
        # Before it is looked who might be told: that costs more than all of the check.
        if not rate.admits(b"", self._now_ms()):
            self.counters["proofs: more than are handed on in a time"] += 1
            return
        hidden = {self._account, liar, besides}
        name = proof_id(proof)
        # Whom it goes to cannot be guessed before it is there, so nobody can stand in everybody's first rows.
        partners, connected = (
            sorted(
                (to for to in set(row) if to not in hidden and not self._refuses(to)),
                key=lambda to: keccak256(name + to),
            )
            for row in (self._partners(), self._connected())
        )
        partners.sort(key=lambda to: to not in connected)
        told = list(dict.fromkeys(partners[:MOST_PARTNERS] + connected))
        for to in told[:MOST_TOLD]:
            self._bring(to, data, liar)

    def show(self, send: Send) -> None:
        """Something about money goes to an account: the first time, it gets the newest proofs too.

        Those against accounts with which this node dealt come first: strangers can make ever new accounts of their lie.
        """
        if not isinstance(send.message, MOVES_MONEY) or send.to == self._account or send.to in self._shown:
            return
        self._shown.add(send.to)
        hidden, first = (send.to, self._account), frozenset(self._partners())
        for liar, proof in self._heads.newest_proofs(MOST_SHOWN, MOST_BYTES, hidden=hidden, first=first):
            self._bring(send.to, encode(proof), liar)

    def _bring(self, to: bytes, data: bytes, liar: bytes) -> None:
        message = ProofSent(proof=data)
        keep_until_ms = self._now_ms() + KEEP_MS
        self._send(Send(to=to, message=message, keep_until_ms=keep_until_ms, replaces=f"proof {liar.hex()}"))

    def tell_again(self, known: Collection[bytes]) -> None:
        """After a start: the daemon may have ended between keeping a proof and writing down what it means."""
        told = {*known, self._account}
        for liar in self._heads.liars():
            if liar not in told:
                words = in_words(self._heads.first_proof_against(liar))
                self._tell(EquivocationProven(account=liar, words=words, at_ms=self._now_ms()))

    # What this node hears.

    def hear(self, sender: bytes, message: ProofSent) -> None:
        """A peer brings a proof.

        Raises:
            ProtocolError: it proves nothing.
        """
        if not self._heard.admits(sender, self._now_ms()):
            self.counters["proofs: more than one peer may bring"] += 1
            return
        if not self._deals_with(sender) and not self._strangers.admits(b"", self._now_ms()):
            self.counters["proofs: more than strangers may bring"] += 1
            return
        proof: Equivocation = decode(message.proof, Equivocation, limit_bytes=MOST_BYTES)
        if self._heads.has_proof(proof_id(proof)):
            return
        liar = accused(proof)
        if liar == self._account:
            # It bears this node's own signatures: its ledger was rolled back, or its key is not its own any more.
            self.counters["proofs: A PROOF AGAINST OURSELVES"] += 1
            return
        is_known = self._heads.proofs_against(liar) > 0
        if self._heads.proofs_against(liar, MOST_BYTES) or not self._make_room_for(liar):
            return
        if self._heads.keep_proof(proof, self._now_ms()) is None:
            return
        if not is_known:
            self._tell(EquivocationProven(account=liar, words=in_words(proof), at_ms=self._now_ms()))
        self.counters["proofs: brought by others and true"] += 1
        self._hand_on(proof, liar, self._passed, besides=sender)

    def _make_room_for(self, liar: bytes) -> bool:
        """Whether a proof against it may be kept now; an older one goes for it where that is right."""
        kept, size_bytes = self._heads.proofs_kept()
        known = self._knows(liar)
        if kept < (MOST_KEPT if known else MOST_OF_STRANGERS) and size_bytes < MOST_KEPT_BYTES:
            return True
        # Whoever the older one was about stays refused here: what is gone is what could be shown to others.
        partners = frozenset(self._partners()) if known else frozenset()
        if known and self._heads.drop_oldest_proof(partners.__contains__) is not None:
            self.counters["proofs: an older one gave way"] += 1
            return True
        self.counters["proofs: no room for more of others"] += 1
        return False
