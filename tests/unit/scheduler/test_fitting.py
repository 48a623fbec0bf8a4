"""Whom a tender would invite, and of the others all that they lack: what is promised for a change comes of it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.trading import DEVICE, NOW_MS, needs

from hansa.market.clauses import relaxed_requirements
from hansa.market.requirements import parse_needs
from hansa.market.shortfalls import PRICE
from hansa.market.vocabulary import facts
from hansa.market.why import BID, NOT_ASKED, Answer, explain, in_words
from hansa.proto.market_documents import Advert
from hansa.proto.units import price_per_hour_to_e18
from hansa.scheduler.fitting import misfit

GIB = 1 << 30


def gpu(number, model, memory_gib, **told):
    return replace(
        DEVICE,
        id=bytes([number]) * 32,
        kind="gpu",
        model=model,
        memory_bytes=memory_gib * GIB,
        cores_milli=4_000,
        facts=facts(told),
    )


def advert(account, devices, *, price="0.40", tier="sandbox", features=(), region="eu", currency="USD", **told):
    return Advert(
        signer=account,
        peer_id="p",
        addresses=(),
        devices=devices,
        free=len(devices),
        tier=tier,
        features=features,
        region=region,
        facts=facts(told),
        currency=currency,
        price_e18_per_device_ms=price_per_hour_to_e18(price),
        sequence=1,
        expires_ms=NOW_MS,
    )


def lacks(of, wanted, price="1"):
    return misfit(of, wanted, currency="USD", ceiling_e18=price_per_hour_to_e18(price))


def asked(text, **changes):
    """Requirements with these needs."""
    return parse_needs(text).applied_to(replace(needs(kind="any", cores_milli=0), **changes))


A100 = (gpu(1, "A100-SXM4-40GB", 40, cuda="12.2"), gpu(2, "A100-SXM4-40GB", 40, cuda="12.2"))


def test_what_fits_lacks_nothing():
    wanted = asked("2xA100 and vram >= 40 GiB and cuda >= 12.1 and region = eu", features=("image",))
    assert lacks(advert(b"a" * 20, A100, features=("image",)), wanted) is None


@pytest.mark.parametrize(
    ("changes", "wanted", "price", "names"),
    [
        ({"price": "0.46"}, asked("A100"), "0.40", ["price"]),
        ({"tier": "none"}, asked("A100"), "1", ["tier"]),
        ({"features": ("image",)}, asked("A100", features=("egress", "image")), "1", ["features"]),
        ({"currency": "EUR"}, asked("A100"), "1", ["currency"]),
        ({"region": "us"}, asked("A100 and region = eu"), "1", ["region"]),
        ({"price": "2"}, asked("A100 and vram >= 80 GiB and cuda >= 12.4"), "1", ["price", "cuda", "vram"]),
    ],
)
def test_all_that_is_lacking_is_named_each_with_the_nearest_that_there_is(changes, wanted, price, names):
    found = lacks(advert(b"a" * 20, A100, **changes), wanted, price)
    assert sorted(one.name for one in found.shortfalls) == sorted(names)
    assert all(one.nearest for one in found.shortfalls)
    assert found.reason
    assert found.relaxation


def test_who_lends_nothing_is_won_by_no_change():
    found = lacks(advert(b"a" * 20, (), price="2"), asked("A100"))
    assert found.shortfalls == ()
    assert not found.relaxation


MODELS = ("A100-SXM4-40GB", "A100-SXM4-80GB", "H100 PCIe", "GeForce RTX 4090")
adverts = st.builds(
    lambda count, model, memory, cuda, price, region, tier, features: {
        "devices": tuple(gpu(number, model, memory, cuda=cuda) for number in range(count)),
        "price": price,
        "region": region,
        "tier": tier,
        "features": features,
    },
    st.integers(0, 4),
    st.sampled_from(MODELS),
    st.sampled_from((16, 24, 40, 80)),
    st.sampled_from(("11.8", "12.4", "12.10", "")),
    st.sampled_from(("0.30", "0.46", "0.462001", "2")),
    st.sampled_from(("eu", "us", "")),
    st.sampled_from(("none", "sandbox", "gvisor")),
    st.sampled_from(((), ("egress",), ("egress", "image"))),
)
wishes = st.builds(
    lambda count, terms, features, tier: asked(
        " and ".join((f"devices = {count}", *terms)), features=features, tier=tier
    ),
    st.integers(1, 4),
    st.lists(
        st.sampled_from(
            (
                "vram >= 24 GiB",
                "cuda >= 12.4",
                "region = eu",
                "region not in (us, cn)",
                "vram <= 40 GiB",
                "cores >= 8",
                "gpu != A100-SXM4-40GB",
            )
        ),
        max_size=4,
        unique=True,
    ),
    st.sampled_from(((), ("egress",), ("egress", "image"))),
    st.sampled_from(("none", "sandbox", "gvisor")),
)


def relaxed(wanted, ceiling_e18, changes):
    """The same job with these changes made, as a person would make them."""
    for change in changes:
        if change.name == PRICE:
            ceiling_e18 = price_per_hour_to_e18(change.nearest)
        elif change.name == "features":
            left = () if change.nearest == "any" else tuple(change.nearest.split(","))
            wanted = replace(wanted, features=left)
        else:
            wanted = relaxed_requirements(wanted, [change])
    return wanted, ceiling_e18


@settings(max_examples=200)
@given(st.lists(adverts, max_size=8), wishes, st.sampled_from(("0.20", "0.40", "1")), st.integers(1, 4))
def test_whoever_is_promised_for_a_change_fits_when_it_is_made(market, wanted, price, shards):
    book = [advert(bytes([number]) * 20, **offer) for number, offer in enumerate(market)]
    ceiling = price_per_hour_to_e18(price)

    def fitting(needs_of, ceiling_e18):
        return {of.signer for of in book if misfit(of, needs_of, currency="USD", ceiling_e18=ceiling_e18) is None}

    answers = []
    for of in book:
        lack = misfit(of, wanted, currency="USD", ceiling_e18=ceiling)
        if lack is None:
            answers.append(Answer(provider=of.signer, outcome=BID))
        else:
            answers.append(
                Answer(
                    provider=of.signer,
                    outcome=NOT_ASKED,
                    reason=lack.reason,
                    relaxation=lack.relaxation,
                    shortfalls=lack.shortfalls,
                )
            )
    fits = fitting(wanted, ceiling)
    found = explain(wanted=shards, eligible=len(fits), answers=answers)
    assert found.summary
    for relaxation in found.relaxations:
        assert relaxation.changes, "an advert says what it lacks so that a machine can read it"
        after = fitting(*relaxed(wanted, ceiling, relaxation.changes))
        assert set(relaxation.providers) <= after - fits, in_words(relaxation)
        assert fits <= after, in_words(relaxation)
    won = {provider for relaxation in found.relaxations for provider in relaxation.providers}
    hopeless = {answer.provider for answer in answers if answer.outcome == NOT_ASKED and not answer.shortfalls}
    assert won | hopeless | fits == {of.signer for of in book}


def test_an_advert_with_the_highest_price_that_the_wire_carries_is_too_dear_and_no_fault():
    dear = replace(advert(b"d" * 20, (DEVICE,)), price_e18_per_device_ms=(1 << 128) - 1)
    lack = misfit(dear, needs(), currency="USD", ceiling_e18=1)
    assert lack is not None
    assert PRICE in {shortfall.name for shortfall in lack.shortfalls}
