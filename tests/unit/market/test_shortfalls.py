"""What a change of one condition is worth to somebody who lacks something."""

import pytest

from hansa.market.shortfalls import covers
from hansa.proto.market_documents import Shortfall

LACKS = Shortfall(name="ram", wanted="ram >= 64 GiB", nearest="32 GiB")


@pytest.mark.parametrize(
    ("name", "wanted", "nearest", "is_covered"),
    [
        ("ram", "ram >= 64 GiB", "32 GiB", True),
        ("ram", "ram >= 64 GiB", "16 GiB", True),
        ("ram", "ram >= 64 GiB", "48 GiB", False),
        ("ram", "ram >= 64 GiB", "any", True),
        ("disk", "ram >= 64 GiB", "32 GiB", False),
        ("ram", "ram >= 128 GiB", "32 GiB", False),
        ("ram", "ram >= 128 GiB", "any", False),
    ],
)
def test_a_change_helps_only_whom_that_very_condition_kept_out(
    name: str, wanted: str, nearest: str, is_covered: bool
) -> None:
    assert covers(Shortfall(name=name, wanted=wanted, nearest=nearest), LACKS) is is_covered
