"""What a tender is expected to cost before it is sent: the same table that the bids then make, by adverts alone."""

from dataclasses import replace
from typing import Any

from kit.small_market import SmallMarket, device
from kit.trading import BUYER, BUYER_KEY, JOB, NOW_MS, PRICE, needs, spec

from hansa.market.bandwidth import BACK, THERE, Bandwidth, noted
from hansa.market.pace import Pace
from hansa.market.scoring import MEASURED_HERE
from hansa.market.track_record import Record, job_kind
from hansa.node.api import dry_run, market_views
from hansa.node.engine.state import NodeState
from hansa.proto.market_documents import Advert, Fact
from hansa.proto.signing import SigningKey, checksum_address
from hansa.scheduler.job_spec import JobSpec

TERMS = ("finishing", "risk", "transfer", "reclaim", "rounds")


def key(number: int) -> SigningKey:
    return SigningKey(bytes([10 + number]) * 32)


def advert(number: int, **changes: Any) -> Advert:
    account = key(number).address
    said: dict[str, Any] = {
        "signer": account,
        "peer_id": "p",
        "addresses": (),
        "devices": (device(account[0]),),
        "free": 1,
        "tier": "sandbox",
        "features": (),
        "region": "",
        "facts": (),
        "currency": "USD",
        "price_e18_per_device_ms": PRICE,
        "sequence": 1,
        "expires_ms": NOW_MS + 60_000,
    }
    return Advert(**(said | changes))


def expected(state: NodeState, of: JobSpec, *adverts: Advert) -> dict[str, Any]:
    asked = dry_run.would_be_asked(of, frozenset(), adverts)
    return dry_run.expected_view(dry_run.hypothetical(state, of, asked, NOW_MS), asked)


def test_what_adverts_promise_is_what_the_bids_then_say() -> None:
    made = SmallMarket()
    made.add(BUYER_KEY)
    prices = (PRICE, PRICE + PRICE // 8, 2 * PRICE)
    for number, price in enumerate(prices):
        made.add(key(number), devices=1, price_e18_per_device_ms=price)
    state = made.engines[BUYER].state
    state.records[key(0).address] = Record(good=1, bad=9)
    of = spec(shards=1, price_ceiling_e18_per_device_ms=2 * PRICE)
    adverts = [advert(number, price_e18_per_device_ms=price) for number, price in enumerate(prices)]
    before = expected(state, of, *adverts)
    made.submit(BUYER, of=of)
    made.tender(
        BUYER,
        tuple(key(number).address for number in range(3)),
        shards=(0,),
        requirements=of.requirements,
        price_ceiling_e18_per_device_ms=of.price_ceiling_e18_per_device_ms,
        nonce=b"t" * 32,
    )
    job = state.jobs.get(JOB)
    assert job is not None
    (then,) = market_views.bids_view(state, job)["tenders"]
    shown = ("provider", "price_per_hour", "devices", "expected_cost", "reliability_ppm", "speed_ppm", *TERMS)
    assert [[bid[name] for name in shown] for bid in before["bids"]] == [
        [bid[name] for name in shown] for bid in then["bids"]
    ]
    assert [bid["result"] for bid in before["bids"]] == ["would win", "shown", "shown"]
    assert before["bids"][0]["provider"] == checksum_address(key(1).address), "the one that failed is not the cheapest"
    assert "0.45 USD an hour more than the cheapest" in before["choice"]


def test_the_terms_add_up_and_each_provider_bids_for_as_many_shards_as_it_has_room_for() -> None:
    made = SmallMarket()
    made.add(BUYER_KEY)
    many = advert(0, devices=tuple(device(number) for number in (1, 2, 3)), free=2)
    view = expected(made.engines[BUYER].state, spec(shards=2, budget=10**9), many, advert(1))
    assert sorted(bid["provider"] for bid in view["bids"]) == sorted(
        checksum_address(key(number).address) for number in (0, 0, 1)
    )
    assert [bid["result"] for bid in view["bids"]].count("would win") == 2
    for bid in view["bids"]:
        whole = sum(round(float(bid[name]) * 10**6) for name in TERMS)
        assert whole == round(float(bid["expected_cost"]) * 10**6)


def test_a_provider_with_two_free_devices_of_which_one_fits_bids_for_one_shard() -> None:
    made = SmallMarket()
    made.add(BUYER_KEY)
    large, small = device(1), replace(device(2), memory_bytes=1 << 20)
    of = spec(shards=2, budget=10**9, requirements=needs(device_memory_bytes=large.memory_bytes))
    view = expected(made.engines[BUYER].state, of, advert(0, devices=(large, small), free=2), advert(1))
    assert sorted(bid["provider"] for bid in view["bids"]) == sorted(
        checksum_address(key(number).address) for number in (0, 1)
    )


def test_whoever_is_busy_too_dear_blocked_or_does_not_fit_is_not_in_the_table() -> None:
    of = spec(shards=1, price_ceiling_e18_per_device_ms=PRICE)
    busy, dear = advert(0, free=0), advert(1, price_e18_per_device_ms=2 * PRICE)
    blocked, other, fits = advert(2), advert(3, currency="EUR"), advert(4)
    asked = dry_run.would_be_asked(of, frozenset({blocked.signer}), [busy, dear, blocked, other, fits])
    assert asked == [fits]


def test_what_an_advert_states_of_its_line_and_place_stands_in_its_bid() -> None:
    made = SmallMarket()
    made.add(BUYER_KEY)
    of = spec(shards=1, budget=10**9)
    here = advert(0, facts=(Fact(name="download", value="1 Mbit/s"),), region="de")
    (bid,) = expected(made.engines[BUYER].state, replace(of, fetch_bytes=1 << 30), here)["bids"]
    assert bid["transfer"] != "0.000000", "a line that is stated counts"
    assert bid["facts"]["region"] == "de"


def test_measured_lines_and_the_pace_of_its_kind_count_before_anything_is_sent() -> None:
    made = SmallMarket()
    made.add(BUYER_KEY)
    state, of = made.engines[BUYER].state, spec(shards=1, budget=10**9)
    kind = job_kind(of.workload(JOB, dry_run.NO_BLOB, None))
    state.paces[kind] = Pace(kind=kind, state_bytes=10_000_000, works_ms=(10_000,))
    for number, rate in ((0, 1_000_000), (1, 10_000_000)):
        known = Bandwidth(provider=key(number).address)
        for way in (THERE, BACK):
            known = noted(known, way, rate, is_bound=False, at_ms=NOW_MS)
        state.lines[known.provider] = known
    bids = expected(state, of, advert(0), advert(1))["bids"]
    found = {bid["provider"]: (bid["way_ms"], bid["line_source"], bid["result"]) for bid in bids}
    assert found == {
        checksum_address(key(0).address): (20_000, MEASURED_HERE, "shown"),
        checksum_address(key(1).address): (2_000, MEASURED_HERE, "would win"),
    }
    assert all(bid["rounds"] != "0.000000" for bid in bids)


def test_without_anybody_there_is_no_table() -> None:
    made = SmallMarket()
    made.add(BUYER_KEY)
    assert expected(made.engines[BUYER].state, spec(shards=1)) == {"bids": [], "choice": ""}
