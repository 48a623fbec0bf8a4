"""How a provider answers a tender: the devices, their price, and what is held from when to when."""

from dataclasses import replace

from kit.small_market import SmallMarket, device
from kit.trading import BUYER, BUYER_KEY, NOW_MS, OTHER, OTHER_KEY, PRICE, PROVIDER, PROVIDER_KEY, needs, tender

from hansa.market.pricing_rule import PPM, CurvePoint, PricingRule
from hansa.node.engine import events
from hansa.node.engine.answering import MOST_TRIES, PriceWanted
from hansa.proto.market_documents import Clause, DeviceChoice, Shortfall
from hansa.proto.messages import BidReleased, BidSent, DeclineSent, TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import sign
from hansa.proto.typed_data import digest


class House:
    """One provider, and what it says to buyers that are nobody's engine."""

    def __init__(self, devices=2, **rules):
        self.market = SmallMarket()
        self.engine = self.market.add(PROVIDER_KEY, devices=devices, **rules)

    @property
    def capacity(self):
        return self.engine.state.capacity

    def tender(self, key=BUYER_KEY, **changes):
        made = tender(signer=key.address, **changes)
        self.market.tell(key.address, PROVIDER, TenderSent(tender=sign(DOMAIN, made, key)))
        return made

    def priced(self, wanted, *prices, **more):
        sets = tuple(
            events.PricedSet(devices=devices, price_e18=price)
            for devices, price in zip(wanted.sets, prices, strict=False)
        )
        said = events.TenderPriced(
            tender=wanted.tender, sets=sets, tries=wanted.tries, at_ms=self.market.now_ms, **more
        )
        self.market.take(PROVIDER, said)

    def asked(self):
        return [effect for _, effect in self.market.effects if isinstance(effect, PriceWanted)]

    def bids(self):
        return [message.bid.document for message in self.market.heard(BidSent)]

    def declines(self):
        return [message.decline.document for message in self.market.heard(DeclineSent)]


def test_devices_are_held_while_the_bid_stands_and_free_in_the_instant_in_which_it_is_lost():
    house = House(devices=1)
    house.tender()
    (bid,) = house.bids()
    assert house.capacity.phase_of(bid.devices[0]) == "held"
    house.tender(OTHER_KEY)
    assert "busy" in house.declines()[0].reason
    house.market.tell(BUYER, PROVIDER, BidReleased(bid=digest(DOMAIN, bid), reason="another bid won"))
    assert house.capacity.phase_of(bid.devices[0]) == "free"
    house.tender(OTHER_KEY, nonce=b"2" * 32)
    assert house.bids()[1].devices == bid.devices


def test_devices_of_a_bid_that_nobody_takes_are_free_when_it_expires_and_not_before():
    house = House(devices=1)
    house.tender()
    (bid,) = house.bids()
    house.market.pass_time(bid.expires_ms - NOW_MS - 1)
    assert house.capacity.phase_of(bid.devices[0]) == "held"
    house.market.pass_time(1)
    assert house.capacity.phase_of(bid.devices[0]) == "free"


def test_a_bid_costs_what_the_rule_says_of_the_very_devices_that_are_held_for_it():
    small, large = replace(device(1), model="EPYC"), replace(device(2), model="Xeon", memory_bytes=64 << 30)
    house = House(rule=PricingRule(rates={"EPYC": 3, "Xeon": 9}))
    house.market.take(PROVIDER, events.InventoryChanged(devices=(small, large), at_ms=NOW_MS))
    house.tender(shards=(0, 1))
    assert [(bid.devices, bid.price_e18_per_device_ms) for bid in house.bids()] == [((small.id,), 3), ((large.id,), 9)]


def test_what_is_leased_already_makes_the_rest_dearer_and_what_is_only_held_does_not():
    curve = (CurvePoint(share_ppm=0, factor_ppm=PPM), CurvePoint(share_ppm=PPM, factor_ppm=2 * PPM))
    house = House(devices=2, rule=PricingRule(utilisation=curve))
    house.tender()
    house.tender(OTHER_KEY)
    assert [bid.price_e18_per_device_ms for bid in house.bids()] == [PRICE, PRICE]
    leased = {digest(DOMAIN, house.bids()[0])}
    state = house.engine.state
    allotments = {
        bid: replace(entry, phase="lease" if bid in leased else "hold")
        for bid, entry in state.capacity.allotments.items()
    }
    assert replace(state.capacity, allotments=allotments).leased_ppm == PPM // 2


def test_too_low_a_ceiling_is_declined_with_the_price_that_would_do():
    house = House()
    house.tender(price_ceiling_e18_per_device_ms=PRICE - 1)
    assert house.declines()[0].shortfalls == (Shortfall(name="price", wanted="price <= 3.600000", nearest="3.6"),)
    assert not house.capacity.allotments


