"""How events find their machines, and who is listened to about what."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import trading
from kit.small_market import SmallMarket
from kit.trading import (
    BUYER,
    BUYER_KEY,
    JOB,
    NOW_MS,
    OTHER,
    OTHER_KEY,
    PROVIDER,
    PROVIDER_KEY,
    evidence,
    line,
    spec,
)

from hansa.market import sale_events
from hansa.market.effects import sealed, unsigned
from hansa.market.receipts import next_statement
from hansa.market.track_record import Record
from hansa.node.engine import buying, buying_turns, events, selling
from hansa.node.engine.buying_turns import funds_left
from hansa.node.engine.engine import Engine
from hansa.node.engine.state import restored, snapshot
from hansa.proto import messages
from hansa.proto.blob import blob_ref
from hansa.proto.documents import CooperativeClose, Voucher
from hansa.scheduler import job_events, rounds, run

ONE = spec(shards=1)


def market(of=ONE, *, devices=1, **rules):
    """A buyer with a job, a provider with devices, and a stranger who provides too."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=devices, **rules)
    made.add(OTHER_KEY, devices=1)
    made.submit(BUYER, of=of)
    return made


def leased(of=ONE, **rules):
    """The job's shards run at the provider; answers the market and the leases."""
    made = market(of, devices=of.shards, **rules)
    made.tender(BUYER, (PROVIDER,), shards=tuple(range(of.shards)))
    return made, list(made.engines[PROVIDER].state.sale_of)


def running(of=ONE, **rules):
    made, leases = leased(of, **rules)
    for each in leases:
        made.take(PROVIDER, run.RunStarted(run=each, at_ms=made.now_ms))
    return made, leases


def step(made, lease, number, after_ms=1_000):
    made.now_ms += after_ms
    made.take(PROVIDER, run.RunProgressed(run=lease, step=number, metrics=(), at_ms=made.now_ms))


def finish(made, lease):
    made.now_ms += 100
    made.take(PROVIDER, run.RunFinished(run=lease, at_ms=made.now_ms))


def state_of(made, account):
    return made.engines[account].state


def job_of(made):
    return state_of(made, BUYER).jobs.get(JOB)


def test_a_job_is_bought_run_paid_and_its_channel_closed():
    made, (lease,) = running()
    step(made, lease, 1)
    step(made, lease, 2)
    finish(made, lease)
    assert job_of(made).phase == "succeeded"
    buyer, provider = state_of(made, BUYER), state_of(made, PROVIDER)
    assert [each.phase for _, each in buyer.purchases.all()] == ["settled"]
    assert [each.phase for _, each in buyer.paying.all()] == ["closed"]
    assert [each.phase for _, each in provider.sales.all()] == ["settled"]
    assert [each.phase for _, each in provider.earning.all()] == ["closed"]
    assert provider.capacity.allotments == {}
    assert buyer.ledger.balance(f"paid:{PROVIDER.hex()}") == -2_100
    assert provider.ledger.balance(f"settled:{BUYER.hex()}") == 2_100
    assert buyer.records == {PROVIDER: Record(good=1)}
    assert made.engines[BUYER].deadline_ms() is None
    assert made.engines[PROVIDER].deadline_ms() is None


def test_who_wins_and_does_not_come_is_remembered_for_it_once():
    made = market()
    made.lost = lambda _to, message: isinstance(message, messages.LeaseConfirmed)
    made.tender(BUYER, (PROVIDER,))
    made.now_ms += 1
    made.tell(OTHER, BUYER, messages.RunLogSent(lease=bytes(32), text="hello"))
    made.pass_time(4_000, BUYER)
    assert state_of(made, BUYER).records == {PROVIDER: Record(bad=1)}
    late = messages.LeaseConfirmed(lease=next(iter(state_of(made, BUYER).placed)))
    made.tell(PROVIDER, BUYER, late)
    assert state_of(made, BUYER).records == {PROVIDER: Record(bad=1)}
    assert job_of(made).phase == "gathering"


