"""Who is asked to bid when a shard has lost its provider."""

from dataclasses import replace

from kit.trading import CHANNEL, JOB, OTHER_KEY, PROVIDER_KEY, award, bid, tender, workload

from hansa.market.purchase import ENDED_BADLY, Placement, Purchase
from hansa.node.buyer_tasks import unwelcome
from hansa.node.state import NodeState
from hansa.proto.market_documents import Tender
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey
from hansa.proto.typed_data import digest
from hansa.scheduler.job_events import TenderWanted

WANTED = TenderWanted(job=JOB, shards=(0,), attempt=1, at_ms=0)


def placed(called: Tender, key: SigningKey, *, phase: str = "ended", why: str = ENDED_BADLY) -> Placement:
    made = bid(called, key=key)
    accepted = award(made.document)
    return Placement(
        shard=0,
        bid=digest(DOMAIN, made.document),
        provider=key.address,
        award=accepted,
        lease=digest(DOMAIN, accepted),
        channel=CHANNEL,
        phase=phase,
        why=why,
    )


def after(*purchases: Purchase) -> NodeState:
    state = NodeState()
    for bought in purchases:
        state.purchases[bought.tender_digest] = bought
    return state


def purchase(called: Tender, *placements: Placement, phase: str = "settled") -> Purchase:
    return Purchase(
        phase=phase,
        tender=called,
        tender_digest=digest(DOMAIN, called),
        workload=workload(),
        funds=1,
        invited=(),
        placements=placements,
    )


GANG = tender(shards=(0, 1))
AGAIN = tender(nonce=b"2" * 32, bids_close_ms=GANG.bids_close_ms + 10_000)


def test_who_failed_the_job_is_not_asked_again_while_there_may_be_others() -> None:
    failed, fine = placed(GANG, PROVIDER_KEY), placed(GANG, OTHER_KEY, phase="confirmed", why="")
    state = after(purchase(GANG, failed, fine, phase="running"))
    assert unwelcome(state, WANTED) == {PROVIDER_KEY.address}
    twice = after(purchase(GANG, failed, fine), purchase(AGAIN, placed(AGAIN, OTHER_KEY)))
    assert unwelcome(twice, WANTED) == {PROVIDER_KEY.address, OTHER_KEY.address}


def test_once_nobody_else_was_found_everybody_is_asked() -> None:
    state = after(purchase(GANG, placed(GANG, PROVIDER_KEY)), purchase(AGAIN, phase="unfilled"))
    assert unwelcome(state, WANTED) == set()
    filled_later = tender(nonce=b"3" * 32, bids_close_ms=AGAIN.bids_close_ms + 1)
    state.purchases[b"3" * 32] = purchase(filled_later, placed(filled_later, OTHER_KEY))
    assert unwelcome(state, WANTED) == {PROVIDER_KEY.address, OTHER_KEY.address}


def test_another_job_s_failures_and_awards_that_never_became_leases_do_not_count() -> None:
    other_job = replace(GANG, job=b"o" * 32)
    never = placed(GANG, OTHER_KEY, phase="failed", why="did not confirm in time")
    state = after(purchase(other_job, placed(other_job, PROVIDER_KEY)), purchase(GANG, never))
    assert unwelcome(state, WANTED) == set()
