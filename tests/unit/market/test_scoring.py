"""What a bid would cost until the work is done, term by term."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import NOW_MS, OTHER, PRICE, PROVIDER, THIRD, bid, needs, tender, workload

from hansa.market import scoring
from hansa.market.requirements import MOST_CHOICES
from hansa.market.scoring import (
    MEASURED_HERE,
    MEASURED_ON_MODEL,
    MOVE_MS,
    SLOWEST_KNOWN,
    STATED,
    UNKNOWN,
    Scored,
)
from hansa.market.selection import rank, stated_in
from hansa.market.track_record import PPM, Record, Trial, job_kind, lower_median
from hansa.proto.codec import decode, encode
from hansa.proto.market_documents import LEASE_ANY, LEASE_FIRM, LEASE_SPOT, Clause, DeviceChoice, Fact
from hansa.proto.units import HOUR_MS

TENDER = tender()
WALL_MS = TENDER.requirements.wall_ms
KIND = job_kind(workload())
WHO = {b"\1": PROVIDER, b"\2": OTHER, b"\3": THIRD, b"\4": b"4" * 20}


def facts(**stated):
    return tuple(Fact(name=name, value=stated[name]) for name in sorted(stated))


def offer(of=TENDER, **changes):
    return bid(of, **changes).document


def table(*bids, of=TENDER, records=None, trials=(), input_bytes=0):
    """The bids by their place, from three providers in turn; answers what was scored in the order given."""
    signers = dict(zip(WHO, bids, strict=False))
    signed = {key: replace(each, signer=WHO[key], payee=WHO[key]) for key, each in signers.items()}
    ranking = rank(of, signed, records or {}, trials=trials, input_bytes=input_bytes, at_ms=NOW_MS)
    found = {entry.bid: entry for entry in ranking}
    return [found[key] for key in signed]


def measured(provider, model, steps, devices=1):
    return Trial(kind=KIND, provider=provider, model=model, devices=devices, steps=steps, device_ms=10_000)


def speeds_of(entries):
    return [(entry.speed_ppm, entry.speed_source) for entry in entries]


@given(
    st.integers(1, 2 * PRICE),
    st.builds(Record, good=st.integers(0, 20), bad=st.integers(0, 20), taken_back=st.integers(0, 20)),
    st.integers(0, 1 << 40),
    st.booleans(),
)
def test_the_score_is_the_sum_of_its_terms_and_none_is_negative(price, record, input_bytes, firm):
    lease = {"lease": LEASE_FIRM, "penalty": 1_000} if firm else {}
    one = offer(price_e18_per_device_ms=price, facts=facts(download="100 Mbit/s"), **lease)
    for entry in table(one, offer(), records={PROVIDER: record}, input_bytes=input_bytes):
        terms = (entry.finishing, entry.risk, entry.transfer, entry.reclaim)
        assert entry.expected_cost == sum(terms)
        assert min(terms) >= 0


HOSTILE = list(
    product(
        (1, (1 << 128) - 1),
        (1, (1 << 64) - 1),
        ((3, (1 << 128) - 1), ((1 << 64) - 1, 1)),
        ("", "1 bit/s", "9000000000 Gbit/s", "9" * 40 + " bit/s"),
        (Record(bad=2**32 - 1), Record(taken_back=2**32 - 1)),
    )
)


@pytest.mark.parametrize(("price", "wall_ms", "did", "line", "record"), HOSTILE)
def test_whatever_strangers_say_the_table_can_be_written_down_and_read_again(price, wall_ms, did, line, record):
    of = tender(requirements=needs(wall_ms=wall_ms), price_ceiling_e18_per_device_ms=(1 << 128) - 1)
    stated = facts(gpu="H100", benchmark="9" * 15, **({"download": line} if line else {}))
    hostile = offer(of, price_e18_per_device_ms=price, max_total=0, facts=stated)
    # They are as fast as can be where this one is slow, and the other way round.
    beside = (3, 1 << 100) if did[0] > did[1] else (1_000_000, 1)
    others = (replace(measured(who, "A100", beside[0]), device_ms=beside[1]) for who in (OTHER, THIRD))
    trials = (replace(measured(PROVIDER, "H100", did[0]), device_ms=did[1]), *others)
    honest = offer(of, max_total=0)
    for entry in table(hostile, honest, honest, of=of, records={PROVIDER: record}, trials=trials, input_bytes=1 << 64):
        assert not entry.excluded
        kept = replace(entry, bid=bytes(32))
        assert decode(encode(kept), Scored, limit_bytes=10_000) == kept


def test_where_nothing_is_known_price_alone_decides_between_equals():
    cheap, dear = table(offer(), offer(price_e18_per_device_ms=2 * PRICE, max_total=1_200_001))
    assert speeds_of((cheap, dear)) == [(PPM, UNKNOWN)] * 2
    assert (cheap.finishing, dear.finishing) == (HOUR_MS, 2 * HOUR_MS)
    assert cheap.transfer == 0


def test_devices_that_do_twice_as_much_are_worth_almost_twice_the_price():
    cheap = offer(facts=facts(gpu="A100"), price_e18_per_device_ms=PRICE * 11 // 20, max_total=1)
    both = (offer(facts=facts(gpu="H100")), cheap)
    trials = (measured(THIRD, "H100", 200), measured(b"4" * 20, "A100", 100))
    fast, slow = table(*both, trials=trials)
    assert speeds_of((fast, slow)) == [(2 * PPM, MEASURED_ON_MODEL), (PPM, MEASURED_ON_MODEL)]
    assert fast.expected_cost < slow.expected_cost
    fast, slow = table(*both)
    assert fast.expected_cost > slow.expected_cost


def test_a_model_that_is_only_said_to_be_fast_is_believed_until_it_was_measured():
    liar, honest = offer(facts=facts(gpu="H100")), offer(facts=facts(gpu="A100"))
    trials = [measured(THIRD, "H100", 300), measured(OTHER, "A100", 100)]
    said, _ = table(liar, honest, trials=trials)
    assert said.speed_source == MEASURED_ON_MODEL
    caught, other = table(liar, honest, trials=[*trials, measured(PROVIDER, "H100", 50)])
    assert caught.speed_source == MEASURED_HERE
    assert caught.speed_ppm < other.speed_ppm


def test_a_stated_benchmark_counts_within_bounds_and_silence_is_never_better():
    entries = table(
        offer(facts=facts(benchmark="100")), offer(facts=facts(benchmark="900000")), offer(facts=facts(gpu="X"))
    )
    assert speeds_of(entries) == [(PPM, STATED), (4 * PPM, STATED), (PPM, SLOWEST_KNOWN)]
    entries = table(offer(facts=facts(benchmark="100")), offer(facts=facts(benchmark="1")), offer())
    # The usual one is the lower of two: the slowest cannot push the others beyond the bound.
    assert speeds_of(entries) == [(4 * PPM, STATED), (PPM, STATED), (PPM, SLOWEST_KNOWN)]


def test_who_hides_its_speed_is_as_slow_as_the_slowest_and_not_as_the_usual():
    said = [offer(facts=facts(benchmark=benchmark)) for benchmark in ("50", "100", "100")]
    *_, hidden = table(*said, offer())
    assert speeds_of([hidden]) == [(PPM // 2, SLOWEST_KNOWN)]


def test_benchmarks_are_held_against_what_was_measured_beside_them():
    entries = table(
        offer(facts=facts(gpu="H100", benchmark="100")),
        offer(facts=facts(gpu="A100", benchmark="50")),
        trials=[measured(PROVIDER, "H100", 100)],
    )
    assert speeds_of(entries) == [(PPM, MEASURED_HERE), (PPM // 2, STATED)]


def test_a_bid_that_cannot_win_moves_nothing_for_the_others():
    void = offer(facts=facts(benchmark="1"), tier="none")
    alone, beside = table(offer(facts=facts(benchmark="100"))), table(offer(facts=facts(benchmark="100")), void)
    assert alone[0] == beside[0]


def test_what_a_fact_says_that_is_no_value_of_its_word_counts_as_nothing():
    garbled = offer(facts=facts(benchmark="very", download="fast"))
    assert (stated_in(garbled).benchmark, stated_in(garbled).download_bps) == (0, 0)


def test_inputs_over_a_slow_line_cost_time_of_the_devices():
    size = 3_000_000_000  # a minute at 400 Mbit/s
    lines = (offer(facts=facts(download=line)) for line in ("400 Mbit/s", "1 Gbit/s", "10 Mbit/s"))
    slow, fast, slowest, hidden = (entry.transfer for entry in table(*lines, offer(), input_bytes=size))
    assert slow == HOUR_MS * 60_000 // WALL_MS
    assert fast == slow * 4 // 10
    # Silence is as bad as the usual line by four, no stranger's slow line makes it worse, and none is worse than it.
    assert hidden == slowest == slow * 4


@pytest.mark.parametrize(("penalty", "costs"), [(0, MOVE_MS), (MOVE_MS // 2, MOVE_MS // 2), (MOVE_MS, 0)])
def test_a_penalty_makes_up_for_devices_that_may_be_taken_back(penalty, costs):
    """At one unit for a millisecond, a move costs its minute."""
    lease = {"lease": LEASE_FIRM, "penalty": penalty} if penalty else {}
    (entry,) = table(offer(**lease))
    assert entry.reclaim == costs * Record().taken_back_ppm * HOUR_MS // (PPM * WALL_MS)


def test_who_takes_its_devices_back_often_costs_more():
    calm, fickle = table(offer(), offer(), records={OTHER: Record(taken_back=5)})
    assert fickle.expected_cost > calm.expected_cost
    assert fickle.risk == calm.risk


@pytest.mark.parametrize(
    ("wanted", "offered", "penalty", "why"),
    [
        (LEASE_ANY, LEASE_SPOT, 0, ""),
        (LEASE_ANY, LEASE_FIRM, 10, ""),
        (LEASE_FIRM, LEASE_FIRM, 10, ""),
        (LEASE_FIRM, LEASE_SPOT, 0, "not the lease that was tendered for (firm)"),
        (LEASE_SPOT, LEASE_FIRM, 0, "not the lease that was tendered for (spot)"),
        (LEASE_ANY, "eternal", 0, "not the lease that was tendered for (any)"),
        (LEASE_ANY, LEASE_FIRM, 600_002, "its penalty is more than its lease can cost"),
        (LEASE_ANY, LEASE_SPOT, 1, "its penalty is more than its lease can cost"),
    ],
)
def test_the_kind_of_lease_is_the_one_that_was_tendered_for(wanted, offered, penalty, why):
    asked = tender(lease=wanted)
    (entry,) = table(offer(asked, lease=offered, penalty=penalty), of=asked)
    assert entry.excluded.startswith(why)
    assert bool(entry.excluded) == bool(why)


CHOICES = tender(
    requirements=needs(
        devices=2, choices=(DeviceChoice(devices=1, model="H100"), DeviceChoice(devices=2, model="A100-80GB"))
    )
)


@pytest.mark.parametrize(
    ("model", "count", "fits"),
    [
        ("H100-SXM5", 1, True),
        ("H100-SXM5", 2, False),
        ("A100-SXM4-80GB", 2, True),
        ("A100-PCIE-40GB", 2, False),
        ("A100-SXM4-80GB", 1, False),
        ("", 1, False),
    ],
)
def test_of_several_choices_of_devices_one_must_be_met_exactly(model, count, fits):
    devices = tuple(bytes([number]) * 32 for number in range(count))
    stated = facts(gpu=model) if model else ()
    (entry,) = table(offer(CHOICES, devices=devices, facts=stated, max_total=1), of=CHOICES)
    assert (entry.excluded == "") == fits, entry.excluded


def test_two_choices_cost_what_all_their_devices_do_for_what_they_do_together():
    one = offer(CHOICES, facts=facts(gpu="H100-SXM5"), price_e18_per_device_ms=PRICE)
    pair = offer(
        CHOICES,
        facts=facts(gpu="A100-SXM4-80GB"),
        devices=(b"1" * 32, b"2" * 32),
        price_e18_per_device_ms=PRICE * 3 // 5,
    )
    single, two = table(one, pair, of=CHOICES)
    assert two.finishing > single.finishing
    trials = (measured(THIRD, "H100-SXM5", 100), measured(THIRD, "A100-SXM4-80GB", 75))
    single, two = table(one, pair, of=CHOICES, trials=trials)
    assert two.speed_ppm == single.speed_ppm * 3 // 2
    assert two.finishing < single.finishing


def clause(name, operator, *values):
    return Clause(name=name, operator=operator, values=values)


@pytest.mark.parametrize(
    ("asked", "record", "why"),
    [
        (clause("cuda", ">=", "12.4"), Record(), ""),
        (clause("cuda", ">=", "12.8"), Record(), "does not meet cuda >= 12.8"),
        (clause("notice", ">=", "5 min"), Record(), "does not meet notice >= 5 min"),
        (clause("notice", ">=", "1 s"), Record(), ""),
        (clause("reliability", ">=", "0.9"), Record(), ""),
        (clause("reliability", ">=", "0.9"), Record(good=9, bad=1), ""),
        (clause("reliability", ">=", "0.9"), Record(good=8, bad=1), "does not meet reliability >= 0.9"),
        (clause("reputation", ">=", "0.5"), Record(told_ppm=500_000), ""),
        (clause("reputation", ">=", "0.5"), Record(good=99, told_ppm=499_999), "does not meet reputation >= 0.5"),
        (clause("colour", "=", "red"), Record(), "does not meet colour = red"),
    ],
)
def test_every_clause_of_the_tender_is_held_against_the_bid_and_what_the_buyer_knows(asked, record, why):
    of = tender(requirements=needs(clauses=(asked,)))
    (entry,) = table(offer(of, facts=facts(cuda="12.6")), of=of, records={PROVIDER: record})
    assert entry.excluded == why


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, ""),
        ({"kind": "gpu", "vram": "24 GiB", "cores": "4"}, ""),
        ({"kind": "cpu"}, "does not meet kind = gpu"),
        ({"vram": "16 GiB"}, "does not meet vram >= 20 GiB"),
        ({"cores": "3.999"}, "does not meet cores >= 4"),
        ({"vram": "a lot"}, "does not meet vram >= 20 GiB"),
    ],
)
def test_a_bid_is_held_to_what_it_says_of_its_own_devices(said, why):
    of = tender(requirements=needs(kind="gpu", device_memory_bytes=20 << 30, cores_milli=4_000))
    (entry,) = table(offer(of, facts=facts(**said)), of=of)
    assert entry.excluded == why


def test_why_a_bid_cannot_win_fits_on_a_line():
    of = tender(requirements=needs(clauses=tuple(clause(f"{'x' * 200}{number}", "=", "y") for number in range(9))))
    (entry,) = table(offer(of), of=of)
    assert 0 < len(entry.excluded.encode()) <= 256


@pytest.mark.parametrize("model", ["RTX-PRO-6000-BLACKWELL", "A100-80GB", "é" * 120])
@pytest.mark.parametrize("choices", [1, MOST_CHOICES // 2, MOST_CHOICES])
def test_why_a_bid_answers_no_choice_fits_on_a_line_whatever_was_chosen(model, choices):
    wanted = tuple(DeviceChoice(devices=2 + number, model=model) for number in range(choices))
    of = tender(requirements=needs(choices=wanted))
    (entry,) = table(offer(of, facts=facts(gpu=model, vram="80 GB")), of=of)
    kept = replace(entry, bid=bytes(32))
    assert entry.excluded.startswith("not the number of devices")
    assert decode(encode(kept), Scored, limit_bytes=10_000) == kept


def test_steps_that_a_provider_invented_are_worth_four_times_the_usual_at_the_most():
    dear = offer(price_e18_per_device_ms=2 * PRICE, max_total=1)
    trials = (measured(PROVIDER, "", 100), measured(OTHER, "", 1 << 40), measured(THIRD, "", 100))
    _, liar, _ = table(offer(), dear, offer(), trials=trials)
    assert speeds_of([liar]) == [(4 * PPM, MEASURED_HERE)]


@pytest.mark.parametrize("line", ["1 bit/s", "1 Mbit/s"])
def test_a_slow_line_beside_it_does_not_ruin_a_bid_that_is_silent(line):
    dear = {"price_e18_per_device_ms": 2 * PRICE, "max_total": 1}
    bids = (offer(), offer(facts=facts(download="100 Mbit/s"), **dear), offer(facts=facts(download=line), **dear))
    silent, stated, _ = table(*bids, input_bytes=50_000)
    assert silent.transfer * 2 <= stated.transfer * 4
    assert silent.expected_cost < stated.expected_cost


def test_a_slow_measurement_beside_it_does_not_ruin_a_bid_of_which_nothing_is_known():
    trials = (
        replace(measured(OTHER, "", 3), device_ms=1 << 40),
        measured(THIRD, "", 100),
        measured(b"4" * 20, "", 100),
    )
    silent, *_ = table(offer(), offer(), offer(), offer(), trials=trials)
    assert speeds_of([silent]) == [(PPM // 4, SLOWEST_KNOWN)]


def several(*offers, trials=()):
    """Bids of any signers, by number; their speeds in the order given."""
    signed = {bytes([number]): replace(each, signer=who, payee=who) for number, (who, each) in enumerate(offers)}
    ranking = rank(TENDER, signed, {}, trials=trials, at_ms=NOW_MS)
    found = {entry.bid: entry.speed_ppm for entry in ranking}
    return [found[key] for key in signed]


def test_a_provider_with_many_bids_makes_nothing_usual_and_is_still_worth_four_times_it_at_the_most():
    fast = offer(facts=facts(gpu="h100"))
    slow = offer(facts=facts(gpu="a100"))
    trials = (measured(PROVIDER, "h100", 1_000_000), measured(OTHER, "a100", 10), measured(THIRD, "a100", 10))
    many = [(PROVIDER, replace(fast, nonce=bytes([number]) * 32)) for number in range(5)]
    assert several(*many, (OTHER, slow), (THIRD, slow), trials=trials) == [4 * PPM] * 5 + [PPM, PPM]


def test_one_providers_speed_is_held_against_what_the_others_do_and_not_against_its_own():
    trials = tuple(measured(who, "a100", steps) for who, steps in ((PROVIDER, 10**6), (OTHER, 10), (THIRD, 20)))
    fourth = bytes([9]) * 20
    trials += (measured(fourth, "a100", 40),)
    bids = [(who, offer(facts=facts(gpu="a100"))) for who in (PROVIDER, OTHER, THIRD, fourth)]
    # The lower median of all four is 20, and so is that of the other three.
    assert several(*bids, trials=trials) == [4 * PPM, PPM // 2, PPM, 2 * PPM]
    less = tuple(replace(trial, steps=10) if trial.provider == THIRD else trial for trial in trials)
    most = tuple(replace(trial, steps=10**6) if trial.provider == fourth else trial for trial in less)
    # Two of four lie: beside the honest two and one liar it is worth no more than four times what these do.
    assert several(*bids, trials=most) == [4 * PPM, PPM, PPM, 4 * PPM]


def test_what_a_provider_did_itself_does_not_raise_what_it_is_held_against():
    who = (PROVIDER, OTHER, THIRD, bytes([8]) * 20, bytes([9]) * 20)
    trials = tuple(measured(each, "a100", steps) for each, steps in zip(who, (10**6, 10, 10, 20, 20), strict=True))
    bids = [(each, offer(facts=facts(gpu="a100"))) for each in who]
    # The lower median of all five is 20, and that of the other four is 10.
    assert several(*bids, trials=trials) == [2 * PPM, PPM // 2, PPM // 2, PPM, PPM]


def test_one_of_three_that_says_it_is_slow_does_not_make_the_others_unbelievable():
    trials = tuple(measured(who, "a100", steps) for who, steps in ((PROVIDER, 3), (OTHER, 300), (THIRD, 300)))
    bids = [(who, offer(facts=facts(gpu="a100"))) for who in (PROVIDER, OTHER, THIRD)]
    assert several(*bids, trials=trials) == [PPM // 100, PPM, PPM]


@given(st.integers(1, 10**9), st.lists(st.integers(1, 10**9), min_size=3, max_size=3))
def test_whatever_one_provider_says_that_it_did_the_others_stand_to_each_other_as_before(steps, honest):
    who = (OTHER, THIRD, bytes([9]) * 20)
    did = tuple(measured(each, "a100", count + 3) for each, count in zip(who, honest, strict=True))
    liar = (measured(PROVIDER, "a100", steps + 3),)
    bids = [(each, offer(facts=facts(gpu="a100"))) for each in (PROVIDER, *who)]
    found = several(*bids, trials=did + liar)
    assert max(found) <= 4 * PPM
    usual = sorted(count + 3 for count in honest)[1]
    assert found[0] <= max(1, 4 * min(usual, steps + 3) * PPM // min(usual, sorted((*honest, steps))[1] + 3))


@pytest.mark.parametrize(("line", "counted"), [("0.9 Mbps", "silent"), ("1 Mbps", "stated")])
def test_a_line_slower_than_one_megabit_counts_as_not_stated(line, counted):
    said = [offer(facts=facts(download=line)), offer(), offer(facts=facts(download="2 Mbps"))]
    slow, silent, usual = (entry.transfer for entry in table(*said, input_bytes=10**6))
    assert silent == slow
    assert (slow == usual) == (counted == "silent")


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=3))
def test_to_say_nothing_of_a_line_is_never_better_than_to_say_that_it_is_slow(lines):
    said = [offer(facts=facts(download=f"{mbps} Mbps")) for mbps in lines]
    *stated, silent = (entry.transfer for entry in table(*said, offer(), input_bytes=10**9))
    assert all(silent >= transfer for transfer in stated)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50)), max_size=30))
def test_what_is_usual_beside_each_provider_is_the_lower_median_of_the_others(said):
    owners = {bytes([number]): bytes([who]) for number, (who, _) in enumerate(said)}
    figures = {bytes([number]): figure for number, (_, figure) in enumerate(said)}
    medians = scoring._by_owner(figures, owners)
    found = scoring._usual_beside(figures, owners)
    assert found.keys() == medians.keys()
    for owner, usual in found.items():
        others = [median for other, median in medians.items() if other != owner]
        assert usual == lower_median(others if len(others) > scoring.LEAST_OTHERS else list(medians.values()))


def test_a_table_of_many_bids_looks_for_the_usual_a_few_times_for_each_and_not_for_each_pair(monkeypatch):
    looked = []
    monkeypatch.setattr(scoring, "lower_median", lambda values: looked.append(len(values)) or lower_median(values))
    owners = {bytes([number]) * 32: bytes([number]) * 20 for number in range(200)}
    bids = {
        key: offer(signer=owner, facts=facts(benchmark="9", download="100 Mbit/s")) for key, owner in owners.items()
    }
    stated = {key: stated_in(one) for key, one in bids.items()}
    scoring.speeds(bids, stated, ())
    scoring.transfer_times_ms(bids, stated, 10**9, {})
    assert sum(looked) <= 10 * len(bids)