def test_what_receipts_show_of_a_jobs_speed_is_known_when_the_next_one_is_tendered():
    made, (lease,) = running()
    for number in range(1, 6):
        step(made, lease, number, after_ms=2_000)
    (trial,) = state_of(made, BUYER).trials.values()
    # The first receipt is where measuring begins: its step may be one of a checkpoint.
    assert (trial.provider, trial.devices, trial.steps, trial.device_ms) == (PROVIDER, 1, 4, 8_000)
    made.restart(BUYER)
    assert state_of(made, BUYER).trials == {trial.key: trial}
    assert restored(snapshot(state_of(made, BUYER))).trials == {trial.key: trial}
    made.submit(BUYER, job=b"k" * 32, of=ONE)
    made.lost = lambda _, message: isinstance(message, messages.BidSent | messages.DeclineSent)
    made.tender(BUYER, (OTHER,), job=b"k" * 32, nonce=b"k" * 32)
    (bought,) = (each for _, each in state_of(made, BUYER).purchases.all() if each.tender.job == b"k" * 32)
    assert bought.trials == (trial,)
    made.pass_time(2_000, BUYER)
    assert state_of(made, BUYER).purchases.get(bought.tender_digest).trials == ()


def test_a_lease_that_joins_a_channel_is_measured_from_its_own_first_receipt_on():
    made, (one, other) = running(spec(shards=2))
    step(made, one, 1, after_ms=2_000)
    step(made, one, 2, after_ms=2_000)
    # It goes on from a checkpoint, so that its steps begin at a hundred.
    step(made, other, 100, after_ms=2_000)
    step(made, other, 101, after_ms=2_000)
    (trial,) = state_of(made, BUYER).trials.values()
    assert (trial.steps, trial.device_ms) == (2, 4_000)


@pytest.mark.parametrize(("published", "counted"), [(0, 1_000_000), (4, 11), (100, 6)])
def test_steps_of_a_job_that_synchronises_count_no_further_than_the_others_have_come(published, counted):
    made, (one, other) = running(spec(shards=2))
    state = state_of(made, BUYER)
    step(made, other, 1, after_ms=2_000)
    own, its = job_of(made).shards
    theirs = (replace(its, provider=OTHER, step=10), replace(its, shard=2, provider=OTHER, lease=b"3" * 32, step=50))
    state.jobs[JOB] = replace(job_of(made), shards=(replace(own, step=10**6), *theirs))
    state.rounds[JOB] = replace(state.rounds.get(JOB), published=published)
    for count in (4, 1_000_004):
        step(made, one, count, after_ms=2_000)
    (trial,) = state.trials.values()
    assert trial.steps == counted


# Whoever it does not concern is not listened to.


def about(lease, channel_id):
    close = unsigned(CooperativeClose(channel_id=channel_id, cumulative=0))
    voucher = unsigned(Voucher(channel_id=channel_id, cumulative=1_000, statement=bytes(32)))
    blob = blob_ref(b"x")
    statement = next_statement(
        channel_id=channel_id,
        last=None,
        lines={lease: line(10, lease=lease)},
        evidence={lease: evidence(1, lease=lease)},
    )
    receipt = messages.ReceiptSent(
        receipt=unsigned(statement.receipt), lines=statement.lines, evidence=statement.evidence
    )
    to_buyer = [
        messages.LeaseConfirmed(lease=lease),
        messages.LeaseRefused(lease=lease, kind="mismatch", reason="no"),
        messages.RunReported(lease=lease, step=99, metrics=(), started=True),
        messages.CheckpointStored(lease=lease, round=0, step=9, checkpoint=blob),
        messages.OutputStored(lease=lease, path="x", blob=blob),
        messages.RunKept(lease=lease, kind="user-exception", reason="", until_ms=NOW_MS + 10**6),
        messages.LeaseReclaimed(lease=lease, by_ms=NOW_MS, reason="mine"),
        messages.RunEnded(
            lease=lease, outcome="failed", kind="user-exception", reason="", outputs=0, line=None, paid=0, vouched=0
        ),
        messages.RoundContributed(lease=lease, round=1, weight_milli=1, state=blob),
        receipt,
        messages.CloseAccepted(currency="USD", close=close),
    ]
    to_provider = [
        messages.LeaseCancelled(lease=lease, reason="no"),
        messages.RunOrdered(lease=lease, round=0, checkpoint=None, mirrors=()),
        messages.RunStopOrdered(lease=lease, reason="no"),
        messages.DeliveryAccepted(lease=lease),
        messages.RoundPublished(lease=lease, round=1, state=blob),
        messages.VoucherSent(currency="USD", voucher=voucher),
        messages.ReceiptRefused(channel_id=channel_id, seq=1, reason="no"),
        messages.ReceiptDisputed(channel_id=channel_id, seq=1, payable=(line(1, lease=lease),), reason="no"),
        messages.CloseProposed(currency="USD", close=close),
    ]
    return to_buyer, to_provider


