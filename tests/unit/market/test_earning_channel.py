"""The provider's side: one receipt out at a time, and a voucher only for exactly that."""

from dataclasses import replace

import pytest
from kit.playbook import Playbook, ignored, some
from kit.trading import (
    BUYER,
    CHANNEL,
    CHANNEL_ID,
    LEASE,
    NOW_MS,
    OTHER_LEASE,
    evidence,
    line,
    statement,
    terms,
)

from hansa.market import earning_channel
from hansa.market.earning_channel import (
    CloseProposalArrived,
    EarningChannel,
    LeaseJoined,
    LeaseLeft,
    LineMetered,
    LinesRefused,
    LinesVouched,
    RefusalArrived,
    VoucherArrived,
    advance,
)
from hansa.market.effects import Send, unsigned
from hansa.market.funding import ChannelSettled, FundsKnown, SettlementWanted
from hansa.market.ledger import Post
from hansa.market.receipts import receipt_digest
from hansa.proto.currency import escrow_currency
from hansa.proto.documents import CooperativeClose, Voucher
from hansa.proto.messages import CloseAccepted, ReceiptSent

START = EarningChannel(config=CHANNEL, channel_id=CHANNEL_ID, currency="USD")
FIRST = statement((line(1_000), evidence(1)))
SECOND = statement((line(2_000), evidence(2)), last=FIRST)
JOINED = LeaseJoined(terms=terms())
LEFT = LeaseLeft(lease=LEASE, at_ms=NOW_MS)


def metered(device_ms, steps):
    return LineMetered(line=line(device_ms), evidence=evidence(steps), at_ms=NOW_MS + device_ms)


def voucher(of, **changes):
    made = Voucher(channel_id=CHANNEL_ID, cumulative=of.receipt.amount_total, statement=receipt_digest(of.receipt))
    return VoucherArrived(voucher=unsigned(replace(made, **changes)), at_ms=NOW_MS + 5_000)


def proposal(cumulative):
    return CloseProposalArrived(
        close=unsigned(CooperativeClose(channel_id=CHANNEL_ID, cumulative=cumulative)), at_ms=NOW_MS + 9_000
    )


def receipt_of(of):
    message = ReceiptSent(receipt=unsigned(of.receipt), lines=of.lines, evidence=of.evidence)
    return some(Send, to=BUYER, message=message)


ACCEPTED = some(Send, to=BUYER, message=some(CloseAccepted))
SETTLE = some(SettlementWanted, channel_id=CHANNEL_ID)


def paid():
    """A channel on which one receipt was vouched for."""
    playbook = Playbook(advance, START) >> JOINED >> metered(1_000, 1) << receipt_of(FIRST)
    return playbook >> voucher(FIRST) << some(Post) << LinesVouched(amounts={LEASE: 1_000}, at_ms=NOW_MS + 5_000)


def test_lines_gather_while_a_receipt_is_out_and_go_into_the_next():
    playbook = Playbook(advance, START) >> JOINED >> metered(1_000, 1) << receipt_of(FIRST) >> metered(2_000, 2)
    playbook >> voucher(FIRST) << some(Post) << some(LinesVouched, amounts={LEASE: 1_000}) << receipt_of(SECOND)
    playbook >> voucher(SECOND) << some(Post) << some(LinesVouched, amounts={LEASE: 2_000})
    playbook.reaches("open", cumulative=2_000, out=None)


@pytest.mark.parametrize("statement_digest", [receipt_digest(SECOND.receipt), bytes(32)])
def test_a_voucher_names_the_receipt_that_is_out(statement_digest):
    playbook = Playbook(advance, START) >> JOINED >> metered(1_000, 1) << receipt_of(FIRST)
    playbook >> voucher(FIRST, statement=statement_digest) << ignored("a voucher for no receipt that is out")
    playbook.reaches("open", cumulative=0)


@pytest.mark.parametrize("cumulative", [0, 999, 1_001])
def test_a_voucher_for_another_sum_is_no_voucher(cumulative):
    playbook = Playbook(advance, START) >> JOINED >> metered(1_000, 1) << receipt_of(FIRST)
    playbook >> voucher(FIRST, cumulative=cumulative) << ignored("a voucher for another sum than its receipt")
    playbook.reaches("open", cumulative=0)


def test_the_same_voucher_twice_counts_once():
    playbook = paid() >> voucher(FIRST) << ignored("a voucher for no receipt")
    playbook.reaches("open", cumulative=1_000)


def test_nothing_new_to_be_paid_writes_no_receipt():
    (paid() >> metered(1_000, 2)).reaches("open", out=None)


def test_a_meter_that_runs_back_is_our_own_fault():
    with pytest.raises(AssertionError, match="a meter ran back"):
        advance(paid().reaches("open"), metered(999, 2))


def test_a_refusal_reaches_every_lease_on_the_receipt():
    playbook = Playbook(advance, START) >> JOINED >> metered(1_000, 1) << receipt_of(FIRST)
    playbook >> RefusalArrived(seq=2, reason="no") << ignored("a refusal of no receipt that is out")
    playbook >> RefusalArrived(seq=1, reason="no") << LinesRefused(leases=(LEASE,), reason="no")
    playbook.reaches("open", refused="no")


def test_the_end_waits_for_every_lease_that_may_still_meter():
    playbook = paid() >> LeaseJoined(terms=terms(lease=OTHER_LEASE)) >> proposal(1_000) >> LEFT
    playbook.reaches("open")
    playbook >> LeaseLeft(lease=OTHER_LEASE, at_ms=NOW_MS) << some(Post) << ACCEPTED << SETTLE
    playbook.reaches("closed", closed_ms=NOW_MS)


