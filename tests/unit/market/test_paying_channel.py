"""The guard over the buyer's money: what it signs, and what it never signs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, ignored, some
from kit.trading import CHANNEL, CHANNEL_ID, LEASE, NOW_MS, PROVIDER, evidence, line, statement, terms

from hansa.market import paying_channel
from hansa.market.effects import Send, unsigned
from hansa.market.funding import ChannelSettled, FundingFailed, FundingWanted, FundsKnown, SettlementWanted
from hansa.market.ledger import Post
from hansa.market.paying_channel import (
    ChannelConfirmed,
    CloseAcceptanceArrived,
    CloseWanted,
    LeaseOpened,
    PayingChannel,
    ReceiptArrived,
    Vouched,
    advance,
)
from hansa.market.receipts import receipt_digest
from hansa.proto.documents import CooperativeClose, Voucher
from hansa.proto.messages import CloseProposed, ReceiptDisputed, ReceiptRefused, VoucherSent

START = PayingChannel(config=CHANNEL, channel_id=CHANNEL_ID, currency="USD")
OPEN = replace(START, phase="open", terms={LEASE: terms()})
FIRST = statement((line(1_000), evidence(1)))
SECOND = statement((line(2_000), evidence(2)), last=FIRST)


def arrived(of, at_ms=NOW_MS + 10_000):
    return ReceiptArrived(statement=of, signature=b"s" * 65, at_ms=at_ms)


def voucher_for(of):
    total = of.receipt.amount_total
    document = Voucher(channel_id=CHANNEL_ID, cumulative=total, statement=receipt_digest(of.receipt))
    return some(Send, to=PROVIDER, message=VoucherSent(currency="USD", voucher=unsigned(document)))


def closed_on(cumulative):
    close = unsigned(CooperativeClose(channel_id=CHANNEL_ID, cumulative=cumulative))
    return CloseAcceptanceArrived(close=close, at_ms=NOW_MS + 20_000)


PROPOSED = some(Send, to=PROVIDER, message=some(CloseProposed))
REFUSED = some(Send, to=PROVIDER, message=some(ReceiptRefused))
FUND = some(FundingWanted, channel_id=CHANNEL_ID, amount=600_001)


def test_every_sound_receipt_gets_its_voucher_and_its_entry_until_both_sides_close():
    playbook = Playbook(advance, START) >> ChannelConfirmed() >> LeaseOpened(terms=terms()) << FUND
    (
        playbook
        >> arrived(FIRST)
        << voucher_for(FIRST)
        << some(Post)
        << Vouched(channel_id=CHANNEL_ID, amounts={LEASE: 1_000})
    )
    playbook >> arrived(SECOND) << voucher_for(SECOND) << some(Post) << some(Vouched)
    playbook >> CloseWanted(at_ms=NOW_MS) << voucher_for(SECOND) << PROPOSED
    playbook >> closed_on(2_000) << some(Post) << some(SettlementWanted, cumulative=2_000)
    playbook.reaches("closed", cumulative=2_000)


def test_a_receipt_ahead_of_time_waits_until_so_much_has_passed():
    """An honest provider that is refused stops; and that the time did not pass may be the fault of this clock."""
    early = statement((line(9_000), evidence(1)))
    for back_ms in (5_000, 12_000):
        playbook = Playbook(advance, OPEN)
        playbook >> arrived(early, NOW_MS + 9_000 - back_ms) << ignored("a receipt ahead of time")
        playbook >> arrived(early, NOW_MS + 9_000) << voucher_for(early) << some(Post) << some(Vouched)
        playbook.reaches("open", cumulative=9_000)


def test_of_a_receipt_for_time_that_cannot_pass_any_more_what_passed_would_be_paid_and_that_receipt_never():
    ended = replace(OPEN, terms={LEASE: terms(ends_ms=NOW_MS + 1_000)})
    told = arrived(statement((line(9_000), evidence(1))), NOW_MS + 9_000)
    paid = line(3_000, at_ms=NOW_MS + 9_000)
    disputed = some(Send, to=PROVIDER, message=some(ReceiptDisputed, seq=1, payable=(paid,)))
    playbook = Playbook(advance, ended) >> told << disputed >> told << disputed
    playbook.reaches("open", cumulative=0, passed_over=1)
    instead = statement((paid, evidence(1)), seq=2)
    playbook >> arrived(instead, NOW_MS + 9_000) << voucher_for(instead) << some(Post) << some(Vouched)
    playbook.reaches("open", cumulative=3_000)


def test_the_same_receipt_again_gets_the_same_voucher_and_no_second_entry():
    playbook = Playbook(advance, OPEN)
    playbook >> arrived(FIRST) << voucher_for(FIRST) << some(Post) << some(Vouched)
    playbook >> arrived(FIRST, NOW_MS + 99_000) << voucher_for(FIRST)
    playbook.reaches("open", cumulative=1_000)


def test_a_receipt_with_a_fault_is_refused_with_the_reason_and_costs_nothing():
    playbook = Playbook(advance, OPEN) >> arrived(statement((line(1_000), evidence(1)), seq=2)) << REFUSED
    playbook.reaches("open", cumulative=0, accepted=None)


def test_a_forked_receipt_of_the_last_number_is_refused():
    playbook = Playbook(advance, OPEN) >> arrived(FIRST) << some(Send) << some(Post) << some(Vouched)
    fork = statement((line(1_500), evidence(1)))
    playbook >> arrived(fork) << REFUSED
    playbook.reaches("open", cumulative=1_000)


def test_a_refusal_is_forgotten_when_a_sound_receipt_comes():
    playbook = Playbook(advance, OPEN) >> arrived(SECOND) << REFUSED >> arrived(FIRST) << some(Send) << some(Post)
    playbook << some(Vouched)
    playbook.reaches("open", refused="")


def test_a_receipt_that_crosses_the_word_of_the_end_is_paid_and_the_new_sum_proposed():
    playbook = Playbook(advance, OPEN) >> CloseWanted(at_ms=NOW_MS) << PROPOSED
    playbook >> arrived(FIRST) << voucher_for(FIRST) << PROPOSED << some(Post) << some(Vouched)
    playbook.reaches("closing", cumulative=1_000)


def test_the_provider_cannot_close_on_another_sum():
    playbook = Playbook(advance, OPEN) >> arrived(FIRST) << some(Send) << some(Post) << some(Vouched)
    playbook >> CloseWanted(at_ms=NOW_MS) << some(Send) << PROPOSED
    playbook >> closed_on(0) << ignored("the provider closed on another sum")
    playbook >> closed_on(1_001) << ignored("the provider closed on another sum")
    playbook.reaches("closing")


def test_the_provider_cannot_close_what_the_buyer_did_not():
    playbook = Playbook(advance, replace(OPEN, cumulative=1)) >> closed_on(0) << ignored("an end that nobody asked for")
    playbook.reaches("open")
    playbook = Playbook(advance, OPEN) >> closed_on(1) << ignored("the provider closed on another sum")
    playbook.reaches("open")


def test_a_channel_on_which_nothing_moved_ends_when_its_provider_ends_it():
    (Playbook(advance, OPEN) >> closed_on(0) << some(Post) << some(SettlementWanted)).reaches("closed")


def test_a_channel_that_nobody_confirmed_ends_without_a_word():
    (Playbook(advance, START) >> CloseWanted(at_ms=NOW_MS)).reaches("closed")


def test_a_voucher_never_takes_money_back(monkeypatch):
    monkeypatch.setattr(paying_channel, "fault_in", lambda *_, **__: None)
    paid = replace(OPEN, accepted=SECOND, cumulative=2_000)
    with pytest.raises(AssertionError, match="take money back"):
        advance(paid, arrived(FIRST))


def test_a_voucher_never_passes_what_was_agreed(monkeypatch):
    monkeypatch.setattr(paying_channel, "fault_in", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="pass what was agreed"):
        advance(replace(OPEN, terms={LEASE: terms(max_total=999)}), arrived(FIRST))


def test_refusals_on_two_channels_to_one_provider_do_not_replace_each_other():
    other = replace(OPEN, channel_id=b"o" * 32)
    wrong = statement((line(1_000), evidence(1)), seq=9)
    one, two = (advance(state, arrived(wrong)).effects[0].replaces for state in (OPEN, other))
    assert one != two


def test_a_restart_says_the_voucher_and_the_end_again():
    paid = replace(OPEN, phase="closing", accepted=FIRST, cumulative=1_000)
    assert [type(effect.message) for effect in paying_channel.outstanding(paid, NOW_MS)] == [VoucherSent, CloseProposed]
    assert paying_channel.outstanding(replace(paid, phase="closed"), NOW_MS) == ()


@given(st.lists(st.tuples(st.integers(1, 3_000), st.booleans(), st.integers(0, 4)), max_size=12))
def test_the_usual_course_with_strays_dropped_in_anywhere_never_lowers_or_overpays(course):
    """The provider's honest receipts come in order; around each come old ones, forks and repeats."""
    state, last, worked, steps = OPEN, None, 0, 0
    sent = []
    for more_ms, repeat, stray in course:
        worked, steps = worked + more_ms, steps + 1
        honest = statement((line(worked), evidence(steps)), last=last)
        strays = [
            statement((line(worked * 2, at_ms=NOW_MS + worked), evidence(steps)), last=last),
            statement((line(worked), evidence(steps)), last=last, amount_total=worked + 1),
            statement((line(worked), evidence(steps)), last=last, seq=7),
            *sent[-2:],
        ][:stray]
        for each in (*strays, honest, *([honest] if repeat else []), *strays):
            before = state.cumulative
            step = advance(state, arrived(each, NOW_MS + 100_000))
            state = step.state
            assert state.cumulative in (before, worked)
            assert state.cumulative >= before
        sent.append(honest)
        last = honest
        assert state.cumulative == worked
        assert state.accepted == honest


