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
from hansa.proto.market_documents import Advert, Device, DeviceChoice, Fact
from hansa.proto.signing import SigningKey, checksum_address
from hansa.proto.units import price_per_hour_to_e18
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


# Where any of several sets of devices does, a shard costs what the set costs that its provider would give.

HOURLY = price_per_hour_to_e18("2.00")


def cards(model: str, *numbers: int) -> tuple[Device, ...]:
    gigabyte = 1 << 30
    return tuple(
        replace(device(number), kind="gpu", model=model, memory_bytes=80 * gigabyte, cores_milli=8_000)
        for number in numbers
    )


H100, EIGHT_H100, EIGHT_A100 = cards("H100", 1), cards("H100", *range(1, 9)), cards("A100", *range(11, 19))
ONE_OR_EIGHT = needs(
    kind="gpu",
    devices=8,
    choices=(DeviceChoice(devices=1, model="H100"), DeviceChoice(devices=8, model="A100")),
    wall_ms=3_600_000,
)


def looked_at(*adverts: Advert, shards: int = 1) -> dict[str, Any]:
    """A dry run of a job that one H100 does, or eight A100."""
    return dry_run.dry_run_view(one_or_eight(shards), frozenset(), adverts)


def one_or_eight(shards: int = 1) -> JobSpec:
    ceiling = price_per_hour_to_e18("3.00")
    budget = 5_000_000
    return spec(shards=shards, requirements=ONE_OR_EIGHT, budget=budget, price_ceiling_e18_per_device_ms=ceiling)


def lent(number: int, devices: tuple[Device, ...], **changes: Any) -> Advert:
    said: dict[str, Any] = {"devices": devices, "free": len(devices), "price_e18_per_device_ms": HOURLY}
    return advert(number, **(said | changes))


def test_a_shard_costs_what_the_set_costs_that_its_provider_would_give_and_not_the_largest() -> None:
    view = looked_at(lent(0, EIGHT_H100))
    assert [(row["shard_per_hour"], row["slots"]) for row in view["invited"]] == [("2.000000", 8)]
    assert (view["room"], view["hourly_least"], view["promised_least"]) == (8, "2.000000", "2.000001")
    assert view["budget_lacks"] == "0.000000"


def test_whoever_has_the_smaller_set_alone_is_asked_and_its_bid_is_in_the_table() -> None:
    one = lent(0, H100)
    view = looked_at(one)
    assert view["enough"]
    assert dry_run.would_be_asked(one_or_eight(), frozenset(), [one]) == [one]
    made = SmallMarket()
    made.add(BUYER_KEY)
    (bid,) = expected(made.engines[BUYER].state, one_or_eight(), one)["bids"]
    assert bid["devices"] == 1


def test_a_provider_with_both_sets_has_room_for_one_shard_of_each_and_each_has_its_own_cost() -> None:
    view = looked_at(lent(0, H100 + EIGHT_A100), shards=2)
    (row,) = view["invited"]
    assert (row["slots"], row["shard_per_hour"], row["shard_per_hour_most"]) == (2, "2.000000", "16.000000")
    assert (view["hourly_least"], view["budget_lacks"]) == ("18.000000", "13.000002")
    assert not looked_at(lent(0, H100 + EIGHT_A100), shards=3)["enough"]


def test_the_cheapest_shard_is_not_that_of_the_cheapest_device() -> None:
    half = lent(1, EIGHT_A100, price_e18_per_device_ms=HOURLY // 2)
    view = looked_at(half, lent(0, H100))
    assert [row["shard_per_hour"] for row in view["invited"]] == ["8.000000", "2.000000"]
    assert view["hourly_least"] == "2.000000"


def test_a_set_of_which_too_few_are_free_is_no_room_whatever_a_smaller_one_of_others_needs() -> None:
    view = looked_at(lent(0, EIGHT_A100, free=7))
    assert [(row["slots"], row["shard_per_hour"]) for row in view["invited"]] == [(0, "16.000000")]
    assert not view["enough"]
    assert looked_at(lent(0, EIGHT_H100, free=3))["room"] == 3
