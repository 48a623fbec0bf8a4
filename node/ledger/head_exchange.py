"""Tree heads between nodes: each hands its newest to those with whom money moves, keeps what it hears, and compares.

A signed head binds its owner to one history. It is worth something only if those who hold heads of one ledger meet, so
a node also hands on what it was shown of others. Heads of two sizes are asked to be shown consistent; two of one size
with two roots are a proof, and so are two receipts of one number. None of this is journaled: what is lost is said again
with the next voucher, and proofs are kept in a store of their own.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from hansa.market.effects import Send
from hansa.market.equivocation import DeviceTwice, Equivocation, TwoReceipts, in_words
from hansa.market.ledger_records import FiledReceipt
from hansa.market.receipts import receipt_digest
from hansa.node.engine.events import EquivocationProven, MessageArrived
from hansa.node.engine.state import NodeState
from hansa.node.faults import OperatorError
from hansa.node.ledger.device_twice import find_device_twice
from hansa.node.ledger.head_store import LARGEST_KEPT_SIZE, HeadStore
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.proto import messages
from hansa.proto.documents import Receipt, TreeHead, log_id_of
from hansa.proto.errors import ProtocolError
from hansa.proto.merkle_log import is_consistent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, check

KEEP_MS = 24 * 3_600_000
KEEP_OWN_EVERY_MS = 2_000
"""The newest own head goes into the second file at most so often: what it guards against takes longer."""
MOST_RECEIPTS = 10_000
MOVES_MONEY = (
    messages.ReceiptSent,
    messages.VoucherSent,
    messages.CloseProposed,
    messages.CloseAccepted,
    messages.PaymentAcknowledged,
    messages.NettingAccepted,
)
UNJOURNALED = messages.TreeHeadsSent | messages.ConsistencyWanted | messages.ConsistencySent | messages.ProofSent


class HeadExchange:
    """One node's part in it."""

    def __init__(
        self,
        ledger: LedgerStore,
        heads: HeadStore,
        *,
        account: bytes,
        send: Callable[[Send], None],
        tell: Callable[[EquivocationProven], None],
        now_ms: Callable[[], int],
        hand_on: Callable[[Equivocation], None] = lambda _proof: None,
    ) -> None:
        """``send`` brings messages to accounts; ``tell`` has the engine know of a proof, ``hand_on`` others."""
        self._hand_on = hand_on
        self._ledger, self._heads, self._account = ledger, heads, account
        self._send, self._tell, self._now_ms = send, tell, now_ms
        self._told: dict[bytes, int] = {}
        self._own_kept_ms = 0
        self._receipts: OrderedDict[tuple[bytes, int], Signed[Receipt]] = OrderedDict()
        self.counters: Counter[str] = Counter()

    # What this node shows.

    def keep_own(self, *, now: bool = False) -> None:
        """Keep the newest head of the own ledger in the second file, now and then."""
        if not now and self._now_ms() < self._own_kept_ms + KEEP_OWN_EVERY_MS:
            return
        head = self._ledger.newest_head()
        if head is not None:
            self._heads.keep_own(head)
            self._own_kept_ms = self._now_ms()

    def show(self, send: Send) -> None:
        """Something about money goes to an account: it gets the newest head too, and some that others showed here."""
        if not isinstance(send.message, MOVES_MONEY) or send.to == self._account:
            return
        own = self._ledger.newest_head()
        if own is None or own.document.size <= self._told.get(send.to, 0):
            return
        self._told[send.to] = own.document.size
        seen = self._others(send.to)
        self._bring(send.to, messages.TreeHeadsSent(own=own, seen=seen), replaces="tree heads")

    def _others(self, to: bytes) -> tuple[Signed[TreeHead], ...]:
        """The newest heads of others' ledgers."""
        hidden = log_id_of(self._account), log_id_of(to)
        return self._heads.newest_of_others(hidden, messages.MAX_SEEN_HEADS)

    def _bring(self, to: bytes, message: Any, *, replaces: str) -> None:
        self._send(Send(to=to, message=message, keep_until_ms=self._now_ms() + KEEP_MS, replaces=replaces))

    # What this node hears. The sender is one with whom money moves, and its own head bears its signature.

    def hear(self, sender: bytes, message: Any) -> None:
        """One of the messages that are not journaled."""
        match message:
            case messages.TreeHeadsSent(own=own, seen=seen):
                if own.document.log_id != log_id_of(sender):
                    self.counters["ledger: a head of another ledger than its sender's"] += 1
                    return
                self._hear_head(own)
                for head in seen:
                    self._hear_of_other(head)
            case messages.ConsistencyWanted(first=first, second=second):
                self._answer(sender, first, second)
            case messages.ConsistencySent(first=first, second=second, proof=proof):
                self._take_proof(log_id_of(sender), first, second, proof)

    def _hear_of_other(self, head: Signed[TreeHead]) -> None:
        """A head that somebody says to have been shown by another: only its signature counts."""
        log = head.document.log_id
        own = log == log_id_of(self._account)
        if not own and self._heads.newest_proved(log) is None:
            return
        try:
            check(DOMAIN, head, log[12:])
        except ProtocolError:
            self.counters["ledger: a head that its owner did not sign"] += 1
            return
        if not own:
            self._hear_head(head)
        elif head.document.size > self._ledger.size or self._ledger.root_at(head.document.size) != head.document.root:
            # It bears this node's own signature: its ledger was rolled back, or two daemons use one account.
            self.counters["ledger: A HEAD OF OURS IS NOT OF OUR LEDGER"] += 1

    def _hear_head(self, head: Signed[TreeHead]) -> None:
        log, size = head.document.log_id, head.document.size
        if size > LARGEST_KEPT_SIZE:
            self.counters["ledger: a head of a size that no ledger reaches"] += 1
            return
        known = self._heads.head(log, size)
        if known is not None and known.head.document.root == head.document.root:
            return
        proof = self._heads.hear(head)
        if proof is not None:
            self.accuse(proof)
            return
        self._ask(log)

    def _ask(self, log: bytes) -> None:
        """Have the owner show that the heads of its ledger that are known here are of one history.

        One question at a time, about the newest that waits; when it is answered, the next. Or whoever says ever new
        heads would fill the queue of what is to be sent.
        """
        proved, waiting = self._heads.newest_proved(log), self._heads.unproved(log)
        if not waiting:
            return
        assert proved is not None, "the first head of a ledger is taken as it is"
        first, second = sorted((proved.head.document.size, waiting[-1].head.document.size))
        self._bring(log[12:], messages.ConsistencyWanted(first=first, second=second), replaces="consistency")

    def _answer(self, sender: bytes, first: int, second: int) -> None:
        try:
            proof = self._ledger.consistency(first, second)
        except IndexError:
            self.counters["ledger: asked for a history that is not ours"] += 1
            return
        answer = messages.ConsistencySent(first=first, second=second, proof=proof)
        self._bring(sender, answer, replaces="consistent")

    def _take_proof(self, log: bytes, first: int, second: int, proof: tuple[bytes, ...]) -> None:
        if max(first, second) > LARGEST_KEPT_SIZE:
            return
        before, after = self._heads.head(log, first), self._heads.head(log, second)
        if before is None or after is None or not (before.proved or after.proved):
            return
        if is_consistent(
            first=first,
            first_root=before.head.document.root,
            second=second,
            second_root=after.head.document.root,
            proof=proof,
        ):
            self._heads.prove(log, first, second)
            # What else waits was asked about beside a head that is not needed any more.
            self._ask(log)
        else:
            self.counters["ledger: a proof of consistency that is none"] += 1

    # Lies.

    def watch(self, state: NodeState, event: MessageArrived) -> None:
        """A peer's message about money, before it is taken: does it contradict what the peer signed before?"""
        if not isinstance(event.message, messages.ReceiptSent):
            return
        signed = event.message.receipt
        receipt = signed.document
        paying = state.paying.get(receipt.channel_id)
        if paying is None or paying.config.payee_signer != event.sender:
            return
        earlier = self._earlier(signed)
        if earlier is not None and receipt_digest(earlier.document) != receipt_digest(receipt):
            proof = TwoReceipts(currency=paying.currency, config=paying.config, first=earlier, second=signed)
            self.accuse(proof)
        twice: DeviceTwice | None = find_device_twice(state, event.sender, event.message)
        if twice is not None:
            self.accuse(twice)

    def _earlier(self, signed: Signed[Receipt]) -> Signed[Receipt] | None:
        """The receipt of the same place in the chain that was heard first."""
        receipt = signed.document
        key = (receipt.channel_id, receipt.seq)
        filed = self._ledger.find(FiledReceipt(receipt=signed, lines=(), evidence=()).id)
        if isinstance(filed, FiledReceipt):
            return filed.receipt
        known = self._receipts.setdefault(key, signed)
        while len(self._receipts) > MOST_RECEIPTS:
            self._receipts.popitem(last=False)
        return known

    def accuse(self, proof: Equivocation) -> None:
        """Keep a proof, and have the engine refuse its subject from now on."""
        account = self._heads.keep_proof(proof, self._now_ms())
        if account is not None:
            self._tell(EquivocationProven(account=account, words=in_words(proof), at_ms=self._now_ms()))
            self._hand_on(proof)


def refuse_rolled_back(ledger: LedgerStore, heads: HeadStore, account: bytes) -> None:
    """Let no daemon go on from an older or another ledger than it signed heads of: that would be a second history.

    Raises:
        OperatorError: the ledger is not the one of the newest head that was kept.
    """
    kept = heads.newest_proved(log_id_of(account))
    if kept is None:
        return
    said = kept.head.document
    if said.size > ledger.size or ledger.root_at(said.size) != said.root:
        raise OperatorError(
            f"the ledger has {ledger.size} records and is not the one of which {said.size} were signed for",
            "an older copy of ledger.sqlite was put back, or it was changed: restore the newest copy of the whole"
            " directory, and look with hansa ledger verify",
        )
