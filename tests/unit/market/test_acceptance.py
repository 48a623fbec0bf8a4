"""What a provider takes: its own rules over the job's facts, and what jobs cannot have there; every "no" explains."""

from dataclasses import replace

import pytest
from kit.trading import BUYER, DEVICE, NOW_MS, PRICE, PROVIDER, needs, tender

from hansa.market.acceptance import beyond_prepay, job_facts, lacks, refusals
from hansa.market.pricing import ProviderTerms, bid_for, decline_for
from hansa.market.requirements import parse_rules
from hansa.market.selection import rank
from hansa.market.value_forms import duration_ms
from hansa.market.vocabulary import find
from hansa.proto.codec import decode, encode
from hansa.proto.market_documents import Decline, Fact
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

HOUR_MS = 3_600_000
TERMS = ProviderTerms(
    account=PROVIDER,
    currency="USD",
    tier="sandbox",
    features=("image",),
    price_e18_per_device_ms=PRICE,
    voucher_timeout_ms=5_000,
    max_unpaid=3_000,
    grace_ms=10_000,
    credit_limit=1_000,
    bid_ms=10_000,
    reclaim_notice_ms=1_000,
    facts=(Fact(name="region", value="de"), Fact(name="stated", value="region")),
)


def asked(facts=(), **changes):
    changes = {"wall_ms": 2 * HOUR_MS, **changes}
    told = tuple(Fact(name=name, value=value) for name, value in facts)
    return tender(requirements=needs(**changes), facts=told)


def why(text, of, **known):
    return [
        (one.relaxation, one.shortfall.wanted, one.shortfall.nearest)
        for one in refusals(parse_rules(text), of, **known)
    ]


ME = "0x" + BUYER.hex()


@pytest.mark.parametrize(
    "rule",
    [
        "wall <= 2 h",
        "network = none and tier = sandbox",
        f"buyer in ({ME}, 0x52908400098527886E0F7030069857D2E4169EE7)",
        "devices in 1..4 and shards <= 1",
        "licence in (mit, bsd) and purpose = research and data_region = eu",
        "wall = any",
        "price >= 0.000001",
        "",
    ],
)
def test_a_job_within_the_rules_is_taken(rule):
    told = (("data_region", "eu,us"), ("licence", "mit"), ("purpose", "research"))
    assert why(rule, asked(told)) == []


@pytest.mark.parametrize(
    ("rule", "relaxation", "wanted", "nearest"),
    [
        ("wall <= 1 h", "wall = 1 h", "wall >= 2 h", "1 h"),
        ("wall < 2 h", "wall = 7199999 ms", "wall >= 2 h", "7199999 ms"),
        ("network = none", "network = none", "network = pypi.org:443", "none"),
        ("buyer = 0x52908400098527886E0F7030069857D2E4169EE7", "", f"buyer = {ME}", ""),
        ("licence = mit", "licence = mit", "licence = any", "mit"),
        ("shards >= 3", "shards = 3", "shards <= 1", "3"),
        ("tier = gvisor", "tier = gvisor", "tier = sandbox", "gvisor"),
        ("tier != sandbox", "", "tier = sandbox", ""),
        ("prepay >= 1 min", "prepay = 1 min", "prepay = any", "1 min"),
    ],
)
def test_a_rule_that_fails_is_named_with_what_the_tender_would_have_to_be(rule, relaxation, wanted, nearest):
    assert why(rule, asked(egress=("pypi.org:443",))) == [(relaxation, wanted, nearest)]


def test_every_rule_that_fails_is_told_and_not_only_the_first():
    found = refusals(
        parse_rules("wall <= 1 h, network = none, shards <= 8, licence = mit"), asked(egress=("a.org:443",))
    )
    assert [one.shortfall.name for one in found] == ["licence", "network", "wall"]
    assert found[2].reason == "this provider takes only jobs with wall <= 1 h, and the job's wall is 2 h"
    assert found[0].reason == "this provider takes only jobs with licence = mit, and the job does not say its licence"


def test_a_buyer_cannot_state_what_the_tender_shows():
    told = (("buyer", "0x" + "11" * 20), ("reputation", "1"), ("wall", "1 s"), ("nonsense", "x"))
    facts = job_facts(asked(told), reputation_ppm=250_000)
    assert (facts["buyer"], facts["wall"], facts["reputation"]) == (ME, "2 h", "0.25")
    assert "nonsense" not in facts
    assert why("reputation >= 0.5", asked(told), reputation_ppm=250_000) == [("", "reputation <= 0.25", "")]


