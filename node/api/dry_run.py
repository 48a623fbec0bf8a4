"""What a tender would find, by adverts alone, before anything is sent: whom it would ask, and what each would cost.

What each would cost is worked out by the very machine that decides a tender (``hansa.market.purchase``), over bids as
providers would make them by their adverts: at the posted price, on the smallest of their devices that do. A provider's
own rule may make another price of it, and it may have less free by then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hansa.market import purchase
from hansa.market.clauses import facts_of, written
from hansa.market.pricing import ProviderTerms, bid_for
from hansa.market.purchase_events import TimePassed
from hansa.market.purchase_state import Purchase
from hansa.market.shares import WHOLE_MILLI, cost, share_asked, spare_milli
from hansa.market.shortfalls import busy
from hansa.market.value_forms import number_text
from hansa.market.why import BID, NOT_ASKED, Answer, Explanation, explain
from hansa.node.api.market_views import Json, explanation_view, not_asked, tender_view
from hansa.node.engine.lines import lines_to, pace_of
from hansa.node.engine.speeds import trials_of
from hansa.node.engine.standings import records_for
from hansa.node.engine.state import NodeState
from hansa.proto.blob import BlobRef
from hansa.proto.market_documents import LEASE_ANY, LEASE_SPOT, Advert, Bid, Device, Fact, Requirements, Tender
from hansa.proto.network import DOMAIN
from hansa.proto.signing import checksum_address
from hansa.proto.typed_data import digest
from hansa.proto.units import HOUR_MS, e18_to_price_per_hour, format_amount
from hansa.scheduler.advert_book import MOST_INVITED
from hansa.scheduler.device_lacks import Shortage
from hansa.scheduler.devices import choose
from hansa.scheduler.fitting import free_sets, misfit
from hansa.scheduler.job_spec import JobSpec

NO_BLOB = BlobRef(root=bytes(32), size_bytes=0)
"""Nothing is packed yet where a job is only looked at; its inputs are in its spec."""
LONGEST_NOTICE_MS = 24 * HOUR_MS
"""An advert does not say how long before taking devices back a provider says so."""


def dry_run_view(spec: JobSpec, blocked: frozenset[bytes], adverts: Sequence[Advert]) -> Json:
    """Whom a tender for this job would invite, at which prices, and what is missing, by adverts alone.

    It may take a while, and needs no state.
    """
    needs, ceiling = spec.requirements, spec.price_ceiling_e18_per_device_ms
    rows, answers = [], []
    room: list[tuple[int, int]] = []
    for advert in (one for one in adverts if one.signer not in blocked):
        lacks = misfit(advert, needs, currency=spec.currency, ceiling_e18=ceiling)
        sets = free_sets(advert, needs) if lacks is None else ()
        if lacks is not None:
            answers.append(not_asked(spec, blocked, advert))
        elif not sets:
            reason = _how_busy(advert, needs)
            answers.append(
                Answer(provider=advert.signer, outcome=NOT_ASKED, reason=reason, shortfalls=(busy(needs.devices),))
            )
        else:
            answers.append(Answer(provider=advert.signer, outcome=BID))
            room += [(_width(devices, needs), advert.price_e18_per_device_ms) for devices in sets]
        if lacks is None:
            rows.append(_invited_view(advert, sets, needs))
    found = explain(wanted=spec.shards, eligible=len(room), answers=answers)
    # By the shard, and not by the device: any of several sets may do, and the larger one costs as much more.
    cheapest = sorted(room, key=lambda one: one[0] * one[1])[: spec.shards]
    hourly = [cost(HOUR_MS, width, price) for width, price in cheapest]
    most = [cost(needs.wall_ms, width, price) + 1 for width, price in cheapest]
    dearest = cost(HOUR_MS, needs.devices * (share_asked(needs) or WHOLE_MILLI), ceiling) * spec.shards
    enough = len(room) >= spec.shards
    return {
        "name": spec.name,
        "currency": spec.currency,
        "shards": spec.shards,
        "enough": enough,
        "room": len(room),
        "invited": rows[:MOST_INVITED],
        "hourly_least": format_amount(sum(hourly)) if enough else None,
        "hourly_most": format_amount(dearest),
        "promised_least": format_amount(sum(most)) if enough else None,
        "budget": format_amount(spec.budget),
        "budget_lacks": format_amount(max(0, sum(most) - spec.budget)) if enough else None,
        "wall_ms": needs.wall_ms,
        "deadline_after_ms": spec.deadline_after_ms or None,
        "queue_ms": spec.queue_ms,
        **explanation_view(found, spec),
        "summary": _dry_summary(found, len(rows)),
    }


def _width(devices: Sequence[Device], needs: Requirements) -> int:
    """How much of devices these are for a shard, in thousandths."""
    return len(devices) * (share_asked(needs) or WHOLE_MILLI)


def _invited_view(advert: Advert, sets: Sequence[Sequence[Device]], needs: Requirements) -> Json:
    price = advert.price_e18_per_device_ms
    shown = sets
    if not shown:
        owned = choose(needs, advert.devices, advert.devices, about=facts_of(advert))
        assert not isinstance(owned, Shortage), "it fits by its advert"
        shown = (owned,)
    widths = [_width(devices, needs) for devices in shown]
    return {
        "provider": checksum_address(advert.signer),
        "price_per_hour": e18_to_price_per_hour(price),
        "shard_per_hour": format_amount(cost(HOUR_MS, min(widths), price)),
        "shard_per_hour_most": format_amount(cost(HOUR_MS, max(widths), price)),
        "free": advert.free,
        "devices": len(advert.devices),
        "slots": len(sets),
        "tier": advert.tier,
        "region": advert.region,
    }


def _how_busy(advert: Advert, needs: Requirements) -> str:
    if (share := share_asked(needs) or WHOLE_MILLI) < WHOLE_MILLI:
        left = number_text(spare_milli(advert.facts))
        return f"{left} of a device is left for parts there, and {number_text(share)} is wanted"
    return f"{advert.free} of its {len(advert.devices)} devices are free"


def _dry_summary(found: Explanation, fitting: int) -> str:
    known = len(found.answers)
    their = "fits by its advert" if fitting == 1 else "fit by their adverts"
    words = f"Of {known} provider{'s' * (known != 1)} known here {fitting} {their}"
    words = words if known else "No provider's advert is known here yet"
    return f"{words}; {min(found.eligible, found.wanted)} of the {found.wanted} shards would find free devices at once."


# What each would cost.


def hypothetical(state: NodeState, spec: JobSpec, adverts: Sequence[Advert], at_ms: int) -> Purchase:
    """A tender for this job that nobody is sent, with what this node knows of those providers. It needs the state."""
    tender = Tender(
        facts=spec.facts,
        lease=spec.lease,
        deadline_ms=0,
        signer=state.account,
        peer_id=state.peer_id,
        job=bytes(32),
        shards=tuple(range(spec.shards)),
        requirements=spec.requirements,
        currency=spec.currency,
        price_ceiling_e18_per_device_ms=spec.price_ceiling_e18_per_device_ms,
        splits=spec.splits,
        meter_interval_ms=spec.meter_interval_ms,
        bids_close_ms=at_ms + spec.bid_window_ms,
        expires_ms=at_ms + spec.bid_window_ms + HOUR_MS,
        nonce=bytes(32),
    )
    workload = spec.workload(tender.job, NO_BLOB, None)
    invited = tuple(advert.signer for advert in adverts)
    return Purchase(
        tender=tender,
        tender_digest=digest(DOMAIN, tender),
        workload=workload,
        funds=spec.budget,
        max_prepay_ms=spec.max_prepay_ms,
        invited=invited,
        records=records_for(state, invited, currency=spec.currency, at_ms=at_ms),
        trials=trials_of(state, workload),
        lines=lines_to(state, invited),
        pace=pace_of(state, workload, spec),
        most_each=spec.most_each,
        only_bids=True,
        opened_ms=at_ms,
    )


def expected_view(begun: Purchase, adverts: Sequence[Advert]) -> Json:
    """The table of a tender to which these providers bid by their adverts. It may take a while, and needs no state."""
    bids = [bid for advert in adverts for bid in _bids_of(advert, begun)][: purchase.MOST_BIDS]
    if not bids:
        return {"bids": [], "choice": ""}
    asked = replace(begun, bids={digest(DOMAIN, bid): bid for bid in bids})
    closes_ms = begun.tender.bids_close_ms
    return tender_view(purchase.advance(asked, TimePassed(at_ms=closes_ms)).state, begun.tender.currency)


def would_be_asked(spec: JobSpec, blocked: frozenset[bytes], adverts: Sequence[Advert]) -> list[Advert]:
    """Those that have free devices for a shard, the cheapest first, as many as a tender asks."""
    needs, ceiling = spec.requirements, spec.price_ceiling_e18_per_device_ms
    found = [
        advert
        for advert in adverts
        if advert.signer not in blocked
        and misfit(advert, needs, currency=spec.currency, ceiling_e18=ceiling) is None
        and free_sets(advert, needs)
    ]
    return sorted(found, key=lambda advert: (advert.price_e18_per_device_ms, advert.signer))[:MOST_INVITED]


def _bids_of(advert: Advert, begun: Purchase) -> Iterator[Bid]:
    tender, needs = begun.tender, begun.tender.requirements
    terms = _terms_by(advert, tender)
    for number, chosen in enumerate(free_sets(advert, needs)[: len(tender.shards)]):
        price = advert.price_e18_per_device_ms
        lease = LEASE_SPOT if tender.lease == LEASE_ANY else tender.lease
        yield bid_for(
            tender,
            begun.tender_digest,
            chosen,
            terms,
            price_e18=price,
            lease=lease,
            number=number,
            at_ms=begun.opened_ms,
        )


def _terms_by(advert: Advert, tender: Tender) -> ProviderTerms:
    """A provider's rules as far as its advert tells them; the rest as the tender would have it."""
    stated = {fact.name: fact.value for fact in advert.facts} | {"region": advert.region}
    facts: tuple[Fact, ...] = written({name: value for name, value in stated.items() if value})
    return ProviderTerms(
        account=advert.signer,
        currency=advert.currency,
        tier=advert.tier,
        features=advert.features,
        facts=facts,
        price_e18_per_device_ms=advert.price_e18_per_device_ms,
        voucher_timeout_ms=HOUR_MS,
        max_unpaid=0,
        grace_ms=HOUR_MS,
        credit_limit=0,
        bid_ms=HOUR_MS,
        reclaim_notice_ms=LONGEST_NOTICE_MS,
        meter_interval_ms=tender.meter_interval_ms,
    )
