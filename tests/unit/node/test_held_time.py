"""What tenders without an award may hold of a provider's devices."""

from dataclasses import replace

from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, needs, tender

from hansa.market.holding import BUYER_BURST_MS
from hansa.market.shares import share_clause
from hansa.node.engine.events import InventoryChanged
from hansa.node.engine.state import restored, snapshot
from hansa.proto.market_documents import Fact
from hansa.proto.messages import BidReleased, BidSent, DeclineSent, TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey, sign
from hansa.proto.typed_data import digest
from hansa.scheduler.job_queue import pause_ms


def small_needs(share_milli):
    """A part of a device, and of the machine only what every lease gets."""
    return needs(clauses=(share_clause(share_milli),), cores_milli=0, memory_bytes=0)


class House:
    """One provider and buyers that are nobody's engine."""

    def __init__(self, **rules):
        self.market = SmallMarket()
        self.engine = self.market.add(PROVIDER_KEY, devices=1, tenants=2, **rules)
        self.count = 0

    def lend_parts(self):
        """Its device is lent in parts as well."""
        (owned,) = self.engine.state.capacity.devices
        parts = replace(owned, facts=(*owned.facts, Fact(name="share", value="0.1")))
        self.market.take(PROVIDER, InventoryChanged(devices=(parts,), at_ms=self.market.now_ms))

    def tender(self, key, *, window_ms, share_milli=1_000, facts=()):
        """Whether there was a bid."""
        self.count += 1
        now_ms, bids = self.market.now_ms, len(self.market.heard(BidSent))
        made = tender(
            signer=key.address,
            facts=facts,
            requirements=needs() if share_milli == 1_000 else small_needs(share_milli),
            bids_close_ms=now_ms + window_ms,
            expires_ms=now_ms + 120_000,
            nonce=self.count.to_bytes(32, "big"),
        )
        self.market.tell(key.address, PROVIDER, TenderSent(tender=sign(DOMAIN, made, key)))
        return len(self.market.heard(BidSent)) > bids

    def declines(self):
        return [message.decline.document for message in self.market.heard(DeclineSent)]


def test_who_never_awards_cannot_hold_the_devices_without_end():
    house = House()
    bids = [
        (house.tender(OTHER_KEY, window_ms=59_000), house.market.pass_time(69_001, PROVIDER))[0] for _ in range(100)
    ]
    assert all(bids[:4])
    assert sum(bids) < 35
    last = house.declines()[-1]
    assert "held for you" in last.reason
    assert last.relaxation.startswith("tender again in ")
    assert [(one.name, one.nearest) for one in last.shortfalls] == [("free", "later")]


def test_after_the_time_that_a_decline_names_there_is_a_bid_again_and_not_before():
    house = House()
    while house.tender(OTHER_KEY, window_ms=59_000):
        house.market.pass_time(69_001, PROVIDER)
    wait_ms = int(house.declines()[-1].relaxation.split()[-2]) * 1000
    house.market.pass_time(wait_ms - 2_000, PROVIDER)
    assert not house.tender(OTHER_KEY, window_ms=59_000)
    house.market.pass_time(2_000, PROVIDER)
    assert house.tender(OTHER_KEY, window_ms=59_000)


def test_ever_new_accounts_together_leave_a_share_of_the_time():
    house = House()
    bids = []
    for number in range(200):
        bids.append(house.tender(SigningKey((7_000 + number).to_bytes(32, "big")), window_ms=59_000))
        house.market.pass_time(69_001, PROVIDER)
    assert all(bids[:5])
    assert sum(bids[100:]) <= 55
    assert "buyers that paid for little" in house.declines()[-1].reason


def test_a_queued_job_with_default_settings_is_never_turned_away():
    house = House()
    for tries in range(1, 60):
        assert house.tender(BUYER_KEY, window_ms=5_000)
        house.market.pass_time(15_001, PROVIDER)
        house.market.pass_time(pause_ms(tries), PROVIDER)


def test_a_bid_that_stands_counts_and_all_of_it_is_written_down():
    house = House()
    house.tender(OTHER_KEY, window_ms=59_000)
    house.market.pass_time(69_001, PROVIDER)
    state = house.engine.state
    assert 69_000 <= state.holdings.buyers[OTHER].device_ms <= 69_001 < BUYER_BURST_MS
    assert restored(snapshot(state)).holdings == state.holdings


def test_a_bid_that_is_released_counts_only_for_as_long_as_it_stood():
    house = House()
    house.tender(BUYER_KEY, window_ms=5_000)
    house.market.now_ms += 400
    bid = house.market.heard(BidSent)[0].bid.document
    house.market.tell(BUYER, PROVIDER, BidReleased(bid=digest(DOMAIN, bid), reason="another bid won"))
    assert house.engine.state.holdings.buyers[BUYER].device_ms == 400


def test_a_part_of_a_device_that_is_held_counts_as_the_whole_since_nobody_else_can_have_that():
    house = House()
    house.lend_parts()
    assert house.tender(BUYER_KEY, window_ms=5_000, share_milli=100)
    assert not house.tender(OTHER_KEY, window_ms=5_000)
    house.market.now_ms += 400
    bid = house.market.heard(BidSent)[0].bid.document
    house.market.tell(BUYER, PROVIDER, BidReleased(bid=digest(DOMAIN, bid), reason="another bid won"))
    assert house.engine.state.holdings.buyers[BUYER].device_ms == 400


def test_who_never_awards_cannot_hold_small_parts_without_end_either():
    house = House()
    house.lend_parts()
    bids = []
    for _ in range(100):
        bids.append(house.tender(OTHER_KEY, window_ms=59_000, share_milli=100))
        house.market.pass_time(69_001, PROVIDER)
    assert all(bids[:4])
    assert sum(bids) < 35


def test_nothing_is_held_for_a_job_that_says_that_it_pays_less_ahead_than_is_wanted_here():
    house = House(prepay_ms=90_000)
    assert not house.tender(BUYER_KEY, window_ms=5_000, facts=(Fact(name="prepay", value="1 min"),))
    assert not house.engine.state.capacity.allotments
    (decline,) = house.declines()
    assert decline.relaxation == "max_prepay = 90 s"
    assert [(one.name, one.wanted, one.nearest) for one in decline.shortfalls] == [
        ("prepay", "prepay <= 1 min", "90 s")
    ]
    assert house.tender(OTHER_KEY, window_ms=5_000, facts=(Fact(name="prepay", value="90 s"),))
