"""Every "no" explained: what is promised for a change is what comes of it, and nobody is left out or won twice."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import (
    CHANNEL,
    OTHER,
    OTHER_KEY,
    PRICE,
    PROVIDER,
    PROVIDER_KEY,
    THIRD,
    award,
    bid,
    decline,
    tender,
    workload,
)

from hansa.market import why
from hansa.market.pricing import MOST_SHORTFALLS
from hansa.market.purchase_awards import why_lost
from hansa.market.purchase_state import DEAF, SILENT, Placement, Purchase
from hansa.market.requirements import parse_needs
from hansa.market.scoring import Scored
from hansa.market.shortfalls import BUSY, price_in_words
from hansa.market.why import (
    BID,
    DECLINED,
    DESERTED,
    EXCLUDED,
    NO_ANSWER,
    NOT_ASKED,
    UNREACHED,
    Answer,
    Relaxation,
    answers_of,
    explain,
    in_words,
)
from hansa.proto.market_documents import Shortfall
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.proto.units import format_amount

GIB = 1 << 30


def short(name, wanted, nearest):
    return Shortfall(name=name, wanted=wanted, nearest=nearest)


def who(number):
    return bytes([number]) * 20


def no(number, *shortfalls, **changes):
    return Answer(provider=who(number), outcome=DECLINED, reason="no", shortfalls=shortfalls, **changes)


VRAM_22, VRAM_16 = short("vram", "vram >= 24 GiB", "22 GiB"), short("vram", "vram >= 24 GiB", "16 GiB")
DEAR = short("price", "price <= 0.40", "0.46")
DEARER = short("price", "price <= 0.40", "0.80")
TAKEN = short(BUSY, "1", "later")


def told(answers, **changes):
    return explain(**{"wanted": 4, "eligible": 0, "answers": answers, **changes})


def test_the_nearest_changes_are_told_the_cheapest_first():
    answers = [no(1, VRAM_22), no(2, VRAM_22), *(no(number, DEAR) for number in range(3, 8)), no(8, TAKEN)]
    words = [in_words(one, "GPU-h") for one in told(answers).relaxations]
    assert words == [
        "2 more providers if vram >= 22 GiB",
        "5 more providers at +0.06 per GPU-h",
        "1 more provider later (busy now)",
    ]


def test_who_falls_short_in_two_things_counts_only_where_both_are_changed():
    found = told([no(1, VRAM_22), no(2, VRAM_22, DEAR), no(3, DEARER)]).relaxations
    assert [(in_words(one), len(one.providers)) for one in found] == [
        ("1 more provider if vram >= 22 GiB", 1),
        ("2 more providers if vram >= 22 GiB at +0.06 per device-hour", 2),
        ("1 more provider at +0.40 per device-hour", 1),
    ]


def test_a_change_wins_whoever_needs_less_of_it_and_a_dearer_one_that_wins_nobody_else_is_not_told():
    found = told([no(1, VRAM_22), no(2, VRAM_16), no(3, VRAM_16)], wanted=3).relaxations
    assert [(in_words(one), one.enough) for one in found] == [
        ("1 more provider if vram >= 22 GiB", False),
        ("3 more providers if vram >= 16 GiB", True),
    ]
    assert [row.nearest for row in told([no(1, VRAM_22), no(2, VRAM_16)]).failing] == ["22 GiB"]


def test_versions_are_compared_as_versions_and_words_only_with_themselves():
    cuda = [no(1, short("cuda", "cuda >= 12.10", "12.9")), no(2, short("cuda", "cuda >= 12.10", "12.4"))]
    assert in_words(told(cuda).relaxations[-1]) == "2 more providers if cuda >= 12.4"
    tiers = [no(1, short("tier", "gvisor", "sandbox")), no(2, short("tier", "gvisor", "none"))]
    words = [in_words(one) for one in told(tiers).relaxations]
    assert words[-1] == "2 more providers if tier = none", "less isolation is had from who has more"
    regions = [no(1, short("region", "region = eu", "us")), no(2, short("region", "region = eu", "jp")), no(3, TAKEN)]
    found = told(regions, eligible=3).relaxations
    assert [in_words(one) for one in found] == [
        "1 more provider later (busy now)",
        "1 more provider if region may also be jp",
        "1 more provider if region may also be us",
    ]
    gone = [short("region", "region not in (cn, ru)", "ru"), short("region", "region not in (cn, ru)", "any")]
    words = [in_words(one) for one in told([no(1, gone[0]), no(2, gone[1])]).relaxations]
    assert words[-1] == "2 more providers if region may be anything"
    assert set(words[:-1]) <= {"1 more provider if region not in (ru)"}
    unsaid = [no(1, short("cuda", "cuda >= 12.4", "any")), no(2, short("cuda", "cuda >= 12.4", "12.2"))]
    assert in_words(told(unsaid).relaxations[-1]) == "2 more providers if cuda has no limit"


def test_whoever_trades_in_another_currency_would_be_there_instead_of_the_others():
    (found,) = told([no(1, short("currency", "currency = USD", "EUR"))], wanted=2, eligible=1).relaxations
    assert (in_words(found), found.enough) == ("1 other provider if currency = EUR", False)
    gpu = short("kind", "kind = cpu", "gpu")
    words = [in_words(one) for one in told([no(1, gpu, TAKEN), no(2, TAKEN)]).relaxations]
    assert words == [
        "1 more provider later (busy now)",
        "1 other provider if kind = gpu later (busy now)",
    ], "who has CPUs and is busy bids no more on a job for GPUs"


def test_nobody_is_told_to_run_a_job_for_gpus_on_cpus():
    found = told([no(1, short("kind", "kind = gpu", "cpu"))])
    assert (found.relaxations, found.helpless) == ((), 1)
    assert [row.name for row in found.failing] == ["kind"]


def test_what_a_job_states_of_itself_would_have_to_be_another_and_not_something_more():
    (found,) = told([no(1, short("licence", "licence = apache-2.0", "bsd"))]).relaxations
    assert in_words(found) == "1 more provider if licence = bsd"


def test_what_a_job_brings_or_wants_to_have_is_told_as_what_may_stay():
    have = [no(1, short("features", "features = egress,image", "egress")), no(2, short("wall", "wall >= 10 h", "5 h"))]
    none = [no(3, short("features", "features = egress,image", "any")), no(4, short("wall", "wall >= 10 h", "8 h"))]
    assert {in_words(one) for one in told([*have, *none]).relaxations} == {
        "1 more provider if wall = 8 h",
        "2 more providers if wall = 5 h",
        "1 more provider if features = egress",
        "2 more providers if it asks for no features",
    }


def test_a_price_that_is_none_is_quoted_and_not_reckoned_with():
    """``nearest`` is a stranger's word: a decline may name a price that nothing can be taken from."""
    assert price_in_words(Shortfall(name="price", wanted="<= 1", nearest="1.5"), "hour") == "at +0.50 per hour"
    assert price_in_words(Shortfall(name="price", wanted="<= 1", nearest="a lot"), "hour") == "at a lot per hour"
    assert price_in_words(Shortfall(name="price", wanted="little", nearest="1.5"), "hour") == "at 1.5 per hour"