def test_a_kind_of_lease_that_is_not_offered_is_declined_with_the_one_that_is():
    house = House()
    house.tender(lease="firm")
    assert house.declines()[0].shortfalls == (Shortfall(name="lease", wanted="lease = firm", nearest="spot"),)
    house.tender(lease="spot", nonce=b"2" * 32)
    assert [bid.lease for bid in house.bids()] == ["spot"]


def test_nothing_is_held_while_the_owners_program_thinks_and_its_price_is_the_bids():
    house = House(on_price_fault="rule")
    house.tender(shards=(0, 1))
    (wanted,) = house.asked()
    assert wanted.rule_e18 == (PRICE, PRICE)
    assert (len(wanted.sets), house.capacity.allotments, house.bids()) == (2, {}, [])
    house.priced(wanted, 7, None)
    assert [bid.price_e18_per_device_ms for bid in house.bids()] == [7, PRICE]
    assert house.capacity.promised == {one for chosen in wanted.sets for one in chosen}
    house.priced(wanted, 5, 5)
    assert len(house.bids()) == 2


def test_a_program_cannot_go_below_the_floor_nor_above_the_ceiling():
    house = House(on_price_fault="rule", rule=PricingRule(floor_e18=10))
    house.tender()
    house.priced(house.asked()[0], 3)
    assert house.bids()[0].price_e18_per_device_ms == 10
    house.tender(OTHER_KEY)
    house.priced(house.asked()[1], 2 * PRICE + 1)
    assert house.declines()[0].shortfalls[0].name == "price"


def test_no_program_is_asked_for_what_could_not_be_met_at_the_least_price_or_not_at_all():
    house = House(devices=1, on_price_fault="rule", rule=PricingRule(floor_e18=PRICE))
    house.tender(price_ceiling_e18_per_device_ms=PRICE - 1)
    house.tender(OTHER_KEY, currency="EUR")
    house.tender(OTHER_KEY, requirements=needs(devices=2))
    assert house.asked() == []
    assert len(house.declines()) == 3


def test_a_program_that_fails_leaves_the_rules_price_or_a_decline_as_the_owner_wants():
    for wish, bids in (("rule", 1), ("decline", 0)):
        house = House(on_price_fault=wish)
        house.tender()
        house.priced(house.asked()[0], fault="it took too long")
        assert (len(house.bids()), len(house.declines())) == (bids, 1 - bids)
        assert len(house.capacity.allotments) == bids


def test_a_program_may_decline_in_its_own_words():
    house = House(on_price_fault="rule")
    house.tender()
    house.priced(house.asked()[0], refusal="not on Sundays")
    assert house.declines()[0].reason == "the owner's own pricing declines: not on Sundays"
    assert not house.capacity.allotments


def test_a_price_for_other_devices_is_not_taken_and_asked_for_again_but_not_for_ever():
    house = House(devices=3, on_price_fault="decline")
    house.tender()
    for expected in range(1, MOST_TRIES + 1):
        wanted = house.asked()[-1]
        assert wanted.tries == expected
        # Meanwhile the device that was asked about went to somebody else.
        assert wanted.sets[0][0] in {one.id for one in house.capacity.free}
        gone = events.DevicesWithdrawn(devices=wanted.sets[0], notice_ms=0, why="gone", at_ms=NOW_MS)
        house.market.take(PROVIDER, gone)
        house.priced(wanted, 1)
    assert len(house.asked()) == MOST_TRIES
    assert (house.bids(), len(house.declines())) == ([], 1)


def test_a_daemon_that_dies_while_the_program_thinks_holds_nothing_and_hears_the_tender_anew():
    house = House(devices=1, on_price_fault="rule")
    made = house.tender()
    engine = house.market.restart(PROVIDER, devices=1)
    assert not engine.state.capacity.allotments
    house.market.tell(BUYER, PROVIDER, TenderSent(tender=sign(DOMAIN, made, BUYER_KEY)))
    assert len(house.bids()) == 1
    assert OTHER not in house.market.engines


def test_however_long_the_words_of_a_tender_are_the_answer_can_be_sent():
    house = House(devices=1)
    odd = replace(device(7), model='Odd "CPU" ' + "z" * 100)
    house.market.take(PROVIDER, events.InventoryChanged(devices=(odd,), at_ms=NOW_MS))
    long = "x" * 256
    clauses = tuple(Clause(name=f"{number}{long}"[:256], operator=long, values=(long,) * 4) for number in range(64))
    for number, wish in enumerate(
        (
            {"kind": long},
            {"tier": long, "features": (long,) * 20, "egress": (long,) * 20},
            {"choices": tuple(DeviceChoice(devices=1 + at, model=f"{at}{long}"[:256]) for at in range(16))},
            {"clauses": clauses},
            {"clauses": clauses, "choices": (DeviceChoice(devices=9, model=long),), "kind": long, "tier": long},
        )
    ):
        house.tender(requirements=needs(**wish), nonce=bytes([number]) * 32, lease=long if number == 4 else "any")
        assert len(house.declines()) == number + 1
        assert house.declines()[-1].shortfalls
    assert house.engine.state.capacity.free == (odd,)
