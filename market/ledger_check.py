"""Replay a whole ledger from its rows alone and say what holds: the order, the tree, every signature, every sum.

Nothing is believed that follows from a signature or a hash: what is written beside the documents is worked out again
and compared. The first place that is wrong is named by its position. What this cannot find out is a ledger that was
rolled back together with everything that its owner ever signed over it, or that never was shown to anybody: for that
it takes heads from elsewhere, those that peers hold.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hansa.market import ledger
from hansa.market.ledger import Entry, Ledger
from hansa.market.ledger_records import (
    FiledChannel,
    FiledClose,
    FiledCredit,
    FiledEnd,
    FiledNetting,
    FiledPayment,
    FiledReceipt,
    FiledVoucher,
    Record,
)
from hansa.market.receipts import NOTHING, receipt_digest, root_of
from hansa.proto.codec import decode
from hansa.proto.currency import currency_of
from hansa.proto.documents import ChannelConfig, Receipt, TreeHead, channel_id, log_id_of
from hansa.proto.errors import ProtocolError
from hansa.proto.keccak import keccak256
from hansa.proto.merkle_log import EMPTY_ROOT, Edge
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, check, signer_of
from hansa.proto.splits import Split, splits_hash
from hansa.proto.typed_data import Domain

LIMIT_BYTES = 1 << 20
OLDEST = 1
CHAIN, TREE, HEADS, SIGNATURES, TOTALS, BOOKS, ELSEWHERE = (
    "chain", "tree", "heads", "signatures", "totals", "books", "elsewhere",
)  # fmt: skip
ASPECTS = {
    CHAIN: "every record follows the one before it, and none is missing, changed or put in between",
    TREE: "the stored tree is the tree of these records",
    HEADS: "every head that this ledger signed is of these records",
    SIGNATURES: "every document is signed by the one whose word it is",
    TOTALS: "what rises only rises, receipts follow each other and vouchers pay for receipts",
    BOOKS: "the balances are those that follow from the documents",
    ELSEWHERE: "heads kept elsewhere are of these records",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One aspect of a ledger.

    Attributes:
        name: which.
        holds: whether.
        words: what holds, or what does not.
        position: the first record that is wrong, from 1; 0 where no record is.
    """

    name: str
    holds: bool
    words: str
    position: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a replay came to.

    Attributes:
        owner: whose ledger it is; empty where nothing says.
        records: how many records there are.
        documents: how many of them are signed documents.
        signatures: how many signatures were checked.
        root: the root of the tree over all records.
        findings: one for each aspect.
        books: the balances that follow from the entries.
    """

    owner: bytes
    records: int
    documents: int
    signatures: int
    root: bytes
    findings: tuple[Finding, ...]
    books: Ledger

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.holds for finding in self.findings)

    @property
    def first_fault(self) -> Finding | None:
        """The finding whose record comes first among those that are wrong."""
        faults = [finding for finding in self.findings if not finding.holds]
        return min(faults, key=lambda finding: finding.position or 1 << 64, default=None)


class _Channel:
    """What is known of one channel until now."""

    def __init__(self, config: ChannelConfig, domain: Domain) -> None:
        self.config, self.domain = config, domain
        self.receipt: Receipt | None = None
        self.receipts: dict[bytes, Receipt] = {}
        self.splits: tuple[Split, ...] = ()
        self.vouched = 0
        self.received = 0
        self.closed: int | None = None


class LedgerCheck:
    """The replay. Give it every row in order, then ask for the report."""

    def __init__(self, *, owner: bytes = b"", heads: Iterable[tuple[int, bytes]] = ()) -> None:
        """Args: whose ledger it is, where that is known; and the heads in it, as written: size and encoded head."""
        self.owner = owner
        self._faults: dict[str, tuple[str, int]] = {}
        self._chain, self._edge = NOTHING, Edge()
        self._sums: dict[str, int] = {}
        self._channels: dict[bytes, _Channel] = {}
        self._credits: dict[tuple[bytes, ...], int] = {}
        self._payments: dict[tuple[bytes, ...], tuple[int, int]] = {}
        self._nettings: dict[tuple[bytes, ...], tuple[int, int]] = {}
        self._expected: dict[bytes, tuple[tuple[str, int], ...]] = {}
        self._strange: list[int] = []
        self._entries: set[bytes] = set()
        self._documents = self._signatures = self._chain_ends = 0
        self._roots: dict[int, bytes] = {}
        self._heads = [self._read_head(size, body) for size, body in heads]
        self._sizes = {head.document.size for head in self._heads if head is not None}

    def _fault(self, aspect: str, words: str, position: int) -> None:
        self._faults.setdefault(aspect, (words, position))

    def _read_head(self, size: int, body: bytes) -> Signed[TreeHead] | None:
        try:
            head: Signed[TreeHead] = decode(body, Signed[TreeHead], limit_bytes=LIMIT_BYTES, oldest=OLDEST)
            signer = signer_of(DOMAIN, head)
        except ProtocolError as fault:
            self._fault(HEADS, f"the head of size {size} is unreadable: {fault}", size)
            return None
        self._signatures += 1
        self.owner = self.owner or signer
        if signer != self.owner or head.document.log_id != log_id_of(self.owner) or head.document.size != size:
            self._fault(HEADS, f"the head of size {size} is not this ledger's own", size)
        return head

    # Rows.

    def take(self, row: tuple[Any, Any, Any, Any], nodes: Iterator[tuple[int, bytes]] | None = None) -> None:
        """One more row: position, id, body and chain, as written. ``nodes`` are the stored nodes, all in order."""
        position, record_id, body, chain = row
        expected = self._edge.size + 1
        self._chain = keccak256(self._chain + body)
        if position != expected:
            self._fault(CHAIN, f"record {expected} is missing: the next one is numbered {position}", expected)
        elif chain != self._chain:
            self._fault(CHAIN, f"record {position} is not what was written there", position)
        for node in self._edge.append(body):
            if nodes is not None and (next(nodes, (0, b""))[1] != node):
                self._fault(TREE, f"the tree's nodes for record {expected} are not those of its bytes", expected)
        if expected in self._sizes:
            self._roots[expected] = self._edge.root
        try:
            record: Record = decode(body, Record, limit_bytes=LIMIT_BYTES, oldest=OLDEST)
        except (ProtocolError, AssertionError) as fault:
            self._fault(CHAIN, f"record {expected} is unreadable: {fault}", expected)
            return
        if record.id != record_id:
            self._fault(CHAIN, f"record {expected} stands under another id than its own", expected)
        self._read(record, expected)

    def _read(self, record: Record, at: int) -> None:
        if isinstance(record, Entry):
            self._post(record, at)
            return
        self._documents += 1
        try:
            match record:
                case FiledChannel():
                    domain = currency_of(record.currency).domain
                    channel = _Channel(record.config, domain)
                    self._channels.setdefault(channel_id(domain, record.config), channel)
                    self._take_splits(record, at)
                case FiledReceipt():
                    self._receipt(record, at)
                case FiledVoucher():
                    self._voucher(record, at)
                case FiledClose():
                    self._close(record, at)
                case FiledEnd():
                    self._end(record, at)
                case FiledCredit(line=line):
                    self._signed(DOMAIN, line, line.document.creditor)
                    key = (line.document.creditor, line.document.debtor, line.document.unit)
                    self._rises(self._credits, key, line.document.nonce, "a credit line", at)
                case FiledPayment():
                    self._payment(record, at)
                case FiledNetting():
                    self._netting(record, at)
        except ProtocolError as fault:
            self._fault(SIGNATURES, f"record {at}: {fault}", at)

    def _signed(self, domain: Domain, signed: Signed[Any], signer: bytes) -> None:
        self._signatures += 1
        check(domain, signed, signer)

    def _take_splits(self, filed: FiledChannel, at: int) -> None:
        if splits_hash(filed.splits) != filed.config.splits_hash:
            self._fault(SIGNATURES, f"record {at}: these are not the splits that the channel's config names", at)
            return
        self._channels[channel_id(currency_of(filed.currency).domain, filed.config)].splits = filed.splits

    def _channel(self, key: bytes, what: str, at: int) -> _Channel | None:
        channel = self._channels.get(key)
        if channel is None:
            self._fault(SIGNATURES, f"record {at}: {what} is of a channel that is not filed", at)
        return channel

    def _receipt(self, filed: FiledReceipt, at: int) -> None:
        receipt = filed.receipt.document
        channel = self._channel(receipt.channel_id, "a receipt", at)
        if channel is None:
            return
        self._signed(DOMAIN, filed.receipt, channel.config.payee_signer)
        last, channel.receipt = channel.receipt, receipt
        channel.receipts[receipt_digest(receipt)] = receipt
        follows = (1, NOTHING, 0) if last is None else (last.seq + 1, receipt_digest(last), last.amount_total)
        if (receipt.seq, receipt.prev) != follows[:2] or receipt.amount_total < follows[2]:
            self._fault(TOTALS, f"record {at}: receipt {receipt.seq} does not follow the one before it", at)
        if receipt.lines_root != root_of(filed.lines) or receipt.evidence != root_of(filed.evidence):
            self._fault(TOTALS, f"record {at}: these are not the lines that receipt {receipt.seq} commits to", at)
        if receipt.amount_total != sum(line.amount for line in filed.lines):
            self._fault(TOTALS, f"record {at}: the total of receipt {receipt.seq} is not the sum of its lines", at)

    def _voucher(self, filed: FiledVoucher, at: int) -> None:
        voucher = filed.voucher.document
        channel = self._channel(voucher.channel_id, "a voucher", at)
        if channel is None:
            return
        self._signed(channel.domain, filed.voucher, channel.config.payer_signer)
        receipt = channel.receipts.get(voucher.statement)
        if receipt is None and voucher.statement != NOTHING:
            self._fault(TOTALS, f"record {at}: a voucher for a receipt that is not filed", at)
        if voucher.cumulative < max(channel.vouched, receipt.amount_total if receipt else 0):
            self._fault(TOTALS, f"record {at}: a voucher for less than was vouched for, or than its receipt", at)
        elif receipt is not None:
            self._expect_voucher(channel, receipt)
            channel.received = max(channel.received, receipt.amount_total)
        # What it says beyond its receipt is paid ahead: a promise, and no entry until a receipt uses it.
        channel.vouched = max(channel.vouched, voucher.cumulative)

    def _expect_voucher(self, channel: _Channel, receipt: Receipt) -> None:
        config, key, seq = channel.config, receipt.channel_id, receipt.seq
        before = ledger.parts_of(channel.received, channel.splits, config.payee)
        after = ledger.parts_of(receipt.amount_total, channel.splits, config.payee)
        own = ledger.payees_part(receipt.amount_total, channel.splits)
        rise = own - ledger.payees_part(channel.received, channel.splits)
        to_provider = ledger.entry_id(b"vouched to provider", key, seq)
        by_buyer = ledger.entry_id(b"vouched by buyer", key, seq)
        self._expected.setdefault(to_provider, ((f"due:{config.payer.hex()}", rise),))
        owed = tuple((f"owed:{who.hex()}", before[who] - part) for who, part in after.items() if part != before[who])
        self._expected.setdefault(by_buyer, owed)

    def _close(self, filed: FiledClose, at: int) -> None:
        close = filed.by_payer.document
        channel = self._channel(close.channel_id, "a close", at)
        if channel is None:
            return
        self._signed(channel.domain, filed.by_payer, channel.config.payer_signer)
        self._signed(channel.domain, filed.by_payee, channel.config.payee_signer)
        if filed.by_payee.document != close or close.cumulative != channel.received:
            self._fault(TOTALS, f"record {at}: a channel closed at another sum than was vouched for", at)
        channel.closed = close.cumulative
        self._expect_close(close.channel_id, channel, close.cumulative)

    def _expect_close(self, key: bytes, channel: _Channel, cumulative: int) -> None:
        config, splits = channel.config, channel.splits
        for entry in (
            ledger.closed_to_provider(
                channel_id=key, buyer=config.payer, cumulative=cumulative, at_ms=0, splits=splits
            ),
            ledger.closed_by_buyer(
                channel_id=key, provider=config.payee, cumulative=cumulative, at_ms=0, splits=splits
            ),
        ):
            self._expect(entry)

    def _end(self, filed: FiledEnd, at: int) -> None:
        """What a chain paid. No signature but the owner's own stands behind it, so it is counted and said."""
        end, domain = filed.end.document, currency_of(filed.currency).domain
        channel = self._channel(end.channel_id, "an end", at)
        if channel is None:
            return
        if not currency_of(filed.currency).is_on_chain or domain != channel.domain:
            self._fault(SIGNATURES, f"record {at}: an end by a chain, of a channel on no chain or on another", at)
            return
        config = channel.config
        parties = {config.payer, config.payer_signer, config.payee, config.payee_signer}
        signer = signer_of(domain, filed.end)
        self._signatures += 1
        self._chain_ends += 1
        if signer not in parties or self.owner not in (b"", signer):
            self._fault(SIGNATURES, f"record {at}: the end of a channel by somebody else's word", at)
            return
        received = min(end.paid, channel.received)
        if channel.closed is None:
            channel.closed = received
            self._expect_close(end.channel_id, channel, received)
        beyond = ledger.payees_part(end.paid, channel.splits) - ledger.payees_part(received, channel.splits)
        lost = end.paid - channel.received
        key = end.channel_id
        if beyond:
            self._expect(ledger.kept(channel_id=key, buyer=config.payer, amount=beyond, at_ms=0))
        if lost > 0:
            self._expect(ledger.forfeited(channel_id=key, provider=config.payee, amount=lost, at_ms=0))

    def _payment(self, filed: FiledPayment, at: int) -> None:
        said = filed.payment.document
        self._signed(DOMAIN, filed.payment, said.creditor)
        nonce, total = self._payments.get((said.creditor, said.debtor, said.unit), (0, 0))
        # A debtor may not have heard of each: the next one says again all that was paid.
        if said.nonce <= nonce or said.total <= total:
            self._fault(TOTALS, f"record {at}: payment {said.nonce} does not follow the one before it", at)
        self._payments[said.creditor, said.debtor, said.unit] = (said.nonce, said.total)
        unit, nonce, rise = said.unit, said.nonce, max(0, said.total - total)
        to = ledger.paid_to_provider(debtor=said.debtor, unit=unit, nonce=nonce, amount=rise, how="", at_ms=0)
        by = ledger.paid_by_buyer(creditor=said.creditor, unit=unit, nonce=nonce, amount=rise, how="", at_ms=0)
        # An owner may be both: the other side's entry of another payment has the same name as its own.
        if self.owner in (b"", said.creditor):
            self._expect(to)
        if self.owner in (b"", said.debtor):
            self._expect(by)

    def _netting(self, filed: FiledNetting, at: int) -> None:
        said = filed.by_lower.document
        self._signed(DOMAIN, filed.by_lower, said.lower)
        self._signed(DOMAIN, filed.by_higher, said.higher)
        nonce, total = self._nettings.get((said.lower, said.higher, said.unit), (0, 0))
        if filed.by_higher.document != said or said.nonce != nonce + 1 or said.total <= total:
            self._fault(TOTALS, f"record {at}: netting {said.nonce} does not follow the one before it", at)
        self._nettings[said.lower, said.higher, said.unit] = (said.nonce, said.total)
        for peer in (said.lower, said.higher):
            entry = ledger.netted(peer=peer, unit=said.unit, nonce=said.nonce, amount=said.total - total, at_ms=0)
            self._expect(entry)

    def _rises(self, known: dict[tuple[bytes, ...], int], key: tuple[bytes, ...], to: int, what: str, at: int) -> None:
        if to <= known.get(key, 0):
            self._fault(TOTALS, f"record {at}: {what} with a number that is not above the last one's", at)
        known[key] = to

    # Books.

    def _expect(self, entry: Entry) -> None:
        self._expected.setdefault(entry.id, tuple((leg.account, leg.amount) for leg in entry.legs))

    def _post(self, entry: Entry, at: int) -> None:
        for leg in entry.legs:
            self._sums[leg.account] = self._sums.get(leg.account, 0) + leg.amount
        if entry.id in self._entries:
            self._fault(BOOKS, f"record {at}: an entry that was posted before", at)
        self._entries.add(entry.id)
        expected = self._expected.get(entry.id)
        if expected is None:
            self._strange.append(at)
            return
        legs = {leg.account: leg.amount for leg in entry.legs}
        if any(legs.get(account) != amount for account, amount in expected):
            self._fault(BOOKS, f"record {at}: {entry.memo!r} is not what its documents say", at)

    def _balances(self) -> Mapping[str, int]:
        """The balances that follow from the documents alone."""
        found: dict[str, int] = {}

        def add(account: str, who: bytes, amount: int) -> None:
            name = f"{account}:{who.hex()}"
            found[name] = found.get(name, 0) + amount

        for channel in self._channels.values():
            config, closed = channel.config, channel.closed or 0
            if self.owner in (config.payee, config.payee_signer):
                own = ledger.payees_part(closed, channel.splits)
                add("due", config.payer, ledger.payees_part(channel.received, channel.splits) - own)
                add("settled", config.payer, own)
            if self.owner in (config.payer, config.payer_signer):
                received = ledger.parts_of(channel.received, channel.splits, config.payee)
                for who, part in ledger.parts_of(closed, channel.splits, config.payee).items():
                    add("owed", who, part - received[who])
                    add("paid", who, -part)
        for (creditor, debtor, _), (_, total) in self._payments.items():
            if creditor == self.owner:
                add("received", debtor, total)
                add("acknowledged", debtor, -total)
            if debtor == self.owner:
                add("remitted", creditor, -total)
                add("acquitted", creditor, total)
        for (lower, higher, _), (_, total) in self._nettings.items():
            peer = higher if lower == self.owner else lower
            add("acknowledged", peer, -total)
            add("acquitted", peer, total)
        return found

    def _check_books(self) -> None:
        if not self.owner:
            if self._entries:
                self._fault(BOOKS, "nobody's: no head says whose ledger this is, so say whose it is", 0)
            return
        follows = self._balances()
        places = {name.split(":")[0] for name in follows} | {
            "due", "settled", "owed", "paid", "received", "acknowledged", "remitted", "acquitted",
        }  # fmt: skip
        names = {name for name in self._sums if name.split(":")[0] in places} | set(follows)
        wrong = sorted(name for name in names if self._sums.get(name, 0) != follows.get(name, 0))
        if wrong:
            name, at = wrong[0], next(iter(self._strange), 0)
            written, right = self._sums.get(name, 0), follows.get(name, 0)
            more = f" (record {at} has no document behind it)" if at else ""
            self._fault(BOOKS, f"{name} stands at {written} and its documents come to {right}{more}", at)
        if sum(self._sums.values()):
            self._fault(BOOKS, "the entries do not sum to zero", 0)

    # The end.

    def _root_of(self, size: int) -> bytes | None:
        return EMPTY_ROOT if size == 0 else self._roots.get(size)

    def _check_heads(self) -> None:
        size = self._edge.size
        for head in self._heads:
            if head is None:
                continue
            said = head.document
            if said.size > size:
                words = f"records {size + 1} to {said.size} are gone: a signed head in the file is of {said.size}"
                self._fault(HEADS, words, size + 1)
            elif self._root_of(said.size) != said.root:
                self._fault(HEADS, f"the signed head of size {said.size} is of other records", said.size)

    def report(
        self,
        *,
        elsewhere: Iterable[Signed[TreeHead]] = (),
        nodes: Iterator[tuple[int, bytes]] | None = None,
    ) -> Report:
        """What it all came to.

        Args:
            elsewhere: heads that others keep, of this ledger or of any other; those that ``want_roots`` was told of.
            nodes: what is left of the stored nodes.
        """
        if nodes is not None and next(nodes, None) is not None:
            self._fault(TREE, "more nodes are stored than these records have", 0)
        self._check_heads()
        self._check_books()
        counted = self._check_elsewhere(elsewhere)
        words = dict(ASPECTS)
        words[HEADS] += f" ({len(self._heads)} of them)"
        words[SIGNATURES] += f" ({self._signatures} checked)"
        if self._chain_ends:
            words[BOOKS] += f"; of {self._chain_ends} ends of channels there is this node's own word: ask their chain"
        words[ELSEWHERE] += f" ({counted} of them)" if counted else ": none was given"
        findings = []
        for aspect in ASPECTS:
            fault = self._faults.get(aspect)
            if fault is None:
                findings.append(Finding(name=aspect, holds=True, words=words[aspect]))
            else:
                findings.append(Finding(name=aspect, holds=False, words=fault[0], position=fault[1]))
        return Report(
            owner=self.owner,
            records=self._edge.size,
            documents=self._documents,
            signatures=self._signatures,
            root=self._edge.root,
            findings=tuple(findings),
            books=Ledger(balances=self._sums, entries=len(self._entries)),
        )

    def want_roots(self, heads: Iterable[Signed[TreeHead]]) -> None:
        """Remember the roots at the sizes of these heads too. Before the first row."""
        self._sizes |= {head.document.size for head in heads}

    def _check_elsewhere(self, heads: Iterable[Signed[TreeHead]]) -> int:
        size, counted = self._edge.size, 0
        for head in heads:
            said = head.document
            try:
                signer = signer_of(DOMAIN, head)
            except ProtocolError:
                continue
            if not self.owner or signer != self.owner or said.log_id != log_id_of(self.owner):
                continue
            counted += 1
            if said.size > size:
                words = f"rolled back: {said.size} records were signed for, and here are {size}"
                self._fault(ELSEWHERE, words, size + 1)
                continue
            if self._root_of(said.size) != said.root:
                words = f"another history: the first {said.size} records are not those that were signed for"
                self._fault(ELSEWHERE, words, said.size)
        return counted


def check_ledger(
    rows: Iterable[tuple[Any, Any, Any, Any]],
    *,
    owner: bytes = b"",
    heads: Iterable[tuple[int, bytes]] = (),
    nodes: Iterable[tuple[int, bytes]] | None = None,
    elsewhere: Iterable[Signed[TreeHead]] = (),
) -> Report:
    """Replay a ledger and say what holds.

    Args:
        rows: position, id, body and chain of every record, as written, in order.
        owner: whose ledger it is, where that is known; else the first head in it says.
        heads: the heads in it, as written: size and encoded head.
        nodes: the stored nodes of its tree, as written, in order.
        elsewhere: heads that others keep.
    """
    kept = tuple(elsewhere)
    replay = LedgerCheck(owner=owner, heads=heads)
    replay.want_roots(kept)
    stored = iter(nodes) if nodes is not None else None
    for row in rows:
        replay.take(row, stored)
    return replay.report(elsewhere=kept, nodes=stored)
