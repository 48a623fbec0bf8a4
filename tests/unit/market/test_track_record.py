"""What a buyer has seen itself becomes a figure: integers, the same for everybody who saw the same."""

from dataclasses import replace
from decimal import Decimal, getcontext

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kit.trading import NOW_MS, OTHER, PROVIDER, THIRD, workload

from hansa.market.track_record import (
    LEAST_STEPS,
    PPM,
    RATE_MS,
    Record,
    Trial,
    added,
    job_kind,
    lower_bound_ppm,
    measured_rate,
)
from hansa.proto.codec import decode, encode

KIND = job_kind(workload())
COUNTS = st.integers(0, 10_000)


def trial(provider=PROVIDER, model="H100", steps=100, device_ms=1_000, devices=1):
    return Trial(
        kind=KIND, provider=provider, model=model, devices=devices, steps=steps, device_ms=device_ms, at_ms=NOW_MS
    )


@given(st.integers(1, 10**4), st.integers(1, 10**4))
def test_the_bound_is_the_mean_less_one_standard_deviation_of_the_beta_distribution(good, bad):
    getcontext().prec = 60
    a, b = Decimal(good), Decimal(bad)
    exact = a / (a + b) - (a * b / ((a + b) ** 2 * (a + b + 1))).sqrt()
    found = lower_bound_ppm(good * PPM, bad * PPM)
    assert found == 1 or 0 <= exact * PPM - found <= 3


@pytest.mark.parametrize(
    ("record", "percent"),
    [(Record(), 55), (Record(good=1), 63), (Record(good=10), 86), (Record(bad=1), 39), (Record(bad=8), 12)],
)
def test_figures_that_can_be_worked_out_by_hand(record, percent):
    assert record.reliability_ppm // 10_000 == percent


@given(COUNTS, COUNTS, st.integers(0, PPM))
@example(0, 2015, 0)
def test_a_good_end_never_hurts_and_a_bad_one_never_helps(good, bad, told):
    record = Record(good=good, bad=bad, told_ppm=told)
    assert 1 <= record.reliability_ppm < PPM
    assert replace(record, good=good + 1).reliability_ppm >= record.reliability_ppm
    assert replace(record, bad=bad + 1).reliability_ppm <= record.reliability_ppm
    assert Record(bad=bad + 1).reliability_ppm < Record().reliability_ppm


def test_the_same_share_is_worth_more_the_oftener_it_was_seen():
    shares = [Record(good=9 * many, bad=many).reliability_ppm for many in (1, 3, 10, 100)]
    assert shares == sorted(shares)


def test_devices_taken_back_with_notice_are_no_bad_end():
    assert Record(taken_back=9).reliability_ppm == Record().reliability_ppm
    assert Record(taken_back=9).taken_back_ppm > Record().taken_back_ppm > Record(good=9).taken_back_ppm


def test_what_its_own_devices_did_goes_before_what_is_known_of_their_model():
    trials = (trial(steps=10), trial(OTHER, steps=100), trial(THIRD, steps=100))
    assert measured_rate(trials, PROVIDER, "H100", 1) == (10 * RATE_MS // 1_000, True)
    assert measured_rate(trials[1:], PROVIDER, "H100", 1) == (100 * RATE_MS // 1_000, False)
    assert measured_rate(trials[1:], PROVIDER, "A100", 1) is None


def test_who_says_nothing_of_its_model_does_not_get_away_from_what_its_devices_did():
    assert measured_rate((trial(steps=10),), PROVIDER, "", 1) == (10 * RATE_MS // 1_000, True)
    assert measured_rate((trial(OTHER),), PROVIDER, "", 1) is None


def test_no_single_provider_of_three_moves_what_is_known_of_a_model():
    honest = (trial(OTHER, steps=100), trial(THIRD, steps=110))
    for lie in (LEAST_STEPS, 10**15):
        rate, _ = measured_rate((*honest, trial(b"4" * 20, steps=lie)), PROVIDER, "H100", 1)
        assert 100 * RATE_MS // 1_000 <= rate <= 110 * RATE_MS // 1_000 or lie == LEAST_STEPS
    rate, _ = measured_rate((*honest, trial(b"4" * 20, steps=10**15)), PROVIDER, "H100", 1)
    assert rate == 110 * RATE_MS // 1_000


def test_more_devices_count_in_proportion_unless_just_so_many_were_measured():
    assert measured_rate((trial(devices=1),), PROVIDER, "H100", 8)[0] == 8 * 100 * RATE_MS // 1_000
    both = (trial(devices=1), trial(devices=8, device_ms=4_000))
    assert measured_rate(both, PROVIDER, "H100", 8)[0] == 200 * RATE_MS // 1_000


def test_a_few_steps_say_nothing():
    assert measured_rate((trial(steps=LEAST_STEPS - 1),), PROVIDER, "H100", 1) is None
    assert measured_rate((trial(steps=LEAST_STEPS),), PROVIDER, "H100", 1) is not None


def test_what_is_measured_adds_up():
    assert added(None, trial()) == trial()
    assert added(trial(), trial(steps=5, device_ms=7)) == trial(steps=105, device_ms=1_007)


def test_a_sum_of_invented_steps_can_still_be_written_down():
    most = trial(steps=(1 << 64) - 1, device_ms=1)
    total = added(added(most, most), most)
    assert decode(encode(total), Trial, limit_bytes=1_000) == total
    assert total.rate(64) > 0


def test_jobs_of_one_name_and_entry_are_of_one_kind():
    assert job_kind(replace(workload(), memory_bytes=1)) == KIND
    assert job_kind(replace(workload(), name="other")) != KIND
    assert job_kind(replace(workload(), entry="b.py:main")) != KIND