def what_matters(state):
    """Everything but the counts of what was ignored, and the time."""
    return replace(snapshot(state), ignored={}, at_ms=0)


def test_a_stranger_moves_nothing_by_talking_about_others_leases_and_channels():
    made, (lease,) = running()
    step(made, lease, 1)
    (channel_id,) = state_of(made, BUYER).paying.live
    to_buyer, to_provider = about(lease, channel_id)
    for to, told in ((BUYER, to_buyer), (PROVIDER, to_provider)):
        for message in told:
            before = what_matters(state_of(made, to))
            effects = len(made.effects), len(made.said)
            made.tell(OTHER, to, message)
            assert what_matters(state_of(made, to)) == before, type(message).__name__
            assert (len(made.effects), len(made.said)) == effects, type(message).__name__


def test_documents_of_somebody_else_are_not_taken_from_their_bearer():
    made = market(devices=2)
    made.lost = lambda _, message: isinstance(message, messages.BidSent | messages.DeclineSent)
    made.tender(BUYER, (PROVIDER, OTHER))
    (tender_digest,) = state_of(made, BUYER).purchases.live
    of = state_of(made, BUYER).purchases.get(tender_digest).tender
    theirs = messages.BidSent(bid=trading.bid(of, key=PROVIDER_KEY))
    made.tell(OTHER, BUYER, theirs)
    made.tell(OTHER, BUYER, messages.DeclineSent(decline=trading.decline(of, key=PROVIDER_KEY)))
    assert state_of(made, BUYER).purchases.get(tender_digest).bids == {}
    assert state_of(made, BUYER).purchases.get(tender_digest).declines == {}
    made.tell(OTHER, PROVIDER, messages.TenderSent(tender=unsigned(replace(of, nonce=b"x" * 32))))
    assert len(state_of(made, PROVIDER).sales) == 1


def test_an_award_and_a_release_are_taken_from_the_buyer_alone():
    made = market()
    made.lost = lambda _, message: isinstance(message, messages.AwardSent)
    made.tender(BUYER, (PROVIDER,))
    (award,) = made.heard(messages.AwardSent)
    (bid,) = state_of(made, PROVIDER).sales.live
    made.tell(OTHER, PROVIDER, award)
    made.tell(OTHER, PROVIDER, messages.BidReleased(bid=bid, reason="no"))
    assert state_of(made, PROVIDER).sales.get(bid).phase == "bid"
    made.lost = lambda *_: True
    made.tell(BUYER, PROVIDER, award)
    assert state_of(made, PROVIDER).sales.get(bid).phase == "leased"


def test_a_channel_that_may_have_been_is_not_served_on_even_after_it_was_forgotten():
    """Its entries would have ids that stand in the ledger already, and the daemon would stop for good."""
    made, (lease,) = running()
    step(made, lease, 1)
    finish(made, lease)
    provider = state_of(made, PROVIDER)
    ((key, ended),) = provider.earning.ended.items()
    made.submit(BUYER, job=b"k" * 32, of=ONE)
    made.lost = lambda _, message: isinstance(message, messages.AwardSent)
    made.tender(BUYER, (PROVIDER,), job=b"k" * 32, nonce=b"2" * 32)
    made.lost = lambda *_: False
    award = made.heard(messages.AwardSent)[-1]
    old = replace(award.award.document, channel_id=key)
    again = sealed(replace(award, award=unsigned(old), channel=ended.config), BUYER_KEY)
    del provider.earning.ended[key]
    made.tell(BUYER, PROVIDER, again)
    assert made.heard(messages.LeaseRefused)[-1].reason == "the channel is closed"
    made.tell(BUYER, PROVIDER, award)
    assert len(made.heard(messages.LeaseConfirmed)) == 2, "a new one of this tender's is"


