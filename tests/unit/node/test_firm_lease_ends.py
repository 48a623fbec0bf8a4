"""Firm leases from tender to settlement: who is paid what, by how they ended, in both books alike."""

import pytest
from kit.small_market import SmallMarket
from kit.trading import BLOB, BUYER, BUYER_KEY, JOB, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market.track_record import Record
from hansa.node.api.views import job_view, lease_views
from hansa.node.commands.cli_screen import news
from hansa.node.engine import events
from hansa.node.engine.buying_turns import funds_left
from hansa.proto import messages
from hansa.scheduler import run

PENALTY_MS = 700


def running(*, lease="firm", **changes):
    """A firm lease that has worked for three seconds and reported two steps."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1, leases=("spot", "firm"), penalty_ms=PENALTY_MS)
    made.submit(BUYER, of=spec(shards=1, lease=lease, **changes))
    made.tender(BUYER, (PROVIDER,), lease=lease)
    (key,) = made.engines[PROVIDER].state.sale_of
    made.take(PROVIDER, run.RunStarted(run=key, at_ms=made.now_ms))
    for number in (1, 2):
        made.now_ms += 1_500
        made.take(PROVIDER, run.RunProgressed(run=key, step=number, metrics=(), at_ms=made.now_ms))
    return made, key


def sale(made):
    ((_, entry),) = made.engines[PROVIDER].state.sales.all()
    return entry


def books(made):
    """What the buyer owes or has paid, and what the provider earned: the same, or the test is over."""
    buyer, provider = made.engines[BUYER].state.ledger, made.engines[PROVIDER].state.ledger
    owed = -buyer.balance(f"owed:{PROVIDER.hex()}") - buyer.balance(f"paid:{PROVIDER.hex()}")
    assert owed == -provider.total("earned:")
    return owed


def ended(key, kind):
    return messages.RunEnded(lease=key, outcome="failed", kind=kind, reason="", outputs=0, line=None, paid=0, vouched=0)


def fail(made, key, kind):
    made.now_ms += 100
    made.take(PROVIDER, run.RunFailed(run=key, kind=kind, reason="", at_ms=made.now_ms))


def cancel(made):
    made.take(BUYER, events.JobCancelled(job=JOB, reason="enough", at_ms=made.now_ms))


def reclaim(made, notice_ms=60_000):
    (device,) = sale(made).bid.devices
    made.take(PROVIDER, events.DevicesWithdrawn(devices=(device,), notice_ms=notice_ms, why="mine", at_ms=made.now_ms))


def is_closed(made):
    paying, earning = (
        list(shelf.all()) for shelf in (made.engines[BUYER].state.paying, made.engines[PROVIDER].state.earning)
    )
    return [each.phase for _, each in (*paying, *earning)] == ["closed", "closed"]


def test_as_long_as_it_lives_its_buyer_has_paid_for_all_but_the_penalty():
    made, _ = running()
    assert sale(made).bid.penalty == PENALTY_MS
    assert books(made) == 3_000 - PENALTY_MS


def test_one_that_succeeded_is_paid_whole():
    made, key = running()
    made.now_ms += 100
    made.take(PROVIDER, run.RunFinished(run=key, at_ms=made.now_ms))
    assert (books(made), sale(made).phase) == (3_100, "settled")
    assert is_closed(made)


def test_one_whose_buyer_wants_the_end_is_paid_whole():
    made, key = running()
    cancel(made)
    made.take(PROVIDER, run.RunStopped(run=key, at_ms=made.now_ms))
    assert (books(made), sale(made).phase) == (3_000, "stopped")
    assert is_closed(made)


@pytest.mark.parametrize(("kind", "owed"), [("user-exception", 3_000), ("sandbox-lost", 3_000 - PENALTY_MS)])
def test_one_that_failed_is_paid_whole_only_if_that_was_the_jobs_own_doing(kind, owed):
    made, key = running(retries=0)
    fail(made, key, kind)
    assert (books(made), sale(made).phase) == (owed, "stopped")
    assert is_closed(made)


@pytest.mark.parametrize(("after_ms", "released"), [(0, False), (600_000, True)])
def test_who_says_that_the_time_is_used_up_is_held_against_the_buyers_own_clock(after_ms, released):
    made, key = running(retries=0)
    made.now_ms += after_ms
    made.tell(PROVIDER, BUYER, ended(key, "wall-limit"))
    assert bool(made.heard(messages.PenaltyReleased)) == released


@pytest.mark.parametrize("notice_ms", [0, 60_000])
def test_one_whose_devices_were_taken_back_forfeits_the_penalty_whatever_the_notice(notice_ms):
    made, key = running()
    reclaim(made, notice_ms)
    made.take(PROVIDER, run.RunFailed(run=key, kind="reclaimed", reason="", at_ms=made.now_ms + 100))
    assert (books(made), sale(made).phase) == (3_000 - PENALTY_MS, "stopped")


def test_who_takes_devices_back_gains_nothing_by_calling_the_end_the_jobs_own():
    made, key = running(retries=0)
    reclaim(made)
    fail(made, key, "user-exception")
    assert books(made) == 3_000 - PENALTY_MS
    assert not made.heard(messages.PenaltyReleased)


def told(made, key, kind, at=PROVIDER):
    made.now_ms += 100
    made.tell(at, BUYER, ended(key, kind))


def released(made):
    return {said.lease for said in made.heard(messages.PenaltyReleased)}


@pytest.mark.parametrize("kind", ["out-of-memory", "user-exception", "bad-entry", "bad-state"])
def test_who_says_again_and_again_that_it_was_the_jobs_own_doing_is_believed_once(kind):
    made, key = running(retries=0)
    told(made, key, kind)
    assert released(made) == {key}
    made, key = running(retries=0)
    made.engines[BUYER].state.records[PROVIDER] = Record(bad=1)
    told(made, key, kind)
    assert not released(made)


def test_nothing_that_its_own_sandbox_is_said_to_have_done_frees_the_penalty():
    made, key = running(retries=0)
    told(made, key, "protocol")
    assert not released(made)


def two(kind, *, sellers=(PROVIDER, OTHER), back=None):
    """The same shard at one provider, which says how it ended, and then at another, which says the same."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    for seller in (PROVIDER_KEY, OTHER_KEY):
        made.add(seller, devices=1, leases=("spot", "firm"), penalty_ms=PENALTY_MS)
    made.submit(BUYER, of=spec(shards=1, lease="firm", retries=2, retry_on=(kind,)))
    made.tender(BUYER, (PROVIDER,), lease="firm")
    leases = []
    for seller in sellers:
        if leases:
            made.tender(BUYER, (seller,), lease="firm", nonce=b"2" * 32)
        (key,) = set(made.engines[seller].state.sale_of) - set(leases)
        leases.append(key)
        made.engines[BUYER].state.records[seller] = Record(bad=1)
        made.take(seller, run.RunStarted(run=key, at_ms=made.now_ms))
        for number in (1, 2):
            made.now_ms += 1_500
            made.take(seller, run.RunProgressed(run=key, step=number, metrics=(), at_ms=made.now_ms))
        if seller == back:
            owned = tuple(each.id for each in made.engines[seller].state.capacity.devices)
            made.take(seller, events.DevicesWithdrawn(devices=owned, notice_ms=60_000, why="mine", at_ms=made.now_ms))
        made.now_ms += 100
        made.take(seller, run.RunFailed(run=key, kind=kind, reason="", at_ms=made.now_ms))
    return made, leases