def test_whom_nothing_would_win_is_counted_and_who_says_it_in_words_is_quoted():
    answers = [no(1, short("buyer", "you", "")), no(2, relaxation="cores >= 2"), no(3, relaxation="cores >= 2"), no(4)]
    found = told(answers)
    assert [in_words(one) for one in found.relaxations] == ["2 more providers if cores >= 2"]
    assert found.helpless == 2


@pytest.mark.parametrize("outcome", [DECLINED, EXCLUDED, NO_ANSWER, DESERTED, NOT_ASKED])
def test_there_is_always_something_to_say(outcome):
    for answers in ([], [Answer(provider=who(1), outcome=outcome)]):
        found = told(answers)
        assert found.summary
        assert "0 could win" in found.summary
    assert "It was cancelled" in told([], reason="It was cancelled").summary


def bought(called, **changes):
    fields = {"tender": called, "tender_digest": digest(DOMAIN, called), "workload": workload(), "funds": 1}
    return Purchase(**{**fields, "invited": (PROVIDER, OTHER, THIRD), "phase": "unfilled", **changes})


def scored(made, excluded=""):
    """A row of the ranking."""
    return Scored(
        bid=digest(DOMAIN, made),
        provider=made.signer,
        price_per_hour="1",
        reliability_ppm=1,
        expected_cost=1,
        excluded=excluded,
    )