def test_an_award_of_a_bid_that_is_not_known_is_refused_at_once_and_marks_who_made_it():
    made = market()
    made.lost = lambda _to, message: isinstance(message, messages.AwardSent)
    made.tender(BUYER, (PROVIDER,))
    made.lost = lambda *_: False
    (award,) = made.heard(messages.AwardSent)
    (bid,) = state_of(made, PROVIDER).sales.live
    del state_of(made, PROVIDER).sales.live[bid]
    made.tell(OTHER, PROVIDER, award)
    assert not made.heard(messages.LeaseRefused)
    made.tell(BUYER, PROVIDER, award)
    (refused,) = made.heard(messages.LeaseRefused)
    assert refused.kind == "unknown-bid"
    assert state_of(made, BUYER).records == {PROVIDER: Record(bad=1)}


def test_a_message_that_nobody_listens_to_is_counted():
    made = market()
    made.tell(OTHER, BUYER, messages.RunLogSent(lease=bytes(32), text="hello"))
    assert state_of(made, BUYER).ignored == {"node: a message that no machine listens to": 1}


def test_the_zero_lease_is_nobodys_even_after_a_restart_from_a_snapshot():
    made = market()
    made.lost = lambda _, message: isinstance(message, messages.BidSent)
    made.tender(BUYER, (PROVIDER,))
    engine = made.engines[PROVIDER]
    engine.state = restored(snapshot(engine.state))
    for message in about(bytes(32), bytes(32))[1]:
        made.tell(BUYER, PROVIDER, message)
    assert [entry.phase for _, entry in engine.state.sales.all()] == ["bid"]


def test_a_channel_is_closed_by_its_provider_alone():
    made, (lease,) = running()
    step(made, lease, 1)
    made.lost = lambda _, message: isinstance(message, messages.CloseAccepted)
    finish(made, lease)
    (accepted,) = made.heard(messages.CloseAccepted)
    made.tell(OTHER, BUYER, accepted)
    assert [entry.phase for _, entry in state_of(made, BUYER).paying.all()] == ["closing"]
    made.tell(PROVIDER, BUYER, accepted)
    assert [entry.phase for _, entry in state_of(made, BUYER).paying.all()] == ["closed"]


# What comes again after the end.


def test_a_provider_that_did_not_hear_of_the_end_is_told_again():
    made, (lease,) = running()
    made.lost = lambda to, _: to == PROVIDER
    made.take(BUYER, events.JobCancelled(job=JOB, reason="enough", at_ms=made.now_ms))
    made.lost = lambda *_: False
    made.tell(PROVIDER, BUYER, messages.RunReported(lease=lease, step=1, metrics=(), started=True))
    assert state_of(made, PROVIDER).runs.get(lease).phase == "stopping"
    made.take(PROVIDER, run.RunStopped(run=lease, at_ms=made.now_ms))
    assert [entry.phase for _, entry in state_of(made, PROVIDER).sales.all()] == ["stopped"]
    made.restart(BUYER)
    assert [entry.phase for _, entry in state_of(made, BUYER).paying.all()] == ["closed"]


def test_a_channel_does_not_close_under_a_purchase_that_may_still_use_it():
    made, (lease,) = running()
    second = b"2" * 32
    made.submit(BUYER, job=second, of=ONE)
    made.lost = lambda _, message: isinstance(message, messages.TenderSent)
    made.tender(BUYER, (PROVIDER,), job=second, nonce=b"2" * 32)
    made.lost = lambda *_: False
    finish(made, lease)
    (channel,) = state_of(made, BUYER).paying.live.values()
    assert channel.phase == "open"
    made.pass_time(2_000, BUYER)
    assert state_of(made, BUYER).jobs.get(second).phase == "failed"
    assert [entry.phase for _, entry in state_of(made, BUYER).paying.all()] == ["closed"]


def test_a_checkpoint_of_a_round_that_was_not_published_is_not_believed():
    made, (lease,) = running()
    checkpoint = messages.CheckpointStored(lease=lease, round=1, step=1, checkpoint=blob_ref(b"c"))
    made.tell(PROVIDER, BUYER, checkpoint)
    assert job_of(made).shards[0].copying is None
    made.tell(PROVIDER, BUYER, replace(checkpoint, round=0))
    assert job_of(made).shards[0].copying is not None


