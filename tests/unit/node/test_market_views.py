"""What a buyer is shown of the market, from engines that really answer: no job without a reason, no promise untrue."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.memory_net import MemoryHub
from kit.memory_party import advert_of, party
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, OTHER, PRICE, needs, spec

from hansa.market.clauses import relaxed_requirements
from hansa.market.shortfalls import BUSY
from hansa.node.api import dry_run, market_views
from hansa.node.engine.events import JobCancelled, TenderUndelivered
from hansa.node.engine.state import NodeState, restored, snapshot
from hansa.node.engine.tender_log import MOST_DECLINED, tenders_view
from hansa.node.messaging.book import Book
from hansa.proto.market_documents import Shortfall
from hansa.proto.messages import BidSent, DeclineSent
from hansa.proto.signing import SigningKey, checksum_address
from hansa.proto.units import price_per_hour_to_e18
from hansa.scheduler.job_spec import JobSpec

HOURLY = 3_600_000


def plain(view: Any) -> Any:
    read = json.loads(json.dumps(view, allow_nan=False))
    assert read == view
    return read


def provider_key(number: int) -> SigningKey:
    return SigningKey(bytes([10 + number]) * 32)


def market_of(offers: list[dict[str, Any]], of: JobSpec) -> SmallMarket:
    """Providers as described, a buyer, and its job tendered to all of them."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    for number, offer in enumerate(offers):
        made.add(provider_key(number), **offer)
    made.submit(BUYER, of=of)
    tendered(made, of, offers, b"t" * 32)
    return made


def tendered(made: SmallMarket, of: JobSpec, offers: list[dict[str, Any]], nonce: bytes) -> None:
    made.tender(
        BUYER,
        tuple(provider_key(number).address for number in range(len(offers))),
        shards=tuple(range(of.shards)),
        requirements=of.requirements,
        price_ceiling_e18_per_device_ms=of.price_ceiling_e18_per_device_ms,
        nonce=nonce,
    )
    made.pass_time(2_000, BUYER)


def state_of(made: SmallMarket) -> NodeState:
    return made.engines[BUYER].state


def why_of(made: SmallMarket) -> dict[str, Any]:
    of = state_of(made).jobs.get(JOB)
    assert of is not None
    view: dict[str, Any] = plain(market_views.why_view(state_of(made), of))
    return view


