"""Every reason for which a buyer does not pay, one by one: the rest of the statement is always sound."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import DEVICE, LEASE, NOW_MS, OTHER_LEASE, PRICE, evidence, line, statement, terms

from hansa.market.receipts import (
    AHEAD_OF_TIME,
    CLOCK_SKEW_MS,
    DRIFT_PARTS,
    SPARE_MS,
    LeaseTerms,
    Statement,
    fault_in,
    is_early,
    root_of,
)

FIRST = statement((line(1_000), evidence(1)))
SECOND = statement((line(2_000), evidence(2)), last=FIRST)
OTHER_TERMS = terms(lease=OTHER_LEASE, shard=1, devices=(b"e" * 32,))


def fault(of: Statement, *, last: Statement | None = None, now_ms: int = NOW_MS + 10_000, agreed: Any = None) -> Any:
    return fault_in(of, last=last, terms=agreed or {LEASE: terms()}, now_ms=now_ms)


def recommitted(of: Statement, **changes: Any) -> Statement:
    """Other lines or evidence, with a receipt that commits to them: only the lie itself is left to be found."""
    changed = replace(of, **changes)
    receipt = replace(
        of.receipt,
        lines=len(changed.lines),
        lines_root=root_of(changed.lines),
        evidence=root_of(changed.evidence),
        amount_total=sum(each.amount for each in changed.lines),
        period_end_ms=max(of.receipt.period_end_ms, *(each.end_ms for each in changed.lines)),
    )
    return replace(changed, receipt=receipt)


def test_an_honest_chain_of_statements_is_paid():
    assert fault(FIRST) is None
    assert fault(SECOND, last=FIRST) is None


@pytest.mark.parametrize("changes", [{"seq": 2}, {"seq": 0}, {"prev": b"x" * 32}])
def test_the_first_receipt_has_number_one_and_no_predecessor(changes):
    assert fault(statement((line(1_000), evidence(1)), **changes)).startswith("the first receipt of a channel")


@pytest.mark.parametrize("changes", [{"seq": 1}, {"seq": 3}, {"prev": b"x" * 32}, {"prev": bytes(32)}])
def test_a_receipt_follows_the_last_one_that_was_vouched_for(changes):
    later = statement((line(2_000), evidence(2)), last=FIRST, **changes)
    assert fault(later, last=FIRST) == "the receipt does not follow the last one that was vouched for"


def test_the_period_begins_where_the_last_one_ended():
    later = statement((line(2_000), evidence(2)), last=FIRST, period_start_ms=NOW_MS)
    assert fault(later, last=FIRST) == "the period does not begin where the last one ended"


def test_the_period_may_end_within_the_skew_of_clocks_and_not_later():
    agreed = {LEASE: terms(begins_ms=NOW_MS - CLOCK_SKEW_MS)}
    assert fault(FIRST, now_ms=NOW_MS + 1_000 - CLOCK_SKEW_MS, agreed=agreed) is None
    assert "in the future" in fault(FIRST, now_ms=NOW_MS + 999 - CLOCK_SKEW_MS, agreed=agreed)


def test_the_period_does_not_end_before_it_begins():
    assert "ends before it begins" in fault(statement((line(1_000), evidence(1)), period_end_ms=NOW_MS - 1))


@pytest.mark.parametrize("changes", [{"lines": 2}, {"lines_root": b"x" * 32}])
def test_the_lines_are_those_that_the_receipt_commits_to(changes):
    assert "the lines are not those" in fault(statement((line(1_000), evidence(1)), **changes))


def test_the_evidence_is_that_which_the_receipt_commits_to():
    assert "the evidence is not that" in fault(statement((line(1_000), evidence(1)), evidence=b"x" * 32))


@pytest.mark.parametrize("total", [0, 999, 1_001])
def test_the_total_is_the_sum_of_the_lines(total):
    assert fault(statement((line(1_000), evidence(1)), amount_total=total)) == "the total is not the sum of the lines"


def test_no_lease_stands_twice_nor_out_of_order():
    twice = recommitted(FIRST, lines=FIRST.lines * 2, evidence=FIRST.evidence * 2)
    assert "each lease once, in order" in fault(twice)
    other = (line(1_000, lease=OTHER_LEASE, shard=1, device=b"e" * 32), evidence(1, lease=OTHER_LEASE, shard=1))
    both = statement((line(1_000), evidence(1)), other)
    assert fault(both, agreed={LEASE: terms(), OTHER_LEASE: OTHER_TERMS}) is None
    backwards = recommitted(both, lines=both.lines[::-1], evidence=both.evidence[::-1])
    assert "each lease once, in order" in fault(backwards, agreed={LEASE: terms(), OTHER_LEASE: OTHER_TERMS})


def test_evidence_belongs_to_the_line_beside_it():
    assert "each lease once" in fault(recommitted(FIRST, evidence=(evidence(1, lease=OTHER_LEASE),)))
    assert "each lease once" in fault(recommitted(FIRST, evidence=()))


def test_no_line_of_the_last_receipt_is_missing():
    other = (line(1_000, lease=OTHER_LEASE, shard=1, device=b"e" * 32), evidence(1, lease=OTHER_LEASE, shard=1))
    agreed = {LEASE: terms(), OTHER_LEASE: OTHER_TERMS}
    both = statement((line(1_000), evidence(1)), other)
    less = statement((line(2_000), evidence(2)), last=both)
    assert fault(less, last=both, agreed=agreed) == "a line of the last receipt is missing"


def test_a_line_names_a_lease_of_this_channel():
    assert fault(FIRST, agreed={OTHER_LEASE: OTHER_TERMS}) == "a line names a lease that is not on this channel"


@pytest.mark.parametrize("changes", [{"shard": 1}, {"device": b"x" * 32}])
def test_a_line_names_its_leases_shard_and_device(changes):
    wrong = recommitted(FIRST, lines=(line(1_000, **changes),), evidence=(evidence(1, shard=changes.get("shard", 0)),))
    assert fault(wrong) == "a line names another shard or device than the lease"


def test_a_line_lies_within_the_leases_time_as_far_as_clocks_agree():
    early = {LEASE: terms(begins_ms=NOW_MS + CLOCK_SKEW_MS + 1)}
    assert fault(FIRST, agreed=early) == "a line is outside the lease's time"
    assert fault(FIRST, agreed={LEASE: terms(begins_ms=NOW_MS + CLOCK_SKEW_MS)}) is None
    late = {LEASE: terms(ends_ms=NOW_MS + 999 - CLOCK_SKEW_MS)}
    assert fault(FIRST, agreed=late) == "a line is outside the lease's time"
    assert fault(FIRST, agreed={LEASE: terms(ends_ms=NOW_MS + 1_000 - CLOCK_SKEW_MS)}) is None


def test_a_line_does_not_end_before_it_begins_nor_after_the_period():
    backwards = recommitted(FIRST, lines=(line(0, start_ms=NOW_MS + 1, at_ms=NOW_MS),))
    assert "a line ends before it begins" in fault(backwards)
    beyond = statement((line(1_000), evidence(1)), period_end_ms=NOW_MS + 999)
    assert "a line ends before it begins, or after" in fault(beyond)


def test_no_more_device_time_than_has_passed():
    inflated = recommitted(FIRST, lines=(line(1_001, at_ms=NOW_MS + 1_000),))
    assert fault(inflated) == "a line counts more device time than has passed"


def claim(device_ms: int, *, start_ms: int, end_ms: int) -> Statement:
    return statement((line(device_ms, start_ms=start_ms, at_ms=end_ms), evidence(1)))


def test_no_more_device_time_is_paid_than_passed_on_the_buyers_own_clock_since_the_start_was_ordered():
    """Clocks may be apart by a skew before the start and by another after the end, and neither was worked."""
    early, late = NOW_MS - CLOCK_SKEW_MS, NOW_MS + 10_000 + CLOCK_SKEW_MS
    assert fault(claim(70_000, start_ms=early, end_ms=late)) == AHEAD_OF_TIME
    most = 10_000 + SPARE_MS + 10_000 // DRIFT_PARTS
    assert fault(claim(most, start_ms=early, end_ms=late)) is None
    assert fault(claim(most + 1, start_ms=early, end_ms=late)) == AHEAD_OF_TIME
    ended = {LEASE: terms(ends_ms=NOW_MS + 10_000)}
    over = claim(most + 1, start_ms=early, end_ms=late)
    assert fault(over, agreed=ended, now_ms=NOW_MS + 10**6) == AHEAD_OF_TIME, "time after the end is not worked"


@pytest.mark.parametrize(("days", "is_paid"), [(1, True), (7, False)])
def test_a_provider_whose_clock_runs_fast_is_paid_as_long_as_it_is_not_a_skew_ahead(days, is_paid):
    """A hundred in a million on each side, of which one runs slow."""
    lasts_ms = days * 24 * 3_600_000
    agreed = terms(ends_ms=NOW_MS + lasts_ms)
    passed_ms = lasts_ms * 10_000 // 10_002
    assert (lasts_ms <= agreed.longest_ms(NOW_MS + passed_ms)) is is_paid


@pytest.mark.parametrize("back_ms", [5_000, 3_600_000])
def test_a_receipt_ahead_of_time_is_early_as_long_as_so_much_may_yet_pass(back_ms):
    """The buyer's clock was set back: even before the start that it ordered."""
    honest = claim(9_000, start_ms=NOW_MS, end_ms=NOW_MS + 9_000)
    agreed = {LEASE: terms()}
    behind = fault(honest, agreed=agreed, now_ms=NOW_MS + 9_000 - back_ms)
    assert behind == AHEAD_OF_TIME or "in the future" in behind
    assert is_early(honest, agreed)
    assert not is_early(honest, {LEASE: terms(ends_ms=NOW_MS + 4_000)})


