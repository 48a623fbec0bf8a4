"""Replay the signed documents of a ledger: every signature, what follows what, and the sums that come of it.

Nothing is believed that is written beside the documents. What they come to, entry by entry and balance by balance, is
for ``hansa.market.ledger_check`` to compare with what is written.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hansa.market import ledger
from hansa.market.ledger import Entry
from hansa.market.ledger_records import (
    Filed,
    FiledChannel,
    FiledClose,
    FiledCredit,
    FiledEnd,
    FiledNetting,
    FiledPayment,
    FiledReceipt,
    FiledVoucher,
)
from hansa.market.receipts import NOTHING, receipt_digest, root_of
from hansa.proto.currency import currency_of
from hansa.proto.documents import ChannelConfig, Receipt, channel_id
from hansa.proto.errors import ProtocolError
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, check, signer_of
from hansa.proto.splits import Split, splits_hash
from hansa.proto.typed_data import Domain

SIGNATURES, TOTALS = "signatures", "totals"
"""What may be wrong with a document: whose word it is, or what it says."""


class _Channel:
    """What is known of one channel until now."""

    def __init__(self, config: ChannelConfig, domain: Domain) -> None:
        self.config, self.domain = config, domain
        self.receipt: Receipt | None = None
        self.paid: Receipt | None = None
        self.receipts: dict[bytes, Receipt] = {}
        self.splits: tuple[Split, ...] = ()
        self.vouched = 0
        self.received = 0
        self.closed: int | None = None
        self.ended = False


class DocumentReplay:
    """Every document in its order. What is wrong with one is told to ``fault``: the aspect, words, and its position.

    Attributes:
        owner: whose ledger it is; empty where nothing says.
        expected: what the legs of an entry must be, by its id, for each that follows from documents.
        documents: how many there were.
        signatures: how many signatures were checked.
        chain_ends: how many channels a chain ended, by nobody's word but the owner's.
    """

    def __init__(self, owner: bytes, fault: Callable[[str, str, int], None]) -> None:
        """Nothing was read yet."""
        self.owner = owner
        self.expected: dict[bytes, tuple[tuple[str, int], ...]] = {}
        self.documents = self.signatures = self.chain_ends = 0
        self._fault = fault
        self._channels: dict[bytes, _Channel] = {}
        self._credits: dict[tuple[bytes, ...], int] = {}
        self._payments: dict[tuple[bytes, ...], tuple[int, int]] = {}
        self._nettings: dict[tuple[bytes, ...], tuple[int, int]] = {}

    def read(self, record: Filed, at: int) -> None:
        """One more document."""
        self.documents += 1
        try:
            match record:
                case FiledChannel():
                    currency = currency_of(record.currency)
                    if record.config.token != currency.token:
                        self._fault(SIGNATURES, f"record {at}: a channel in another currency than its config names", at)
                    channel = _Channel(record.config, currency.domain)
                    self._channels.setdefault(channel_id(currency.domain, record.config), channel)
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
        self.signatures += 1
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
        # A receipt that is never paid, since its buyer asked for another one instead, leaves a gap: the next has a
        # number of its own, and follows the same one as that did.
        paid = channel.paid
        prev, least = (NOTHING, 0) if paid is None else (receipt_digest(paid), paid.amount_total)
        if receipt.seq <= (last.seq if last else 0) or receipt.prev != prev or receipt.amount_total < least:
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
            channel.paid = receipt
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
        self.expected.setdefault(to_provider, ((f"due:{config.payer.hex()}", rise),))
        owed = tuple((f"owed:{who.hex()}", before[who] - part) for who, part in after.items() if part != before[who])
        self.expected.setdefault(by_buyer, owed)

    def _close(self, filed: FiledClose, at: int) -> None:
        close = filed.by_payer.document
        channel = self._channel(close.channel_id, "a close", at)
        if channel is None:
            return
        self._signed(channel.domain, filed.by_payer, channel.config.payer_signer)
        self._signed(channel.domain, filed.by_payee, channel.config.payee_signer)
        if filed.by_payee.document != close or close.cumulative != channel.received:
            self._fault(TOTALS, f"record {at}: a channel closed at another sum than was vouched for", at)
        if channel.ended:
            return  # its chain has paid already, and no word of the two changes what that was
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

    def _expect_short(self, key: bytes, channel: _Channel, paid: int) -> None:
        config, closed, splits = channel.config, channel.closed or 0, channel.splits
        for entry in (
            ledger.unreceived_by_provider(
                channel_id=key, buyer=config.payer, closed=closed, paid=paid, at_ms=0, splits=splits
            ),
            ledger.unpaid_by_buyer(
                channel_id=key, provider=config.payee, closed=closed, paid=paid, at_ms=0, splits=splits
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
        self.signatures += 1
        self.chain_ends += 1
        if signer not in parties or self.owner not in (b"", signer):
            self._fault(SIGNATURES, f"record {at}: the end of a channel by somebody else's word", at)
            return
        received, channel.ended = min(end.paid, channel.received), True
        if channel.closed is None:
            channel.closed = received
            self._expect_close(end.channel_id, channel, received)
        elif received < channel.closed:
            self._expect_short(end.channel_id, channel, received)
            channel.closed = received
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

    def _expect(self, entry: Entry) -> None:
        self.expected.setdefault(entry.id, tuple((leg.account, leg.amount) for leg in entry.legs))

    def balances(self) -> Mapping[str, int]:
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
