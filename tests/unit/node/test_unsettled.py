"""Ends that a chain was not told are said again, a bounded number at a time, and none is left out for good."""

from dataclasses import replace

from kit.trading import CHANNEL, CHANNEL_ID, NOW_MS

from hansa.market.earning_channel import EarningChannel
from hansa.market.paying_channel import PayingChannel
from hansa.node.engine.state import NodeState
from hansa.node.engine.unsettled import EVERY_MS, MOST_AT_ONCE, settlements_wanted
from hansa.proto.currency import escrow_currency
from hansa.proto.documents import CooperativeClose
from hansa.proto.signing import Signed

CHAIN = escrow_currency(31_337, b"e" * 20, b"t" * 20)
CLOSE = Signed(document=CooperativeClose(channel_id=CHANNEL_ID, cumulative=0), signature=b"p" * 65)
PAYING = PayingChannel(
    phase="closed", config=CHANNEL, channel_id=CHANNEL_ID, currency=CHAIN, close_signature=CLOSE.signature
)
EARNING = EarningChannel(phase="closed", config=CHANNEL, channel_id=CHANNEL_ID, currency=CHAIN, proposed=CLOSE)


def holding(*channels: PayingChannel | EarningChannel, currency: str = CHAIN) -> NodeState:
    state = NodeState(currency=currency)
    for number, channel in enumerate(channels):
        shelf = state.paying if isinstance(channel, PayingChannel) else state.earning
        shelf[number.to_bytes(32, "big")] = channel  # type: ignore[index, assignment]
    return state


def test_an_end_is_said_again_by_both_sides_until_the_chain_has_it() -> None:
    for channel in (PAYING, EARNING):
        (wanted,) = settlements_wanted(holding(channel), NOW_MS)
        assert wanted.other_signature == CLOSE.signature
        assert not settlements_wanted(holding(replace(channel, settled_ms=NOW_MS)), NOW_MS)
        assert not settlements_wanted(holding(replace(channel, phase="open")), NOW_MS)


def test_what_is_not_settled_on_this_nodes_chain_is_not_said() -> None:
    assert not settlements_wanted(holding(PAYING, EARNING, currency="USD"), NOW_MS)
    assert not settlements_wanted(holding(PAYING, currency=CHAIN.replace("31337", "1")), NOW_MS)
    assert not settlements_wanted(holding(replace(PAYING, close_signature=b"")), NOW_MS)


def test_of_many_each_has_its_turn() -> None:
    many = [replace(PAYING, channel_id=number.to_bytes(32, "big")) for number in range(3 * MOST_AT_ONCE + 1)]
    state, said = holding(*many), set()
    for turn in range(4):
        some = settlements_wanted(state, NOW_MS + turn * EVERY_MS)
        assert len(some) == MOST_AT_ONCE
        said |= {wanted.channel_id for wanted in some}
    assert len(said) == len(many)
