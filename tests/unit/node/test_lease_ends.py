"""What a buyer notes about a provider when a lease ends, and what the end does to its money."""

from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market.purchase_state import TAKEN_BACK, WITHOUT_FAULT
from hansa.market.track_record import Record
from hansa.node import events
from hansa.scheduler import run


def running(*keys, devices=1, notice_ms=1_000, **changes):
    """A job that runs at these providers, a shard each."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    rules = {"leases": ("spot", "firm"), "penalty_ms": 700, "reclaim_notice_ms": notice_ms}
    for key in keys:
        made.add(key, devices=devices, **rules)
    made.submit(BUYER, of=spec(shards=len(keys), **changes))
    made.tender(
        BUYER, tuple(key.address for key in keys), shards=tuple(range(len(keys))), lease=changes.get("lease", "any")
    )
    for key in keys:
        made.take(key.address, run.RunStarted(run=lease_of(made, key.address), at_ms=made.now_ms))
    made.now_ms += 1_000
    return made


def lease_of(made, account):
    (lease,) = made.engines[account].state.sale_of
    return lease


def state_of(made):
    return made.engines[BUYER].state


def fail(made, account, kind):
    made.take(account, run.RunFailed(run=lease_of(made, account), kind=kind, reason="", at_ms=made.now_ms))


def withdraw(made, account, notice_ms):
    ((_, sold),) = made.engines[account].state.sales.all()
    devices = sold.bid.devices
    made.take(account, events.DevicesWithdrawn(devices=devices, notice_ms=notice_ms, why="mine", at_ms=made.now_ms))


def whys(made):
    return {entry.provider: entry.why for _, bought in state_of(made).purchases.all() for entry in bought.placements}


def test_devices_that_were_taken_back_are_counted_as_such():
    made = running(PROVIDER_KEY)
    withdraw(made, PROVIDER, 60_000)
    made.now_ms += 60_000
    fail(made, PROVIDER, "reclaimed")
    assert state_of(made).records == {PROVIDER: Record(taken_back=1)}
    assert whys(made) == {PROVIDER: TAKEN_BACK}


def test_who_works_well_beside_a_shard_that_ends_the_job_is_noted_for_nothing():
    made = running(PROVIDER_KEY, OTHER_KEY, retries=0)
    fail(made, PROVIDER, "user-exception")
    assert state_of(made).records == {PROVIDER: Record(bad=1)}
    assert whys(made)[OTHER] == WITHOUT_FAULT


def test_a_job_that_is_cancelled_says_of_nobody_that_devices_were_taken_back():
    made = running(PROVIDER_KEY, OTHER_KEY)
    made.take(BUYER, events.JobCancelled(job=JOB, reason="enough", at_ms=made.now_ms))
    assert state_of(made).records == {}
    assert set(whys(made).values()) == {WITHOUT_FAULT}
