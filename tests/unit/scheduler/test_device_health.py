"""A GPU that is ill is not lent from that moment on, and lent again only when it has been well for a while."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.scheduler.device_health import (
    ERROR_MS,
    HARDWARE_XIDS,
    LONGEST_ERROR_MS,
    WELL_MS,
    Health,
    HealthRules,
    Vitals,
    judge,
)

RULES = HealthRules(max_temperature_c=80)
WELL = Vitals(temperature_c=50)
ILL = {
    "lost": (Vitals(missing="its driver has lost it"), "its driver has lost it", True),
    "memory": (Vitals(double_bit_errors=1), "its memory had errors that could not be corrected", True),
    "rows": (Vitals(remap_failed=True), "its memory has no spare rows left", True),
    "pending": (Vitals(reset_pending=True), "rows of its memory are to be replaced", True),
    "recovery": (Vitals(recovery="reset"), "its driver asks for a reset", True),
    "xid": (Vitals(xids=(31, 79)), "it fell off the bus (Xid 79)", True),
    "heat": (Vitals(temperature_c=81), "it is hotter than 80 °C", False),
    "use": (Vitals(used_by="blender (process 7)"), "blender (process 7) uses it", False),
}
vitals = st.just(WELL) | st.sampled_from([entry[0] for entry in ILL.values()])


@pytest.mark.parametrize("name", sorted(ILL))
def test_what_is_wrong_counts_at_once_and_in_words(name: str) -> None:
    ill, words, at_once = ILL[name]
    (reason,) = judge(Health(), ill, RULES, 1000).reasons
    assert reason.words.startswith(words)
    assert reason.at_once is at_once


def test_a_gpu_that_is_well_is_lent() -> None:
    assert judge(Health(), WELL, RULES, 1000).fit
    assert judge(Health(), Vitals(), RULES, 1000).fit


def test_a_programs_own_errors_are_not_the_cards() -> None:
    assert judge(Health(), Vitals(xids=(13, 31, 43, 45, 69, 999_999)), RULES, 0).fit
    assert {48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120, 136} <= set(HARDWARE_XIDS)


@given(st.lists(st.tuples(vitals, st.integers(1, 2 * WELL_MS)), max_size=30))
def test_it_is_lent_again_only_after_a_while_without_any_fault(story: list[tuple[Vitals, int]]) -> None:
    health, at_ms, wrong_ms = Health(), 1, -WELL_MS
    error_until_ms = 0
    for seen, pause_ms in story:
        at_ms += pause_ms
        health = judge(health, seen, RULES, at_ms)
        if seen.xids:
            error_until_ms = health.error_until_ms
            assert error_until_ms >= at_ms + ERROR_MS
        if seen != WELL or at_ms < error_until_ms:
            wrong_ms = at_ms
        if health.fit:
            assert at_ms - wrong_ms >= WELL_MS
            assert at_ms >= error_until_ms
        else:
            assert at_ms - wrong_ms < WELL_MS
    # And it does come back: nothing that went right for long enough counts for ever.
    health = judge(health, WELL, RULES, at_ms + LONGEST_ERROR_MS)
    assert judge(health, WELL, RULES, at_ms + LONGEST_ERROR_MS + WELL_MS).fit


def test_an_error_that_comes_again_counts_for_twice_as_long_but_not_for_ever() -> None:
    health, at_ms, lasted = Health(), 0, []
    for _ in range(12):
        health = judge(health, Vitals(xids=(48,)), RULES, at_ms)
        lasted.append(health.error_until_ms - at_ms)
        at_ms = health.error_until_ms + WELL_MS
    assert lasted[:3] == [ERROR_MS, 2 * ERROR_MS, 4 * ERROR_MS]
    assert lasted[-1] == LONGEST_ERROR_MS


def test_a_hot_card_must_be_clearly_cooler() -> None:
    hot = judge(Health(), Vitals(temperature_c=81), RULES, 0)
    still = judge(hot, Vitals(temperature_c=76), RULES, WELL_MS)
    assert still.reasons
    cool = judge(still, Vitals(temperature_c=75), RULES, WELL_MS + 1)
    assert judge(cool, Vitals(temperature_c=75), RULES, 2 * WELL_MS).fit
    assert judge(Health(), Vitals(temperature_c=78), RULES, 0).fit


def test_without_a_limit_heat_is_left_to_the_card() -> None:
    assert judge(Health(), Vitals(temperature_c=99), HealthRules(), 0).fit