def test_facts_of_a_job_are_all_words_of_the_vocabulary():
    assert all(find(name) for name in job_facts(asked()))


def told(of, terms=TERMS):
    return [(one.reason, one.relaxation, one.shortfall.nearest) for one in lacks(of, terms)]


def test_what_jobs_cannot_have_here_is_told_all_of_it():
    wants = asked(tier="gvisor", features=("egress", "image"), egress=("pypi.org:443", "*.evil.example:443"))
    terms = replace(TERMS, egress=("pypi.org:443",))
    assert told(wants, terms) == [
        ("the isolation here is 'sandbox'", "tier = 'sandbox'", "sandbox"),
        ("jobs cannot have egress here", "features without egress", "image"),
        (
            "jobs cannot reach *.evil.example:443 from here",
            "no network, or a network without *.evil.example:443",
            "pypi.org:443",
        ),
    ]
    assert told(asked(egress=("pypi.org:443",)), terms) == []
    assert told(asked(egress=("anything.org:443",)), replace(TERMS, egress=("*",))) == []
    assert told(asked(egress=("10.0.0.1:80",)), replace(TERMS, egress=("*",))) != []


@pytest.mark.parametrize(
    "wish", [{"features": ("x" * 256,) * 200}, {"egress": ("x" * 256,) * 200}, {"tier": "y" * 256}]
)
def test_a_decline_can_be_sent_however_much_was_wished_for(wish):
    of = asked(**wish)
    found = lacks(of, TERMS)
    words = "; ".join(one.reason for one in found), " and ".join(one.relaxation for one in found)
    decline = decline_for(of, digest(DOMAIN, of), PROVIDER, words, tuple(one.shortfall for one in found))
    assert decode(encode(decline), Decline, limit_bytes=1 << 16) == decline


def test_a_bid_states_the_facts_of_its_very_devices_and_of_its_provider():
    of = asked()
    gpu = replace(DEVICE, kind="gpu", model="NVIDIA L4", facts=(Fact(name="cuda", value="12.4"),))
    made = bid_for(of, digest(DOMAIN, of), (gpu,), TERMS, price_e18=PRICE, number=0, at_ms=NOW_MS)
    assert {fact.name: fact.value for fact in made.facts} == {
        "cores": "2",
        "cuda": "12.4",
        "features": "image",
        "gpu": "L4",
        "kind": "gpu",
        "region": "de",
        "stated": "region",
        "vram": "4 GiB",
    }
    assert list(made.facts) == sorted(made.facts, key=lambda fact: fact.name)


@pytest.mark.parametrize(
    ("stated", "wants_ms", "wall_ms", "wanted"),
    [
        ("1 min", 60_000, HOUR_MS, None),
        ("1 min", 60_001, HOUR_MS, "prepay <= 1 min"),
        ("0 ms", 1, HOUR_MS, "prepay <= 0 ms"),
        ("0 ms", 0, HOUR_MS, None),
        ("2 min", HOUR_MS, 60_000, None),
        (None, 60_000, HOUR_MS, None),
        ("soon", 60_000, HOUR_MS, None),
    ],
)
def test_who_wants_more_paid_ahead_than_a_job_says_that_it_pays_does_not_bid(stated, wants_ms, wall_ms, wanted):
    of = asked(() if stated is None else [("prepay", stated)], wall_ms=wall_ms)
    terms = replace(TERMS, prepay_ms=wants_ms)
    bid = bid_for(of, digest(DOMAIN, of), (DEVICE,), terms, price_e18=PRICE, number=0, is_stranger=True, at_ms=NOW_MS)
    lack = beyond_prepay(of, bid, terms)
    assert (lack.shortfall.wanted if lack else None) == wanted
    if lack:
        assert lack.shortfall.nearest in lack.relaxation
    if stated not in (None, "soon"):
        bids, most_ms = {digest(DOMAIN, bid): bid}, duration_ms(stated)
        (scored,) = rank(of, bids, {}, max_prepay_ms=most_ms, at_ms=NOW_MS)
        assert ("paid ahead" in scored.excluded) == (wanted is not None), "just what its buyer would leave out"