def test_a_lease_that_comes_twice_asks_for_funds_once_and_lacking_ones_are_asked_for_again():
    playbook = Playbook(advance, START) >> ChannelConfirmed() >> LeaseOpened(terms=terms()) << FUND
    playbook >> LeaseOpened(terms=terms())
    playbook >> FundingFailed(channel_id=CHANNEL_ID, reason="the wallet is empty", at_ms=NOW_MS)
    state = playbook.reaches("open", trouble="the wallet is empty")
    assert paying_channel.outstanding(state, NOW_MS) == ()
    low = (Playbook(advance, state) >> FundsKnown(channel_id=CHANNEL_ID, most=600_000, at_ms=NOW_MS)).reaches("open")
    assert paying_channel.outstanding(low, NOW_MS) == (FUND,)
    full = (Playbook(advance, low) >> FundsKnown(channel_id=CHANNEL_ID, most=600_001, at_ms=NOW_MS)).reaches("open")
    assert (full.trouble, paying_channel.outstanding(full, NOW_MS)) == ("", ())


def test_a_closed_channel_is_brought_to_its_backend_until_that_says_it_is_settled():
    closed = replace(OPEN, phase="closed", accepted=FIRST, cumulative=1_000, close_signature=b"c" * 65)
    wanted = some(SettlementWanted, channel_id=CHANNEL_ID, cumulative=1_000, other_signature=b"c" * 65)
    assert paying_channel.outstanding(closed, NOW_MS) == (wanted,)
    news = ChannelSettled(channel_id=CHANNEL_ID, paid=1_000, at_ms=NOW_MS)
    settled = (Playbook(advance, closed) >> news).reaches("closed", paid=1_000)
    assert paying_channel.outstanding(settled, NOW_MS) == ()
