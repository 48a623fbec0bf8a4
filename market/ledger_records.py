"""What a node's ledger holds: the signed documents that money follows from, and the entries that count it.

The documents come first: they are enough to work every balance out again, from signatures alone
(``hansa.market.ledger_check``). A document that this node signs itself is filed before it is sent.
"""

from dataclasses import dataclass
from typing import Any

from hansa.market.effects import unsigned
from hansa.market.ledger import Entry
from hansa.proto.currency import currency_of
from hansa.proto.documents import (
    ChannelConfig,
    ChannelEnd,
    CooperativeClose,
    CreditLine,
    MeterLine,
    Netting,
    Payment,
    Receipt,
    Voucher,
    channel_id,
)
from hansa.proto.keccak import keccak256
from hansa.proto.market_documents import Evidence
from hansa.proto.signing import Signed
from hansa.proto.splits import Split
from hansa.proto.units import Amount, Line


def _id(what: bytes, *parts: bytes) -> bytes:
    return keccak256(b"\0".join((b"hansa filed", what, *parts)))


def _number(value: int) -> bytes:
    return value.to_bytes(16, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledChannel:
    """A channel's config. Its digest is what vouchers name, so a signature on one of them holds for it too.

    The config names the hash of the splits, so that holds for them as well.
    """

    currency: Line
    config: ChannelConfig
    splits: tuple[Split, ...] = ()

    @property
    def id(self) -> bytes:
        """Follows from the config."""
        return _id(b"channel", channel_id(currency_of(self.currency).domain, self.config))


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledReceipt:
    """A receipt with all that its roots commit to. By the payee's signer.

    A payer files those that it vouches for, a payee all that it sends.
    """

    receipt: Signed[Receipt]
    lines: tuple[MeterLine, ...]
    evidence: tuple[Evidence, ...]

    @property
    def id(self) -> bytes:
        """Follows from channel and number: there is one receipt for each."""
        return _id(b"receipt", self.receipt.document.channel_id, _number(self.receipt.document.seq))


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledVoucher:
    """A voucher. By the payer's signer."""

    currency: Line
    voucher: Signed[Voucher]

    @property
    def id(self) -> bytes:
        """Follows from all that it says."""
        said = self.voucher.document
        return _id(b"voucher", said.channel_id, _number(said.cumulative), said.statement)


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledClose:
    """Both sides' word on a channel's end.

    Attributes:
        currency: of the channel.
        by_payer: the payer's signer's.
        by_payee: the payee's signer's.
        how: how the sum is paid, in words.
    """

    currency: Line
    by_payer: Signed[CooperativeClose]
    by_payee: Signed[CooperativeClose]
    how: Line

    @property
    def id(self) -> bytes:
        """Follows from channel and sum."""
        said = self.by_payer.document
        return _id(b"close", said.channel_id, _number(said.cumulative))


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledCredit:
    """A credit line. By the creditor."""

    line: Signed[CreditLine]

    @property
    def id(self) -> bytes:
        """Follows from the parties, the unit and the number."""
        line = self.line.document
        return _id(b"credit", line.creditor, line.debtor, line.unit, _number(line.nonce))


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledPayment:
    """A payment outside, acknowledged. By the creditor."""

    payment: Signed[Payment]

    @property
    def id(self) -> bytes:
        """Follows from the parties, the unit and the number."""
        payment = self.payment.document
        return _id(b"payment", payment.creditor, payment.debtor, payment.unit, _number(payment.nonce))


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledNetting:
    """Debts that cancel out. By both."""

    by_lower: Signed[Netting]
    by_higher: Signed[Netting]

    @property
    def id(self) -> bytes:
        """Follows from the parties, the unit and the number."""
        netting = self.by_lower.document
        return _id(b"netting", netting.lower, netting.higher, netting.unit, _number(netting.nonce))


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledEnd:
    """What a chain paid on a channel. By the node whose ledger it is: the chain itself signs nothing."""

    currency: Line
    end: Signed[ChannelEnd]

    @property
    def id(self) -> bytes:
        """Follows from the channel: a chain ends it once."""
        return _id(b"end", self.end.document.channel_id)


Filed = FiledChannel | FiledReceipt | FiledVoucher | FiledClose | FiledCredit | FiledPayment | FiledNetting | FiledEnd
Record = (
    Entry
    | FiledChannel
    | FiledReceipt
    | FiledVoucher
    | FiledClose
    | FiledCredit
    | FiledPayment
    | FiledNetting
    | FiledEnd
)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """Effect: put a document into the ledger. What is unsigned in it is this node's to sign."""

    filed: Any


def ended_by_chain(
    currency: str, config: ChannelConfig, splits: tuple[Split, ...], end: ChannelEnd, *, due: Amount
) -> tuple[File, ...]:
    """What stands behind the entries of a channel that its chain has ended. The channel first, as it may be new.

    ``due`` is what was vouched for with a receipt: that nothing of it was paid is worth a document as well.
    """
    if not (end.paid or due) or not currency_of(currency).is_on_chain:
        return ()
    channel = FiledChannel(currency=currency, config=config, splits=splits)
    return File(filed=channel), File(filed=FiledEnd(currency=currency, end=unsigned(end)))