def test_two_devices_work_twice_the_time():
    devices = (b"1" * 32, b"2" * 32)
    agreed = {LEASE: terms(devices=devices)}
    pair = line(2_000, at_ms=NOW_MS + 1_000, device=agreed[LEASE].device)
    assert fault(statement((pair, evidence(1))), agreed=agreed) is None
    assert "more device time" in fault(
        statement((replace(pair, device_ms=2_001, amount=2_001), evidence(1))), agreed=agreed
    )


@pytest.mark.parametrize("amount", [999, 1_001, 0])
def test_the_amount_is_the_agreed_price(amount):
    wrong = recommitted(FIRST, lines=(line(1_000, amount=amount),))
    assert fault(wrong) == "a line's amount is not the agreed price for its device time"


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (line(2_000, start_ms=NOW_MS + 1, at_ms=NOW_MS + 5_000), line(1_000)),
        (line(1_000, at_ms=NOW_MS + 1_500), line(1_000, at_ms=NOW_MS + 2_000)),
        (line(900, at_ms=NOW_MS + 3_000), line(1_000)),
    ],
)
def test_a_line_never_goes_back(now, before):
    last = statement((before, evidence(1)))
    later = recommitted(statement((now, evidence(2)), last=last))
    assert fault(later, last=last) == "a line went back"