# Money.


def test_the_budget_counts_what_is_spent_and_what_may_still_be():
    of = spec(shards=2, budget=2_000_000)
    made, leases = running(of)
    left = funds_left(state_of(made, BUYER), job_of(made))
    assert left == 2_000_000 - 2 * 600_001
    step(made, leases[0], 1)
    assert funds_left(state_of(made, BUYER), job_of(made)) == left
    # Once a lease is over it may only cost what its time allows, and once its channel is closed what was vouched for.
    for each in leases:
        finish(made, each)
    spent = state_of(made, BUYER).ledger.total("spend:")
    assert spent > 0
    assert funds_left(state_of(made, BUYER), job_of(made)) == 2_000_000 - spent


@pytest.mark.parametrize("at_once", [False, True])
def test_two_tenders_of_one_job_do_not_promise_the_same_money(at_once):
    """Both shards are lost and tendered again; what the first leases cost leaves money for one of them."""
    of = spec(shards=2, budget=2 * 600_001, retries=3)
    made, leases = running(of)
    step(made, leases[0], 1)
    for each in leases:
        made.take(PROVIDER, run.RunFailed(run=each, kind="lost", reason="", at_ms=made.now_ms))
    said = len(made.said)
    held_back = messages.BidSent if at_once else messages.LeaseConfirmed
    made.lost = lambda _, message: isinstance(message, held_back)
    for shard in (0, 1):
        made.tender(BUYER, (PROVIDER,), shards=(shard,), nonce=bytes([shard]) * 32)
    if at_once:
        made.lost = lambda _, message: isinstance(message, messages.LeaseConfirmed)
        for _, _, message in made.said[said:]:
            if isinstance(message, messages.BidSent):
                made.tell(PROVIDER, BUYER, message)
    promised = [placement for _, bought in state_of(made, BUYER).purchases.all() for placement in bought.live]
    assert len(promised) == 1


def test_what_an_ended_lease_may_still_cost_is_kept_back_until_its_channel_is_closed():
    of = replace(ONE, budget=700_000, retries=3)
    made, (lease,) = running(of)
    step(made, lease, 1)
    made.lost = lambda to, _: to == PROVIDER
    made.take(BUYER, events.TimeCame(at_ms=made.now_ms + spec().silence_ms))
    assert job_of(made).shards[0].phase == "waiting"
    kept = of.budget - funds_left(state_of(made, BUYER), job_of(made))
    assert kept >= spec().silence_ms, "a receipt for the time until then is paid"
    assert kept < 600_001


def test_a_node_that_buys_from_itself_keeps_both_sides_in_one_store():
    made = SmallMarket()
    made.add(BUYER_KEY, devices=1)
    made.submit(BUYER, of=ONE)
    made.tender(BUYER, (BUYER,))
    (lease,) = state_of(made, BUYER).sale_of
    made.take(BUYER, run.RunStarted(run=lease, at_ms=made.now_ms))
    made.now_ms += 100
    made.take(BUYER, run.RunFinished(run=lease, at_ms=made.now_ms))
    entries = [effect.entry for _, effect in made.effects if type(effect).__name__ == "Post"]
    assert len({entry.id for entry in entries}) == len(entries) == 4


def test_a_tender_that_asks_for_no_devices_is_declined():
    made = market()
    needs = trading.needs(devices=0, cores_milli=0, memory_bytes=0)
    made.tender(BUYER, (PROVIDER,), requirements=needs)
    (decline,) = made.heard(messages.DeclineSent)
    assert decline.decline.document.reason == "no devices are asked for"


# Restarts.


@pytest.mark.parametrize("who", [BUYER, PROVIDER])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_restarts_in_a_row_neither_lose_nor_repeat_anything_that_costs(who, times):
    made, (lease,) = running()
    step(made, lease, 1)
    before = state_of(made, who).ledger
    for _ in range(times):
        made.restart(who, devices=1 if who == PROVIDER else 0)
    assert times > run.MOST_RESTARTS or state_of(made, who).ledger == before
    current = state_of(made, PROVIDER).runs.get(lease)
    if who == PROVIDER:
        assert current.phase == ("staging" if times <= run.MOST_RESTARTS else "failed")
    if current.phase == "staging":
        made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    if current.phase != "failed":
        step(made, lease, 2)
        finish(made, lease)
        assert job_of(made).phase == "succeeded"
    assert sum(state_of(made, BUYER).ledger.balances.values()) == 0


