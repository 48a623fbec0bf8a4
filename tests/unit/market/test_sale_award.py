"""What a job brings beside its package is bounded by the owner before the lease is made."""

from dataclasses import replace
from typing import Any

import pytest
from kit.trading import BUYER, CHANNEL, NOW_MS, award, bid, needs, tender, workload

from hansa.market.sale_award import objection_to
from hansa.market.sale_events import AwardArrived
from hansa.market.sale_state import Sale
from hansa.market.settlement import CHALLENGE_PERIOD_S
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.documents import channel_id
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


@pytest.mark.parametrize("period_s", [CHALLENGE_PERIOD_S, 900, 1, 30 * 86_400, 2**63])
@pytest.mark.parametrize("currency", [escrow_currency(31_337, b"e" * 20, b"t" * 20), "USD"])
def test_on_a_chain_the_challenge_period_is_the_one_that_every_channel_has(period_s: int, currency: str) -> None:
    named = currency_of(currency)
    called = tender(requirements=needs(memory_bytes=1 << 30), currency=currency)
    made = bid(called).document
    state = Sale(tender=called, bid=made, bid_digest=digest(DOMAIN, made), grace_ms=1, max_fetch_bytes=GIB)
    channel = replace(CHANNEL, challenge_period=period_s, token=named.token)
    wanted = workload()
    accepted = award(made, signer=BUYER, workload=digest(DOMAIN, wanted), channel_id=channel_id(named.domain, channel))
    event = AwardArrived(award=accepted, channel=channel, workload=wanted, channel_closed=False, at_ms=NOW_MS)
    taken = period_s == CHALLENGE_PERIOD_S or not named.is_on_chain
    assert objection_to(state, event) == ("" if taken else "the channel's challenge period is not 86400 seconds")


def test_a_workload_within_the_owners_limits_is_taken() -> None:
    assert objection(GIB, fetch_bytes=GIB, files_bytes=MAX_FILE_LIST_BYTES) == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fetch_bytes": GIB + 1}, "the files of a shard weigh more than is fetched here, which is 1024 MiB"),
        ({"files_bytes": MAX_FILE_LIST_BYTES + 1}, "larger than providers take"),
        ({"shared_memory_bytes": (1 << 30) + 1}, "more shared memory than memory"),
        ({"memory_bytes": (1 << 30) + 1}, "more than was tendered"),
        ({"scratch_bytes": needs().scratch_bytes + 1}, "more than was tendered"),
    ],
)
def test_more_is_refused_before_there_is_a_lease(changes: dict[str, Any], why: str) -> None:
    assert why in objection(GIB, **changes)
