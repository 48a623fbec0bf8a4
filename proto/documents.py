"""The signed documents of settlement: channels, vouchers, receipts, credit, and who speaks for whom.

The market's own documents (adverts, tenders, bids, declines, awards) are in ``hansa.proto.market_documents``. Nothing
about a field may change without a new domain version: name, type and order are part of what is signed, and the first
three documents are checked by the escrow contract, which cannot change.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from hansa.proto.keccak import keccak256
from hansa.proto.typed_data import Domain, digest
from hansa.proto.units import (
    Address,
    Amount,
    AtMost,
    Bytes32,
    DeviceMs,
    Line,
    Uint32,
    Uint64,
    UnixMs,
)

LEDGER_NAME: Final = "HansaLedger"
ESCROW_NAME: Final = "HansaEscrow"
DOMAIN_VERSION: Final = "1"
PEER_ID_LIMIT_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """What a channel is, for good. Its digest is the channel's id, so nothing in it can ever be changed.

    Attributes:
        payer: the buyer's account, whose deposit or credit pays.
        payer_signer: the key that signs vouchers for the payer; never zero.
        payee: the provider's account, the only one that claims can pay.
        payee_signer: the key that may close for the payee.
        token: the token's contract; on the ledger backend the unit's id in 20 bytes.
        challenge_period: seconds between a close asked for by the payer and the end of the channel.
        splits_hash: keccak256 of the splits (royalties and fee), which the claim must reveal; zero for none.
        salt: 32 random bytes, so that the same two parties can open another channel.
    """

    payer: Address
    payer_signer: Address
    payee: Address
    payee_signer: Address
    token: Address
    challenge_period: Uint64
    splits_hash: Bytes32
    salt: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """The buyer's signed running total of what it pays on a channel. Signed by the payer's signer.

    Attributes:
        channel_id: the digest of the channel's config.
        cumulative: everything paid since the channel opened; it only rises.
        statement: the digest of the receipt that it pays for.
    """

    channel_id: Bytes32
    cumulative: Amount
    statement: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class CooperativeClose:
    """Both sides' word that a channel ends at once with this total. Signed by both signers."""

    channel_id: Bytes32
    cumulative: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterLine:
    """What one device did for one shard of one lease so far; a leaf of the receipt's tree of lines.

    Attributes:
        lease: the digest of the lease's award.
        shard: the shard's number within the job.
        device: keccak256 of the device's lasting identity.
        start_ms: when metering of this line began.
        end_ms: until when it is metered.
        device_ms: device-milliseconds metered since ``start_ms``, on a part of a device that part of them; cumulative.
        amount: what they cost at the lease's price; cumulative.
    """

    lease: Bytes32
    shard: Uint32
    device: Bytes32
    start_ms: UnixMs
    end_ms: UnixMs
    device_ms: DeviceMs
    amount: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The provider's signed running total of metered work on a channel; the newest replaces all before it.

    Attributes:
        channel_id: the digest of the channel's config.
        seq: one more than the receipt before it, though that be one that was given up for this; the first is 1.
        prev: the digest of the newest receipt before it that was vouched for; zero where none was.
        period_start_ms: where the period since the receipt before it begins.
        period_end_ms: where the period ends.
        amount_total: everything owed since the channel opened; it only rises.
        lines: how many meter lines there are.
        lines_root: the root of the tree over their struct hashes (``hansa.proto.merkle``).
        evidence: the hash of what was delivered in the period.
    """

    channel_id: Bytes32
    seq: Uint64
    prev: Bytes32
    period_start_ms: UnixMs
    period_end_ms: UnixMs
    amount_total: Amount
    lines: Uint32
    lines_root: Bytes32
    evidence: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBinding:
    """An account and a node's key saying of each other that the node acts for the account. Signed by both.

    Attributes:
        account: the account's address.
        peer_id: the node's libp2p peer id, as its multihash bytes; it holds the node's public key.
        roles: what the node may do for the account, as a bit set (``hansa.proto.binding.Role``).
        spend_limit: what the node says that it would spend on one job at the most. Nobody holds it to that.
        not_before: from when it holds, in ms UTC.
        not_after: until when it holds, in ms UTC.
        epoch: the account's counter: a binding with a higher epoch replaces those with a lower one.
    """

    account: Address
    peer_id: Annotated[bytes, AtMost(PEER_ID_LIMIT_BYTES)]
    roles: Bytes32
    spend_limit: Amount
    not_before: UnixMs
    not_after: UnixMs
    epoch: Uint64


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHead:
    """A ledger's word on what its whole history is at one size. Two heads of one size with two roots prove a lie."""

    log_id: Bytes32
    size: Uint64
    root: Bytes32
    timestamp_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditLine:
    """How much a creditor lets a debtor owe on the ledger backend. Signed by the creditor.

    Attributes:
        creditor: who gives the credit: the provider's account.
        debtor: who gets it: the buyer's account.
        unit: the id of the currency.
        limit: the most that the debtor may owe.
        not_after: until when new debt may be made under it, in ms UTC.
        nonce: a line with a higher nonce replaces those with a lower one.
    """

    creditor: Address
    debtor: Address
    unit: Bytes32
    limit: Amount
    not_after: UnixMs
    nonce: Uint64


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """How much a debtor has paid outside, in all and for ever, by its creditor's word. Signed by the creditor.

    The ledger moves no money. Whoever is owed says here what has reached them, and can never say less again.

    Attributes:
        creditor: who was paid.
        debtor: who paid.
        unit: the id of the currency.
        total: everything ever paid between the two in it; it only rises.
        how: the last payment in words: by what means, and a reference.
        nonce: one more than the payment before it; the first is 1.
        paid_ms: when the creditor acknowledged it, in ms UTC.
    """

    creditor: Address
    debtor: Address
    unit: Bytes32
    total: Amount
    how: Line
    nonce: Uint64
    paid_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelEnd:
    """What a chain paid on a channel in all, by the word of a node that saw it there. Signed by that node.

    It stands where no other signature does: behind what a chain did without both sides' agreement. Anyone can hold it
    against the chain, since the escrow that the channel's currency names keeps the sum for ever.

    Attributes:
        channel_id: the channel.
        paid: what it paid in all, splits and fee counted in.
        settled_ms: when the node saw it as final, in ms UTC.
    """

    channel_id: Bytes32
    paid: Amount
    settled_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Netting:
    """How much of what two accounts owe each other cancels out, in all and for ever. Signed by both.

    Attributes:
        lower: the account whose bytes come first.
        higher: the other one.
        unit: the id of the currency.
        total: everything ever netted between the two in it; it only rises.
        nonce: one more than the netting before it; the first is 1.
    """

    lower: Address
    higher: Address
    unit: Bytes32
    total: Amount
    nonce: Uint64


