"""The state as the local API shows it: plain JSON, made anew for each request. Nothing here changes anything."""

import json
from collections.abc import Iterable
from typing import Any

from hansa.market.ledger import Entry, Ledger, payees_part
from hansa.market.pricing import ITSELF
from hansa.market.purchase_state import Purchase
from hansa.market.receipts import LeaseTerms, Statement
from hansa.market.selection import explain_choice
from hansa.market.value_forms import number_text, percent_text
from hansa.node.engine.queueing import queue_view
from hansa.node.engine.state import NodeState
from hansa.proto.currency import currency_of
from hansa.proto.market_documents import Advert
from hansa.proto.sealed import is_sealed
from hansa.proto.signing import checksum_address
from hansa.proto.units import e18_to_price_per_hour, format_amount
from hansa.scheduler import run
from hansa.scheduler.job_losses import in_words
from hansa.scheduler.job_queue import due_ms
from hansa.scheduler.job_state import Job, Shard

Json = dict[str, Any]

PROMISE = (
    "The ledger records signed debts between two accounts, an IOU within a credit limit; nothing here moves money by"
    " itself, and nobody guarantees that a debtor pays."
)
ON_CHAIN_PROMISE = (
    "What is vouched for here is paid from the buyers' deposits in the escrow contract, which is experimental and"
    " unaudited; a provider that does not claim within a channel's challenge period loses what it did not claim."
)
SHARD_PHASES = {"ending": "running"}


def job_view(state: NodeState, job: Job, *, brief: bool = False) -> Json:
    """One job as its developer sees it. ``brief`` leaves out tenders, history and rounds."""
    purchases = [bought for _, bought in state.purchases.all() if bought.tender.job == job.job]
    rounds = state.rounds.get(job.job)
    ended = job.phase in ("succeeded", "failed", "cancelled")
    view: Json = {
        "job": job.job.hex(),
        "name": job.spec.name,
        "phase": job.phase,
        "reason": job.reason,
        "warning": money_warning(state, job),
        "missing": format_amount(job.missing) if job.waits_for_money else None,
        "queue": queue_view(job),
        "deadline_ms": due_ms(job) or None,
        "submitted_ms": job.submitted_ms,
        "ended_ms": job.ended_ms or None,
        "sealed": is_sealed(job.spec.requirements),
        "settled": ended and _is_settled(state, purchases),
        "shards": [_shard_view(shard) for shard in job.shards],
        "round": rounds.published if rounds else 0,
        "parameters": {entry.name: json.loads(entry.value) for entry in job.spec.parameters},
        "currency": job.spec.currency,
        "spend": _spend_view(state, job, purchases),
        "outputs": [
            {
                "shard": shard.shard,
                "path": output.path,
                "root": output.blob.root.hex(),
                "size_bytes": output.blob.size_bytes,
            }
            for shard in job.shards
            for output in shard.outputs
            if output.here
        ],
    }
    if brief:
        return view
    view["tenders"] = [_tender_view(bought) for bought in purchases]
    view["history"] = [
        {
            "round": point.step,
            "at_ms": point.at_ms,
            "metrics": {metric.name: metric.value for metric in point.metrics},
        }
        for point in job.history
    ]
    view["rounds"] = [
        {
            "round": past.round,
            "at_ms": past.at_ms,
            "members": list(past.members),
            "rejected": [{"shard": left.shard, "reason": left.reason} for left in past.rejected],
        }
        for past in (rounds.history if rounds else ())
    ]
    return view


