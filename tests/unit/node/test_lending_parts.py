"""A provider that lends parts of devices: what its owner allows, what it bids, what it holds, what its advert says."""

from dataclasses import replace
from pathlib import Path

import pytest
from kit.small_market import SmallMarket, device
from kit.trading import BUYER, BUYER_KEY, NOW_MS, OTHER, OTHER_KEY, PRICE, PROVIDER, PROVIDER_KEY, needs, spec, tender

from hansa.market.shares import share_clause, share_given, spare_milli
from hansa.node.api.dry_run import dry_run_view
from hansa.node.api.market_views import bids_view
from hansa.node.devices.inventory import Machine, take_inventory
from hansa.node.engine import events
from hansa.node.engine.state import restored, snapshot
from hansa.node.engine.tender_log import tenders_view
from hansa.node.faults import ConfigError
from hansa.node.settings.config import parse_config
from hansa.proto.market_documents import Advert, Fact
from hansa.proto.messages import BidReleased, BidSent, DeclineSent, TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import sign
from hansa.proto.typed_data import digest
from hansa.scheduler.fitting import free_sets, misfit, room_for

PARTED = tuple(replace(device(number), facts=(Fact(name="share", value="0.25"),)) for number in (1, 2))


class House:
    """A provider with two devices that it lends in parts."""

    def __init__(self, *devices, tenants=4, **rules):
        self.market = SmallMarket()
        self.engine = self.market.add(PROVIDER_KEY, devices=1, tenants=tenants, **rules)
        self.market.take(PROVIDER, events.InventoryChanged(devices=devices or PARTED, at_ms=NOW_MS))
        self.count = 0

    @property
    def capacity(self):
        return self.engine.state.capacity

    def tender(self, milli, key=BUYER_KEY, shards=(0,), **changes):
        self.count += 1
        asked = {"cores_milli": 500, "memory_bytes": 1 << 30, **changes}
        wanted = needs(clauses=(share_clause(milli),) if milli < 1000 else (), **asked)
        made = tender(signer=key.address, shards=shards, requirements=wanted, nonce=self.count.to_bytes(32, "big"))
        self.market.tell(key.address, PROVIDER, TenderSent(tender=sign(DOMAIN, made, key)))
        return made

    def bids(self):
        return [message.bid.document for message in self.market.heard(BidSent)]

    def declines(self):
        return [message.decline.document for message in self.market.heard(DeclineSent)]


