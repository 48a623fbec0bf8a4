"""Requirements through the whole of a market: what a buyer writes, a provider answers, and the buyer makes of it."""

from dataclasses import replace

from kit.small_market import SmallMarket, device
from kit.trading import BUYER, BUYER_KEY, JOB, NOW_MS, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, needs, spec

from hansa.market.requirements import parse_needs, parse_rules
from hansa.node.engine import events
from hansa.proto.market_documents import Fact
from hansa.proto.messages import AwardSent, BidSent, DeclineSent

L4S = tuple(
    replace(
        device(number),
        kind="gpu",
        model="NVIDIA L4",
        memory_bytes=23_034 << 20,
        facts=(Fact(name="cuda", value="12.4"), Fact(name="interconnect", value="pcie")),
    )
    for number in range(1, 5)
)


def market(**rules):
    """A buyer, and a provider with four L4."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1, **rules)
    made.take(PROVIDER, events.InventoryChanged(devices=L4S, at_ms=NOW_MS))
    return made


def asked(text, **changes):
    return replace(parse_needs(text).applied_to(needs(cores_milli=0, **changes)), kind=parse_needs(text).kind or "any")


def submit(made, requirements, *, invited=(PROVIDER,), facts=()):
    of = spec(shards=1, requirements=requirements, facts=facts)
    made.submit(BUYER, of=of)
    made.tender(BUYER, invited, requirements=requirements, facts=facts, shards=(0,))
    made.pass_time(2_001, BUYER)


def purchase(made):
    (found,) = [bought for _, bought in made.engines[BUYER].state.purchases.all()]
    return found


def declines(made):
    return [message.decline.document for message in made.heard(DeclineSent)]


def told(decline):
    return [(one.name, one.wanted, one.nearest) for one in decline.shortfalls]


def test_of_several_sets_of_devices_the_one_that_is_there_is_bid_awarded_and_held():
    made = market()
    submit(made, asked("8xH100 or 2xL4 and cuda >= 12.4 and vram in 16GB..30GB"))
    (bid,) = [message.bid.document for message in made.heard(BidSent)]
    assert len(bid.devices) == 2
    assert {fact.name: fact.value for fact in bid.facts}["gpu"] == "L4"
    (row,) = purchase(made).ranking
    assert row.excluded == ""
    assert len(made.heard(AwardSent)) == 1
    capacity = made.engines[PROVIDER].state.capacity
    assert len(capacity.free) == 2
    assert all(capacity.phase_of(one) != "free" for one in bid.devices)


def test_every_clause_that_fails_is_named_in_the_signed_decline_and_reaches_the_buyer():
    made = market(facts=(Fact(name="region", value="ru"),))
    submit(made, asked("4xL4 and cuda >= 12.10 and region not in (cn, ru) and driver >= 550 and reliability >= 0.9"))
    (decline,) = declines(made)
    assert told(decline) == [
        ("cuda", "cuda >= 12.10", "12.4"),
        ("driver", "driver >= 550", "any"),
        ("region", "region not in (cn, ru)", "cn"),
    ]
    assert "does not say its driver" in decline.reason
    assert purchase(made).declines[PROVIDER].shortfalls == decline.shortfalls
    assert made.engines[PROVIDER].state.capacity.free == L4S


def test_with_every_shortfall_taken_to_heart_the_same_provider_bids():
    first = market()
    submit(first, asked("8xH100 and vram >= 80 GB and cuda >= 13 and lease = any"))
    (decline,) = declines(first)
    changed = {one.name: one.nearest for one in decline.shortfalls}
    assert changed == {"gpu": "4\N{MULTIPLICATION SIGN}L4", "vram": "23034 MiB", "cuda": "12.4"}
    second = market()
    submit(second, asked(f"{changed['gpu']} and vram >= {changed['vram']} and cuda >= {changed['cuda']}"))
    assert declines(second) == []
    assert len(second.heard(AwardSent)) == 1


def test_an_owners_rule_declines_a_job_and_names_the_rule_beside_what_the_devices_lack():
    made = market(accepts=parse_rules("licence in (mit, bsd) and wall <= 5 min and network = none"))
    submit(made, asked("5xL4"), facts=(Fact(name="licence", value="gpl"),))
    (decline,) = declines(made)
    assert told(decline) == [
        ("licence", "licence = gpl", "bsd"),
        ("wall", "wall >= 10 min", "5 min"),
        ("gpu", "5\N{MULTIPLICATION SIGN}L4", "4\N{MULTIPLICATION SIGN}L4"),
    ]
    assert "this provider takes only jobs with licence in (bsd, mit), and the job's licence is gpl" in decline.reason


def test_a_job_within_the_owners_rules_is_served():
    made = market(accepts=parse_rules(f"buyer = 0x{BUYER.hex()} and licence = mit and shards <= 1"))
    submit(made, asked("L4"), facts=(Fact(name="licence", value="mit"),))
    assert declines(made) == []
    assert len(made.heard(AwardSent)) == 1


def test_a_provider_whose_bid_does_not_state_what_was_asked_for_loses_to_one_whose_bid_does():
    made = market()
    made.add(OTHER_KEY, devices=1, price_e18_per_device_ms=1)
    dumb = tuple(replace(one, id=bytes([99]) * 32, kind="gpu", model="NVIDIA L4", facts=()) for one in L4S[:1])
    made.take(OTHER, events.InventoryChanged(devices=dumb, at_ms=NOW_MS))
    submit(made, asked("L4 and cuda >= 12"), invited=(PROVIDER, OTHER))
    (decline,) = declines(made)
    assert (decline.signer, decline.reason) == (OTHER, "no device here meets cuda: does not say its cuda")
    assert [entry.provider for entry in purchase(made).ranking if not entry.excluded] == [PROVIDER]
    assert JOB in made.engines[BUYER].state.jobs.live