def test_one_condition_in_two_spellings_is_one():
    long, plain = short("price", "price <= 0.420000", "0.460000"), short("price", "price <= 0.42", "0.5")
    found = told([no(1, long), no(2, plain)])
    assert [(row.wanted, row.nearest, row.providers) for row in found.failing] == [("price <= 0.42", "0.46", 2)]
    assert in_words(found.relaxations[-1]) == "2 more providers at +0.08 per device-hour"


def test_a_provider_is_told_why_its_bid_could_not_win_and_nothing_of_the_others():
    called = tender()
    dear, fine, other = (
        bid(called, key=key, price_e18_per_device_ms=price * PRICE).document
        for key, price in ((OTHER_KEY, 3), (PROVIDER_KEY, 1), (PROVIDER_KEY, 2))
    )
    rows = (scored(fine), scored(other), scored(dear, "above the price ceiling"))
    held = {digest(DOMAIN, made): made for made in (dear, fine, other)}
    for phase, made, words in (
        ("running", dear, "it could not win: above the price ceiling"),
        ("running", other, "another bid won: by expected cost it was number 2 of 2"),
        ("unfilled", fine, "not all shards found a provider"),
        ("cancelled", fine, "the buyer took the tender back"),
    ):
        state = bought(called, bids=held, ranking=rows, phase=phase)
        assert why_lost(state, digest(DOMAIN, made)).startswith(words)


def test_what_the_tenders_of_a_job_heard_is_merged_and_the_newest_word_of_each_counts():
    first, second = tender(), tender(nonce=b"2" * 32)
    dear = bid(first, key=OTHER_KEY, price_e18_per_device_ms=3 * PRICE).document
    no_of = decline(first).document
    one = bought(
        first,
        declines={PROVIDER: replace(no_of, shortfalls=(TAKEN,))},
        bids={digest(DOMAIN, dear): dear},
        ranking=(scored(dear, "above the price ceiling"),),
    )
    answers = {answer.provider: answer for answer in answers_of([one])}
    assert {account: answer.outcome for account, answer in answers.items()} == {
        PROVIDER: DECLINED,
        OTHER: EXCLUDED,
        THIRD: NO_ANSWER,
    }
    price = answers[OTHER].shortfalls[0]
    assert (price.name, price.nearest) == ("price", format_amount(3 * 3_600_000))
    slow = bid(first, key=OTHER_KEY, price_e18_per_device_ms=3 * PRICE, meter_interval_ms=10**9).document
    hopeless = bought(first, bids={digest(DOMAIN, slow): slow}, ranking=(scored(slow, "above the price ceiling"),))
    (told_of,) = (answer for answer in answers_of([hopeless]) if answer.provider == OTHER)
    assert told_of.shortfalls == (), "a higher price alone would not do: its receipts would come too seldom"
    wanted = replace(first, requirements=replace(first.requirements, clauses=parse_needs("notice >= 5 min").clauses))
    hasty = bid(wanted, key=OTHER_KEY).document
    short_notice = bought(wanted, bids={digest(DOMAIN, hasty): hasty}, ranking=(scored(hasty, "does not meet"),))
    (told_of,) = (answer for answer in answers_of([short_notice]) if answer.provider == OTHER)
    assert [(one.name, one.nearest) for one in told_of.shortfalls] == [("notice", "1 s")]
    fine = bid(second, key=PROVIDER_KEY).document
    two = bought(second, bids={digest(DOMAIN, fine): fine}, ranking=(scored(fine),))
    answers = {answer.provider: answer for answer in answers_of([one, two])}
    assert answers[PROVIDER].outcome == BID
    assert answers[OTHER].outcome == EXCLUDED, "a silence does not undo what was said"
    three = bought(tender(nonce=b"3" * 32), undelivered={OTHER: "its node is away", THIRD: "its node is away"})
    answers = {answer.provider: answer for answer in answers_of([one, two, three])}
    assert answers[OTHER].outcome == EXCLUDED, "nor does a tender that never came"
    alone = {answer.provider: answer for answer in answers_of([three])}
    assert (alone[THIRD].outcome, alone[THIRD].reason) == (UNREACHED, "its node is away")
    assert alone[PROVIDER].outcome == NO_ANSWER
    both = [bought(tender(nonce=b"4" * 32)), three]
    for order in (both, both[::-1]):
        newest = {answer.provider: answer.outcome for answer in answers_of(order)}
        assert newest[THIRD] == (UNREACHED if order[-1] is three else NO_ANSWER)
    assert "2 never got the tender" in explain(wanted=1, eligible=0, answers=tuple(alone.values())).summary


