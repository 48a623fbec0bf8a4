"""An owner takes devices back: nothing is sold twice, whoever computes leaves, and a restart forgets nothing of it."""

from dataclasses import replace

import pytest
from kit.small_market import SmallMarket, device
from kit.trading import BUYER, BUYER_KEY, JOB, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market.effects import sealed, unsigned
from hansa.market.receipts import CLOCK_SKEW_MS, next_statement
from hansa.market.track_record import Record
from hansa.node.daemon.buyer_tasks import unwelcome
from hansa.node.engine import events
from hansa.node.engine.routing import deadline_ms
from hansa.proto import messages
from hansa.proto.blob import blob_ref
from hansa.scheduler import job_events, run

ONE = spec(shards=1, keep_failed_ms=60_000)
FIRST, SECOND = device(PROVIDER[0]).id, device((PROVIDER[0] + 1) & 0xFF).id


def market(*, devices=1):
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=devices)
    made.submit(BUYER, of=ONE)
    return made


def running(**changes):
    made = market(**changes)
    made.tender(BUYER, (PROVIDER,))
    (lease,) = made.engines[PROVIDER].state.sale_of
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    return made, lease


def provider(made):
    return made.engines[PROVIDER].state


def withdraw(made, *devices, notice_ms=60_000, why="the owner plays"):
    made.take(PROVIDER, events.DevicesWithdrawn(devices=devices, notice_ms=notice_ms, why=why, at_ms=made.now_ms))


def give_back(made, *devices):
    made.take(PROVIDER, events.DevicesReturned(devices=devices, at_ms=made.now_ms))


def tell(made, event, lease, after_ms=1_000, **fields):
    made.now_ms += after_ms
    made.take(PROVIDER, event(run=lease, at_ms=made.now_ms, **fields))


def left(made, lease):
    tell(made, run.RunFailed, lease, kind=run.RECLAIMED, reason="the owner plays")


def leaving(made):
    return [effect for account, effect in made.effects if account == PROVIDER and isinstance(effect, run.LeaveRun)]


def test_a_tender_is_declined_in_words_while_every_device_is_withdrawn_and_answered_once_one_is_back():
    made = market()
    withdraw(made, FIRST)
    made.tender(BUYER, (PROVIDER,))
    (decline,) = made.heard(messages.DeclineSent)
    assert decline.decline.document.reason == "this provider lends no devices at present"
    give_back(made, FIRST)
    made.submit(BUYER, job=b"k" * 32, of=ONE)
    made.tender(BUYER, (PROVIDER,), job=b"k" * 32)
    assert len(made.heard(messages.BidSent)) == 1


def test_a_bid_on_a_withdrawn_device_lapses_and_the_award_on_it_is_refused():
    made = market(devices=2)
    made.lost = lambda _, message: isinstance(message, messages.AwardSent)
    made.tender(BUYER, (PROVIDER,))
    withdraw(made, FIRST, SECOND)
    assert provider(made).capacity.allotments == {}
    (award,) = made.heard(messages.AwardSent)
    made.lost = lambda *_: False
    made.tell(BUYER, PROVIDER, award)
    (refused,) = made.heard(messages.LeaseRefused)
    assert refused.reason == "the bid is lapsed: the devices were taken back: the owner plays"
    assert provider(made).runs.live == {}


def test_a_device_is_neither_free_nor_sold_again_until_its_run_has_left():
    made, lease = running()
    withdraw(made, FIRST)
    assert leaving(made) == [run.LeaveRun(run=lease, by_ms=made.now_ms + 60_000, why="the owner plays")]
    assert made.heard(messages.LeaseReclaimed)[0].by_ms == made.now_ms + 60_000
    assert provider(made).capacity.phase_of(FIRST) == "leased"
    give_back(made, FIRST)
    assert provider(made).capacity.free == ()
    withdraw(made, FIRST)
    left(made, lease)
    assert provider(made).capacity.phase_of(FIRST) == "withdrawn"
    assert provider(made).capacity.free == ()
    give_back(made, FIRST)
    assert [entry.id for entry in provider(made).capacity.free] == [FIRST]


def test_only_leases_on_the_devices_that_are_wanted_leave():
    made, _ = running(devices=2)
    withdraw(made, SECOND)
    assert leaving(made) == []
    assert made.heard(messages.LeaseReclaimed) == []


