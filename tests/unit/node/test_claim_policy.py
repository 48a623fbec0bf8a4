"""A claim is made when it must be and never for less than it costs; funds are what both views of a chain agree on."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.market.earning_channel import EarningChannel
from hansa.market.paying_channel import PayingChannel
from hansa.market.settlement import CLOSED, CLOSING, OPEN, UNSET, ChannelState
from hansa.node.chain.claim_policy import (
    PATIENCE_MS,
    ChannelStanding,
    can_finalize,
    claim_is_due,
    ends_alone,
    funds_of,
    is_worth_claiming,
    last_voucher,
    uncredited,
    voucher_to_claim,
    wants_refund,
)
from hansa.node.settings.chain_config import ChainConfig
from hansa.node.settings.evm_limits import FeeLimits
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.documents import ChannelConfig, CooperativeClose, Voucher
from hansa.proto.signing import Signed

CURRENCY = escrow_currency(31337, b"\xe5" * 20, b"\x70" * 20)
CONFIG = ChainConfig(
    rpc=("http://127.0.0.1:8545",),
    currency=currency_of(CURRENCY),
    confirmations=0,
    limits=FeeLimits(most_per_gas=1, most_per_day=1),
    claim_at_least=50,
    claim_above=500,
    withdraw_above=1,
    poll_ms=1_000,
)
CHANNEL = ChannelConfig(
    payer=b"\x01" * 20,
    payer_signer=b"\x01" * 20,
    payee=b"\x02" * 20,
    payee_signer=b"\x02" * 20,
    token=b"\x70" * 20,
    challenge_period=2_000,
    splits_hash=bytes(32),
    salt=bytes(32),
)
UNOPENED = ChannelState()
HALF_MS = 1_000_000
PROPOSED = Signed(document=CooperativeClose(channel_id=bytes(32), cumulative=60), signature=bytes(65))


def open_with(deposit: int, claimed: int = 0, settled: int = 0) -> ChannelState:
    return ChannelState(phase=OPEN, deposit=deposit, claimed=claimed, settled=settled)


def closing_with(deposit: int, claimed: int = 0) -> ChannelState:
    return ChannelState(phase=CLOSING, deposit=deposit, claimed=claimed, closable_at_s=5_000)


def seen(state: ChannelState) -> ChannelStanding:
    return ChannelStanding(final=state, newest=state)


def voucher(cumulative: int) -> Signed[Voucher]:
    document = Voucher(channel_id=bytes(32), cumulative=cumulative, statement=bytes(32))
    return Signed(document=document, signature=bytes(65))


def earning(cumulative: int, *, live: bool = False, phase: str = "open") -> EarningChannel:
    held = voucher(cumulative) if cumulative else None
    return EarningChannel(
        phase=phase,
        config=CHANNEL,
        channel_id=bytes(32),
        currency=CURRENCY,
        live=frozenset({b"\x09" * 32}) if live else frozenset(),
        voucher=held,
        safe=held,
    )


def paying(phase: str, close_signature: bytes = b"") -> PayingChannel:
    return PayingChannel(
        phase=phase, config=CHANNEL, channel_id=bytes(32), currency=CURRENCY, close_signature=close_signature
    )


def test_work_on_an_unconfirmed_or_reorged_deposit_has_no_funds() -> None:
    assert funds_of(ChannelStanding(final=UNOPENED, newest=open_with(900)), 0) == 0
    assert funds_of(ChannelStanding(final=open_with(900), newest=UNOPENED), 0) == 0
    assert funds_of(ChannelStanding(final=open_with(900), newest=open_with(1_000)), 0) == 900
    assert funds_of(seen(open_with(900)), 0) == 900


def test_a_channel_that_is_closing_pays_what_is_vouched_for_and_no_more_work() -> None:
    assert funds_of(ChannelStanding(final=open_with(900), newest=closing_with(900)), 120) == 120
    assert funds_of(seen(closing_with(900, claimed=130)), 120) == 130
    assert funds_of(seen(closing_with(100)), 120) == 100


def test_a_closed_channel_pays_what_it_settled_at() -> None:
    closed = ChannelState(phase=CLOSED, deposit=70, claimed=70, settled=70)
    assert funds_of(ChannelStanding(final=open_with(900), newest=closed), 120) == 70


phases = st.sampled_from([UNSET, OPEN, CLOSING, CLOSED])
states = st.builds(
    lambda phase, deposit, claimed: ChannelState(phase=phase, deposit=deposit, claimed=min(deposit, claimed)),
    phases,
    st.integers(0, 1_000),
    st.integers(0, 1_000),
)


@given(states, states, st.integers(0, 2_000))
def test_funds_are_never_above_what_either_view_has(final: ChannelState, newest: ChannelState, vouched: int) -> None:
    assert 0 <= funds_of(ChannelStanding(final=final, newest=newest), vouched) <= min(final.deposit, newest.deposit)


def due(channel: EarningChannel, state: ChannelState, waited_ms: int = 0) -> bool:
    return claim_is_due(channel, seen(state), CONFIG, since_ms=1_000, at_ms=1_000 + waited_ms)


@pytest.mark.parametrize(("cumulative", "claimed"), [(500, 0), (50, 0), (600, 100)])
def test_what_is_small_and_young_waits(cumulative: int, claimed: int) -> None:
    assert not due(earning(cumulative), open_with(900, claimed))


def test_much_is_claimed_at_once() -> None:
    assert due(earning(501), open_with(900))
    assert due(earning(601), open_with(900, 100))


def test_what_is_old_is_claimed_halfway_through_the_challenge_period() -> None:
    assert not due(earning(60), open_with(900), HALF_MS - 1)
    assert due(earning(60), open_with(900), HALF_MS)


def test_close_storms_cost_no_more_than_they_are_worth() -> None:
    assert due(earning(50), closing_with(900))
    assert not due(earning(49), closing_with(900))
    assert not due(earning(49), open_with(900), 10 * HALF_MS)


def test_a_voucher_above_the_deposit_is_not_brought() -> None:
    """The contract would refuse it, and the fee would be lost."""
    assert not is_worth_claiming(earning(901), seen(open_with(900)), CONFIG)
    assert is_worth_claiming(earning(900), seen(open_with(900)), CONFIG)
    assert not is_worth_claiming(earning(900), seen(UNOPENED), CONFIG)


def alone(channel: EarningChannel, state: ChannelState, waited_ms: int) -> bool:
    return ends_alone(channel, seen(state), since_ms=1_000, at_ms=1_000 + waited_ms)


def test_a_payee_ends_alone_what_its_buyer_leaves_or_ends() -> None:
    assert not alone(earning(60), open_with(900), HALF_MS - 1)
    assert alone(earning(60), open_with(900), HALF_MS)
    assert alone(earning(60), closing_with(900), 0)
    assert not alone(earning(60, live=True), closing_with(900), HALF_MS)
    assert not alone(earning(0), open_with(900), HALF_MS)
    assert not alone(earning(60, phase="closed"), open_with(900), HALF_MS)


def test_a_payer_takes_its_rest_back_when_the_payee_does_not_agree_to_the_end() -> None:
    def wants(channel: PayingChannel, state: ChannelState, waited_ms: int) -> bool:
        return wants_refund(channel, seen(state), since_ms=1_000, at_ms=1_000 + waited_ms)

    assert not wants(paying("open"), open_with(900), 10 * PATIENCE_MS)
    assert not wants(paying("closing"), open_with(900), PATIENCE_MS - 1)
    assert wants(paying("closing"), open_with(900), PATIENCE_MS)
    assert not wants(paying("closing"), closing_with(900), PATIENCE_MS)
    # It was paid in for an award that came to nothing: nobody else knows the channel.
    assert wants(paying("closed"), open_with(900), 0)
    # What both have signed goes first, and only if it does not go through the payer asks for its rest by itself.
    assert not wants(paying("closed", bytes(65)), open_with(900), PATIENCE_MS - 1)
    assert wants(paying("closed", bytes(65)), open_with(900), PATIENCE_MS)


def test_an_end_below_what_was_settled_is_not_waited_for() -> None:
    """Anybody may settle what was claimed: a claim of what was paid ahead makes the agreed end impossible."""
    settled = open_with(900, 60, 60)
    for channel in (paying("closing"), paying("closed", bytes(65))):
        assert wants_refund(channel, seen(settled), since_ms=1_000, at_ms=1_000)
        assert not wants_refund(channel, seen(open_with(900, 60, 0)), since_ms=1_000, at_ms=1_000)
    assert not wants_refund(paying("open"), seen(settled), since_ms=1_000, at_ms=1_000)
    agreed = replace(earning(0, phase="closed"), proposed=PROPOSED)
    assert not alone(agreed, open_with(900, 60, 0), 0)
    assert not alone(agreed, settled, 0), "nothing is left to be credited"
    assert alone(agreed, open_with(900, 90, 60), 0)
    assert last_voucher(agreed, seen(settled)) is None


def test_what_was_claimed_is_credited_when_the_buyer_vanishes() -> None:
    claimed = open_with(900, 60)
    assert uncredited(earning(60), seen(claimed)) == 60
    assert not alone(earning(60), claimed, HALF_MS - 1)
    assert alone(earning(60), claimed, HALF_MS)
    assert alone(earning(60), closing_with(900, 60), 0)
    assert not alone(earning(60, live=True), closing_with(900, 60), HALF_MS)
    assert not alone(earning(60), open_with(900, 60, 60), HALF_MS)


def test_an_end_that_both_signed_goes_before_one_alone_which_takes_no_more() -> None:
    agreed = replace(earning(60, phase="closed"), proposed=PROPOSED, voucher=voucher(80))
    late = replace(closing_with(900), closable_at_s=10**6)
    assert not alone(agreed, open_with(900), HALF_MS - 1)
    assert alone(agreed, open_with(900), HALF_MS)
    assert not alone(agreed, late, PATIENCE_MS - 1)
    assert alone(agreed, late, PATIENCE_MS)
    assert alone(agreed, replace(late, closable_at_s=2), 0)
    assert last_voucher(agreed, seen(open_with(900))) == voucher(60)
    assert last_voucher(replace(agreed, proposed=None), seen(open_with(900))) == voucher(80)


def test_no_more_is_claimed_than_was_earned_until_somebody_closes() -> None:
    ahead = replace(earning(60), voucher=voucher(800), waiting=voucher(1_000))
    assert voucher_to_claim(ahead, seen(open_with(900))) == voucher(60)
    assert voucher_to_claim(ahead, seen(closing_with(900))) == voucher(800)
    assert voucher_to_claim(ahead, seen(closing_with(1_000))) == voucher(1_000)
    assert voucher_to_claim(ahead, seen(closing_with(799))) == voucher(60)
    assert voucher_to_claim(replace(ahead, safe=None), seen(open_with(900))) is None


def test_a_close_that_either_view_shows_is_answered() -> None:
    for standing in (
        ChannelStanding(final=closing_with(900), newest=open_with(900)),
        ChannelStanding(final=open_with(900), newest=closing_with(900)),
        ChannelStanding(final=closing_with(900), newest=UNOPENED),
    ):
        assert claim_is_due(earning(60), standing, CONFIG, since_ms=0, at_ms=0)
    closed = ChannelState(phase=CLOSED, deposit=70, claimed=70, settled=70)
    assert not claim_is_due(
        earning(60), ChannelStanding(final=closing_with(900), newest=closed), CONFIG, since_ms=0, at_ms=0
    )


def test_what_is_worth_it_is_claimed_when_the_nodes_do_not_agree_for_long() -> None:
    def unsure(unsure_ms: int, waited_ms: int) -> bool:
        standing = seen(open_with(900))
        return claim_is_due(earning(60), standing, CONFIG, since_ms=0, at_ms=waited_ms, unsure_ms=unsure_ms)

    assert unsure(PATIENCE_MS, PATIENCE_MS)
    assert not unsure(PATIENCE_MS - 1, PATIENCE_MS)
    assert not unsure(PATIENCE_MS, PATIENCE_MS - 1)


def test_a_closing_channel_is_ended_when_its_period_is_over() -> None:
    assert not can_finalize(seen(closing_with(900)), chain_s=4_999)
    assert can_finalize(seen(closing_with(900)), chain_s=5_000)
    assert not can_finalize(seen(open_with(900)), chain_s=5_000)
    assert not can_finalize(ChannelStanding(final=closing_with(900), newest=replace(UNOPENED)), chain_s=5_000)
