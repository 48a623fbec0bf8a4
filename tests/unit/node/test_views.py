"""What the local API shows: plain JSON whatever strangers wrote, and money that adds up. From whole markets, played."""

import json
from copy import copy
from dataclasses import replace
from decimal import Decimal
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from kit.memory_party import START_MS
from kit.trading import DEVICE, JOB, NOW_MS, OTHER, PROVIDER, bid, decline, spec, tender, workload
from simulation.market import Market
from simulation.world import Faults

from hansa.market.ledger import Entry, Leg
from hansa.market.purchase_awards import why_lost
from hansa.market.purchase_state import Purchase
from hansa.node.api import views
from hansa.node.commands.cli_market import _percent
from hansa.node.commands.cli_screen import _checkpoint
from hansa.node.engine.state import NodeState
from hansa.proto.blob import blob_ref
from hansa.proto.market_documents import Advert
from hansa.proto.messages import Metric
from hansa.proto.network import DOMAIN
from hansa.proto.signing import checksum_address
from hansa.proto.typed_data import digest
from hansa.scheduler.job_state import Checkpoint, Job, Mirrored, Output, Point, Shard
from hansa.scheduler.rounds import Past, Rejected

HOSTILE = "\x00\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>\u202e\u2028\U0001f4a3'\"\\\n\ud7ff"
SEEDS = (3, 5, 8, 13)


@cache
def played(seed: int) -> Market:
    """A market in which nothing went wrong."""
    market = Market(seed, Faults())
    market.play()
    return market


def states(market: Market) -> list[NodeState]:
    return [node.engine.state for node in market.nodes.values() if node.engine is not None]


def amount(text: str) -> Decimal:
    whole, _, places = text.partition(".")
    assert whole.lstrip("-").isdigit()
    assert len(places) == 6, "money is always written with six decimals"
    return Decimal(text)


def plain(view: Any) -> Any:
    """The view as a client reads it. It must be the same: no tuple, no bytes, no number without a JSON form."""
    read = json.loads(json.dumps(view, allow_nan=False))
    assert read == view
    return read


@pytest.mark.parametrize("seed", SEEDS)
def test_every_view_of_a_real_market_is_plain_json(seed: int) -> None:
    jobs = 0
    for state in states(played(seed)):
        for _, job in state.jobs.all():
            jobs += 1
            view = plain(views.job_view(state, job))
            brief = plain(views.job_view(state, job, brief=True))
            assert brief == {key: value for key, value in view.items() if key not in ("tenders", "history", "rounds")}
            assert view["settled"] or view["phase"] not in ("succeeded", "failed", "cancelled")
        plain(views.balance_view(state, "USD", 0))
    assert jobs


def test_what_a_round_left_out_is_shown_whatever_steps_the_job_reported() -> None:
    left = Rejected(shard=1, reason="it is far off")
    rounds = SimpleNamespace(published=7, history=(Past(round=7, members=(0,), rejected=(left,), at_ms=NOW_MS),))
    shown = 0
    for played_out in states(played(SEEDS[0])):
        state = copy(played_out)
        state.rounds = SimpleNamespace(get=lambda _: rounds)  # type: ignore[assignment]
        for _, job in state.jobs.all():
            view = plain(views.job_view(state, job))
            rejected = [{"shard": 1, "reason": "it is far off"}]
            assert view["rounds"] == [{"round": 7, "at_ms": NOW_MS, "members": [0], "rejected": rejected}]
            shown += 1
    assert shown


@pytest.mark.parametrize(("ppm", "shown"), [(555_555, "55 %"), (999_999, "99 %"), (1_000_000, "100 %"), (9_999, "0 %")])
def test_a_reliability_is_one_figure_wherever_it_is_shown_and_never_rounded_up(ppm: int, shown: str) -> None:
    bought = next(
        bought for state in states(played(3)) for _, bought in state.purchases.all() if bought.ranking and bought.bids
    )
    first = replace(bought.ranking[0], reliability_ppm=ppm, excluded="")
    bought = replace(bought, ranking=(first, *bought.ranking[1:]))
    assert views._tender_view(bought)["bids"][0]["reliability"] == shown
    assert _percent(ppm) == shown
    assert f"reliability counted: {shown}" in why_lost(replace(bought, phase="done"), first.bid)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_money_adds_up_between_all_views(seed: int) -> None:
    market = played(seed)
    balances = {state.account: views.balance_view(state, "USD", 0) for state in states(market)}
    others = sum(
        books
        for state in states(market)
        for name, books in state.ledger.balances.items()
        if name.startswith(("owed:", "paid:")) and bytes.fromhex(name.split(":")[1]) not in market.nodes
    )
    assert sum(amount(balance["earned"]) for balance in balances.values()) + Decimal(-others) / 10**6 == sum(
        amount(balance["spent"]) for balance in balances.values()
    ), "what is spent is the providers' and those that jobs name in their splits"
    for state in states(market):
        balance = balances[state.account]
        assert amount(balance["sum"]) == 0
        shown = [views.job_view(state, job)["spend"] for _, job in state.jobs.all()]
        assert sum((amount(spend["vouched"]) for spend in shown), Decimal(0)) == amount(balance["spent"])
        for spend in shown:
            by_provider = sum((amount(each["vouched"]) for each in spend["by_provider"]), Decimal(0))
            assert by_provider == amount(spend["vouched"]) <= amount(spend["budget"])
        for role, total in (("payer", "spent"), ("payee", "earned")):
            channels = [channel for channel in balance["channels"] if channel["role"] == role]
            assert sum((amount(channel["vouched"]) for channel in channels), Decimal(0)) == amount(balance[total])
            assert all(amount(channel["vouched"]) <= amount(channel["metered"]) for channel in channels)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_winner_of_every_shard_is_shown_with_the_reason(seed: int) -> None:
    won = 0
    for state in states(played(seed)):
        for _, job in state.jobs.all():
            view = views.job_view(state, job)
            for called in view["tenders"]:
                winners = [entry for entry in called["bids"] if entry["won"]]
                won += len(winners)
                assert all(entry["why"] and entry["shard"] in called["shards"] for entry in winners)
                assert len({entry["shard"] for entry in winners}) == len(winners)
    assert won


