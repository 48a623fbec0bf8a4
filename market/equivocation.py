"""Two signed objects that one honest party would never both sign: a lie that anyone can check, offline and for ever.

Each kind of proof carries all that its check needs and nothing is believed but signatures and hashes. What a proof
says is not that somebody lost money, but that one of two signed words is false, whoever holds them.
"""

from dataclasses import dataclass

from hansa.market.receipts import charged_twice, receipt_digest
from hansa.proto.currency import currency_of
from hansa.proto.documents import ChannelConfig, MeterLine, Receipt, TreeHead, channel_id, log_id_of
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import Award, Bid
from hansa.proto.merkle import is_included
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, check, checksum_address
from hansa.proto.typed_data import digest, struct_hash
from hansa.proto.units import Address, Bytes32, Line, Uint32


class NoProof(ProtocolError):
    """It is signed and well-formed, and proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoReceipts:
    """One place in a channel's chain of receipts, and two receipts for it: the chain was forked.

    Attributes:
        currency: of the channel.
        config: the channel; it names who signs its receipts.
        first: one receipt.
        second: the other one, of the same number.
    """

    currency: Line
    config: ChannelConfig
    first: Signed[Receipt]
    second: Signed[Receipt]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoHeads:
    """Two histories of one ledger, of one size: somebody was shown another past than somebody else."""

    first: Signed[TreeHead]
    second: Signed[TreeHead]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredUse:
    """What a provider charged for the devices of one lease.

    Attributes:
        currency: of the channel.
        config: the channel.
        receipt: the receipt.
        line: the lease's line in it.
        index: which line of the receipt it is, from 0.
        path: the proof that it is.
        award: the award whose digest is the lease.
        bid: the bid whose digest the award names; it names the devices.
    """

    currency: Line
    config: ChannelConfig
    receipt: Signed[Receipt]
    line: MeterLine
    index: Uint32
    path: tuple[Bytes32, ...]
    award: Award
    bid: Bid


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTwice:
    """One device, charged on two leases for more time than passed."""

    device: Bytes32
    one: MeteredUse
    other: MeteredUse


Equivocation = TwoReceipts | TwoHeads | DeviceTwice


def accused(proof: Equivocation) -> Address:
    """Whom it proves to have lied.

    Raises:
        ProtocolError: it is no proof.
    """
    match proof:
        case TwoReceipts():
            return _two_receipts(proof)
        case TwoHeads():
            return _two_heads(proof)
        case DeviceTwice():
            return _device_twice(proof)


def proof_id(proof: Equivocation) -> bytes:
    """What tells lies apart: two proofs of one lie need not both be kept."""
    match proof:
        case TwoReceipts(first=first):
            return first.document.channel_id[:24] + first.document.seq.to_bytes(8, "big")
        case TwoHeads(first=first):
            return first.document.log_id[12:] + first.document.size.to_bytes(12, "big")
        case DeviceTwice(device=device, one=one, other=other):
            return digest(DOMAIN, one.award)[:11] + digest(DOMAIN, other.award)[:11] + device[:10]


def in_words(proof: Equivocation) -> str:
    """What was done, for a person."""
    match proof:
        case TwoReceipts(first=first):
            said = first.document
            return f"signed two receipts number {said.seq} on channel {said.channel_id.hex()[:16]}"
        case TwoHeads(first=first):
            said_head = first.document
            log = checksum_address(said_head.log_id[12:])
            return f"signed two histories of {said_head.size} records of the ledger of {log}"
        case DeviceTwice(device=device, one=one, other=other):
            both_ms = one.line.device_ms + other.line.device_ms
            return f"charged {both_ms} ms of device {device.hex()[:16]} on two leases in less time than that"


def _two_receipts(proof: TwoReceipts) -> bytes:
    first, second = proof.first.document, proof.second.document
    key = channel_id(currency_of(proof.currency).domain, proof.config)
    if first.channel_id != key or second.channel_id != key:
        raise NoProof("receipts", "are not of this channel")
    if first.seq != second.seq or receipt_digest(first) == receipt_digest(second):
        raise NoProof("receipts", "do not contradict each other")
    signer = proof.config.payee_signer
    check(DOMAIN, proof.first, signer)
    check(DOMAIN, proof.second, signer)
    return signer


def _two_heads(proof: TwoHeads) -> bytes:
    first, second = proof.first.document, proof.second.document
    owner = first.log_id[12:]
    if first.log_id != second.log_id or first.log_id != log_id_of(owner):
        raise NoProof("heads", "are not of one ledger")
    if first.size != second.size or first.root == second.root:
        raise NoProof("heads", "do not contradict each other")
    check(DOMAIN, proof.first, owner)
    check(DOMAIN, proof.second, owner)
    return owner


def _device_twice(proof: DeviceTwice) -> bytes:
    one, other = proof.one, proof.other
    signer = one.config.payee_signer
    if other.config.payee_signer != signer:
        raise NoProof("leases", "are of two providers")
    if one.line.lease == other.line.lease:
        raise NoProof("leases", "are one and the same")
    _check_use(one, proof.device)
    _check_use(other, proof.device)
    if not charged_twice(one.line, len(one.bid.devices), other.line, len(other.bid.devices)):
        raise NoProof("leases", "charge no more of the device than time passed, a clock's skew allowed for")
    return signer


def _check_use(use: MeteredUse, device: bytes) -> None:
    receipt, line = use.receipt.document, use.line
    if receipt.channel_id != channel_id(currency_of(use.currency).domain, use.config):
        raise NoProof("receipt", "is not of this channel")
    check(DOMAIN, use.receipt, use.config.payee_signer)
    leaf = struct_hash(line)
    if not is_included(root=receipt.lines_root, size=receipt.lines, leaf=leaf, index=use.index, proof=use.path):
        raise NoProof("line", "is not in the receipt")
    if line.lease != digest(DOMAIN, use.award) or use.award.bid != digest(DOMAIN, use.bid):
        raise NoProof("line", "is not of this award and bid")
    if device not in use.bid.devices:
        raise NoProof("bid", "does not name the device")