def test_the_end_waits_for_the_voucher_that_its_sum_names():
    playbook = Playbook(advance, START) >> JOINED >> metered(1_000, 1) << receipt_of(FIRST)
    (
        playbook
        >> proposal(1_000)
        >> voucher(FIRST)
        << some(Post)
        << some(LinesVouched)
        >> LEFT
        << some(Post)
        << ACCEPTED
        << SETTLE
    )
    playbook.reaches("closed", cumulative=1_000)


def test_words_of_the_end_that_overtake_each_other_still_end_it():
    """The higher word comes first, then the lower one, then the voucher for the higher."""
    playbook = paid() >> metered(2_000, 2) << receipt_of(SECOND) >> proposal(2_000) >> proposal(1_000)
    playbook >> voucher(SECOND) << some(Post) << some(LinesVouched) >> LEFT << some(Post) << ACCEPTED << SETTLE
    playbook.reaches("closed", cumulative=2_000)


@pytest.mark.parametrize("cumulative", [0, 999, 1_001])
def test_no_end_at_another_sum_than_the_vouchers(cumulative):
    (paid() >> LEFT >> proposal(cumulative)).reaches("open", cumulative=1_000)


def test_a_channel_on_which_nothing_moved_ends_with_its_last_lease_and_agrees_to_that_when_asked():
    playbook = Playbook(advance, START) >> JOINED >> LeaseJoined(terms=terms(lease=OTHER_LEASE)) >> LEFT
    playbook.reaches("open")
    playbook >> LeaseLeft(lease=OTHER_LEASE, at_ms=NOW_MS) << ACCEPTED
    playbook.reaches("closed", voucher=None, proposed=None)
    playbook >> proposal(1) >> proposal(0) << ACCEPTED >> proposal(0) << ACCEPTED
    playbook.reaches("closed", voucher=None)


def test_an_end_at_nothing_moves_nothing():
    (Playbook(advance, START) >> JOINED >> proposal(0) >> LEFT << ACCEPTED).reaches("closed", voucher=None)


def test_a_channel_with_a_deposit_on_a_chain_or_with_anything_metered_does_not_end_by_itself():
    chain = replace(START, currency=escrow_currency(31_337, b"\xee" * 20, b"\x70" * 20))
    (Playbook(advance, chain) >> JOINED >> FundsKnown(channel_id=CHANNEL_ID, most=5, at_ms=NOW_MS) >> LEFT).reaches(
        "open"
    )
    (Playbook(advance, START) >> JOINED >> metered(1_000, 1) << receipt_of(FIRST) >> LEFT).reaches("open")


def test_the_end_asked_for_again_is_answered_again_and_posted_once():
    playbook = paid() >> LEFT >> proposal(1_000) << some(Post) << ACCEPTED << SETTLE >> proposal(1_000) << ACCEPTED
    playbook.reaches("closed")


def test_a_debt_that_was_refused_does_not_keep_the_channel_open():
    playbook = paid() >> metered(2_000, 2) << receipt_of(SECOND) >> RefusalArrived(seq=2, reason="no")
    playbook << some(LinesRefused) >> proposal(1_000) >> LEFT << some(Post) << ACCEPTED << SETTLE
    playbook.reaches("closed", cumulative=1_000)


def test_a_restart_says_again_what_the_buyer_may_not_have():
    out = (Playbook(advance, START) >> JOINED >> metered(1_000, 1) << receipt_of(FIRST)).reaches("open")
    assert earning_channel.outstanding(out, NOW_MS) == (receipt_of(FIRST),)
    closed = (paid() >> LEFT >> proposal(1_000) << some(Post) << ACCEPTED << SETTLE).reaches("closed")
    assert earning_channel.outstanding(closed, NOW_MS + 60_000) == (ACCEPTED, SETTLE)
    assert earning_channel.outstanding(closed, NOW_MS + 8 * 24 * 3_600_000) == (SETTLE,)


def test_its_backend_is_told_to_end_it_until_it_has():
    closed = (paid() >> LEFT >> proposal(1_000) << some(Post) << ACCEPTED << SETTLE).reaches("closed")
    settled = ChannelSettled(channel_id=CHANNEL_ID, paid=1_000, at_ms=NOW_MS + 10_000)
    ended = (Playbook(advance, closed) >> settled).reaches("closed", paid=1_000)
    assert earning_channel.outstanding(ended, NOW_MS + 60_000) == (ACCEPTED,)


def test_a_channel_on_a_chain_can_pay_nothing_until_its_deposit_is_seen_and_one_on_the_ledger_is_not_limited():
    on_chain = replace(START, currency=escrow_currency(31_337, b"e" * 20, b"t" * 20))
    assert (START.limit, on_chain.limit) == (None, 0)
    known = FundsKnown(channel_id=CHANNEL_ID, most=5_000, at_ms=NOW_MS)
    assert (Playbook(advance, on_chain) >> known).reaches("open").limit == 5_000
    assert (Playbook(advance, START) >> known).reaches("open").limit == 5_000


def test_a_receipt_with_a_voucher_that_waits_for_its_deposit_is_not_disputed_any_more():
    chain = replace(START, currency=escrow_currency(31_337, b"\xee" * 20, b"\x70" * 20), funds=500)
    playbook = Playbook(advance, chain) >> JOINED >> metered(1_000, 1) << receipt_of(FIRST) >> voucher(FIRST)
    playbook.reaches("open", out=FIRST, voucher=None)
    disputed = RefusalArrived(seq=FIRST.receipt.seq, reason="clocks", payable=FIRST.lines, at_ms=NOW_MS)
    playbook >> disputed << some(LinesRefused)
    # Its voucher is filed: a receipt that followed another one would not follow in the ledger.
    playbook.reaches("open", out=FIRST, passed_over=0, refused="clocks")