def hostile_state() -> tuple[NodeState, Job]:
    """A state in which every text that a stranger can choose is as bad as it gets."""
    metric = Metric(name=HOSTILE, value=-1.5e300)
    shard = Shard(
        shard=0,
        phase="waiting",
        attempts=1,
        provider=PROVIDER,
        step=(1 << 64) - 1,
        metrics=(metric,),
        reason=HOSTILE,
        outputs=(Output(path=HOSTILE, blob=blob_ref(b"x"), here=True), Output(path="b", blob=blob_ref(b"y"))),
    )
    job = Job(
        phase="failed",
        job=JOB,
        spec=spec(name=HOSTILE),
        package=blob_ref(b"p"),
        shards=(shard,),
        submitted_ms=NOW_MS,
        ended_ms=NOW_MS + 1,
        reason=HOSTILE,
        history=(Point(step=(1 << 64) - 1, metrics=(metric,), at_ms=NOW_MS),),
    )
    called = tender()
    dear = bid(called, price_e18_per_device_ms=(1 << 128) - 1).document
    no = replace(decline(called).document, reason=HOSTILE, relaxation=HOSTILE)
    state = NodeState()
    state.jobs[JOB] = job
    state.purchases[digest(DOMAIN, called)] = Purchase(
        phase="unfilled",
        tender=called,
        tender_digest=digest(DOMAIN, called),
        workload=workload(),
        funds=1,
        invited=(PROVIDER, OTHER),
        bids={digest(DOMAIN, dear): dear},
        declines={OTHER: no},
        reason=HOSTILE,
    )
    return state, job


@pytest.mark.parametrize(("phase", "settled"), [("unfilled", True), ("settled", True), ("running", False)])
def test_a_job_that_has_ended_is_not_settled_while_a_lease_of_it_may_still_be_paid(phase: str, settled: bool) -> None:
    state, job = hostile_state()
    ((_, bought),) = state.purchases.all()
    state.purchases[bought.tender_digest] = replace(bought, phase=phase)
    assert views.job_view(state, job)["settled"] is settled


def test_what_strangers_write_comes_out_as_json_text_and_nothing_else() -> None:
    state, job = hostile_state()
    view = plain(views.job_view(state, job))
    assert view["name"] == view["reason"] == view["shards"][0]["reason"] == HOSTILE
    assert view["shards"][0]["metrics"] == {HOSTILE: -1.5e300}
    assert view["shards"][0]["step"] == (1 << 64) - 1
    assert [output["path"] for output in view["outputs"]] == [HOSTILE], "only what is here"
    (called,) = view["tenders"]
    assert called["declines"] == [
        {"provider": checksum_address(OTHER), "reason": HOSTILE, "relaxation": HOSTILE},
    ]
    assert called["bids"][0]["why"] == "bidding is open"
    assert called["silent"] == []
    text = json.dumps(view)
    assert all(character.isprintable() for character in text), "escapes, so no control reaches a terminal raw"


def test_where_the_newest_checkpoint_lies_is_said() -> None:
    blob = blob_ref(b"state")
    mirror = Mirrored(provider=OTHER, lease=b"m" * 32, held=blob)
    saved = Shard(shard=0, checkpoint=Checkpoint(round=1, step=5, blob=blob), mirror=mirror)
    view = views._checkpoint_view(saved)
    assert view is not None
    assert view["mirror"] == checksum_address(OTHER)
    behind = replace(saved, mirror=replace(mirror, held=blob_ref(b"older"), refusal=HOSTILE), refusal="it is broken")
    view = views._checkpoint_view(behind)
    assert view is not None
    assert view["mirror"] is None, "an older one is no copy of this"
    assert views._checkpoint_view(replace(saved, checkpoint=None)) is None
    text = _checkpoint(view)
    assert text.startswith("round 1, step 5: here only: ")
    assert text.endswith("; a newer one was refused: it is broken")
    assert text.isprintable()


def test_an_advert_of_anybody_is_plain_json() -> None:
    advert = Advert(
        facts=(),
        signer=PROVIDER,
        peer_id=HOSTILE,
        addresses=(HOSTILE,),
        devices=(replace(DEVICE, model=HOSTILE, memory_bytes=(1 << 64) - 1),),
        free=(1 << 32) - 1,
        tier=HOSTILE,
        features=(HOSTILE,),
        region=HOSTILE,
        currency=HOSTILE,
        price_e18_per_device_ms=(1 << 128) - 1,
        sequence=1,
        expires_ms=START_MS,
    )
    view = plain(views.advert_view(advert, connected=False))
    assert view["region"] == view["devices"][0]["model"] == HOSTILE
    assert amount(view["price_per_hour"]) > 0


def test_the_ledgers_entries_are_shown_leg_by_leg() -> None:
    entry = Entry(
        id=b"e" * 32,
        at_ms=5,
        memo="voucher",
        legs=(Leg(account="spend:x", amount=1_234_567), Leg(account="owed:y", amount=-1_234_567)),
    )
    (view,) = plain(views.entries_view([entry]))
    assert [leg["amount"] for leg in view["legs"]] == ["1.234567", "-1.234567"]
    assert sum(amount(leg["amount"]) for leg in view["legs"]) == 0