def test_a_restart_asks_again_for_a_tender_that_was_never_written():
    made = market()
    made.effects.clear()
    made.restart(BUYER)
    assert [effect for _, effect in made.effects] == [
        job_events.TenderWanted(job=JOB, shards=(0,), attempt=0, at_ms=made.now_ms)
    ]
    made.tender(BUYER, (PROVIDER,))
    made.effects.clear()
    made.restart(BUYER)
    assert not [effect for _, effect in made.effects if isinstance(effect, job_events.TenderWanted)]


def test_a_close_whose_answer_was_lost_in_a_crash_is_answered_at_the_next_start():
    made, (lease,) = running()
    step(made, lease, 1)
    made.lost = lambda _, message: isinstance(message, messages.CloseAccepted)
    finish(made, lease)
    (channel,) = state_of(made, BUYER).paying.live.values()
    assert channel.phase == "closing"
    made.lost = lambda *_: False
    made.restart(PROVIDER, devices=1)
    assert [entry.phase for _, entry in state_of(made, BUYER).paying.all()] == ["closed"]


def test_a_run_that_was_paused_when_its_daemon_died_is_paused_again_when_it_begins_anew():
    made, (lease,) = running()
    made.lost = lambda _, message: isinstance(message, messages.VoucherSent)
    made.now_ms += 4_000
    made.take(PROVIDER, run.RunProgressed(run=lease, step=1, metrics=(), at_ms=made.now_ms))
    made.restart(PROVIDER, devices=1)
    made.effects.clear()
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    assert made.effects == [(PROVIDER, sale_events.PauseWanted(lease=lease))], "there was no sandbox to pause before"
    made.pass_time(10, PROVIDER)
    sold = state_of(made, PROVIDER).sale_on(lease)
    assert made.engines[PROVIDER].deadline_ms() == sold.paused_ms + sold.grace_ms, "no deadline spins"


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_time_that_passes_in_any_portions_always_ends_a_market_that_fell_silent(portions):
    """Buyer and provider hear nothing of each other any more: nobody waits for ever, and no deadline spins."""
    made, (lease,) = running()
    step(made, lease, 1)
    made.lost = lambda *_: True
    step(made, lease, 2)
    for portion in portions:
        made.pass_time(portion)
    for _ in range(60):
        made.pass_time(30_000)
        if state_of(made, PROVIDER).runs.live and state_of(made, PROVIDER).runs.get(lease).phase == "stopping":
            made.take(PROVIDER, run.RunStopped(run=lease, at_ms=made.now_ms))
    assert [entry.phase for _, entry in state_of(made, PROVIDER).sales.all()] == ["unpaid"]
    assert state_of(made, PROVIDER).capacity.allotments == {}
    assert made.engines[PROVIDER].deadline_ms() is None
    assert made.now_ms > NOW_MS


def test_an_engine_of_another_account_does_not_take_this_journal():
    made = market()
    again = Engine(made.journals[BUYER])
    stranger = events.Started(account=OTHER, peer_id="p", terms=None, devices=(), at_ms=made.now_ms)
    with pytest.raises(AssertionError, match="another account"):
        again.take([stranger])


def reduced_to_nothing(*, unsound, number=1):
    """A job whose first round was contributed to, and what became of the reduction."""
    made, (lease,) = running()
    contribution = run.RunSynced(run=lease, round=0, weight_ppm=10**6, state=blob_ref(b"state"), at_ms=made.now_ms)
    made.take(PROVIDER, contribution)
    wanted = [effect for _, effect in made.effects if isinstance(effect, rounds.ReductionWanted)]
    assert [effect.round for effect in wanted] == [1]
    left_out = (rounds.Rejected(shard=0, reason="it holds numbers that are not finite"),)
    news = events.RoundNotReduced(job=JOB, round=number, rejected=left_out, unsound=unsound, at_ms=made.now_ms)
    made.take(BUYER, news)
    return job_of(made)