def test_the_time_up_to_the_last_checkpoint_is_charged_and_no_unit_beyond_it():
    made, lease = running()
    tell(made, run.RunProgressed, lease, step=1, metrics=())
    withdraw(made, FIRST)
    tell(made, run.RunCheckpointed, lease, 700, round=0, step=1, checkpoint=blob_ref(b"state"))
    made.now_ms += 5_000
    left(made, lease)
    (sold,) = (entry for _, entry in provider(made).sales.all() if entry.lease == lease)
    assert (sold.device_ms, sold.vouched) == (1_700, 1_700)


def test_a_checkpoint_of_work_that_was_charged_before_is_not_charged_again():
    made, lease = running()
    for number in (1, 2):
        tell(made, run.RunProgressed, lease, step=number, metrics=())
    # The sandbox was lost, and the shard does again what it had done.
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    tell(made, run.RunCheckpointed, lease, 700, round=0, step=1, checkpoint=blob_ref(b"state"))
    withdraw(made, FIRST)
    left(made, lease)
    (sold,) = (entry for _, entry in provider(made).sales.all() if entry.lease == lease)
    assert sold.device_ms == 2_000


def test_a_daemon_that_dies_in_the_middle_of_the_notice_ends_the_run_as_reclaimed_and_keeps_the_device_back():
    made, lease = running()
    tell(made, run.RunProgressed, lease, step=1, metrics=())
    withdraw(made, FIRST)
    made.restart(PROVIDER, devices=1)
    (sold,) = (entry for _, entry in provider(made).sales.all() if entry.lease == lease)
    assert (sold.kind, sold.device_ms) == ("reclaimed", 1_000)
    assert provider(made).capacity.phase_of(FIRST) == "withdrawn"
    assert made.heard(messages.RunEnded)[0].kind == "reclaimed"


def test_a_checkpoint_whose_word_died_with_the_daemon_is_told_before_the_end():
    made, lease = running()
    made.lost = lambda _, message: isinstance(message, messages.CheckpointStored)
    tell(made, run.RunCheckpointed, lease, round=0, step=1, checkpoint=blob_ref(b"state"))
    withdraw(made, FIRST)
    made.lost = lambda *_: False
    made.said.clear()
    made.restart(PROVIDER, devices=1)
    words = [type(message) for _, to, message in made.said if to == BUYER]
    assert words.index(messages.CheckpointStored) < words.index(messages.RunEnded)
    (shard,) = made.engines[BUYER].state.jobs.get(JOB).shards
    assert (shard.phase, shard.copying.blob) == ("leaving", blob_ref(b"state"))


def test_a_run_that_does_not_leave_by_itself_is_stopped_when_its_time_is_over():
    made, lease = running()
    tell(made, run.RunProgressed, lease, step=1, metrics=())
    withdraw(made, FIRST, notice_ms=2_000)
    made.pass_time(4_000, PROVIDER)
    assert run.StopRun(run=lease, grace_ms=3_000) in [effect for _, effect in made.effects]
    tell(made, run.RunStopped, lease)
    assert made.heard(messages.RunEnded)[0].kind == "reclaimed"
    assert deadline_ms(provider(made)) is None or deadline_ms(provider(made)) > made.now_ms


@pytest.mark.parametrize(("notice_ms", "kind"), [(1_000, "reclaimed"), (999, "reclaimed-early")])
def test_the_end_says_whether_the_notice_was_what_the_bid_promised(notice_ms, kind):
    made, lease = running()
    withdraw(made, FIRST, notice_ms=notice_ms)
    left(made, lease)
    assert made.heard(messages.RunEnded)[0].kind == kind


def kept(made, lease, for_ms=60_000):
    tell(made, run.RunKept, lease, kind="user-exception", reason="division by zero", until_ms=made.now_ms + for_ms)


def test_the_buyer_hears_of_a_kept_run_and_pays_nothing_for_the_keeping():
    made, lease = running()
    tell(made, run.RunProgressed, lease, step=1, metrics=())
    kept(made, lease)
    assert made.engines[BUYER].state.jobs.get(JOB).shards[0].phase == "kept"
    made.pass_time(1_900)
    tell(made, run.RunFailed, lease, kind="user-exception", reason="division by zero")
    (sold,) = (entry for _, entry in provider(made).sales.all() if entry.lease == lease)
    assert (sold.device_ms, sold.vouched) == (1_000, 1_000)
    assert made.engines[BUYER].state.jobs.get(JOB).phase == "failed"


def test_a_kept_run_is_unpaid_up_to_the_owners_limit_and_then_stopped():
    made, lease = running()
    kept(made, lease)
    made.pass_time(3_000, PROVIDER)  # max_unpaid is 3,000 at one unit for a millisecond
    assert run.StopRun(run=lease, grace_ms=3_000) in [effect for _, effect in made.effects]