def test_an_amount_never_falls_even_if_the_price_did():
    cheaper = {LEASE: terms(price_e18_per_device_ms=PRICE // 4)}
    later = statement((line(2_000, amount=500), evidence(2)), last=FIRST)
    assert fault(later, last=FIRST, agreed=cheaper) == "a line's amount fell"


def test_no_line_is_over_the_leases_limit():
    agreed = {LEASE: terms(max_total=1_500)}
    assert fault(statement((line(2_000, amount=1_500), evidence(1))), agreed=agreed) is None
    assert "agreed price" in fault(statement((line(2_000), evidence(1))), agreed=agreed)


def test_the_limit_stands_by_itself_whatever_the_price_says(monkeypatch):
    monkeypatch.setattr(LeaseTerms, "amount", lambda _, device_ms: device_ms)
    agreed = {LEASE: terms(max_total=1_999)}
    assert fault(statement((line(2_000), evidence(1))), agreed=agreed) == "a line is over the lease's limit"


def test_evidence_names_the_shard_of_its_line():
    assert fault(recommitted(FIRST, evidence=(evidence(1, shard=1),))) == "evidence names another shard than its line"


@pytest.mark.parametrize("proof", [evidence(1, rounds=5), evidence(3, rounds=4)])
def test_evidence_never_goes_back(proof):
    last = statement((line(1_000), evidence(2, rounds=5)))
    later = statement((line(1_000), proof), last=last)
    assert fault(later, last=last) == "evidence went back"


def test_evidence_of_another_isolation_than_the_bid_promised_is_refused():
    weaker = recommitted(FIRST, evidence=(evidence(1, tier="none"),))
    assert fault(weaker) == "evidence names another isolation than the bid promised"


def test_evidence_of_more_use_than_metered_time_is_refused():
    busy = statement((line(2_000), evidence(1, busy_ms=2_000)))
    assert fault(busy) is None
    busier = recommitted(busy, evidence=(evidence(1, busy_ms=2_001),))
    assert fault(busier) == "evidence claims that devices computed for longer than is metered"


def test_the_time_that_devices_computed_never_goes_back():
    last = statement((line(1_000), evidence(1, busy_ms=700)))
    assert fault(statement((line(2_000), evidence(2, busy_ms=700)), last=last), last=last) is None
    less = statement((line(2_000), evidence(2, busy_ms=699)), last=last)
    assert fault(less, last=last) == "the time that devices computed went back"


@pytest.mark.parametrize("last", [None, FIRST])
def test_device_time_without_progress_earns_nothing(last):
    grown = statement((line(2_000), evidence(1 if last else 0)), last=last)
    assert fault(grown, last=last) == "device time is charged without evidence of progress"


def test_work_that_had_no_evidence_is_paid_once_it_has():
    assert fault(statement((line(2_000), evidence(2)), last=FIRST), last=FIRST) is None


@given(device_ms=st.integers(0, 10**9), max_total=st.integers(0, 10**9))
def test_a_lease_never_comes_to_more_than_its_limit(device_ms, max_total):
    agreed = terms(max_total=max_total)
    assert agreed.amount(device_ms) <= max_total
    assert agreed.amount(device_ms) <= device_ms
    assert agreed.most <= max_total


@given(st.integers(0, 700_000), st.integers(0, 700_000), st.integers(0, 700_000))
def test_whatever_is_let_through_is_within_the_most_that_was_reckoned_with(starts, works, ends):
    agreed = terms(ends_ms=NOW_MS + ends)
    claim = line(works, start_ms=NOW_MS - 40_000 + starts, at_ms=NOW_MS - 40_000 + starts + works)
    claim = replace(claim, amount=agreed.amount(works))
    if fault(statement((claim, evidence(1))), agreed={LEASE: agreed}, now_ms=NOW_MS + 10**9) is None:
        assert claim.amount <= agreed.most


def test_a_device_is_named_by_itself_and_several_by_a_hash_over_all():
    assert terms().device == DEVICE.id
    assert terms(devices=(b"1" * 32, b"2" * 32)).device not in (b"1" * 32, b"2" * 32)