offers = st.fixed_dictionaries(
    {
        "devices": st.integers(0, 3),
        "price_e18_per_device_ms": st.sampled_from((PRICE // 2, PRICE, 2 * PRICE, 3 * PRICE)),
        "tier": st.sampled_from(("none", "sandbox", "gvisor")),
        "features": st.sampled_from(((), ("egress",))),
    }
)
jobs = st.builds(
    lambda shards, devices, ceiling, tier, features, cores: spec(
        shards=shards,
        price_ceiling_e18_per_device_ms=ceiling,
        requirements=needs(devices=devices, tier=tier, features=features, cores_milli=cores),
        budget=10**12,
        queue_ms=3_600_000,
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from((PRICE // 4, PRICE, 2 * PRICE)),
    st.sampled_from(("none", "sandbox", "gvisor")),
    st.sampled_from(((), ("egress",), ("egress", "image"))),
    st.sampled_from((1_000, 4_000, 9_000)),
)


def changed(of: JobSpec, changes: list[dict[str, str]]) -> JobSpec:
    """The job with these changes made."""
    for change in changes:
        if change["name"] == "price":
            of = replace(of, price_ceiling_e18_per_device_ms=price_per_hour_to_e18(change["nearest"]))
        elif change["name"] == "features":
            left = () if change["nearest"] == "any" else tuple(change["nearest"].split(","))
            of = replace(of, requirements=replace(of.requirements, features=left))
        elif change["name"] != BUSY:
            needs_of = relaxed_requirements(of.requirements, [Shortfall(**change)])
            of = replace(of, requirements=needs_of)
    return of


def bidders(made: SmallMarket) -> set[str]:
    return {checksum_address(sent.bid.document.signer) for sent in made.heard(BidSent)}


@settings(max_examples=60, deadline=None)
@given(st.lists(offers, max_size=5), jobs)
def test_every_job_that_found_nobody_is_explained_and_who_is_promised_really_bids(
    providers: list[dict[str, Any]], of: JobSpec
) -> None:
    made = market_of(providers, of)
    job = state_of(made).jobs.get(JOB)
    assert job is not None
    if job.phase == "running":
        assert not why_of(made)["unfilled"]
        return
    view = why_of(made)
    assert view["unfilled"]
    assert view["summary"]
    assert view["queue"]["reason"]
    lending = {number for number, offer in enumerate(providers) if offer["devices"]}
    told = {answer["provider"] for answer in view["answers"]}
    assert told == {checksum_address(provider_key(number).address) for number in range(len(providers))}
    refused = {answer["provider"] for answer in view["answers"] if answer["outcome"] == "declined"}
    for relaxation in view["relaxations"]:
        if any(change["name"] == BUSY for change in relaxation["changes"]) or not relaxation["changes"]:
            continue
        again = market_of(providers, changed(of, relaxation["changes"]))
        assert set(relaxation["providers"]) <= bidders(again), relaxation["words"]
    won = {provider for one in view["relaxations"] for provider in one["providers"]}
    assert refused - won <= {
        checksum_address(provider_key(number).address) for number in range(len(providers)) if number not in lending
    }, "whoever lends something that would do is won by some change"


def test_a_job_that_was_cancelled_or_runs_looks_for_nobody() -> None:
    made = market_of([{"devices": 2}], spec())
    assert not why_of(made)["unfilled"]
    queued = market_of([], spec(queue_ms=1_000_000))
    assert why_of(queued)["unfilled"]
    queued.take(BUYER, JobCancelled(job=JOB, reason="enough", at_ms=queued.now_ms))
    assert why_of(queued)["phase"] == "cancelled"


def test_the_bids_of_a_job_are_shown_with_their_terms_and_what_the_choice_cost() -> None:
    made = market_of(
        [{"devices": 1}, {"devices": 1, "price_e18_per_device_ms": 2 * PRICE}, {"devices": 1, "tier": "none"}],
        spec(shards=1, price_ceiling_e18_per_device_ms=2 * PRICE),
    )
    of = state_of(made).jobs.get(JOB)
    assert of is not None
    (tender,) = plain(market_views.bids_view(state_of(made), of))["tenders"]
    assert (tender["asked"], tender["declined"], tender["silent"]) == (3, 1, 0)
    cheap, dear = tender["bids"]
    assert (cheap["result"], cheap["shard"], dear["result"]) == ("won", 0, "lost")
    assert dear["why"] == "another bid is expected to cost less"
    terms = ("finishing", "risk", "transfer", "reclaim", "rounds")
    for bid in (cheap, dear):
        assert sum(round(float(bid[name]) * 10**6) for name in terms) == round(float(bid["expected_cost"]) * 10**6)
    assert "the cheapest for the hour too" in tender["choice"]
    assert tender["extra_per_hour"] == "0.000000"


def test_who_never_got_the_tender_is_told_from_who_was_silent() -> None:
    made = market_of([{"devices": 1}, {"devices": 1}], spec(shards=2))
    away, answered = (provider_key(number).address for number in (0, 1))
    made.submit(BUYER, job=b"k" * 32, of=spec(shards=1))
    made.lost = lambda to, message: to == away or isinstance(message, BidSent | DeclineSent)
    made.tender(BUYER, (away, answered), job=b"k" * 32, nonce=b"k" * 32)
    ((key, bought),) = ((key, each) for key, each in state_of(made).purchases.all() if each.tender.job == b"k" * 32)
    for provider in (away, OTHER):
        made.take(BUYER, TenderUndelivered(tender=key, provider=provider, why="it is away", at_ms=made.now_ms))
    made.take(BUYER, TenderUndelivered(tender=bytes(32), provider=away, why="it is away", at_ms=made.now_ms))
    noted = state_of(made).purchases.get(key)
    assert noted is not None
    assert noted.undelivered == {away: "it is away"}, "of those alone who are waited for"
    made.pass_time(2_000, BUYER)
    assert bought.phase == "tendering"
    of = state_of(made).jobs.get(b"k" * 32)
    view = plain(market_views.why_view(state_of(made), of))
    said = {answer["provider"]: (answer["outcome"], answer["reason"]) for answer in view["answers"]}
    assert said == {
        checksum_address(away): ("unreached", "it is away"),
        checksum_address(answered): ("silent", "it did not answer before bidding closed"),
    }
    assert "1 did not answer, 1 never got the tender" in view["summary"]
    made.restart(BUYER)
    assert plain(market_views.why_view(state_of(made), state_of(made).jobs.get(b"k" * 32))) == view


def test_a_provider_learns_why_it_declined_and_why_it_lost() -> None:
    made = market_of([{"devices": 1}, {"devices": 1, "price_e18_per_device_ms": 2 * PRICE}], spec(shards=1))
    won, lost = (made.engines[provider_key(number).address].state for number in (0, 1))
    (row,) = plain(tenders_view(won))
    assert [bid["outcome"] for bid in row["bids"]] == ["won"]
    (row,) = plain(tenders_view(lost))
    assert [(bid["outcome"], bid["price_per_hour"]) for bid in row["bids"]] == [("lost", f"{2 * HOURLY / 10**6:.6f}")]
    assert row["bids"][0]["why"].startswith("another bid won: by expected cost it was number 2 of 2; reliability")
    dear = market_of([{"devices": 1, "price_e18_per_device_ms": 3 * PRICE}], spec(shards=1))
    (row,) = plain(tenders_view(dear.engines[provider_key(0).address].state))
    assert row["bids"] == []
    assert "above your ceiling" in row["declined"]
    assert row["buyer"] == checksum_address(BUYER)


def test_a_provider_keeps_a_bounded_number_of_its_noes_also_over_a_restart() -> None:
    dear = {"devices": 1, "price_e18_per_device_ms": 3 * PRICE}
    made = market_of([dear], spec(shards=1, queue_ms=10**9))
    for number in range(MOST_DECLINED + 20):
        tendered(made, spec(shards=1), [dear], number.to_bytes(32, "big"))
    provider = provider_key(0).address
    state = made.engines[provider].state
    assert len(state.declined) == MOST_DECLINED
    before = tenders_view(state)
    assert tenders_view(restored(snapshot(state))) == before
    assert tenders_view(made.restart(provider, devices=1).state) == before


@pytest.mark.trio
async def test_a_dry_run_says_whom_it_would_ask_and_asks_nobody() -> None:
    hub = MemoryHub()
    async with party(hub, 1) as buyer, party(hub, 2) as cheap, party(hub, 3) as dear, party(hub, 4) as taken:
        book = Book(buyer.net, now_ms=lambda: 1_700_000_000_000, learnt=lambda _: None)
        for one, changes in (
            (cheap, {"price_e18_per_device_ms": price_per_hour_to_e18("0.40")}),
            (dear, {"price_e18_per_device_ms": price_per_hour_to_e18("0.46")}),
            (taken, {"price_e18_per_device_ms": price_per_hour_to_e18("0.30"), "free": 0}),
        ):
            book.take(advert_of(one, expires_ms=1_700_000_060_000, **changes))
        adverts, blocked = [known.advert for known in book.standing()], frozenset[bytes]()
        of = spec(shards=2, price_ceiling_e18_per_device_ms=price_per_hour_to_e18("0.42"), budget=10)
        view = plain(dry_run.dry_run_view(of, frozenset(), adverts))
        assert not view["enough"]
        assert [(row["provider"], row["slots"]) for row in view["invited"]] == [
            (checksum_address(taken.account.address), 0),
            (checksum_address(cheap.account.address), 1),
        ]
        assert [row["words"] for row in view["relaxations"]] == [
            "1 more provider at +0.04 per device-hour",
            "1 more provider later (busy now)",
        ]
        assert [row["enough"] for row in view["relaxations"]] == [True, True]
        assert view["summary"].startswith("Of 3 providers known here 2 fit by their adverts; 1 of the 2 shards")
        alone = plain(dry_run.dry_run_view(replace(of, shards=1), blocked, adverts))
        assert alone["enough"]
        assert alone["hourly_least"] == "0.400000"
        assert alone["budget_lacks"] != "0.000000"
        ours = [advert for advert in adverts if advert.signer == cheap.account.address]
        roomy = plain(dry_run.dry_run_view(replace(of, shards=1), blocked, ours * 2))
        assert "; 1 of the 1 shards" in roomy["summary"], "more room than is wanted is no news"
        blocked = frozenset({cheap.account.address})
        assert not plain(dry_run.dry_run_view(replace(of, shards=1), blocked, adverts))["enough"]