@pytest.mark.parametrize(
    ("why", "deserted", "told"),
    [
        (SILENT, False, (DESERTED, "it won and said nothing more")),
        ("its devices are gone", True, (DESERTED, "it won and refused the lease: its devices are gone")),
        ("the bid has run out", False, (BID, "")),
        (DEAF, False, (BID, "")),
    ],
)
def test_who_won_and_did_not_confirm_is_told_apart(why, deserted, told):
    called = tender()
    made = bid(called).document
    accepted = award(made)
    lost = Placement(
        shard=0,
        bid=digest(DOMAIN, made),
        provider=PROVIDER,
        award=accepted,
        lease=digest(DOMAIN, accepted),
        channel=CHANNEL,
        phase="failed",
        why=why,
        deserted=deserted,
    )
    one = bought(called, bids={digest(DOMAIN, made): made}, ranking=(scored(made),), placements=(lost,))
    answer = answers_of([one])[0]
    assert (answer.outcome, answer.reason) == told


# A market of providers that have sizes, prices and words, and a job that wants some of each.

SIZES, PRICES, VERSIONS, REGIONS = (8, 16, 22, 24, 40, 80), (30, 40, 46, 80, 200), ("11.8", "12.4", "12.10"), "abc"
offers = st.fixed_dictionaries(
    {
        "vram": st.sampled_from(SIZES),
        "price": st.sampled_from(PRICES),
        "cuda": st.sampled_from(VERSIONS),
        "region": st.sampled_from(REGIONS),
        "busy": st.booleans(),
        "closed": st.booleans(),
    }
)
wishes = st.fixed_dictionaries(
    {
        "vram": st.sampled_from(SIZES),
        "price": st.sampled_from(PRICES),
        "cuda": st.sampled_from(VERSIONS),
        "region": st.sampled_from(REGIONS),
    }
)


def version(text):
    return tuple(map(int, text.split(".")))


