"""Receipts with their proof: found in a ledger, written as JSON that anybody can check, and read back strictly.

The JSON has one spelling (``hansa.proto.typed_json``): decimal strings, lower-case hex, exact keys. What it proves is
``hansa.market.receipt_proof``'s to say.
"""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from hansa.market.ledger import Entry
from hansa.market.ledger_records import FiledChannel, FiledClose, FiledReceipt, FiledVoucher
from hansa.market.receipt_proof import Close, Leaf, Logged, ReceiptProof, leaves_of, record_of
from hansa.market.receipts import receipt_digest
from hansa.node.faults import OperatorError
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.proto.currency import currency_of
from hansa.proto.documents import ChannelConfig, CooperativeClose, MeterLine, Receipt, TreeHead, Voucher, channel_id
from hansa.proto.errors import Malformed
from hansa.proto.market_documents import Evidence
from hansa.proto.merkle import is_included
from hansa.proto.protocols import VERSION
from hansa.proto.signing import Signed, checksum_address
from hansa.proto.typed_json import TEXT_LIMIT_BYTES, from_json, parse_json, read_exact_keys, read_value, to_plain
from hansa.proto.units import Address, Bytes32, Line, Signature, Uint32, Uint64

Json = dict[str, Any]
FORMAT: Final = "hansa receipt 1"
LEAST_DIGITS: Final = 4
MOST_WITH_PATHS: Final = 64
"""Lines of a receipt that get their Merkle paths. All lines are in the bundle, so paths prove nothing more."""
MOST_NAMED: Final = 8


@dataclass(slots=True)
class _Channel:
    """What a ledger holds of one channel."""

    channel: FiledChannel | None = None
    receipts: dict[bytes, tuple[int, FiledReceipt]] = field(default_factory=dict)
    vouchers: dict[bytes, FiledVoucher] = field(default_factory=dict)
    close: FiledClose | None = None
    jobs: set[str] = field(default_factory=set)

    def is_meant(self, own_id: bytes, wanted: str) -> bool:
        """Whether the beginning of an id means the channel, a lease on it or a job that it pays for."""
        leases = {line.lease.hex() for _, receipt in self.receipts.values() for line in receipt.lines}
        return any(known.startswith(wanted) for known in (own_id.hex(), *leases, *self.jobs))

    def newest(self) -> tuple[int, FiledReceipt]:
        """The newest receipt that was vouched for, or else the newest; with its position."""
        vouched = [each for each in self.receipts.values() if receipt_digest(each[1].receipt.document) in self.vouchers]
        return max(vouched or self.receipts.values(), key=lambda each: each[1].receipt.document.seq)


def find_receipt(ledger: Path, wanted: str) -> ReceiptProof:
    """The newest receipt of the channel that a channel's, a lease's or a job's id means, with its whole proof.

    Raises:
        OperatorError: nothing or more than one thing is meant, or the ledger cannot be read.
    """
    wanted = wanted.lower().removeprefix("0x")
    if len(wanted) < LEAST_DIGITS or not set(wanted) <= set("0123456789abcdef"):
        raise OperatorError("that is no id", f"give at least {LEAST_DIGITS} hex digits of a channel, a lease or a job")
    if not ledger.exists():
        raise OperatorError(f"there is no ledger at {ledger}", "nothing was earned or spent here yet")
    with closing(LedgerStore(ledger, read_only=True)) as store:
        found = {key: each for key, each in _channels(store).items() if each.receipts and each.is_meant(key, wanted)}
        if not found:
            raise OperatorError(
                f"the ledger holds no receipt for {wanted}", "hansa balance lists channels, hansa jobs lists jobs"
            )
        if len(found) > 1:
            names = ", ".join(key.hex()[:12] for key in sorted(found)[:MOST_NAMED])
            raise OperatorError(f"{len(found)} channels are meant by {wanted}", f"name one of them: {names}")
        (channel,) = found.values()
        return _bundle(store, channel)


def _channels(store: LedgerStore) -> dict[bytes, _Channel]:
    found: dict[bytes, _Channel] = {}
    for position, record in enumerate(store.records(), start=1):
        match record:
            case FiledChannel(currency=currency, config=config):
                key = channel_id(currency_of(currency).domain, config)
                found.setdefault(key, _Channel()).channel = record
            case FiledReceipt(receipt=signed):
                of = found.setdefault(signed.document.channel_id, _Channel())
                of.receipts[receipt_digest(signed.document)] = (position, record)
            case FiledVoucher(voucher=signed):
                vouchers = found.setdefault(signed.document.channel_id, _Channel()).vouchers
                known = vouchers.get(signed.document.statement)
                # Paying ahead, a buyer may sign several for one receipt: the highest replaces the others.
                if known is None or signed.document.cumulative > known.voucher.document.cumulative:
                    vouchers[signed.document.statement] = record
            case FiledClose(by_payer=signed):
                found.setdefault(signed.document.channel_id, _Channel()).close = record
            case Entry(channel_id=key, legs=legs):
                names = [leg.account.partition(":") for leg in legs]
                of = found.setdefault(key, _Channel())
                of.jobs |= {job for kind, _, job in names if kind in ("spend", "earned")}
            case _:
                pass
    return found