def money_warning(state: NodeState, job: Job) -> str:
    """What its developer should know about the money before it is gone, or now that it is; empty where all is well."""
    channels = [
        channel for channel in state.paying.live.values() if any(t.job == job.job for t in channel.terms.values())
    ]
    trouble = next((f" ({channel.trouble})" for channel in channels if channel.trouble), "")
    name = job.job.hex()[:12]
    if job.waits_for_money and job.missing:
        # Shards that were tendered one by one were each refused for themselves: together they may need more.
        lacking = format_amount(job.missing)
        return f"it waits for money: at least {lacking} more is needed; hansa top-up {name} {lacking}"
    if job.waits_for_money:
        looked = next((shard.unfilled for shard in job.shards if shard.short and shard.unfilled), "")
        trouble += f"; when it last looked for a provider: {looked}" if looked else ""
        if state.payer not in (ITSELF, state.account):
            return f"it waits: its channel could not pay{trouble}; hansa wallet deposit has it go on"
        remedy = "fill the wallet" if currency_of(job.spec.currency).is_on_chain else "pay what you owe its provider"
        return f"it waits: its channel could not pay{trouble}; {remedy}, then hansa top-up {name} 0"
    for channel in channels:
        if channel.phase == "open" and channel.limit is not None and channel.limit < channel.wanted:
            most, wanted = format_amount(channel.limit), format_amount(channel.wanted)
            if not currency_of(channel.currency).is_on_chain:
                # No deposit is behind it: what it can pay is what its provider lends, and that may have become less.
                low = f"money runs low: by its provider's credit line a channel can pay {most} in all"
                return f"{low}, and may need {wanted}{trouble}; pay what you owe its provider, or have it lend more"
            if not channel.limit and not channel.trouble:
                return f"a channel's deposit of {wanted} is not final yet: a run starts when it is"
            return f"money runs low: a channel can pay {most} in all, and may need {wanted}{trouble}"
    return ""


def _is_settled(state: NodeState, purchases: list[Purchase]) -> bool:
    """Whether every channel that this job was paid on is closed with both signatures, or never opened."""
    if any(bought.phase not in ("settled", "unfilled", "cancelled") for bought in purchases):
        return False
    keys = {placement.award.channel_id for bought in purchases for placement in bought.placements}
    channels = [channel for key in keys if (channel := state.paying.get(key)) is not None]
    return all(channel.phase == "closed" for channel in channels)


def _checkpoint_view(shard: Shard) -> Json | None:
    """The newest checkpoint that is here, and who says that it holds the same one."""
    if shard.checkpoint is None:
        return None
    mirror = shard.mirror
    return {
        "round": shard.checkpoint.round,
        "step": shard.checkpoint.step,
        "size_bytes": shard.checkpoint.blob.size_bytes,
        "mirror": checksum_address(mirror.provider) if mirror and mirror.held == shard.checkpoint.blob else None,
        "mirror_refusal": mirror.refusal if mirror else "",
        "refusal": shard.refusal,
    }


def _shard_view(shard: Shard) -> Json:
    has_lease = shard.attempts > 0
    is_over = shard.phase in ("kept", "leaving")
    leaves = shard.phase in ("starting", "running", "kept") and shard.reclaim_by_ms > 0
    return {
        "shard": shard.shard,
        "phase": SHARD_PHASES.get(shard.phase, shard.phase),
        "provider": checksum_address(shard.provider) if has_lease else None,
        "lease": shard.lease.hex() if has_lease else None,
        "step": shard.step,
        "metrics": {metric.name: metric.value for metric in shard.metrics},
        "attempts": shard.attempts,
        "losses": shard.losses,
        "moves": shard.reclaims,
        "checkpoint": _checkpoint_view(shard),
        "kind": shard.kind,
        "reason": in_words(shard.kind, shard.reason) if is_over else shard.reason,
        "kept_until_ms": shard.kept_until_ms if shard.phase == "kept" else None,
        "leaves_by_ms": shard.reclaim_by_ms if leaves else None,
        "leaves_why": shard.reclaim_why if leaves else "",
    }


def _tender_view(bought: Purchase) -> Json:
    chosen = {placement.bid: placement for placement in bought.placements if placement.phase != "failed"}
    lost = {placement.bid: placement for placement in bought.placements if placement.phase == "failed"}
    bids = []
    for entry in bought.ranking:
        placement = chosen.get(entry.bid)
        why = explain_choice(bought.ranking, entry.bid) if placement else "another bid cost less"
        if entry.excluded:
            why = entry.excluded
        elif entry.bid in lost:
            why = lost[entry.bid].why or "the gang did not come together"
        bids.append(
            {
                "bid": entry.bid.hex(),
                "provider": checksum_address(entry.provider),
                "price_per_hour": entry.price_per_hour,
                "reliability": percent_text(entry.reliability_ppm),
                "expected_cost": format_amount(entry.expected_cost),
                "score": format_amount(entry.expected_cost),
                "won": placement is not None,
                "shard": placement.shard if placement else None,
                "why": why,
            }
        )
    if not bought.ranking:
        bids = [
            {
                "bid": digest.hex(),
                "provider": checksum_address(bid.signer),
                "price_per_hour": e18_to_price_per_hour(bid.price_e18_per_device_ms),
                "reliability": "",
                "expected_cost": "",
                "score": "",
                "won": False,
                "shard": None,
                "why": "bidding is open",
            }
            for digest, bid in bought.bids.items()
        ]
    return {
        "tender": bought.tender_digest.hex(),
        "phase": bought.phase,
        "shards": list(bought.tender.shards),
        "bids": bids,
        "declines": [
            {
                "provider": checksum_address(account),
                "reason": decline.reason,
                "relaxation": decline.relaxation,
            }
            for account, decline in bought.declines.items()
        ],
        "silent": [checksum_address(account) for account in bought.silent],
        "reason": bought.reason,
    }