def shortfalls(offer, wish):
    """What an honest provider says."""
    found = []
    if offer["vram"] < wish["vram"]:
        found.append(short("vram", f"vram >= {wish['vram']} GiB", f"{offer['vram']} GiB"))
    if offer["price"] > wish["price"]:
        found.append(short("price", f"price <= 0.{wish['price']:03}", f"0.{offer['price']:03}"))
    if version(offer["cuda"]) < version(wish["cuda"]):
        found.append(short("cuda", f"cuda >= {wish['cuda']}", offer["cuda"]))
    if offer["region"] not in wish["region"].split(","):
        found.append(short("region", f"region = {wish['region']}", offer["region"]))
    if offer["busy"]:
        found.append(short(BUSY, "1", "later"))
    if offer["closed"]:
        found.append(short("buyer", "you", ""))
    return tuple(found)


def relaxed(wish, relaxation: Relaxation):
    """The wish with these changes made, and whether one waits."""
    after, later = dict(wish), False
    for change in relaxation.changes:
        match change.name:
            case "vram":
                after["vram"] = int(change.nearest.removesuffix(" GiB"))
            case "price":
                after["price"] = int(change.nearest.removeprefix("0.").ljust(3, "0"))
            case "free":
                later = True
            case "region":
                after["region"] += f",{change.nearest}"
            case name:
                after[name] = change.nearest
    return after, later


@given(st.lists(offers, max_size=12), wishes, st.integers(1, 6))
def test_whoever_is_promised_for_a_change_bids_when_it_is_made(market, wish, wanted):
    answers = []
    for number, offer in enumerate(market):
        lacks = shortfalls(offer, wish)
        answers.append(no(number, *lacks) if lacks else Answer(provider=who(number), outcome=BID))
    eligible = sum(answer.outcome == BID for answer in answers)
    found = explain(wanted=wanted, eligible=eligible, answers=answers)
    assert found.summary
    for relaxation in found.relaxations:
        after, later = relaxed(wish, relaxation)
        would_bid = {
            who(number)
            for number, offer in enumerate(market)
            if not shortfalls(offer | {"busy": offer["busy"] and not later}, after)
        }
        already = {answer.provider for answer in answers if answer.outcome == BID}
        assert already <= would_bid, "what is made wider loses nobody"
        assert set(relaxation.providers) == would_bid - already
        assert relaxation.enough == (len(would_bid) >= wanted)
    # And nobody who could be won is forgotten, as far as the list goes.
    hopeless = {who(number) for number, offer in enumerate(market) if offer["closed"]}
    refused = {answer.provider for answer in answers if answer.outcome == DECLINED}
    assert found.helpless == len(hopeless & refused)
    if len(found.relaxations) < 12:
        won = {provider for relaxation in found.relaxations for provider in relaxation.providers}
        assert won == refused - hopeless


def test_who_names_more_shortfalls_than_any_node_would_is_taken_for_naming_none():
    flood = [short("vram", f"vram >= {number} GiB", "1 GiB") for number in range(MOST_SHORTFALLS + 1)]
    found = told([no(1, *flood), no(2, VRAM_22)])
    assert (len(found.failing), found.helpless) == (1, 1)
    assert {answer.provider: answer.shortfalls for answer in found.answers} == {who(1): (), who(2): (VRAM_22,)}
    assert told([no(1, *flood[1:])]).helpless == 0


def test_a_condition_is_named_once_by_each():
    found = told([no(1, VRAM_22, VRAM_16, *[VRAM_16] * 20)])
    assert found.answers[0].shortfalls == (VRAM_22,)
    assert [in_words(one) for one in found.relaxations] == ["1 more provider if vram >= 22 GiB"]


def test_what_hostile_declines_make_to_be_weighed_is_bounded():
    count = 0

    def counting(change, need):
        nonlocal count
        count += 1
        return covers(change, need)

    covers = why.covers
    why.covers = counting
    try:
        rows = [
            [short("vram", f"vram >= {9_000 + row} GiB", f"{10 + who_} GiB") for row in range(64)] for who_ in range(64)
        ]
        found = told([no(number + 1, *row) for number, row in enumerate(rows)])
    finally:
        why.covers = covers
    assert len(found.failing) == 64
    assert count <= 64 * 64 * 64