def test_a_part_is_bid_at_the_price_of_a_whole_device_and_limited_to_what_the_part_costs():
    house = House()
    house.tender(500)
    (bid,) = house.bids()
    assert (share_given(bid), bid.price_e18_per_device_ms, bid.max_total) == (500, PRICE, 600_000 // 2 + 1)
    assert {fact.name: fact.value for fact in bid.facts}["cores"] == "1"
    assert house.capacity.taken_milli(bid.devices[0]) == 500


def test_two_buyers_have_parts_of_one_device_and_the_other_one_stays_whole():
    house = House()
    house.tender(500)
    house.tender(500, OTHER_KEY)
    first, second = house.bids()
    assert first.devices == second.devices
    house.tender(1000, OTHER_KEY)
    assert house.bids()[2].devices != first.devices
    house.tender(250)
    assert "busy" in house.declines()[0].reason


def test_a_part_that_is_lost_is_free_in_the_same_instant():
    house = House(PARTED[0])
    house.tender(750)
    house.tender(750, OTHER_KEY)
    assert len(house.declines()) == 1
    house.market.tell(BUYER, PROVIDER, BidReleased(bid=digest(DOMAIN, house.bids()[0]), reason="another won"))
    house.tender(1000, OTHER_KEY)
    assert len(house.bids()) == 2


def test_shards_of_one_tender_share_a_device_and_never_more_than_the_whole():
    house = House(PARTED[0], tenants=3)
    house.tender(250, shards=(0, 1, 2, 3))
    assert len(house.bids()) == 3, "the owner allows three"
    assert house.capacity.taken_milli(PARTED[0].id) == 750
    assert "busy" in house.declines()[0].reason


def test_who_lends_whole_devices_only_says_so_and_what_would_help():
    house = House(device(1), tenants=0)
    house.tender(500)
    (decline,) = house.declines()
    assert decline.reason.startswith("no device here meets share: devices are lent whole there")
    assert [(one.name, one.nearest) for one in decline.shortfalls] == [("share", "any")]
    assert not house.capacity.allotments


def test_too_small_a_part_is_told_the_smallest():
    house = House()
    house.tender(125, cores_milli=0, memory_bytes=0)
    assert [(one.name, one.nearest) for one in house.declines()[0].shortfalls] == [("share", "0.25")]


def test_an_owner_may_take_only_jobs_that_want_enough_of_a_device():
    house = House(accepts=parse_config('[provider]\naccepts = "share >= 0.5"\n', Path("/x/c.toml")).provider.accepts)
    house.tender(250)
    assert house.declines()[0].shortfalls[0].name == "share"
    house.tender(500)
    house.tender(1000)
    assert len(house.bids()) == 2


def test_what_was_asked_for_is_remembered_when_the_daemon_begins_again():
    house = House()
    house.tender(500)
    house.tender(1000, OTHER_KEY)
    state = house.engine.state
    assert {one.kind.share_milli for one in state.demand.seen} == {500, 1000}
    assert restored(snapshot(state)).demand == state.demand
    house.tender(125, cores_milli=0, memory_bytes=0)
    assert len(house.engine.state.demand.seen) == 2, "what could never be had here is none of it"


def test_the_owner_is_shown_which_part_was_bid():
    house = House()
    house.tender(250)
    (row,) = tenders_view(house.engine.state)
    assert row["bids"][0]["share"] == "0.25"


# What an advert says, and what a buyer reads in it.


def advert(*, free, spare=None, devices=PARTED):
    facts = (Fact(name="spare", value=spare),) if spare is not None else ()
    return Advert(
        signer=PROVIDER,
        peer_id="p",
        addresses=(),
        devices=devices,
        free=free,
        tier="sandbox",
        features=(),
        region="",
        facts=facts,
        currency="USD",
        price_e18_per_device_ms=PRICE,
        sequence=1,
        expires_ms=NOW_MS * 2,
    )


HALVES = needs(clauses=(share_clause(500),), cores_milli=500)


@pytest.mark.parametrize(
    ("free", "spare", "room"), [(0, "0.5", 1), (0, "0.499", 0), (2, "2", 4), (0, "1.25", 2), (2, None, 0), (0, "x", 0)]
)
def test_room_for_parts_is_counted_in_parts(free, spare, room):
    assert room_for(advert(free=free, spare=spare), HALVES, 1) == (4, room)
    assert room_for(advert(free=free, spare=spare), needs(), 1) == (2, free)


@pytest.mark.parametrize(("spare", "sets"), [("0.499", 0), ("1.25", 2), ("2", 4), ("64", 4)])
def test_of_parts_no_more_sets_are_free_than_its_devices_have_whatever_an_advert_says(spare, sets):
    assert [len(each) for each in free_sets(advert(free=0, spare=spare), HALVES)] == [1] * sets


def test_an_advert_that_lends_in_parts_fits_who_wants_one_and_others_do_not():
    assert misfit(advert(free=0, spare="0.5"), HALVES, currency="USD", ceiling_e18=PRICE) is None
    lacks = misfit(advert(free=2, devices=(device(1),)), HALVES, currency="USD", ceiling_e18=PRICE)
    assert lacks is not None
    assert [one.name for one in lacks.shortfalls] == ["share"]
    assert spare_milli((Fact(name="spare", value="1.5"),)) == 1_500


def test_a_dry_run_counts_what_the_part_costs():
    of = spec(requirements=replace(HALVES, wall_ms=3_600_000), shards=1, budget=2_000_000)
    view = dry_run_view(of, frozenset(), [advert(free=0, spare="0.5")])
    assert (view["enough"], view["room"]) == (True, 1)
    assert view["hourly_least"] == view["invited"][0]["shard_per_hour"] == "1.800000"
    assert view["promised_least"] == "1.800001"
    assert view["invited"][0]["price_per_hour"] == "3.600000", "of a whole device"
    busy = dry_run_view(of, frozenset(), [advert(free=0, spare="0.25")])
    assert busy["answers"][0]["reason"] == "0.25 of a device is left for parts there, and 0.5 is wanted"


def test_a_buyer_is_shown_which_part_each_bid_gives():
    market = SmallMarket()
    market.add(BUYER_KEY)
    market.add(PROVIDER_KEY, devices=1, tenants=2)
    market.take(PROVIDER, events.InventoryChanged(devices=PARTED, at_ms=NOW_MS))
    job = spec(requirements=HALVES, shards=1)
    market.submit(BUYER, of=job)
    market.tender(BUYER, (PROVIDER,), shards=(0,), requirements=HALVES)
    market.pass_time(2_100)
    state = market.engines[BUYER].state
    (view,) = bids_view(state, next(of for _, of in state.jobs.all()))["tenders"]
    (row,) = view["bids"]
    assert view["choice"].startswith("1.80 USD an hour for 1 shard"), "of the part, and not of the whole device"
    assert (row["share"], row["devices"], row["price_per_hour"]) == ("0.5", 1, "3.600000")
    assert row["finishing"] == "1.800000"


# What the owner allows.


def config(text):
    return parse_config(f"[provider]\nenabled = true\ngpus = []\ncpu_slots = 1\n{text}\n", Path("/x/config.toml"))


@pytest.mark.parametrize(
    ("text", "milli", "tenants"),
    [
        ('share = { least = "25 %" }', 250, 4),
        ("share = { least = 0.5, tenants = 3 }", 500, 3),
        ('share = { least = "0.1", of = ["cpu", "gpu", "H100"] }', 100, 10),
        ("share = { least = 0.9 }", 900, 2),
    ],
)
def test_the_owner_says_how_small_parts_may_be_and_for_how_many(text, milli, tenants):
    share = config(text).provider.share
    assert share is not None
    assert (share.least_milli, share.tenants) == (milli, tenants)


def test_nothing_is_lent_in_parts_unless_the_owner_says_so():
    assert config("").provider.share is None
    assert config("share = {}").provider.share is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("share = { tenants = 2 }", "least"),
        ("share = { least = 0 }", "least"),
        ("share = { least = 1 }", "least"),
        ("share = { least = 1.5 }", "least"),
        ('share = { least = "0.0001" }', "least"),
        ("share = { least = true }", "least"),
        ("share = { least = 0.5, tenants = 1 }", "tenants"),
        ("share = { least = 0.5, tenants = 65 }", "tenants"),
        ("share = { least = 0.5, of = [] }", "of"),
        ("share = { least = 0.5, most = 2 }", "most"),
        ("share = 0.5", "share"),
        ("cpu_cores_per_slot = 1\nshare = { least = 0.05 }", "least"),
    ],
)
def test_a_mistake_in_it_is_named(text, key):
    with pytest.raises(ConfigError) as caught:
        config(text)
    assert key in str(caught.value)
    assert caught.value.hint


def test_a_slot_says_how_small_its_parts_may_be():
    machine = Machine(model="EPYC", cores_milli=4_000, memory_bytes=64 << 30, serial="s")
    for text, value in (
        ('share = { least = "25 %" }', ["0.25"]),
        ('share = { least = 0.5, of = ["gpu"] }', []),
        ("", []),
    ):
        (slot,) = take_inventory(BUYER, config(text).provider, machine=machine).devices
        assert [fact.value for fact in slot.facts if fact.name == "share"] == value
    assert OTHER != BUYER