def _spend_view(state: NodeState, job: Job, purchases: list[Purchase]) -> Json:
    by_provider = []
    for bought in purchases:
        for placement in bought.placements:
            channel = state.paying.get(placement.award.channel_id)
            if channel is None or placement.phase in ("failed", "awarded"):
                continue
            vouched = format_amount(channel.vouched(placement.lease))
            device_ms, busy_ms = _evidence_of(channel.accepted, placement.lease)
            by_provider.append(
                {
                    "provider": checksum_address(placement.provider),
                    "shard": placement.shard,
                    "lease": placement.lease.hex(),
                    "vouched": vouched,
                    "metered": vouched,
                    "tier": bought.bids[placement.bid].tier,
                    "lease_kind": bought.bids[placement.bid].lease,
                    "withheld": format_amount(_withheld(channel.terms.get(placement.lease), device_ms)),
                    "is_over": placement.phase == "ended",
                    **_use_view(device_ms, busy_ms),
                    "channel_id": placement.award.channel_id.hex(),
                    "channel_phase": channel.phase,
                }
            )
    spent = state.ledger.balance(f"spend:{job.job.hex()}")
    return {"vouched": format_amount(spent), "budget": format_amount(job.spec.budget), "by_provider": by_provider}


def _withheld(agreed: LeaseTerms | None, device_ms: int) -> int:
    """What of a firm lease's price is not charged, since it did not end well, or not yet."""
    if agreed is None or agreed.released:
        return 0
    return agreed.amount(device_ms) - agreed.withholding(device_ms)


def _evidence_of(accepted: Statement | None, lease: bytes) -> tuple[int, int]:
    """Metered device time of a lease, and how much of it the devices computed, as the provider's last receipt says."""
    pairs = zip(accepted.lines, accepted.evidence, strict=True) if accepted else ()
    return next(((line.device_ms, proof.busy_ms) for line, proof in pairs if line.lease == lease), (0, 0))


