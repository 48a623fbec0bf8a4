"""A provider whose clock is set back, between leases or during one, charges for no time twice and proves no lie."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market import device_time
from hansa.market.device_time import not_before_ms, with_charge
from hansa.market.receipts import charged_twice
from hansa.proto.documents import MeterLine
from hansa.scheduler import run

STEP_MS = 60_000
DEVICE, OTHER_DEVICE = b"d" * 32, b"o" * 32


def job(number):
    return bytes([number]) * 32


def lease(made, number):
    """The same buyer gets the device for another job. Answers the lease."""
    made.submit(BUYER, job=job(number), of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,), job=job(number))
    return next(
        key for key, bid in made.engines[PROVIDER].state.sale_of.items() if sale(made, key).tender.job == job(number)
    )


def sale(made, key):
    return made.engines[PROVIDER].state.sale_on(key)


def work(made, key, *, steps, back_ms=0):
    """Begin, work for a minute a step, and have the clock set back before the last one; then end."""
    made.take(PROVIDER, run.RunStarted(run=key, at_ms=made.now_ms))
    for number in range(1, steps + 1):
        made.now_ms += STEP_MS - (back_ms if number == steps else 0)
        made.take(PROVIDER, run.RunProgressed(run=key, step=number, metrics=(), at_ms=made.now_ms))
    made.take(PROVIDER, run.RunFinished(run=key, at_ms=made.now_ms))


def lines(made):
    """Every line that the provider wrote last, by lease."""
    return {key: line for _, each in made.engines[PROVIDER].state.earning.all() for key, line in each.lines.items()}


def market():
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1, voucher_timeout_ms=10**8, max_unpaid=10**9)
    return made


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("back_ms", [31_000, 90_000, 115_000])
def test_between_two_leases(back_ms, restarts):
    made = market()
    first = lease(made, 1)
    work(made, first, steps=4)
    made.now_ms -= back_ms
    if restarts:
        made.engines[PROVIDER].write_snapshot_if_due(now=True)
        made.restart(PROVIDER, devices=1)
    second = lease(made, 2)
    work(made, second, steps=4)
    one, other = lines(made)[first], lines(made)[second]
    assert not charged_twice(one, 1, other, 1)
    assert one.end_ms <= other.start_ms
    assert (one.device_ms, other.device_ms) == (4 * STEP_MS, 4 * STEP_MS - back_ms), "what passed twice is given away"
    assert made.engines[BUYER].state.proven == {}


def test_during_the_last_of_two_leases():
    made = market()
    first = lease(made, 1)
    work(made, first, steps=3)
    second = lease(made, 2)
    work(made, second, steps=3, back_ms=50_000)
    one, other = lines(made)[first], lines(made)[second]
    assert not charged_twice(one, 1, other, 1)
    assert other.device_ms <= other.end_ms - other.start_ms


def test_so_far_that_nothing_of_the_second_lease_may_be_charged():
    made = market()
    first = lease(made, 1)
    work(made, first, steps=4)
    made.now_ms -= 230_000
    second = lease(made, 2)
    work(made, second, steps=2)
    assert second not in lines(made), "its line would lie in the future"
    made.pass_time(10**7)
    assert sale(made, second).device_ms == 0


shares = st.integers(min_value=1, max_value=1_000)


@given(wanted=st.lists(st.tuples(shares, st.integers(0, 500_000), st.integers(0, 300_000)), min_size=2, max_size=12))
def test_whatever_the_clock_says_no_two_leases_of_parts_of_a_device_prove_a_lie(wanted):
    times, written = {}, []
    for share, begins_ms, worked_ms in wanted:
        start_ms = max(begins_ms, not_before_ms(times, (DEVICE,), share))
        charge = MeterLine(
            lease=bytes(32),
            shard=0,
            device=DEVICE,
            start_ms=start_ms,
            end_ms=start_ms + worked_ms,
            device_ms=worked_ms * share // 1_000,
            amount=0,
        )
        assert not any(charged_twice(charge, 1, other, 1) for other in written)
        written.append(charge)
        times = with_charge(times, (DEVICE,), share, charge.end_ms)


def test_parts_that_fit_beside_each_other_wait_for_nothing_and_others_do():
    times = with_charge({}, (DEVICE,), 500, 1_000)
    assert not_before_ms(times, (DEVICE,), 500) == 0
    assert not_before_ms(times, (DEVICE,), 501) == 1_000
    assert not_before_ms(times, (OTHER_DEVICE,), 1_000) == 0
    times = with_charge(times, (DEVICE, OTHER_DEVICE), 1_000, 900)
    assert not_before_ms(times, (DEVICE,), 500) == 900
    assert not_before_ms(times, (DEVICE,), 1_000) == 1_000
    assert len(with_charge(times, (DEVICE,), 1_000, 1_000)[DEVICE]) == 1


def test_of_ever_new_devices_those_charged_longest_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr(device_time, "MOST_DEVICES", 2)
    times = {}
    for number in (3, 1, 2):
        times = with_charge(times, (bytes([number]) * 32,), 1_000, number)
    assert set(times) == {bytes([3]) * 32, bytes([2]) * 32}
