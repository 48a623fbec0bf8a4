"""A receipt with its whole proof in one piece, and what it proves to somebody who knows neither side.

Everything is checked from hashes and signatures alone: no node, ledger or network is needed, only the bundle. What it
shows is who signed what. It does not show that the work was right, nor that money moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hansa.market.ledger_records import FiledReceipt
from hansa.market.receipts import receipt_digest, root_of
from hansa.proto.codec import encode
from hansa.proto.currency import currency_of
from hansa.proto.documents import (
    ChannelConfig,
    CooperativeClose,
    MeterLine,
    Receipt,
    TreeHead,
    Voucher,
    channel_id,
    log_id_of,
)
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import Evidence
from hansa.proto.merkle import inclusion_proof, is_included
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import VERSION
from hansa.proto.signing import Signed, check, checksum_address
from hansa.proto.typed_data import struct_hash
from hansa.proto.units import Address, Bytes32, Line, Uint32, Uint64, format_amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One line of the receipt with its evidence, and for each the hashes that lead from it to the receipt's root.

    The paths let somebody show one line without the others. With all lines there they may be left out.
    """

    line: MeterLine
    line_path: tuple[Bytes32, ...]
    evidence: Evidence
    evidence_path: tuple[Bytes32, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Both sides' word on the channel's end."""

    by_payer: Signed[CooperativeClose]
    by_payee: Signed[CooperativeClose]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """That somebody's ledger holds the receipt: a head that it signed, and the way from the record to the head's root.

    Attributes:
        owner: whose ledger it is.
        head: its word on what its whole history is.
        version: of the codec that the record is written in.
        position: the record's number, from 1.
        path: the hashes that lead from it to the head's root.
    """

    owner: Address
    head: Signed[TreeHead]
    version: Uint32
    position: Uint64
    path: tuple[Bytes32, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptProof:
    """The bundle.

    Attributes:
        currency: what the channel pays in, which says on which books.
        config: what the channel is.
        receipt: with the provider's signature.
        leaves: all lines that it covers.
        voucher: the buyer's promise to pay for it, if there is one.
        close: how the channel ended, if it did.
        logged: where a ledger holds it.
    """

    currency: Line
    config: ChannelConfig
    receipt: Signed[Receipt]
    leaves: tuple[Leaf, ...]
    voucher: tuple[Signed[Voucher], ...]
    close: tuple[Close, ...]
    logged: tuple[Logged, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One thing that was looked at: whether it holds, and what it says, in words."""

    holds: bool
    words: str


def leaves_of(lines: Sequence[MeterLine], evidence: Sequence[Evidence], *, with_paths: bool) -> tuple[Leaf, ...]:
    """The lines and their evidence, with the ways to their roots if they are wanted."""
    line_hashes, proof_hashes = [struct_hash(line) for line in lines], [struct_hash(proof) for proof in evidence]
    return tuple(
        Leaf(
            line=line,
            line_path=inclusion_proof(line_hashes, index) if with_paths else (),
            evidence=proof,
            evidence_path=inclusion_proof(proof_hashes, index) if with_paths else (),
        )
        for index, (line, proof) in enumerate(zip(lines, evidence, strict=True))
    )


def record_of(bundle: ReceiptProof) -> bytes:
    """The receipt as a ledger of this version writes it down."""
    lines, evidence = tuple(leaf.line for leaf in bundle.leaves), tuple(leaf.evidence for leaf in bundle.leaves)
    return encode(FiledReceipt(receipt=bundle.receipt, lines=lines, evidence=evidence))


def findings(bundle: ReceiptProof) -> list[Observation]:
    """Check a bundle, which may be anybody's."""
    found = [_channel(bundle), _receipt(bundle), _lines(bundle), _evidence(bundle)]
    found += [_voucher(bundle, each) for each in bundle.voucher]
    found += [_close(bundle, each) for each in bundle.close]
    found += [_log(bundle, each) for each in bundle.logged if each.version == VERSION]
    return found


def not_proved(bundle: ReceiptProof) -> list[str]:
    """What even a sound bundle does not show, in words."""
    on_chain = currency_of(bundle.currency).is_on_chain
    money = (
        "that money moved: only the escrow contract on its chain says so"
        if on_chain
        else "that money moved: the ledger records an IOU, and nobody guarantees that a debtor pays"
    )
    found = [
        "that the work was right: evidence is the job's own report, and nothing was computed twice",
        "the price that was agreed: bid and award are not part of this bundle",
        money,
        "that this is the newest receipt: a later one replaces it",
        "who stands behind an account",
    ]
    if not bundle.voucher:
        found.insert(0, "that the buyer agreed to pay: there is no voucher for this receipt here")
    if any(each.version != VERSION for each in bundle.logged):
        found.append("that a ledger holds it: the record is of another version of Hansa")
    return found


def _id(bundle: ReceiptProof) -> bytes:
    return channel_id(currency_of(bundle.currency).domain, bundle.config)


def _signed_by(domain: object, signed: object, signer: bytes) -> bool:
    try:
        check(domain, signed, signer)  # type: ignore[arg-type]  # any domain and document of ours
    except ProtocolError:
        return False
    return True


def _channel(bundle: ReceiptProof) -> Observation:
    payer, payee = checksum_address(bundle.config.payer), checksum_address(bundle.config.payee)
    if bundle.receipt.document.channel_id != _id(bundle):
        return Observation(holds=False, words="the receipt is not of this channel")
    if currency_of(bundle.currency).token != bundle.config.token:
        return Observation(holds=False, words="the channel pays in another token than the currency's name says")
    return Observation(holds=True, words=f"it is of a channel on which {payer} pays {payee} in {bundle.currency}")


def _receipt(bundle: ReceiptProof) -> Observation:
    receipt, signer = bundle.receipt.document, checksum_address(bundle.config.payee_signer)
    total = format_amount(receipt.amount_total)
    words = f"{signer} signed receipt {receipt.seq}, that {total} are owed since the channel began"
    if _signed_by(DOMAIN, bundle.receipt, bundle.config.payee_signer):
        return Observation(holds=True, words=words)
    return Observation(holds=False, words=f"the receipt is not signed by {signer}, who signs for the provider")


def _are_under(paths: Sequence[tuple[object, tuple[bytes, ...]]], root: bytes) -> bool:
    """Whether every path that is there leads from its document to the root."""
    return all(
        not path or is_included(root=root, size=len(paths), leaf=struct_hash(document), index=index, proof=path)
        for index, (document, path) in enumerate(paths)
    )


def _lines(bundle: ReceiptProof) -> Observation:
    receipt, count = bundle.receipt.document, len(bundle.leaves)
    leases = [leaf.line.lease for leaf in bundle.leaves]
    if count != receipt.lines or leases != sorted(set(leases)):
        return Observation(holds=False, words="these are not all of the receipt's lines, each once and in order")
    if root_of([leaf.line for leaf in bundle.leaves]) != receipt.lines_root:
        return Observation(holds=False, words="the lines are not those under the root that was signed")
    paths = [(leaf.line, leaf.line_path) for leaf in bundle.leaves]
    if not _are_under(paths, receipt.lines_root):
        return Observation(holds=False, words="a line's path does not lead to the root that was signed")
    if sum(leaf.line.amount for leaf in bundle.leaves) != receipt.amount_total:
        return Observation(holds=False, words="the lines do not add up to the total that was signed")
    which = "its one line is that which was" if count == 1 else f"its {count} lines are those that were"
    return Observation(holds=True, words=f"{which} signed for, and the total is their sum")


def _evidence(bundle: ReceiptProof) -> Observation:
    receipt = bundle.receipt.document
    if root_of([leaf.evidence for leaf in bundle.leaves]) != receipt.evidence:
        return Observation(holds=False, words="the evidence is not that under the root that was signed")
    paths = [(leaf.evidence, leaf.evidence_path) for leaf in bundle.leaves]
    if not _are_under(paths, receipt.evidence):
        return Observation(holds=False, words="an evidence's path does not lead to the root that was signed")
    for index, leaf in enumerate(bundle.leaves):
        if (leaf.evidence.lease, leaf.evidence.shard) != (leaf.line.lease, leaf.line.shard):
            return Observation(holds=False, words=f"evidence {index + 1} is of another lease or shard than its line")
    return Observation(holds=True, words="the evidence of what was delivered is that which was signed for")


def _voucher(bundle: ReceiptProof, signed: Signed[Voucher]) -> Observation:
    voucher, signer = signed.document, checksum_address(bundle.config.payer_signer)
    receipt = bundle.receipt.document
    if voucher.channel_id != _id(bundle) or voucher.statement != receipt_digest(receipt):
        return Observation(holds=False, words="the voucher is for another channel or receipt")
    if voucher.cumulative < receipt.amount_total:
        return Observation(holds=False, words="the voucher promises less than the receipt's total")
    if not _signed_by(currency_of(bundle.currency).domain, signed, bundle.config.payer_signer):
        return Observation(holds=False, words=f"the voucher is not signed by {signer}, who signs for the buyer")
    ahead = voucher.cumulative - receipt.amount_total
    more = f", and for {format_amount(ahead)} ahead of it" if ahead else ""
    return Observation(holds=True, words=f"{signer} signed a voucher for exactly that total and that receipt{more}")


def _close(bundle: ReceiptProof, close: Close) -> Observation:
    final = close.by_payer.document
    if final != close.by_payee.document or final.channel_id != _id(bundle):
        return Observation(holds=False, words="the two sides did not close this channel at one sum")
    domain = currency_of(bundle.currency).domain
    for side, signed, signer in (
        ("buyer", close.by_payer, bundle.config.payer_signer),
        ("provider", close.by_payee, bundle.config.payee_signer),
    ):
        if not _signed_by(domain, signed, signer):
            return Observation(holds=False, words=f"the channel's end is not signed for the {side}")
    return Observation(
        holds=True, words=f"both sides signed that the channel ended at {format_amount(final.cumulative)}"
    )


def _log(bundle: ReceiptProof, logged: Logged) -> Observation:
    head, owner = logged.head.document, checksum_address(logged.owner)
    if head.log_id != log_id_of(logged.owner) or not _signed_by(DOMAIN, logged.head, logged.owner):
        return Observation(holds=False, words=f"the ledger's head is not signed by {owner}")
    leaf, index = record_of(bundle), logged.position - 1
    if not is_included(root=head.root, size=head.size, leaf=leaf, index=index, proof=logged.path):
        return Observation(holds=False, words="the receipt is not where it is said to be in the ledger that was signed")
    where = f"record {logged.position} of {head.size}"
    return Observation(holds=True, words=f"{where} in the ledger that {owner} signed is this receipt")
