"""What a buyer is shown of the market: why a job found no provider, every bid with its terms, a tender beforehand.

Plain JSON objects, made from the state and the book. A stranger's words stay as they are here; whoever prints them
makes them plain.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hansa.market import choice, why
from hansa.market.purchase_awards import choice_of, would_win
from hansa.market.purchase_state import ONLY_BIDS, Placement, Purchase
from hansa.market.scoring import Scored
from hansa.market.selection import explain_choice
from hansa.market.shares import share_in
from hansa.market.value_forms import number_text
from hansa.market.why import Answer, Explanation, answers_of, explain
from hansa.node.api.views import money_warning
from hansa.node.engine.queueing import queue_view
from hansa.node.engine.state import NodeState
from hansa.proto.market_documents import Advert, Requirements, Shortfall
from hansa.proto.signing import checksum_address
from hansa.proto.units import format_amount
from hansa.scheduler.fitting import misfit
from hansa.scheduler.job_queue import due_ms
from hansa.scheduler.job_spec import JobSpec
from hansa.scheduler.job_state import Job

Json = dict[str, Any]


def unit_of(needs: Requirements) -> str:
    """What an hour of one device is called."""
    return "GPU-hour" if needs.kind == "gpu" else "device-hour"


# Why.


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfilled:
    """What the state knows of a job that found nobody: enough to explain it beside the loop that owns the state.

    Attributes:
        asked: what became of those who were.
        wanted, eligible, reason: see ``hansa.market.why.explain``.
    """

    asked: tuple[Answer, ...]
    wanted: int
    eligible: int
    reason: str


def job_part(state: NodeState, of: Job) -> tuple[Json, Unfilled | None]:
    """What is to be said of a job itself, and of its tenders if they came to nothing."""
    ours = _relevant(state, of)
    waits = [shard for shard in of.shards if shard.phase == "waiting"]
    never = of.phase == "failed" and not any(shard.attempts for shard in of.shards)
    looks = bool(waits) or never or (of.phase == "failed" and bool(ours) and ours[-1].phase == "unfilled")
    view: Json = {
        "job": of.job.hex(),
        "name": of.spec.name,
        "phase": of.phase,
        "reason": of.reason,
        "warning": money_warning(state, of),
        "queue": queue_view(of),
        "deadline_ms": due_ms(of) or None,
        "tenders": len(ours),
        "unfilled": looks,
    }
    if not looks:
        return view, None
    last = ours[-1] if ours else None
    ended = last is not None and last.phase in ("unfilled", "cancelled")
    return view, Unfilled(
        asked=answers_of(ours),
        wanted=len(last.tender.shards) if last else of.spec.shards,
        eligible=sum(not entry.excluded for entry in last.ranking) if last else 0,
        reason=last.reason if last is not None and ended else "",
    )


def market_part(found: Unfilled, spec: JobSpec, blocked: frozenset[bytes], adverts: Sequence[Advert]) -> Json:
    """The explanation, with the adverts of those who were not asked. It may take a while, and needs no state."""
    known = {answer.provider for answer in found.asked}
    others = tuple(not_asked(spec, blocked, advert) for advert in adverts if advert.signer not in known)
    answers = (*found.asked, *others)
    explained = explain(wanted=found.wanted, eligible=found.eligible, answers=answers, reason=found.reason)
    return explanation_view(explained, spec)


def why_view(state: NodeState, of: Job, adverts: Sequence[Advert] = ()) -> Json:
    """Why a job has not all of its providers, and what would change that."""
    view, found = job_part(state, of)
    return view if found is None else view | market_part(found, of.spec, frozenset(state.blocked), adverts)


def _relevant(state: NodeState, of: Job) -> list[Purchase]:
    """The tenders for the shards that are looked for now, the oldest first: for a whole gang, or for one that moved."""
    ours = [bought for _, bought in state.purchases.all() if bought.tender.job == of.job]
    ours.sort(key=lambda bought: bought.tender.bids_close_ms)
    if not ours:
        return []
    shards = ours[-1].tender.shards
    since_ms = min(of.shards[number].waiting_ms if of.shards[number].attempts else 0 for number in shards)
    return [each for each in ours if each.tender.shards == shards and each.tender.bids_close_ms >= since_ms]


def not_asked(spec: JobSpec, blocked: frozenset[bytes], advert: Advert) -> Answer:
    """Why a provider was not asked, by its advert."""
    if advert.signer in blocked:
        return Answer(provider=advert.signer, outcome=why.NOT_ASKED, reason="you have blocked it: hansa unblock")
    lacks = misfit(
        advert,
        spec.requirements,
        currency=spec.currency,
        ceiling_e18=spec.price_ceiling_e18_per_device_ms,
    )
    if lacks is None:
        later = "its advert fits, and it came after the tender or beside the cheapest: the next tender may ask it"
        return Answer(provider=advert.signer, outcome=why.NOT_ASKED, reason=later)
    return Answer(
        provider=advert.signer,
        outcome=why.NOT_ASKED,
        reason=lacks.reason,
        relaxation=lacks.relaxation,
        shortfalls=lacks.shortfalls,
    )


def explanation_view(found: Explanation, spec: JobSpec) -> Json:
    """An explanation as JSON."""
    unit = unit_of(spec.requirements)
    return {
        "summary": found.summary,
        "wanted": found.wanted,
        "eligible": found.eligible,
        "failing": [
            {"name": row.name, "wanted": row.wanted, "nearest": row.nearest, "providers": row.providers}
            for row in found.failing
        ],
        "relaxations": [
            {
                "words": why.in_words(one, unit),
                "changes": _shortfall_views(one.changes),
                "providers": [checksum_address(account) for account in one.providers],
                "enough": one.enough,
            }
            for one in found.relaxations
        ],
        "helpless": found.helpless,
        "answers": [
            {
                "provider": checksum_address(answer.provider),
                "outcome": answer.outcome,
                "reason": answer.reason,
                "relaxation": answer.relaxation,
                "shortfalls": _shortfall_views(answer.shortfalls),
            }
            for answer in found.answers
        ],
    }


def _shortfall_views(shortfalls: Iterable[Shortfall]) -> list[Json]:
    return [{"name": one.name, "wanted": one.wanted, "nearest": one.nearest} for one in shortfalls]


# Bids.


def bids_view(state: NodeState, of: Job) -> Json:
    """Every tender of a job with every bid, each term of its score, who won, and what the choice cost or saved."""
    ours = [bought for _, bought in state.purchases.all() if bought.tender.job == of.job]
    ours.sort(key=lambda bought: bought.tender.bids_close_ms)
    return {
        "job": of.job.hex(),
        "name": of.spec.name,
        "phase": of.phase,
        "currency": of.spec.currency,
        "tenders": [tender_view(bought, of.spec.currency) for bought in ours],
    }


def _ranked_view(
    bought: Purchase,
    entry: Scored,
    won: Mapping[bytes, Placement],
    lost: Mapping[bytes, Placement],
    would: frozenset[bytes],
) -> Json:
    """One bid: what it costs until the work is done, and what came of it."""
    bid = bought.bids.get(entry.bid)
    if entry.excluded:
        words = entry.excluded
    elif entry.bid in won or bought.only_bids:
        words = explain_choice(bought.ranking, entry.bid)
    elif entry.bid in lost:
        words = lost[entry.bid].why or "the gang did not come together"
    else:
        words = "another bid is expected to cost less" if won else "the gang did not come together"
    otherwise = "would win" if entry.bid in would else "shown" if bought.only_bids else "lost"
    result = "won" if entry.bid in won else "excluded" if entry.excluded else otherwise
    return {
        "bid": entry.bid.hex(),
        "provider": checksum_address(entry.provider),
        "price_per_hour": entry.price_per_hour,
        "devices": entry.devices or (len(bid.devices) if bid is not None else 0),
        "share": number_text(share_in(bid.facts)) if bid is not None else "1",
        "reliability_ppm": entry.reliability_ppm,
        "speed_ppm": entry.speed_ppm,
        "speed_source": entry.speed_source,
        "finishing": format_amount(entry.finishing),
        "risk": format_amount(entry.risk),
        "transfer": format_amount(entry.transfer),
        "reclaim": format_amount(entry.reclaim),
        "rounds": format_amount(entry.rounds),
        "way_ms": entry.way_ms,
        "line_source": entry.line_source,
        "expected_cost": format_amount(entry.expected_cost),
        "result": result,
        "shard": won[entry.bid].shard if entry.bid in won else None,
        "why": words,
        "lease": bid.lease if bid is not None else "",
        "tier": bid.tier if bid is not None else "",
        "notice_ms": bid.reclaim_notice_ms if bid is not None else 0,
        "facts": {fact.name: fact.value for fact in bid.facts} if bid is not None else {},
    }


def tender_view(bought: Purchase, currency: str) -> Json:
    """A tender with every bid, each term of its score, who won, and what the choice cost or saved."""
    won = {entry.bid: entry for entry in bought.placements if entry.phase != "failed"}
    lost = {entry.bid: entry for entry in bought.placements if entry.phase == "failed"}
    would = frozenset(would_win(bought) if bought.only_bids and bought.ranking else ())
    rows = [_ranked_view(bought, entry, won, lost, would) for entry in bought.ranking]
    pace = bought.pace
    work_ms = pace.work_ms if pace is not None else 0
    chosen = choice_of(bought, won.keys() | would)
    told = choice.in_words(chosen, currency) if chosen is not None else ""
    if bought.reason == ONLY_BIDS and not would:
        told = f"The budget, {format_amount(bought.funds)} {currency}, is not enough for any set of these bids."
    return {
        "tender": bought.tender_digest.hex(),
        "phase": bought.phase,
        "shards": list(bought.tender.shards),
        "closed_ms": bought.tender.bids_close_ms,
        "reason": bought.reason,
        "asked": len(bought.invited),
        "declined": len(bought.declines),
        "silent": len(bought.silent),
        "open": [checksum_address(bid.signer) for bid in bought.bids.values()] if not bought.ranking else [],
        "bids": rows,
        "state_bytes": pace.state_bytes if pace is not None else 0,
        "round_work_ms": work_ms,
        "choice": told,
        "extra_per_hour": format_amount(chosen.extra_hourly) if chosen is not None else None,
        "saved": format_amount(chosen.saved) if chosen is not None else None,
        "saved_against_mean": format_amount(chosen.saved_against_mean) if chosen is not None else None,
    }
