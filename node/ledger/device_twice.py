"""Find, among all that one provider charged this node for, a device that it charged for twice at one time."""

from collections.abc import Iterator

from hansa.market.equivocation import DeviceTwice, MeteredUse
from hansa.market.paying_channel import PayingChannel
from hansa.market.receipts import Statement, charged_twice
from hansa.node.engine.buying_turns import placement_of
from hansa.node.engine.state import NodeState
from hansa.proto.documents import MeterLine, Receipt
from hansa.proto.merkle import inclusion_proof
from hansa.proto.messages import ReceiptSent
from hansa.proto.signing import Signed
from hansa.proto.typed_data import struct_hash

Charge = tuple[MeterLine, tuple[bytes, ...], PayingChannel, Signed[Receipt], tuple[MeterLine, ...]]


def find_device_twice(state: NodeState, provider: bytes, message: ReceiptSent) -> DeviceTwice | None:
    """Hold a receipt that arrived against itself and all that its provider charged on any channel of this node."""
    key = message.receipt.document.channel_id
    channel = state.paying.get(key)
    if channel is None:
        return None
    statement = Statement(receipt=message.receipt.document, lines=message.lines, evidence=message.evidence)
    fresh = list(_charges(channel, statement, message.receipt.signature))
    others = [
        charge
        for other, paying in state.paying.live.items()
        if other != key and paying.config.payee_signer == provider and paying.accepted is not None
        for charge in _charges(paying, paying.accepted, paying.receipt_signature)
    ]
    before = {line.lease: line for line in channel.accepted.lines} if channel.accepted else {}
    for at, one in enumerate(fresh):
        if before.get(one[0].lease) == one[0]:
            continue
        for other_charge in (*fresh[:at], *fresh[at + 1 :], *others):
            shared = sorted(set(one[1]) & set(other_charge[1]))
            if shared and charged_twice(one[0], len(one[1]), other_charge[0], len(other_charge[1])):
                uses = _use(state, one), _use(state, other_charge)
                if uses[0] is not None and uses[1] is not None:
                    return DeviceTwice(device=shared[0], one=uses[0], other=uses[1])
    return None


def _charges(channel: PayingChannel, statement: Statement, signature: bytes) -> Iterator[Charge]:
    signed = Signed(document=statement.receipt, signature=signature)
    for line in statement.lines:
        terms = channel.terms.get(line.lease)
        if terms is not None:
            yield line, terms.devices, channel, signed, statement.lines


def _use(state: NodeState, charge: Charge) -> MeteredUse | None:
    line, _, channel, signed, lines = charge
    bought = state.purchase_on(line.lease)
    placement = placement_of(bought, line.lease)
    if bought is None or placement is None:
        return None
    index = lines.index(line)
    return MeteredUse(
        currency=channel.currency,
        config=channel.config,
        receipt=signed,
        line=line,
        index=index,
        path=inclusion_proof([struct_hash(each) for each in lines], index),
        award=placement.award,
        bid=bought.bids[placement.bid],
    )
