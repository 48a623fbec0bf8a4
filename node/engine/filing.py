"""Which documents go into the ledger: all that money follows from, as they are said and heard.

What this node signs itself is filed before it is sent, since effects are performed only after they are in the ledger.
Filing the same document twice changes nothing, so every message that carries one files it.
"""

from collections.abc import Sequence
from typing import Any

from hansa.market.effects import Send, sealed, unsigned
from hansa.market.ledger import Post
from hansa.market.ledger_records import (
    File,
    Filed,
    FiledChannel,
    FiledClose,
    FiledReceipt,
    FiledVoucher,
    Record,
)
from hansa.market.receipts import receipt_digest
from hansa.node.engine.events import MessageArrived, NodeEvent
from hansa.node.engine.state import NodeState
from hansa.proto import messages
from hansa.proto.currency import currency_of
from hansa.proto.documents import CooperativeClose
from hansa.proto.signing import Signed, SigningKey

ON_THE_LEDGER = "an IOU: owed on the ledger until the provider acknowledges a payment outside"
ON_A_CHAIN = "by the escrow contract"


def filed(state: NodeState, event: NodeEvent, effects: Sequence[Any]) -> list[File]:
    """The documents in what was just heard and in what is to be said about it. The state is that after the event."""
    found: list[Filed] = []
    if isinstance(event, MessageArrived):
        found += _heard(state, event.message)
    for effect in effects:
        if isinstance(effect, Send):
            found += _said(state, effect.message)
    return [File(filed=document) for document in found]


def records_of(effects: Sequence[Any], key: SigningKey) -> list[Record]:
    """What of these effects goes into the ledger, in order, and signed."""
    records: list[Record] = []
    for effect in effects:
        match effect:
            case Post(entry=entry):
                records.append(entry)
            case File(filed=document):
                records.append(sealed(document, key))
    return records


def _heard(state: NodeState, message: Any) -> list[Filed]:
    match message:
        case messages.VoucherSent(voucher=voucher):
            earning = state.earning.get(voucher.document.channel_id)
            if earning is not None and voucher in (earning.voucher, earning.waiting):
                channel = FiledChannel(currency=earning.currency, config=earning.config, splits=earning.splits)
                return [channel, FiledVoucher(currency=earning.currency, voucher=voucher)]
        case messages.CloseAccepted(close=close):
            paying = state.paying.get(close.document.channel_id)
            if paying is not None and paying.close_signature == close.signature:
                # A channel may close before anything moved on it.
                channel = FiledChannel(currency=paying.currency, config=paying.config, splits=paying.splits)
                return [channel, _close(paying.currency, unsigned(close.document), close)]
    return []


def _said(state: NodeState, message: Any) -> list[Filed]:
    match message:
        case messages.VoucherSent(voucher=voucher):
            paying = state.paying.get(voucher.document.channel_id)
            assert paying is not None, "a voucher is for a channel of ours"
            found: list[Filed] = [FiledChannel(currency=paying.currency, config=paying.config, splits=paying.splits)]
            last = paying.accepted
            if last is not None and receipt_digest(last.receipt) == voucher.document.statement:
                receipt = Signed(document=last.receipt, signature=paying.receipt_signature)
                found.append(FiledReceipt(receipt=receipt, lines=last.lines, evidence=last.evidence))
            return [*found, FiledVoucher(currency=paying.currency, voucher=voucher)]
        case messages.ReceiptSent(receipt=receipt, lines=lines, evidence=evidence):
            earning = state.earning.get(receipt.document.channel_id)
            assert earning is not None, "a receipt is for a channel of ours"
            channel = FiledChannel(currency=earning.currency, config=earning.config, splits=earning.splits)
            return [channel, FiledReceipt(receipt=receipt, lines=lines, evidence=evidence)]
        case messages.CloseAccepted(close=close):
            earning = state.earning.get(close.document.channel_id)
            if earning is not None and earning.proposed is not None and earning.proposed.document == close.document:
                channel = FiledChannel(currency=earning.currency, config=earning.config, splits=earning.splits)
                return [channel, _close(earning.currency, earning.proposed, close)]
    return []


def _close(currency: str, by_payer: Signed[CooperativeClose], by_payee: Signed[CooperativeClose]) -> FiledClose:
    how = ON_A_CHAIN if currency_of(currency).is_on_chain else ON_THE_LEDGER
    return FiledClose(currency=currency, by_payer=by_payer, by_payee=by_payee, how=how)
