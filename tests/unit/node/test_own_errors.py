"""A developer's own mistakes do not count against the provider that tells of them; to tell of invented ones does."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market.track_record import Record, doubted
from hansa.node.engine import events
from hansa.node.engine.standings import records_for
from hansa.proto import messages
from hansa.scheduler import run

OWN = ("bad-entry", "out-of-memory", "user-exception")


def market():
    made = SmallMarket()
    made.add(BUYER_KEY)
    for key in (PROVIDER_KEY, OTHER_KEY):
        made.add(key, devices=1)
    return made


def attempt(made, seller, number, *, kind="", first=True, back=False, **changes):
    """A job, or its next attempt, on a provider; it ends with that kind of error, or well."""
    job = bytes([number]) * 32
    if first:
        made.submit(BUYER, job=job, of=spec(shards=1, **{"retries": 0, **changes}))
    known = set(made.engines[seller].state.sale_of)
    made.tender(BUYER, (seller,), job=job, nonce=bytes([number, first]) * 16)
    (key,) = set(made.engines[seller].state.sale_of) - known
    made.take(seller, run.RunStarted(run=key, at_ms=made.now_ms))
    made.now_ms += 1_500
    made.take(seller, run.RunProgressed(run=key, step=1, metrics=(), at_ms=made.now_ms))
    if back:
        owned = tuple(each.id for each in made.engines[seller].state.capacity.devices)
        made.take(seller, events.DevicesWithdrawn(devices=owned, notice_ms=60_000, why="mine", at_ms=made.now_ms))
    made.now_ms += 100
    if kind:
        made.take(seller, run.RunFailed(run=key, kind=kind, reason="", at_ms=made.now_ms))
    else:
        made.take(seller, run.RunFinished(run=key, at_ms=made.now_ms))
    made.now_ms += 60_000


def record(made, account=PROVIDER):
    return made.engines[BUYER].state.records.get(account, Record())


def seen(made, account=PROVIDER):
    """As a purchase sees it."""
    state = made.engines[BUYER].state
    return records_for(state, (account,), currency="USD", at_ms=made.now_ms).get(account, Record())


@pytest.mark.parametrize("kind", OWN)
def test_an_error_of_the_jobs_code_is_no_bad_end(kind):
    made = market()
    attempt(made, PROVIDER, 1, kind=kind)
    assert (record(made).bad, record(made).own, seen(made).bad) == (0, 1, 0)
    assert seen(made).reliability_ppm >= Record().reliability_ppm


@pytest.mark.parametrize("kind", ["sandbox-lost", "worker-died", "stalled", "no-such-kind"])
def test_what_may_be_the_providers_fault_counts_as_before(kind):
    made = market()
    attempt(made, PROVIDER, 1, kind=kind)
    assert (record(made).bad, record(made).own) == (1, 0)


def test_who_takes_its_devices_back_and_calls_the_end_the_jobs_own_is_marked():
    made = market()
    attempt(made, PROVIDER, 1, kind="user-exception", back=True)
    assert (record(made).bad, record(made).own) == (1, 0)


def test_whose_code_fails_everywhere_has_it_count_against_nobody():
    made = market()
    for number in range(1, 7):
        attempt(made, PROVIDER if number % 2 else OTHER, number, kind="user-exception")
    assert seen(made).bad == seen(made, OTHER).bad == 0


def test_who_says_it_where_others_do_the_work_is_believed_less_each_time():
    made = market()
    for number in range(1, 9):
        attempt(made, OTHER, number)
    found = []
    for number in range(9, 14):
        attempt(made, PROVIDER, number, kind="user-exception")
        found.append(seen(made).bad)
    assert found == [0, 1, 2, 3, 4]
    assert seen(made).reliability_ppm < Record().reliability_ppm < seen(made, OTHER).reliability_ppm


def test_what_another_provider_bears_out_leaves_no_trace():
    made = market()
    again = {"retries": 2, "retry_on": ("user-exception",)}
    attempt(made, PROVIDER, 1, kind="user-exception", **again)
    assert record(made).own == 1
    attempt(made, OTHER, 1, kind="user-exception", first=False, **again)
    assert (record(made).own, record(made, OTHER).own) == (0, 0)
    made.engines[BUYER].state.records[OTHER] = Record(own=2)
    attempt(made, PROVIDER, 1, kind="user-exception", first=2, **again)
    assert (record(made).own, record(made, OTHER).own) == (0, 2), "a word is borne out once"
    assert len(made.heard(messages.RunEnded)) >= 2


@pytest.mark.parametrize(
    ("own", "good", "others", "counted"),
    [
        (1, 0, (), 0),
        (2, 0, (), 0),
        (10, 0, (), 4),
        (10, 0, (Record(good=20),), 9),
        (10, 0, (Record(own=20),), 0),
        (10, 10, (), 0),
        (3, 30, (Record(good=8, own=2),), 0),
        (11, 0, (Record(good=2, own=5), Record(good=5, own=2)), 5),
    ],
)
def test_so_many_are_doubted(own, good, others, counted):
    assert doubted(Record(own=own, good=good), others) == counted


FEW = st.integers(0, 300)
RECORDS = st.builds(Record, good=FEW, bad=FEW, own=FEW)


@given(RECORDS, st.lists(RECORDS, max_size=4))
def test_the_share_that_others_had_and_one_more_are_believed_and_not_the_next_one(record, others):
    own, good = (sum(getattr(each, name) for each in others) for name in ("own", "good"))
    share = Fraction(own + 1, own + good + 2)
    believed = record.own - doubted(record, others)
    within = share * (record.own + record.good) + 1
    assert 0 <= believed <= within
    assert believed == record.own or believed + 1 > within
