"""What a job asks of a pool is refused by name before anything is done, if it makes no sense."""

from dataclasses import replace

import pytest

from hansa.worker.tasks import Wish

SOUND = Wish(
    function=len,
    setup=None,
    name="lengths",
    workers=None,
    gpus_each=1,
    ordered=False,
    retries=0,
    timeout_s=None,
    most_failures=None,
    keep=True,
)


def test_what_is_left_open_and_the_least_of_each_option_pass():
    SOUND.check()
    replace(SOUND, workers=1, timeout_s=0.001, most_failures=0).check()


@pytest.mark.parametrize("option", ["workers", "gpus_each", "timeout_s"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_pool_of_nothing_is_refused(option, value):
    with pytest.raises(ValueError, match=f"^{option} must be above zero"):
        replace(SOUND, **{option: value}).check()


@pytest.mark.parametrize("option", ["retries", "most_failures"])
def test_less_than_none_is_refused(option):
    with pytest.raises(ValueError, match=f"^{option} must not be below zero"):
        replace(SOUND, **{option: -1}).check()
