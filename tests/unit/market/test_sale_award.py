"""What a job brings beside its package is bounded by the owner before the lease is made."""

from typing import Any

import pytest
from kit.trading import BUYER, CHANNEL, NOW_MS, award, bid, needs, tender, workload

from hansa.market.sale_award import objection_to
from hansa.market.sale_events import AwardArrived
from hansa.market.sale_state import Sale
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.proto.workload import MAX_FILE_LIST_BYTES

GIB = 1 << 30


def objection(most_bytes: int, **changes: Any) -> str:
    called = tender(requirements=needs(memory_bytes=1 << 30))
    made = bid(called).document
    state = Sale(tender=called, bid=made, bid_digest=digest(DOMAIN, made), grace_ms=1, max_fetch_bytes=most_bytes)
    wanted = workload(**changes)
    accepted = award(made, signer=BUYER, workload=digest(DOMAIN, wanted))
    event = AwardArrived(award=accepted, channel=CHANNEL, workload=wanted, channel_closed=False, at_ms=NOW_MS)
    return objection_to(state, event)


def test_a_workload_within_the_owners_limits_is_taken() -> None:
    assert objection(GIB, fetch_bytes=GIB, files_bytes=MAX_FILE_LIST_BYTES) == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fetch_bytes": GIB + 1}, "the files of a shard weigh more than is fetched here, which is 1024 MiB"),
        ({"files_bytes": MAX_FILE_LIST_BYTES + 1}, "larger than providers take"),
        ({"shared_memory_bytes": (1 << 30) + 1}, "more shared memory than memory"),
    ],
)
def test_more_is_refused_before_there_is_a_lease(changes: dict[str, Any], why: str) -> None:
    assert why in objection(GIB, **changes)