def _bundle(store: LedgerStore, of: _Channel) -> ReceiptProof:
    position, receipt = of.newest()
    if of.channel is None:
        raise OperatorError("the ledger does not say what the receipt's channel is", "hansa ledger verify looks at it")
    voucher = of.vouchers.get(receipt_digest(receipt.receipt.document))
    bundle = ReceiptProof(
        currency=of.channel.currency,
        config=of.channel.config,
        receipt=receipt.receipt,
        leaves=leaves_of(receipt.lines, receipt.evidence, with_paths=len(receipt.lines) <= MOST_WITH_PATHS),
        voucher=() if voucher is None else (voucher.voucher,),
        close=() if of.close is None else (Close(by_payer=of.close.by_payer, by_payee=of.close.by_payee),),
        logged=(),
    )
    return _with_log(store, bundle, position)


def _with_log(store: LedgerStore, bundle: ReceiptProof, position: int) -> ReceiptProof:
    """Add where the ledger holds it, if it signed a head since and the record is written as this version writes."""
    head = store.newest_head()
    if head is None or head.document.size < position:
        return bundle
    said = head.document
    path = store.inclusion(position, said.size)
    if not is_included(root=said.root, size=said.size, leaf=record_of(bundle), index=position - 1, proof=path):
        return bundle
    logged = Logged(owner=said.log_id[-20:], head=head, version=VERSION, position=position, path=path)
    return replace(bundle, logged=(logged,))


# As JSON.


def bundle_json(bundle: ReceiptProof) -> Json:
    """The bundle as JSON.

    Raises:
        OperatorError: it would be longer than what is read back.
    """
    (voucher,) = bundle.voucher or (None,)
    (close,) = bundle.close or (None,)
    (logged,) = bundle.logged or (None,)
    made: Json = {
        "format": FORMAT,
        "currency": bundle.currency,
        "config": to_plain(bundle.config),
        "receipt": _signed_json(bundle.receipt),
        "lines": [
            {
                "line": to_plain(leaf.line),
                "path": _hex_list(leaf.line_path),
                "evidence": to_plain(leaf.evidence),
                "evidencePath": _hex_list(leaf.evidence_path),
            }
            for leaf in bundle.leaves
        ],
        "voucher": None if voucher is None else _signed_json(voucher),
        "close": None
        if close is None
        else {"byPayer": _signed_json(close.by_payer), "byPayee": _signed_json(close.by_payee)},
        "log": None
        if logged is None
        else {
            "owner": checksum_address(logged.owner),
            "head": _signed_json(logged.head),
            "version": logged.version,
            "position": logged.position,
            "path": _hex_list(logged.path),
        },
    }
    if len(json.dumps(made)) > TEXT_LIMIT_BYTES:
        raise OperatorError(f"the receipt has {len(bundle.leaves)} lines, too many for one file", "look at it as text")
    return made


def _signed_json(signed: Signed[Any]) -> Json:
    return {"document": to_plain(signed.document), "signature": "0x" + signed.signature.hex()}


def _hex_list(hashes: Sequence[bytes]) -> list[str]:
    return ["0x" + each.hex() for each in hashes]


def read_bundle(content: bytes) -> ReceiptProof:
    """Read a bundle, which may be anybody's.

    Raises:
        ProtocolError: it is not the one spelling of a bundle.
    """
    names = ("format", "currency", "config", "receipt", "lines", "voucher", "close", "log")
    table = read_exact_keys(parse_json(content), names, "bundle")
    if table["format"] != FORMAT:
        raise Malformed("bundle.format", f"is not {FORMAT!r}")
    if type(table["lines"]) is not list:
        raise Malformed("bundle.lines", "is not a JSON array")
    currency = read_value(Line, table["currency"], "bundle.currency")
    currency_of(currency)
    return ReceiptProof(
        currency=currency,
        config=from_json(ChannelConfig, table["config"]),
        receipt=_read_signed(Receipt, table["receipt"]),
        leaves=tuple(_read_leaf(raw) for raw in table["lines"]),
        voucher=() if table["voucher"] is None else (_read_signed(Voucher, table["voucher"]),),
        close=() if table["close"] is None else (_read_close(table["close"]),),
        logged=() if table["log"] is None else (_read_log(table["log"]),),
    )


def _read_signed(cls: Any, raw: object) -> Signed[Any]:
    where = cls.__name__
    table = read_exact_keys(raw, ("document", "signature"), where)
    signature = read_value(Signature, table["signature"], f"{where}.signature")
    return Signed(document=from_json(cls, _object(table["document"], where)), signature=signature)


def _object(raw: object, where: str) -> Json:
    if type(raw) is not dict:
        raise Malformed(where, "is not a JSON object")
    return raw


def _read_leaf(raw: object) -> Leaf:
    table = read_exact_keys(raw, ("line", "path", "evidence", "evidencePath"), "line")
    return Leaf(
        line=from_json(MeterLine, _object(table["line"], "MeterLine")),
        line_path=read_value(tuple[Bytes32, ...], table["path"], "line.path"),
        evidence=from_json(Evidence, _object(table["evidence"], "Evidence")),
        evidence_path=read_value(tuple[Bytes32, ...], table["evidencePath"], "line.evidencePath"),
    )


def _read_close(raw: object) -> Close:
    table = read_exact_keys(raw, ("byPayer", "byPayee"), "close")
    return Close(
        by_payer=_read_signed(CooperativeClose, table["byPayer"]),
        by_payee=_read_signed(CooperativeClose, table["byPayee"]),
    )


def _read_log(raw: object) -> Logged:
    table = read_exact_keys(raw, ("owner", "head", "version", "position", "path"), "log")
    return Logged(
        owner=read_value(Address, table["owner"], "log.owner"),
        head=_read_signed(TreeHead, table["head"]),
        version=read_value(Uint32, table["version"], "log.version"),
        position=read_value(Uint64, table["position"], "log.position"),
        path=read_value(tuple[Bytes32, ...], table["path"], "log.path"),
    )