@pytest.mark.parametrize("kind", ["out-of-memory", "protocol"])
def test_what_two_providers_say_of_one_job_is_paid_to_both_whatever_their_records(kind):
    made, leases = two(kind)
    assert released(made) == set(leases)
    for seller in (PROVIDER, OTHER):
        assert -made.engines[seller].state.ledger.total("earned:") == 3_000


@pytest.mark.parametrize("back", [PROVIDER, OTHER])
def test_the_word_of_who_had_taken_its_devices_back_bears_nothing_out(back):
    made, _ = two("protocol", back=back)
    assert not released(made)


def test_what_may_yet_be_paid_for_a_word_borne_out_late_is_kept_of_the_budget_until_it_cannot_be():
    made, key = running(retries=2, retry_on=("protocol",), budget=10**6)
    told(made, key, "protocol")
    state = made.engines[BUYER].state
    ((_, channel),) = state.paying.all()
    assert channel.terms[key].most >= 3_000
    assert funds_left(state, state.jobs.get(JOB)) == 10**6 - channel.terms[key].most, "the penalty in it"
    made.take(PROVIDER, run.RunStopped(run=key, at_ms=made.now_ms))
    made.pass_time(2 * 3_600_000, PROVIDER)
    assert is_closed(made)
    assert funds_left(state, state.jobs.get(JOB)) == 10**6 - books(made), "nothing can be paid on a channel that ended"


