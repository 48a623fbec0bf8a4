"""Pay ahead: both sides of one channel, and what a provider that takes it and leaves can gain."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, ignored, some
from kit.trading import (
    BUYER,
    CHANNEL,
    CHANNEL_ID,
    LEASE,
    NOW_MS,
    OTHER_LEASE,
    PROVIDER,
    evidence,
    line,
    statement,
    terms,
)

from hansa.market import earning_channel, paying_channel
from hansa.market.earning_channel import (
    CloseProposalArrived,
    EarningChannel,
    LeaseJoined,
    LeaseLeft,
    LineMetered,
    LinesVouched,
    VoucherArrived,
)
from hansa.market.effects import Send, unsigned
from hansa.market.funding import ChannelSettled, FundingWanted, FundsKnown, SettlementWanted
from hansa.market.ledger import Leg, Post, fold
from hansa.market.ledger_records import File
from hansa.market.paying_channel import (
    ChannelConfirmed,
    CloseAcceptanceArrived,
    CloseWanted,
    LeaseOpened,
    PayingChannel,
    ReceiptArrived,
)
from hansa.market.receipts import NOTHING, receipt_digest
from hansa.proto.currency import escrow_currency
from hansa.proto.documents import CooperativeClose, Voucher
from hansa.proto.messages import CloseProposed, ReceiptSent, VoucherSent

PREPAY = 2_000
AHEAD = terms(prepay=PREPAY)
BUYING = PayingChannel(config=CHANNEL, channel_id=CHANNEL_ID, currency="USD", phase="open")
SELLING = EarningChannel(config=CHANNEL, channel_id=CHANNEL_ID, currency="USD")
ON_CHAIN = replace(SELLING, currency=escrow_currency(31_337, b"e" * 20, b"t" * 20))
FIRST = statement((line(1_000), evidence(1)))
FUND = some(FundingWanted)


def said(cumulative, named=NOTHING):
    document = Voucher(channel_id=CHANNEL_ID, cumulative=cumulative, statement=named)
    return some(Send, to=PROVIDER, message=VoucherSent(currency="USD", voucher=unsigned(document)))


def heard(cumulative, named=NOTHING):
    document = Voucher(channel_id=CHANNEL_ID, cumulative=cumulative, statement=named)
    return VoucherArrived(voucher=unsigned(document), at_ms=NOW_MS + 5_000)


def arrived(of):
    return ReceiptArrived(statement=of, signature=b"s" * 65, at_ms=NOW_MS + 10_000)


def said_of(cumulative):
    return Voucher(channel_id=CHANNEL_ID, cumulative=cumulative, statement=NOTHING)


def funds(most):
    return FundsKnown(channel_id=CHANNEL_ID, most=most, at_ms=NOW_MS)


def told(amounts, ahead):
    return some(LinesVouched, amounts=amounts, ahead=ahead)


def buying():
    return Playbook(paying_channel.advance, BUYING) >> LeaseOpened(terms=AHEAD) << FUND << said(PREPAY)


def selling(of=SELLING):
    return Playbook(earning_channel.advance, of) >> LeaseJoined(terms=AHEAD)


def test_a_lease_that_is_paid_ahead_is_vouched_for_before_there_is_a_receipt_and_stays_ahead():
    playbook = buying() >> arrived(FIRST) << said(1_000 + PREPAY, receipt_digest(FIRST.receipt)) << some(Post)
    playbook << some(paying_channel.Vouched)
    playbook.reaches("open", cumulative=3_000, metered=1_000, ahead=PREPAY)


def test_nothing_is_paid_ahead_beyond_what_the_lease_can_cost():
    small = terms(prepay=PREPAY, max_total=1_500)
    playbook = Playbook(paying_channel.advance, BUYING) >> LeaseOpened(terms=small) << FUND << said(1_500)
    playbook >> arrived(FIRST) << said(1_500, receipt_digest(FIRST.receipt)) << some(Post)
    (playbook << some(paying_channel.Vouched)).reaches("open", cumulative=1_500)


def test_a_lease_that_is_over_is_paid_nothing_ahead_and_what_was_not_used_comes_back_at_the_close():
    playbook = buying() >> LeaseOpened(terms=replace(AHEAD, prepay=0))
    playbook >> arrived(FIRST) << said(PREPAY, receipt_digest(FIRST.receipt)) << some(Post)
    playbook << some(paying_channel.Vouched)
    close = CooperativeClose(channel_id=CHANNEL_ID, cumulative=1_000)
    playbook >> CloseWanted(at_ms=NOW_MS) << some(Send)
    playbook << some(Send, message=CloseProposed(currency="USD", close=unsigned(close)))
    playbook >> CloseAcceptanceArrived(close=unsigned(close), at_ms=NOW_MS) << some(Post) << some(object)
    playbook.reaches("closed", cumulative=PREPAY, metered=1_000)


def test_a_provider_that_ends_the_channel_with_what_was_paid_ahead_has_taken_just_that_and_the_books_say_so():
    playbook = buying() >> ChannelSettled(channel_id=CHANNEL_ID, paid=PREPAY, at_ms=NOW_MS)
    entry = (
        Leg(account=f"forfeited:{PROVIDER.hex()}", amount=PREPAY),
        Leg(account=f"taken:{PROVIDER.hex()}", amount=-PREPAY),
    )
    playbook << some(Post, entry=some(object, legs=entry))
    ended = playbook.reaches("closed", paid=PREPAY)
    again = ChannelSettled(channel_id=CHANNEL_ID, paid=PREPAY, at_ms=NOW_MS)
    (Playbook(paying_channel.advance, ended) >> again << ignored("an end that is known")).reaches("closed")


def test_a_provider_trusts_what_is_paid_ahead_and_each_lease_has_its_own_part():
    playbook = selling() >> LeaseJoined(terms=replace(AHEAD, lease=OTHER_LEASE, prepay=500))
    playbook >> heard(PREPAY + 300) << told({}, {LEASE: PREPAY, OTHER_LEASE: 300})
    playbook >> heard(PREPAY + 500) << told({}, {LEASE: PREPAY, OTHER_LEASE: 500})
    playbook >> LeaseLeft(lease=LEASE, at_ms=NOW_MS)
    assert playbook.reaches("open").ahead == {OTHER_LEASE: 500}


def test_a_voucher_may_pay_for_a_receipt_and_ahead_of_it_at_once():
    playbook = selling() >> LineMetered(line=line(1_000), evidence=evidence(1), at_ms=NOW_MS)
    playbook << some(Send, message=some(ReceiptSent))
    playbook >> heard(1_000 + PREPAY, receipt_digest(FIRST.receipt)) << some(Post)
    playbook << told({LEASE: 1_000}, {LEASE: PREPAY})
    playbook.reaches("open", cumulative=3_000, earned=1_000)


def test_vouchers_that_pay_ahead_by_a_little_more_each_time_are_taken_a_few_times_and_what_is_due_at_once():
    playbook = selling()
    for cumulative in range(1, 11):  # eight, and two for each lease
        playbook >> heard(cumulative) << told({}, {LEASE: cumulative})
    for cumulative in (11, 12, PREPAY - 1):
        playbook >> heard(cumulative) << ignored("one more voucher that pays ahead by a little")
    playbook >> heard(PREPAY) << told({}, {LEASE: PREPAY})
    playbook >> LeaseJoined(terms=replace(AHEAD, lease=OTHER_LEASE, prepay=500))
    playbook >> heard(PREPAY + 500) << told({}, {LEASE: PREPAY, OTHER_LEASE: 500})
    playbook >> LineMetered(line=line(1_000), evidence=evidence(1), at_ms=NOW_MS) << some(Send)
    out = playbook.reaches("open").out.receipt
    playbook >> heard(PREPAY + 501, receipt_digest(out)) << some(Post) << some(LinesVouched)
    assert playbook.reaches("open").advances == 0, "who pays for a receipt may pay ahead again"


def test_vouchers_that_no_deposit_covers_are_kept_a_few_times():
    playbook, last = worked_off(4_000)
    playbook >> LeaseJoined(terms=replace(AHEAD, lease=OTHER_LEASE, prepay=5_000))
    playbook >> LineMetered(line=line(5_000), evidence=evidence(5), at_ms=NOW_MS) << some(Send)
    named = (receipt_digest(last), receipt_digest(playbook.reaches("open").out.receipt))
    for cumulative in range(9_001, 9_013):  # eight, and two for each of the leases
        playbook >> heard(cumulative, named[cumulative % 2])
        assert playbook.reaches("open").waiting.document.cumulative == cumulative
    for cumulative in (9_013, 9_014, 10_999):
        playbook >> heard(cumulative, named[cumulative % 2])
        playbook << ignored("one more voucher that the deposit does not cover")


def test_on_the_ledger_a_voucher_beyond_the_credit_line_counts_and_is_signed_since_it_is_a_promise():
    playbook = (
        selling() >> funds(500) >> LineMetered(line=line(1_000), evidence=evidence(1), at_ms=NOW_MS) << some(Send)
    )
    playbook >> heard(1_000, receipt_digest(FIRST.receipt)) << some(Post) << some(LinesVouched)
    playbook.reaches("open", earned=1_000, waiting=None)
    payer = buying() >> funds(500) >> arrived(FIRST) << FUND << said(1_000 + PREPAY, receipt_digest(FIRST.receipt))
    (payer << some(Post) << some(paying_channel.Vouched)).reaches("open", cumulative=1_000 + PREPAY)


def test_what_a_provider_kept_of_what_was_paid_ahead_is_an_entry_of_its_own_and_no_earning():
    playbook, _ = worked_off(2_000)
    playbook >> ChannelSettled(channel_id=CHANNEL_ID, paid=2_000 + PREPAY, at_ms=NOW_MS) << some(File) << some(File)
    closed = (Leg(account=f"settled:{BUYER.hex()}", amount=2_000), Leg(account=f"due:{BUYER.hex()}", amount=-2_000))
    beyond = (Leg(account=f"kept:{BUYER.hex()}", amount=PREPAY), Leg(account=f"unearned:{BUYER.hex()}", amount=-PREPAY))
    playbook << some(Post, entry=some(object, legs=closed)) << some(Post, entry=some(object, legs=beyond))
    playbook.reaches("closed", paid=2_000 + PREPAY)


@pytest.mark.parametrize("cumulative", [0, 999, 1_000 + PREPAY + 1])
def test_a_voucher_below_its_receipt_or_further_ahead_than_was_agreed_counts_nothing(cumulative):
    playbook = selling() >> LineMetered(line=line(1_000), evidence=evidence(1), at_ms=NOW_MS) << some(Send)
    playbook >> heard(cumulative, receipt_digest(FIRST.receipt)) << ignored("a voucher for another sum")
    playbook.reaches("open", cumulative=0)


def test_a_voucher_that_would_lower_the_best_one_is_not_taken_in_its_place():
    playbook = selling() >> heard(PREPAY) << told({}, {LEASE: PREPAY})
    playbook >> heard(PREPAY - 1) << ignored("a voucher for no receipt that is out")
    playbook >> LineMetered(line=line(1_000), evidence=evidence(1), at_ms=NOW_MS) << some(Send)
    playbook >> heard(1_500, receipt_digest(FIRST.receipt)) << ignored("a voucher that takes money back")
    playbook.reaches("open", cumulative=PREPAY)


def test_a_provider_agrees_to_the_sum_of_receipts_and_no_other():
    playbook = selling() >> heard(PREPAY) << told({}, {LEASE: PREPAY}) >> LeaseLeft(lease=LEASE, at_ms=NOW_MS)
    for wrong in (PREPAY, 1):
        close = CooperativeClose(channel_id=CHANNEL_ID, cumulative=wrong)
        playbook >> CloseProposalArrived(close=unsigned(close), at_ms=NOW_MS)
    playbook.reaches("open")
    fresh = selling() >> heard(PREPAY) << told({}, {LEASE: PREPAY}) >> LeaseLeft(lease=LEASE, at_ms=NOW_MS)
    close = CooperativeClose(channel_id=CHANNEL_ID, cumulative=0)
    fresh >> CloseProposalArrived(close=unsigned(close), at_ms=NOW_MS) << some(Send, to=BUYER)
    fresh.reaches("closed")


def test_what_is_promised_ahead_beyond_the_deposit_is_not_trusted_until_it_lies_there():
    playbook = selling(ON_CHAIN) >> heard(PREPAY)
    playbook >> funds(PREPAY - 1)
    playbook.reaches("open", cumulative=0)
    playbook >> funds(PREPAY) << told({}, {LEASE: PREPAY})
    playbook.reaches("open", cumulative=PREPAY, waiting=None)


def worked_off(upto):
    """A provider on a chain whose deposit is 9 000, with receipts and vouchers up to a total, one a thousand."""
    playbook = selling(ON_CHAIN) >> funds(9_000)
    last = None
    for total in range(1_000, upto + 1, 1_000):
        playbook >> LineMetered(line=line(total), evidence=evidence(total // 1_000), at_ms=NOW_MS) << some(Send)
        last = playbook.reaches("open").out.receipt
        playbook >> heard(total + PREPAY, receipt_digest(last)) << some(Post)
        playbook << told({LEASE: total}, {LEASE: PREPAY})
    return playbook, last


def test_a_voucher_above_the_deposit_never_takes_the_place_of_one_that_can_be_claimed():
    playbook, last = worked_off(4_000)
    playbook >> LeaseJoined(terms=replace(AHEAD, lease=OTHER_LEASE, prepay=5_000))
    playbook >> heard(9_001, receipt_digest(last))
    playbook.reaches("open", cumulative=6_000)
    playbook >> LineMetered(line=line(5_000), evidence=evidence(5), at_ms=NOW_MS) << some(Send)
    out = playbook.reaches("open").out.receipt
    playbook >> heard(9_002, receipt_digest(out))
    assert playbook.reaches("open", cumulative=6_000, earned=4_000).out is not None, "it is not paid for"
    playbook >> heard(7_000, receipt_digest(out)) << some(Post) << some(LinesVouched)
    playbook.reaches("open", cumulative=7_000, earned=5_000)


def test_a_voucher_that_came_before_its_top_up_was_final_counts_when_it_is_and_may_end_the_channel():
    playbook, _ = worked_off(4_000)
    playbook >> LeaseJoined(terms=replace(AHEAD, lease=OTHER_LEASE, prepay=5_000))
    playbook >> LineMetered(line=line(5_000), evidence=evidence(5), at_ms=NOW_MS) << some(Send)
    out = playbook.reaches("open").out.receipt
    (
        playbook
        >> heard(12_000, receipt_digest(out))
        >> heard(11_999, receipt_digest(out))
        << ignored("a voucher that takes money back")
    )
    close = CooperativeClose(channel_id=CHANNEL_ID, cumulative=5_000)
    for lease in (LEASE, OTHER_LEASE):
        playbook >> LeaseLeft(lease=lease, at_ms=NOW_MS)
    playbook >> CloseProposalArrived(close=unsigned(close), at_ms=NOW_MS)
    playbook.reaches("open", cumulative=6_000)
    playbook >> funds(12_000) << some(Post) << told({LEASE: 5_000}, {})
    playbook << some(Post) << some(Send, to=BUYER) << some(SettlementWanted, cumulative=5_000)
    playbook.reaches("closed", cumulative=12_000, earned=5_000)


@pytest.mark.parametrize(("upto", "safe"), [(2_000, 0), (3_000, 3_000), (4_000, 3_000), (7_000, 7_000)])
def test_beside_the_newest_voucher_one_is_kept_that_pays_no_more_than_was_earned(upto, safe):
    playbook, _ = worked_off(upto)
    found = playbook.reaches("open", cumulative=upto + PREPAY)
    assert (found.safe.document.cumulative if found.safe else 0) == safe <= found.earned


def test_a_buyer_pays_nothing_ahead_beyond_the_deposit_and_the_rest_once_it_lies_there():
    buyer = replace(BUYING, currency=ON_CHAIN.currency)
    playbook = Playbook(paying_channel.advance, buyer) >> LeaseOpened(terms=AHEAD) << FUND
    playbook >> funds(1_500) << some(Send, message=some(VoucherSent, voucher=some(object, document=said_of(1_500))))
    playbook >> funds(1_500)
    playbook >> funds(9_000) << some(Send, message=some(VoucherSent, voucher=some(object, document=said_of(PREPAY))))
    playbook.reaches("open", cumulative=PREPAY)


COURSE = st.lists(
    st.tuples(st.sampled_from(["work", "open", "end", "lose", "repeat"]), st.integers(0, 3_000)), max_size=30
)


class Pair:
    """Both machines of one channel, and the letters between them; a test brings, loses and repeats those."""

    def __init__(self):
        self.pays, self.sells = BUYING, SELLING
        self.entries, self.letters, self.ran, self.steps = [], [], {}, 0

    def buyer(self, event):
        step = paying_channel.advance(self.pays, event)
        self.pays = step.state
        self._do(step.effects)

    def provider(self, event):
        step = earning_channel.advance(self.sells, event)
        self.sells = step.state
        self._do(step.effects)

    def _do(self, effects):
        self.entries += [effect.entry for effect in effects if isinstance(effect, Post)]
        self.letters += [effect.message for effect in effects if isinstance(effect, Send)]

    def bring(self, message):
        if isinstance(message, VoucherSent):
            self.provider(VoucherArrived(voucher=message.voucher, at_ms=NOW_MS + 10**6))
        elif isinstance(message, ReceiptSent):
            of = replace(FIRST, receipt=message.receipt.document, lines=message.lines, evidence=message.evidence)
            self.buyer(replace(arrived(of), at_ms=NOW_MS + 10**6))

    def open(self, prepay):
        each = terms(lease=bytes([len(self.pays.terms) + 1]) * 32, prepay=prepay, ends_ms=NOW_MS + 10**7)
        self.provider(LeaseJoined(terms=each))
        self.buyer(LeaseOpened(terms=each))

    def work(self, lease, more_ms):
        self.ran[lease], self.steps = self.ran.get(lease, 0) + more_ms, self.steps + 1
        metered = line(self.ran[lease], at_ms=NOW_MS + 500_000, lease=lease)
        proof = evidence(self.steps, lease=lease)
        self.provider(LineMetered(line=metered, evidence=proof, at_ms=NOW_MS + 500_000))

    def turn(self, what, amount, prepays):
        leases = sorted(self.pays.terms)
        if what == "open" and len(leases) < len(prepays):
            self.open(prepays[len(leases)])
        elif what == "end" and leases:
            over = self.pays.terms[leases[amount % len(leases)]]
            self.buyer(LeaseOpened(terms=replace(over, prepay=0)))
        elif what == "work" and leases:
            self.work(leases[amount % len(leases)], amount)
        elif what == "lose" and self.letters:
            self.letters.pop(amount % len(self.letters))
            return
        elif what == "repeat" and self.letters:
            self.bring(self.letters[amount % len(self.letters)])
        if self.letters:
            self.bring(self.letters.pop(0))


@given(st.lists(st.integers(0, 4_000), min_size=1, max_size=3), COURSE)
def test_whenever_a_provider_leaves_it_has_at_most_what_live_leases_pay_ahead_beyond_its_receipts(prepays, course):
    """Two machines that talk over a line that loses and repeats; at any instant the provider may be gone for good."""
    pair, most = Pair(), 0
    for what, amount in course:
        before = pair.pays.cumulative
        pair.turn(what, amount, prepays)
        pays, sells = pair.pays, pair.sells
        live = sum(each.prepay for each in pays.terms.values())
        assert pays.cumulative in range(before, max(before, pays.metered + live) + 1), (
            "further ahead than live leases pay"
        )
        most = max(most, live)
        assert pays.cumulative - pays.metered <= most, "a provider could leave with more than that"
        assert sells.cumulative <= pays.cumulative, "the provider has no more than was signed"
        assert sells.earned <= pays.metered <= pays.cumulative
        assert sum(sells.ahead.values()) <= max(0, sells.cumulative - sells.earned)
    books = fold(pair.entries)
    assert books.total() == 0
    assert books.total("spend:") == pair.pays.metered
    assert -books.total("earned:") == pair.sells.earned


@given(st.lists(st.integers(0, 4_000), min_size=1, max_size=3), COURSE)
def test_once_everything_is_said_again_both_sides_agree_and_close_at_what_was_received(prepays, course):
    pair = Pair()
    for what, amount in course:
        pair.turn(what, amount, prepays)
    for lease in sorted(pair.sells.terms):
        pair.buyer(LeaseOpened(terms=replace(pair.pays.terms[lease], prepay=0)))
        pair.provider(LeaseLeft(lease=lease, at_ms=NOW_MS))
    for _ in range(3):
        pair._do(earning_channel.outstanding(pair.sells, NOW_MS))
        while pair.letters:
            pair.bring(pair.letters.pop(0))
        pair._do(paying_channel.outstanding(pair.pays, NOW_MS))
        while pair.letters:
            pair.bring(pair.letters.pop(0))
    assert pair.sells.earned == pair.pays.metered == pair.sells.metered
    pair.buyer(CloseWanted(at_ms=NOW_MS))
    proposed = [message.close for message in pair.letters if isinstance(message, CloseProposed)]
    if pair.pays.phase == "closing" and pair.sells.terms:
        pair.provider(CloseProposalArrived(close=proposed[-1], at_ms=NOW_MS))
        pair.buyer(CloseAcceptanceArrived(close=proposed[-1], at_ms=NOW_MS))
        assert (pair.pays.phase, pair.sells.phase) == ("closed", "closed")
        books = fold(pair.entries)
        assert books.total("owed:") == books.total("due:") == 0
        assert -books.total("paid:") == books.total("settled:") == pair.pays.metered


def test_a_channel_that_is_confirmed_late_asks_for_funds_and_pays_nothing_ahead_before():
    opening = replace(BUYING, phase="opening")
    playbook = Playbook(paying_channel.advance, opening) >> LeaseOpened(terms=AHEAD) << FUND
    (playbook >> ChannelConfirmed()).reaches("open", cumulative=0)