def log_id_of(account: bytes) -> bytes:
    """The id of an account's ledger, as its tree heads name it."""
    return account.rjust(32, b"\0")


def ledger_domain(genesis_hash: bytes) -> Domain:
    """The domain of the ledger backend of one network, which its genesis hash (32 bytes) names.

    There is no contract, so its place holds a hash: a voucher for one network is worth nothing in another.
    """
    if type(genesis_hash) is not bytes or len(genesis_hash) != 32:
        raise ValueError("a network's genesis hash is exactly 32 bytes")
    return Domain(
        name=LEDGER_NAME,
        version=DOMAIN_VERSION,
        chain_id=0,
        verifying_contract=keccak256(b"hansa-ledger-v1" + genesis_hash)[-20:],
    )


def escrow_domain(chain_id: int, escrow: bytes) -> Domain:
    """The domain of the escrow contract at an address (20 bytes) of a chain."""
    if chain_id == 0:
        raise ValueError("chain id 0 is the ledger's: a real chain has another")
    return Domain(name=ESCROW_NAME, version=DOMAIN_VERSION, chain_id=chain_id, verifying_contract=escrow)


def channel_id(domain: Domain, config: ChannelConfig) -> bytes:
    """A channel's id: the full digest of its config, so it also binds the chain and the contract."""
    return digest(domain, config)