def _use_view(device_ms: int, busy_ms: int) -> Json:
    """How much of its time a lease's devices computed. Where nobody measures it, nothing is said."""
    used = min(100, busy_ms * 100 // device_ms) if device_ms and busy_ms else None
    return {"device_ms": device_ms, "busy_ms": busy_ms, "used_percent": used}


def lease_views(state: NodeState) -> list[Json]:
    """The leases that this provider has out, the oldest first."""
    found = [entry for entry in state.sales.live.values() if entry.terms is not None]
    views = []
    for entry in sorted(found, key=lambda entry: (entry.terms.begins_ms if entry.terms else 0, entry.lease)):
        assert entry.terms is not None
        current = state.runs.get(entry.lease)
        views.append(
            {
                "lease": entry.lease.hex(),
                "buyer": checksum_address(entry.buyer),
                "phase": "kept" if current is not None and current.phase == run.KEPT else entry.phase,
                "shard": entry.terms.shard,
                "devices": [device.hex() for device in entry.bid.devices],
                "share": number_text(entry.terms.share_milli),
                "tier": entry.bid.tier,
                "step": entry.steps,
                **_use_view(entry.device_ms, min(entry.busy_ms, entry.device_ms)),
                "lease_kind": entry.bid.lease,
                "withheld": format_amount(entry.withheld),
                "accrued": format_amount(entry.accrued),
                "vouched": format_amount(entry.vouched),
                "ends_ms": entry.terms.ends_ms,
                "leaves_by_ms": (entry.reclaim_by_ms or None) if entry.phase == "running" else None,
            }
        )
    return views


def advert_view(advert: Advert, *, connected: bool) -> Json:
    """One provider in the book."""
    return {
        "account": checksum_address(advert.signer),
        "peer_id": advert.peer_id,
        "region": advert.region,
        "tier": advert.tier,
        "features": list(advert.features),
        "devices": [
            {
                "kind": device.kind,
                "model": device.model,
                "memory_bytes": device.memory_bytes,
                "cores_milli": device.cores_milli,
                "facts": {fact.name: fact.value for fact in device.facts},
            }
            for device in advert.devices
        ],
        "facts": {fact.name: fact.value for fact in advert.facts},
        "free": advert.free,
        "price_per_hour": e18_to_price_per_hour(advert.price_e18_per_device_ms),
        "currency": advert.currency,
        "expires_ms": advert.expires_ms,
        "connected": connected,
    }


def promise_for(currencies: Iterable[str]) -> str:
    """What stands behind amounts in these currencies, and what does not, in plain words."""
    on_chain = {currency_of(name).is_on_chain for name in currencies}
    return " ".join(words for words, kind in ((PROMISE, False), (ON_CHAIN_PROMISE, True)) if kind in on_chain)


def balance_view(state: NodeState, currency: str, entries: int) -> Json:
    """What this node earned and spent, and how the books stand.

    What was earned is this node's own part where a job's payments are split, what was spent is all of them. What is
    prepaid is in neither: it is a promise until a receipt uses it. What was written off is the whole price, with
    others' parts: the books keep it by job, and a statement tells the own part.
    """
    ledger = state.ledger
    channels = [
        {
            "channel_id": key.hex(),
            "role": "payer",
            "counterparty": checksum_address(paying.config.payee),
            "phase": paying.phase,
            "vouched": format_amount(paying.metered),
            "metered": format_amount(paying.metered),
            "prepaid": format_amount(max(0, paying.cumulative - paying.metered)),
        }
        for key, paying in state.paying.all()
    ]
    channels += [
        {
            "channel_id": key.hex(),
            "role": "payee",
            "counterparty": checksum_address(earning.config.payer),
            "phase": earning.phase,
            "vouched": format_amount(payees_part(earning.earned, earning.splits)),
            "metered": format_amount(payees_part(earning.metered, earning.splits)),
            "prepaid": format_amount(
                max(0, payees_part(earning.cumulative, earning.splits) - payees_part(earning.earned, earning.splits))
            ),
        }
        for key, earning in state.earning.all()
    ]
    return {
        "account": checksum_address(state.account),
        "currency": currency,
        "earned": format_amount(-ledger.total("earned:")),
        "spent": format_amount(ledger.total("spend:")),
        "owed": format_amount(-ledger.total("owed:")),
        "due": format_amount(ledger.total("due:")),
        "paid_out": format_amount(-ledger.total("paid:")),
        "paid_in": format_amount(ledger.total("settled:")),
        # Payments are between two accounts and for no channel, so they are taken off the whole.
        "received": format_amount(-ledger.total("acknowledged:")),
        "remitted": format_amount(ledger.total("acquitted:")),
        "open_in": format_amount(sum(ledger.total(name) for name in ("due:", "settled:", "acknowledged:"))),
        "open_out": format_amount(-sum(ledger.total(name) for name in ("owed:", "paid:", "acquitted:"))),
        "written_off": format_amount(-ledger.total("written-off:")),
        "forfeited": format_amount(ledger.total("forfeited:")),
        "kept": format_amount(ledger.total("kept:")),
        "sum": format_amount(ledger.total()),
        "channels": channels,
        "entries": entries,
        "promise": PROMISE,
    }


def chain_balance(ledger: Ledger, came: int, went: int) -> Json:
    """What a balance says instead where a contract pays: what it has paid stands in no book, but for what it took.

    Args:
        ledger: this node's.
        came: what the chain has paid to it.
        went: what its own channels have paid there, with what was paid ahead and is lost.
    """
    paid_in = max(0, ledger.total("settled:") - came)
    paid_out = max(0, -ledger.total("paid:") - (went - ledger.total("forfeited:")))
    return {
        "chain_in": format_amount(came),
        "chain_out": format_amount(went),
        "paid_in": format_amount(paid_in),
        "paid_out": format_amount(paid_out),
        "open_in": format_amount(ledger.total("due:") + paid_in),
        "open_out": format_amount(paid_out - ledger.total("owed:")),
        "promise": ON_CHAIN_PROMISE,
    }


def entries_view(entries: Iterable[Entry]) -> list[Json]:
    """The ledger's entries in their order."""
    return [
        {
            "id": entry.id.hex(),
            "at_ms": entry.at_ms,
            "memo": entry.memo,
            "legs": [{"account": leg.account, "amount": format_amount(leg.amount)} for leg in entry.legs],
        }
        for entry in entries
    ]