def test_no_time_is_paid_after_the_word_that_a_run_is_kept_whatever_a_receipt_claims():
    made, lease = running()
    tell(made, run.RunProgressed, lease, step=1, metrics=())
    kept(made, lease)
    (channel,) = made.engines[BUYER].state.paying.live.values()
    assert channel.terms[lease].ends_ms == made.now_ms
    assert channel.cumulative == 1_000
    made.now_ms += CLOCK_SKEW_MS + 1
    last = channel.accepted
    late = replace(last.lines[0], end_ms=made.now_ms, device_ms=30_000, amount=30_000)
    proof = replace(last.evidence[0], steps=9)
    claimed = next_statement(
        channel_id=channel.channel_id, last=last.receipt, lines={lease: late}, evidence={lease: proof}
    )
    receipt = unsigned(claimed.receipt)
    claim = messages.ReceiptSent(receipt=receipt, lines=claimed.lines, evidence=claimed.evidence)
    made.tell(PROVIDER, BUYER, sealed(claim, PROVIDER_KEY))
    (disputed,) = made.heard(messages.ReceiptDisputed)
    assert disputed.reason == "a line is outside the lease's time"
    (line,) = disputed.payable
    agreed = channel.terms[lease]
    assert line.device_ms == line.amount == agreed.longest_ms(agreed.ends_ms), (
        "what passed until then, and the allowance"
    )
    (channel,) = made.engines[BUYER].state.paying.live.values()
    assert channel.cumulative == 1_000


def test_no_time_is_paid_after_the_word_that_a_run_has_ended_while_its_results_are_fetched():
    made, lease = running()
    blob = blob_ref(b"result")
    tell(made, run.RunOutput, lease, path="result", blob=blob)
    tell(made, run.RunFinished, lease)
    (channel,) = made.engines[BUYER].state.paying.live.values()
    assert channel.terms[lease].ends_ms == made.now_ms
    assert channel.cumulative == 2_000, "the last receipt came after the end, and is for the time before it"
    assert made.engines[BUYER].state.jobs.get(JOB).shards[0].phase == "ending"


def test_a_run_that_was_told_to_stop_is_not_said_to_be_kept():
    made, lease = running()
    made.take(BUYER, events.JobCancelled(job=JOB, reason="enough", at_ms=made.now_ms))
    kept(made, lease)
    assert made.heard(messages.RunKept) == []


def test_the_use_of_devices_is_told_as_evidence():
    made, lease = running()
    made.take(PROVIDER, events.DevicesUsed(lease=lease, busy_ms=600, at_ms=made.now_ms + 900))
    tell(made, run.RunProgressed, lease, step=1, metrics=())
    (receipt,) = made.heard(messages.ReceiptSent)
    assert receipt.evidence[0].busy_ms == 600
    made.take(PROVIDER, events.DevicesUsed(lease=b"?" * 32, busy_ms=600, at_ms=made.now_ms))
    assert provider(made).ignored == {"sale: the use of devices without a lease": 1}


def test_a_shard_that_is_moved_goes_on_elsewhere_and_its_provider_keeps_its_name():
    made, lease = running()
    made.add(OTHER_KEY, devices=1)
    withdraw(made, FIRST)
    tell(made, run.RunCheckpointed, lease, round=0, step=0, checkpoint=blob_ref(b"state"))
    made.take(BUYER, events.BlobFetched(job=JOB, lease=lease, blob=blob_ref(b"state"), at_ms=made.now_ms))
    left(made, lease)
    wanted = [effect for account, effect in made.effects if isinstance(effect, job_events.TenderWanted)]
    assert [effect.attempt for effect in wanted] == [0, 1]
    assert unwelcome(made.engines[BUYER].state, wanted[-1]) == {PROVIDER}
    made.tender(BUYER, (OTHER,), nonce=b"2" * 32)
    assert made.heard(messages.RunOrdered)[-1].checkpoint == blob_ref(b"state")
    assert made.engines[BUYER].state.records == {PROVIDER: Record(taken_back=1)}
    assert Record(taken_back=1).reliability_ppm == Record().reliability_ppm
    assert made.engines[BUYER].state.jobs.get(JOB).shards[0].losses == 0


def test_a_provider_that_breaks_its_promise_of_notice_is_remembered_for_it():
    made, lease = running()
    withdraw(made, FIRST, notice_ms=0)
    left(made, lease)
    assert made.engines[BUYER].state.records == {PROVIDER: Record(bad=1)}