@pytest.mark.parametrize("kind", ["sandbox-lost", "worker-died"])
def test_a_penalty_that_never_falls_due_is_the_budgets_again_at_once(kind):
    made, key = running(retries=2, retry_on=(kind,), budget=10**6)
    told(made, key, kind)
    state = made.engines[BUYER].state
    ((_, channel),) = state.paying.all()
    assert funds_left(state, state.jobs.get(JOB)) == 10**6 - (channel.terms[key].most - PENALTY_MS)


def test_a_job_never_spends_more_than_its_budget_on_words_borne_out_late():
    """The first of two asks for the penalty that was withheld only when the second lease has used up the rest."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    for seller in (PROVIDER_KEY, OTHER_KEY):
        made.add(
            seller,
            devices=1,
            leases=("firm",),
            penalty_ms=300_000,
            max_unpaid=100_000,
            voucher_timeout_ms=60_000,
        )
    budget = 900_002
    made.submit(BUYER, of=spec(shards=1, lease="firm", retries=2, retry_on=("protocol",), budget=budget))
    taken: set[bytes] = set()
    for number, seller in enumerate((PROVIDER, OTHER)):
        made.tender(BUYER, (seller,), lease="firm", nonce=bytes([number]) * 32)
        for key in set(made.engines[seller].state.sale_of) - taken:
            taken.add(key)
            made.take(seller, run.RunStarted(run=key, at_ms=made.now_ms))
            for step in range(1, 40):
                made.now_ms += 15_000
                made.take(seller, run.RunProgressed(run=key, step=step, metrics=(), at_ms=made.now_ms))
            fail(made, key, "protocol") if seller == PROVIDER else told(made, key, "protocol", at=OTHER)
    state = made.engines[BUYER].state
    assert 0 < state.ledger.balance(f"spend:{JOB.hex()}") <= budget
    assert len(taken) == 1, "what is left, less what may be owed to the first, does not pay for a second"


def test_nobody_bears_its_own_word_out():
    made, _ = two("protocol", sellers=(PROVIDER, PROVIDER))
    assert not released(made)


@pytest.mark.parametrize("outputs", [0, 1])
def test_who_takes_devices_back_and_calls_it_a_success_has_to_show_results(outputs):
    made, key = running(retries=0)
    reclaim(made)
    made.now_ms += 100
    if outputs:
        made.take(PROVIDER, run.RunOutput(run=key, path="a", blob=BLOB, at_ms=made.now_ms))
        made.take(BUYER, events.BlobFetched(job=JOB, lease=key, blob=BLOB, at_ms=made.now_ms))
    made.take(PROVIDER, run.RunFinished(run=key, at_ms=made.now_ms))
    assert bool(released(made)) == bool(outputs)


def test_a_job_that_is_cancelled_after_the_notice_owes_no_penalty():
    made, key = running()
    reclaim(made)
    cancel(made)
    made.take(PROVIDER, run.RunStopped(run=key, at_ms=made.now_ms))
    assert books(made) == 3_000 - PENALTY_MS
    assert is_closed(made)


def test_a_provider_that_fell_silent_is_not_paid_the_penalty_when_it_comes_back():
    made, _ = running(retries=0)
    made.lost = lambda to, _: to == PROVIDER
    made.pass_time(20_000, BUYER)
    assert made.engines[BUYER].state.jobs.get(JOB).phase == "failed"
    assert books(made) == 3_000 - PENALTY_MS
    assert not made.heard(messages.PenaltyReleased)


def test_a_spot_lease_of_the_same_house_is_paid_as_it_goes():
    made, _ = running(lease="any")
    assert (sale(made).bid.lease, sale(made).bid.penalty) == ("spot", 0)
    assert books(made) == 3_000


def test_the_word_that_it_ended_well_survives_a_crash_on_either_side():
    made, key = running()
    made.lost = lambda to, message: to == PROVIDER and isinstance(message, messages.PenaltyReleased)
    cancel(made)
    made.take(PROVIDER, run.RunStopped(run=key, at_ms=made.now_ms))
    assert (books(made), sale(made).phase) == (3_000 - PENALTY_MS, "settling")
    made.restart(PROVIDER, devices=1)
    made.lost = lambda _to, _message: False
    made.restart(BUYER)
    assert (books(made), sale(made).phase) == (3_000, "stopped")
    assert is_closed(made)


def test_a_word_that_never_comes_costs_the_penalty_and_no_more_and_the_channel_ends():
    made, key = running()
    made.lost = lambda to, message: to == PROVIDER and isinstance(message, messages.PenaltyReleased)
    cancel(made)
    made.take(PROVIDER, run.RunStopped(run=key, at_ms=made.now_ms))
    made.pass_time(2 * 3_600_000, PROVIDER)
    assert (books(made), sale(made).phase) == (3_000 - PENALTY_MS, "stopped")
    assert is_closed(made)
    assert made.engines[PROVIDER].state.ledger.balance(f"unpaid:{BUYER.hex()}") == 0


def test_both_sides_see_what_is_withheld_and_the_buyer_what_it_does_not_pay():
    made, key = running()
    (theirs,) = job_view(made.engines[BUYER].state, made.engines[BUYER].state.jobs.get(JOB))["spend"]["by_provider"]
    (ours,) = lease_views(made.engines[PROVIDER].state)
    for view in (theirs, ours):
        assert (view["lease_kind"], view["withheld"], view["vouched"]) == ("firm", "0.000700", "0.002300")
    before = job_view(made.engines[BUYER].state, made.engines[BUYER].state.jobs.get(JOB))
    reclaim(made)
    made.take(PROVIDER, run.RunFailed(run=key, kind="reclaimed", reason="", at_ms=made.now_ms + 100))
    after = job_view(made.engines[BUYER].state, made.engines[BUYER].state.jobs.get(JOB))
    told = "firm lease of shard 0 did not end well: 0.000700 of it is not paid"
    assert told in list(news(before, after))
    assert told not in list(news(after, after))


def test_what_its_buyer_disputes_of_a_lease_whose_penalty_was_lifted_is_written_off_once():
    made, key = running()
    made.lost = lambda to, _message: to == BUYER
    made.tell(BUYER, PROVIDER, messages.PenaltyReleased(lease=key))
    made.now_ms += 1_500
    made.take(PROVIDER, run.RunProgressed(run=key, step=3, metrics=(), at_ms=made.now_ms))
    ((channel, earning),) = made.engines[PROVIDER].state.earning.all()
    whole, vouched = sale(made).chargeable, sale(made).vouched
    assert earning.out is not None
    assert earning.vouched is not None
    word = messages.ReceiptDisputed(
        channel_id=channel, seq=earning.out.receipt.seq, payable=earning.vouched.lines, reason="clocks"
    )
    made.tell(BUYER, PROVIDER, word)
    made.take(PROVIDER, run.RunStopped(run=key, at_ms=made.now_ms))
    for _ in range(4):
        made.pass_time(10**7, PROVIDER)
    assert sale(made).phase == "unpaid"
    assert sale(made).vouched + sale(made).written_off == whole
    assert made.engines[PROVIDER].state.ledger.balance(f"unpaid:{BUYER.hex()}") == whole - vouched


def test_a_penalty_that_is_lifted_after_a_refusal_is_written_off_and_stops_nobody():
    """The buyer refuses a receipt of two leases, and then says that one of them has ended well."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=2, leases=("firm",), penalty_ms=PENALTY_MS)
    made.submit(BUYER, of=spec(shards=2))
    made.tender(BUYER, (PROVIDER,), shards=(0, 1))
    first, other = made.engines[PROVIDER].state.sale_of
    for key in (first, other):
        made.take(PROVIDER, run.RunStarted(run=key, at_ms=made.now_ms))
    made.now_ms += 1_500
    made.take(PROVIDER, run.RunProgressed(run=first, step=1, metrics=(), at_ms=made.now_ms))
    made.lost = lambda *_: True
    made.take(PROVIDER, run.RunFailed(run=first, kind="user-exception", reason="", at_ms=made.now_ms))
    made.take(PROVIDER, run.RunProgressed(run=other, step=1, metrics=(), at_ms=made.now_ms))
    ((channel, earning),) = made.engines[PROVIDER].state.earning.all()
    made.tell(BUYER, PROVIDER, messages.ReceiptRefused(channel_id=channel, seq=earning.out.receipt.seq, reason="never"))
    made.tell(BUYER, PROVIDER, messages.DeliveryAccepted(lease=first))
    sold = made.engines[PROVIDER].state.sale_on(first)
    assert (sold.phase, sold.vouched, sold.lined_amount) == ("settling", 1_500 - PENALTY_MS, 1_500 - PENALTY_MS)
    made.tell(BUYER, PROVIDER, messages.PenaltyReleased(lease=first))
    made.restart(PROVIDER, devices=2)
    sold = made.engines[PROVIDER].state.sale_on(first)
    assert (sold.phase, sold.written_off) == ("unpaid", PENALTY_MS)
    assert books(made) == 1_500 - PENALTY_MS
