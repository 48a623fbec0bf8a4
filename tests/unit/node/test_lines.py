"""What a buyer's node remembers of lines and rounds, and what a tender takes along of it."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, OTHER, OTHER_KEY, PRICE, PROVIDER, PROVIDER_KEY, spec

from hansa.market.bandwidth import BACK, THERE, Bandwidth, Transfer
from hansa.market.gang import Company
from hansa.market.pace import Pace
from hansa.market.scoring import LONGEST_WAY_MS, MEASURED_HERE
from hansa.market.track_record import job_kind
from hansa.node.engine import events, lines
from hansa.node.engine.state import restored, snapshot
from hansa.proto import messages
from hansa.proto.blob import BlobRef, blob_ref
from hansa.proto.codec import decode, encode
from hansa.proto.units import HOUR_MS
from hansa.scheduler import run

TWO = spec(shards=2)
STATE_BYTES = 100_000_000


def market(of=TWO, devices=2):
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=devices)
    made.add(OTHER_KEY, devices=devices)
    made.submit(BUYER, of=of)
    return made


def state_of(made):
    return made.engines[BUYER].state


def measure(made, provider, way, bytes_per_s, *, is_bound=False):
    made.take(
        BUYER,
        events.LineMeasured(provider=provider, way=way, bytes_per_s=bytes_per_s, is_bound=is_bound, at_ms=made.now_ms),
    )


def running(of=TWO):
    made = market(of)
    made.tender(BUYER, (PROVIDER,), shards=tuple(range(of.shards)))
    leases = list(made.engines[PROVIDER].state.sale_of)
    for lease in leases:
        made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    return made, leases


def contribute(made, lease, number, after_ms):
    made.now_ms += after_ms
    state = blob_ref(lease + bytes([number]))
    message = messages.RoundContributed(lease=lease, round=number, weight_milli=1_000, state=state)
    made.tell(PROVIDER, BUYER, message)


def publish(made, number, after_ms=1_000):
    made.now_ms += after_ms
    state = BlobRef(root=bytes([number]) * 32, size_bytes=STATE_BYTES)
    event = events.RoundReduced(job=JOB, round=number, state=state, accepted=(0, 1), rejected=(), at_ms=made.now_ms)
    made.take(BUYER, event)


def test_only_lines_to_those_whom_this_node_pays_are_kept():
    made, _ = running()
    measure(made, PROVIDER, BACK, 1_000)
    measure(made, OTHER, BACK, 1_000)
    state = state_of(made)
    kept = Bandwidth(provider=PROVIDER, back=(Transfer(bytes_per_s=1_000, at_ms=made.now_ms),))
    assert state.lines == {PROVIDER: kept}
    assert state.ignored["lines: a line to nobody whom this node pays"] == 1
    assert restored(snapshot(state)).lines == state.lines
    made.restart(BUYER)
    assert state_of(made).lines == {PROVIDER: kept}


def test_of_many_lines_those_measured_longest_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr(lines, "MOST_LINES", 2)
    made, _ = running()
    state = state_of(made)
    for number in range(3):
        state.lines[bytes([number]) * 20] = Bandwidth(provider=bytes([number]) * 20)
    measure(made, bytes([0]) * 20, THERE, 5)
    assert list(state.lines) == [bytes([2]) * 20, bytes([0]) * 20]


@given(st.integers(0, (1 << 64) - 1), st.text(max_size=9), st.booleans())
def test_whatever_was_measured_is_folded_and_written_down(bytes_per_s, way, is_bound):
    made, _ = running()
    measure(made, PROVIDER, way, bytes_per_s, is_bound=is_bound)
    assert decode(encode(snapshot(state_of(made))), type(snapshot(state_of(made))), limit_bytes=1 << 20)


def test_the_second_round_shows_how_long_shards_work_between_two_and_what_their_states_weigh():
    made, (one, other) = running()
    contribute(made, one, 1, 10_000)
    contribute(made, other, 1, 500)
    publish(made, 1)
    assert state_of(made).paces == {}
    contribute(made, one, 2, 20_000)
    contribute(made, one, 2, 3_000)
    contribute(made, other, 2, 6_000)
    publish(made, 2)
    (pace,) = state_of(made).paces.values()
    # Of two the sooner counts, and what is said again does not make it later.
    assert (pace.work_ms, pace.state_bytes, pace.at_ms) == (20_000, STATE_BYTES, made.now_ms)
    assert restored(snapshot(state_of(made))).paces == state_of(made).paces
    made.restart(BUYER)
    assert list(state_of(made).paces.values()) == [pace]


def test_the_outcome_of_a_round_of_no_job_here_measures_nothing_and_ends_nobody():
    made, _ = running()
    state = BlobRef(root=bytes(32), size_bytes=STATE_BYTES)
    event = events.RoundReduced(job=b"?" * 32, round=1, state=state, accepted=(), rejected=(), at_ms=made.now_ms)
    made.take(BUYER, event)
    made.restart(BUYER)
    assert state_of(made).paces == {}
    assert state_of(made).rounds.get(b"?" * 32) is None


def test_before_the_first_round_and_between_two_the_word_of_a_shard_is_no_measurement():
    made, (one, other) = running()
    contribute(made, one, 1, 10_000)
    contribute(made, one, 1, 10_000)
    contribute(made, other, 1, 500)
    publish(made, 1)
    publish(made, 1)
    assert state_of(made).paces == {}
    contribute(made, one, 2, 20_000)
    contribute(made, other, 2, 6_000)
    contribute(made, other, 2, 6_000)
    assert state_of(made).paces == {}
    publish(made, 2)
    assert len(state_of(made).paces) == 1


def test_a_tender_takes_along_the_lines_of_the_invited_and_the_pace_of_its_kind():
    made, (one, other) = running()
    measure(made, PROVIDER, THERE, 1_000_000)
    measure(made, PROVIDER, BACK, 2_000_000)
    for number in (1, 2):
        contribute(made, one, number, 10_000)
        contribute(made, other, number, 0)
        publish(made, number)
    # One shard is lost and is tendered again, while the other runs on: it will wait for whoever comes.
    made.take(PROVIDER, run.RunFailed(run=one, kind="lost", reason="", at_ms=made.now_ms))
    made.tender(BUYER, (PROVIDER, OTHER), shards=(0,), nonce=b"n" * 32)
    bought = next(each for _, each in state_of(made).purchases.all() if each.tender.nonce == b"n" * 32)
    (pace,) = state_of(made).paces.values()
    assert bought.pace == pace
    way_ms = STATE_BYTES // 1_000 + STATE_BYTES // 2_000
    assert bought.company == Company(hourly=PRICE * HOUR_MS // 10**18, way_ms=way_ms)
    scored = {entry.provider: entry for entry in bought.ranking}
    assert scored[PROVIDER].way_ms == way_ms
    assert scored[PROVIDER].line_source == MEASURED_HERE
    assert scored[PROVIDER].rounds == scored[PROVIDER].finishing * way_ms // pace.work_ms
    assert bought.lines == ()


def test_who_runs_beside_counts_as_no_longer_on_its_way_than_anybody_in_the_table():
    made, _ = running()
    measure(made, PROVIDER, THERE, 1)
    measure(made, PROVIDER, BACK, 1)
    state = state_of(made)
    pace = Pace(kind=bytes(32), state_bytes=1 << 60, works_ms=(1,))
    company = lines.company_of(state, state.jobs.get(JOB), (0,), pace, made.now_ms)
    assert company.way_ms == 2 * LONGEST_WAY_MS


def test_before_any_round_the_jobs_own_file_says_its_pace():
    state, of = state_of(market()), replace(TWO, round_bytes=10, round_every_ms=5)
    workload = of.workload(JOB, blob_ref(b"package"), None)
    stated = Pace(kind=job_kind(workload), state_bytes=10, works_ms=(5,))
    assert lines.pace_of(state, workload, of) == stated
    assert lines.pace_of(state, workload, replace(of, round_every_ms=0)) is None
    known = replace(stated, state_bytes=99)
    state.paces[known.kind] = known
    assert lines.pace_of(state, workload, of) == known