@pytest.mark.parametrize(("weight_ppm", "weight_milli"), [(1, 1), (999, 1), (1_000, 1), (2_500_000, 2_500)])
def test_a_small_weight_counts_as_the_least_and_not_as_none(weight_ppm, weight_milli):
    made, (lease,) = running()
    state = blob_ref(b"state")
    made.take(PROVIDER, run.RunSynced(run=lease, round=0, weight_ppm=weight_ppm, state=state, at_ms=made.now_ms))
    ((_, wanted),) = [found for found in made.effects if isinstance(found[1], rounds.ReductionWanted)]
    assert [entry.weight_milli for entry in wanted.contributions] == [weight_milli]


def test_the_same_end_of_a_lease_twice_counts_once():
    made, (lease,) = running()
    state = state_of(made, BUYER)
    over = job_events.LeaseOver(lease=lease, well=False, due=False, at_ms=made.now_ms)
    buying_turns.follow(state, JOB, (over,))
    assert state.records == {PROVIDER: Record(bad=1)}
    assert buying_turns.follow(state, JOB, (over, replace(over, well=True))) == []
    assert state.records == {PROVIDER: Record(bad=1)}


def test_the_end_of_a_lease_that_is_not_known_counts_for_nobody():
    made, _ = running()
    over = job_events.LeaseOver(lease=b"?" * 32, well=False, due=False, at_ms=made.now_ms)
    assert buying_turns.follow(state_of(made, BUYER), JOB, (over,)) == []
    assert state_of(made, BUYER).records == {}


def test_the_end_of_an_award_that_nobody_confirmed_counts_for_nobody():
    made = market()
    made.lost = lambda _to, message: isinstance(message, messages.LeaseConfirmed)
    made.tender(BUYER, (PROVIDER,))
    state = state_of(made, BUYER)
    lease = next(iter(state.placed))
    assert [entry.phase for _, bought in state.purchases.all() for entry in bought.placements] == ["awarded"]
    over = job_events.LeaseOver(lease=lease, well=False, due=False, at_ms=made.now_ms)
    assert buying_turns.follow(state, JOB, (over,)) == []
    assert state.records == {}


def test_a_round_in_which_nothing_was_sound_fails_the_job_with_the_reason():
    failed = reduced_to_nothing(unsound=True)
    assert failed.phase == "failed"
    assert "round 1 could not be averaged: it holds numbers that are not finite" in failed.reason


def test_a_round_that_could_not_be_fetched_is_collected_again_and_an_old_outcome_changes_nothing():
    assert reduced_to_nothing(unsound=False).phase == "running"
    assert reduced_to_nothing(unsound=True, number=7).phase == "running"


def test_a_receipt_whose_voucher_was_given_up_on_the_way_is_sent_again_and_paid_once():
    made, (lease,) = running()
    made.lost = lambda _to, message: isinstance(message, messages.VoucherSent)
    step(made, lease, 1, after_ms=2_000)
    provider, buyer = state_of(made, PROVIDER), state_of(made, BUYER)
    assert not selling.reminders(provider, made.now_ms), "it has not waited for long"
    made.lost = lambda _to, _message: False
    overdue_ms = made.now_ms + selling.OVERDUE_MS + 1
    (again,) = selling.reminders(provider, overdue_ms)
    made.tell(PROVIDER, BUYER, sealed(again.message, PROVIDER_KEY))
    (channel,) = provider.earning.live.values()
    assert channel.out is None
    assert channel.cumulative == 2_000 == -provider.ledger.total("earned:") == buyer.ledger.total("spend:")


def test_a_close_that_was_given_up_on_the_way_is_proposed_again():
    made, (lease,) = running()
    made.lost = lambda _to, message: isinstance(message, messages.CloseProposed)
    step(made, lease, 1)
    finish(made, lease)
    assert [channel.phase for channel in state_of(made, BUYER).paying.live.values()] == ["closing"]
    made.lost = lambda _to, _message: False
    for again in buying.reminders(state_of(made, BUYER), made.now_ms):
        made.tell(BUYER, PROVIDER, sealed(again.message, BUYER_KEY))
    assert not state_of(made, BUYER).paying.live
    assert not buying.reminders(state_of(made, BUYER), made.now_ms)
