"""The buyer's machine for one tender: from the call for bids to the last lease that came of it.

A job's first tender asks for all of its shards, all or none; a shard that is lost later is tendered again as a purchase
of its own. Nobody is waited for alone: bidding closes at its deadline, when everyone invited has answered, or when more
bids cannot pay for the wait (``hansa.market.closing``); a winner that does not confirm in time is replaced by the next.
"""

from dataclasses import replace
from typing import Any

from hansa.market.bandwidth import by_provider
from hansa.market.closing import MOST_WEIGHED, pays_until_ms
from hansa.market.effects import MOST_CHANNELS, Send, channel_salt, unsigned
from hansa.market.machine import SAME, Step, Table, ignore, rows
from hansa.market.purchase_awards import (
    award_message,
    awarded_ms,
    cancel,
    fill,
    give_up,
    release,
    release_losers,
    shortage,
    usable,
    with_phase,
    with_rounds,
)
from hansa.market.purchase_events import (
    BidArrived,
    BidsShown,
    ConfirmationArrived,
    DeclineArrived,
    Gathered,
    LeaseEnded,
    RefusalOfLeaseArrived,
    Restarted,
    TimePassed,
    Withdrawn,
)
from hansa.market.purchase_state import (
    DEAF,
    ENDED_BADLY,
    ONLY_BIDS,
    SILENT,
    TAKEN_BACK,
    UNHEARD,
    WITHOUT_FAULT,
    Placement,
    Purchase,
)
from hansa.market.refusals import is_own_fault
from hansa.market.scoring import Scored
from hansa.market.selection import rank
from hansa.proto.messages import TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

AT_ONCE_MS = 1_000
"""Who confirms within so long shows that a silence which ended with its award was not the line's."""
MOST_BIDS = 1_000
"""More are not read: a tender needs the best few, and a flood must not fill the memory."""


TABLE: Table[Purchase] = Table(
    name="market.purchase",
    start="tendering",
    terminal=frozenset({"settled", "unfilled", "cancelled"}),
    allowed=rows(
        ("tendering", (BidArrived, DeclineArrived, TimePassed), ("tendering", "awarding", "unfilled", "cancelled")),
        ("tendering", Withdrawn, "cancelled"),
        # A provider that bids twice for one thing, or late, learns at once that its devices are free again.
        (("awarding", "running", "settling", "settled", "unfilled", "cancelled"), BidArrived, SAME),
        ("awarding", (ConfirmationArrived, RefusalOfLeaseArrived), ("awarding", "running", "unfilled")),
        ("awarding", TimePassed, ("awarding", "running", "unfilled")),
        ("awarding", Restarted, SAME),
        ("awarding", Withdrawn, "cancelled"),
        (("running", "unfilled", "cancelled"), ConfirmationArrived, SAME),
        ("running", LeaseEnded, ("running", "settling", "settled")),
        ("running", Withdrawn, ("settling", "settled")),
        ("settling", LeaseEnded, ("settling", "settled")),
    ),
)


def open_purchase(state: Purchase, at_ms: int) -> Step[Purchase]:
    """Send the tender to everyone invited; with nobody to invite it is unfilled at once."""
    if not state.invited:
        return give_up(state, "no provider is known that could be invited", at_ms)
    opened = replace(state, opened_ms=at_ms)
    return Step(state=opened, effects=outstanding(opened, at_ms))


def advance(state: Purchase, event: Any) -> Step[Purchase]:
    """One event of a purchase."""
    return TABLE.advance(state, event, _react)


def deadline_ms(state: Purchase) -> int | None:
    """When time alone will change something."""
    if state.phase == "tendering":
        return state.closes_ms or state.tender.bids_close_ms
    if state.phase == "awarding":
        waiting = [placement.award.confirm_by_ms for placement in state.placements if placement.phase == "awarded"]
        return min(waiting, default=None)
    return None


def _react(state: Purchase, event: Any) -> Step[Purchase]:
    match event:
        case BidArrived():
            return _take_bid(state, event)
        case DeclineArrived(decline=decline):
            if decline.document.signer not in state.invited:
                return ignore(state, "a decline of somebody who was not invited")
            declined = replace(state, declines={**state.declines, decline.document.signer: decline.document})
            return _close_or_wait(declined, event.at_ms)
        case TimePassed() if state.phase == "tendering":
            return _award(state, event.at_ms)
        case Restarted():
            waiting = tuple(entry.lease for entry in state.placements if entry.phase == "awarded")
            return Step(state=replace(state, away=waiting))
        case TimePassed():
            return _replace_silent(state, event)
        case ConfirmationArrived():
            return _confirm(state, event)
        case RefusalOfLeaseArrived():
            return _fail(state, event)
        case LeaseEnded():
            return _end(state, event)
        case Withdrawn():
            return _withdraw(state, event)
        case _:
            raise AssertionError(f"the table knows {type(event).__name__}, this function does not")


def _take_bid(state: Purchase, event: BidArrived) -> Step[Purchase]:
    bid = event.bid.document
    bid_digest = digest(DOMAIN, bid)
    if bid_digest in state.bids:
        return ignore(state, "a bid that is known")
    if state.phase != "tendering":
        return Step(state=state, effects=(release(state, bid.signer, bid_digest, "bidding is closed", event.at_ms),))
    if bid.signer not in state.invited:
        return ignore(state, "a bid of somebody who was not invited")
    if len(state.bids) >= MOST_BIDS:
        return ignore(state, "more bids than are read")
    if sum(known.signer == bid.signer for known in state.bids.values()) >= len(state.tender.shards):
        return ignore(state, "more bids of one provider than there are shards")
    bids = {**state.bids, bid_digest: bid}
    return _close_or_wait(replace(state, bids=bids), event.at_ms)


def _close_or_wait(state: Purchase, at_ms: int) -> Step[Purchase]:
    """Somebody answered: close if nobody else could, or if it cannot pay to wait for them."""
    if _all_have_answered(state):
        return _award(state, at_ms)
    waits = replace(state, closes_ms=_pays_until_ms(state, at_ms))
    return _award(waits, at_ms) if waits.closes_ms <= at_ms else Step(state=waits)


def _pays_until_ms(state: Purchase, at_ms: int) -> int:
    latest_ms = state.tender.bids_close_ms
    if not state.opened_ms or len(state.bids) > MOST_WEIGHED:
        return latest_ms
    return pays_until_ms(
        usable(replace(state, ranking=_ranking(state, at_ms))),
        shards=len(state.tender.shards),
        invited=len(state.invited),
        answered=len(state.invited) - len(state.silent),
        wall_ms=state.tender.requirements.wall_ms,
        opened_ms=state.opened_ms,
        latest_ms=latest_ms,
    )


def _all_have_answered(state: Purchase) -> bool:
    """Whether nobody invited could still send a bid: each sent one for every shard, or said that there are no more."""
    bids: dict[bytes, int] = {}
    for bid in state.bids.values():
        bids[bid.signer] = bids.get(bid.signer, 0) + 1
    wanted = len(state.tender.shards)
    return all(account in state.declines or bids.get(account, 0) >= wanted for account in state.invited)


def _ranking(state: Purchase, at_ms: int) -> tuple[Scored, ...]:
    ranking = rank(
        state.tender,
        state.bids,
        state.records,
        trials=state.trials,
        lines=by_provider(state.lines),
        state_bytes=state.pace.state_bytes if state.pace is not None else 0,
        input_bytes=state.workload.package_bytes + state.workload.fetch_bytes,
        max_prepay_ms=state.max_prepay_ms,
        at_ms=at_ms,
    )
    return with_rounds(replace(state, ranking=ranking))


def _award(state: Purchase, at_ms: int) -> Step[Purchase]:
    """Bidding is closed: rank what is there and give every shard to the best bid that is left."""
    ranking = _ranking(state, at_ms)
    # The ranking has what followed from what was measured, and ended purchases are remembered for long.
    ranked = replace(state, phase="awarding", ranking=ranking, trials=(), lines=())
    if not state.only_bids:
        return fill(ranked, at_ms)
    if len(usable(ranked)) < len(state.tender.shards):
        return give_up(ranked, shortage(ranked), at_ms)
    shown = replace(ranked, phase="cancelled", reason=ONLY_BIDS)
    told = BidsShown(tender=state.tender_digest, at_ms=at_ms)
    return Step(state=shown, effects=(*release_losers(shown, at_ms), told))


def _confirm(state: Purchase, event: ConfirmationArrived) -> Step[Purchase]:
    placement = next((entry for entry in state.placements if entry.lease == event.lease), None)
    if placement is None:
        return ignore(state, "a confirmation of no lease of ours")
    if placement.phase == "failed":
        taken = cancel(placement, "another provider took the shard", event.at_ms)
        return Step(state=state, effects=(taken,))
    if placement.phase != "awarded":
        return ignore(state, "a confirmation that is known")
    confirmed = _without_excuse(with_phase(state, placement.lease, "confirmed"), placement, event.at_ms)
    if any(entry.phase == "awarded" for entry in confirmed.placements):
        return Step(state=confirmed)
    gang = tuple(entry for entry in confirmed.placements if entry.phase == "confirmed")
    running = replace(confirmed, phase="running")
    gathered = Gathered(tender=state.tender_digest, placements=gang, at_ms=event.at_ms)
    return Step(state=running, effects=(*release_losers(running, event.at_ms), gathered))


def _fail(state: Purchase, event: RefusalOfLeaseArrived) -> Step[Purchase]:
    """One award came to nothing: another bid takes its shard."""
    refused = next((each for each in state.placements if (each.lease, each.phase) == (event.lease, "awarded")), None)
    if refused is None:
        return ignore(state, "a refusal of no award that waits")
    deserted = is_own_fault(
        event.kind,
        award=refused.award,
        bid=state.bids[refused.bid],
        is_old_channel=not _is_of_this_tender(state, refused),
        workload=state.workload,
        at_ms=event.at_ms,
    )
    failed = with_phase(state, event.lease, "failed", event.reason)
    judged = tuple(
        replace(entry, deserted=deserted) if entry.lease == event.lease else entry for entry in failed.placements
    )
    return fill(replace(failed, placements=judged), event.at_ms)


def _is_of_this_tender(state: Purchase, placement: Placement) -> bool:
    """Whether an award named a channel that its tender opened, by the salt.

    What is known of older ones is no sign: the word that one ended may come before its provider refuses for it.
    """
    salts = (channel_salt(state.tender_digest, placement.provider, failed) for failed in range(MOST_CHANNELS))
    return placement.channel.salt in salts


def _replace_silent(state: Purchase, event: TimePassed) -> Step[Purchase]:
    at_ms = event.at_ms
    late = [entry for entry in state.placements if entry.phase == "awarded" and entry.award.confirm_by_ms <= at_ms]
    for placement in late:
        why = UNHEARD if placement.lease in state.away else SILENT
        if why == SILENT and 0 < event.last_heard_ms <= awarded_ms(placement.award):
            why = DEAF  # It may be our own line that is gone.
        state = with_phase(state, placement.lease, "failed", why)
    cancels = tuple(cancel(placement, "not confirmed in time", at_ms) for placement in late)
    step = fill(state, at_ms)
    return Step(state=step.state, effects=(*cancels, *step.effects))


def _without_excuse(state: Purchase, placement: Placement, at_ms: int) -> Purchase:
    """Somebody confirmed at once: if the award came right after others were silent, the line was there all the time."""
    began_ms = awarded_ms(placement.award)
    if at_ms > began_ms + AT_ONCE_MS:
        return state
    for entry in state.placements:
        if entry.why == DEAF and entry.award.confirm_by_ms >= began_ms - AT_ONCE_MS:
            state = with_phase(state, entry.lease, "failed", SILENT)
    return state


def _withdraw(state: Purchase, event: Withdrawn) -> Step[Purchase]:
    if state.phase == "running":
        return Step(state=replace(state, phase="settling" if state.live else "settled", reason=event.reason))
    cancels = tuple(cancel(placement, event.reason, event.at_ms) for placement in state.live)
    failed = tuple(replace(entry, phase="failed") for entry in state.placements)
    cancelled = replace(state, phase="cancelled", reason=event.reason, placements=failed, trials=(), lines=())
    return Step(state=cancelled, effects=(*cancels, *release_losers(cancelled, event.at_ms)))


def _end(state: Purchase, event: LeaseEnded) -> Step[Purchase]:
    if not any(entry.lease == event.lease and entry.phase == "confirmed" for entry in state.placements):
        return ignore(state, "the end of no lease that lives")
    why = TAKEN_BACK if event.reclaimed else WITHOUT_FAULT if event.blameless else ENDED_BADLY
    ended = with_phase(state, event.lease, "ended", "" if event.well else why)
    return Step(state=replace(ended, phase=state.phase if ended.live else "settled"))


def outstanding(state: Purchase, at_ms: int) -> tuple[Any, ...]:
    """What this purchase waits for somebody to take, said again: after a restart, and when it begins."""
    if state.phase == "tendering":
        message = TenderSent(tender=unsigned(state.tender))
        return tuple(
            Send(to=account, message=message, keep_until_ms=state.tender.bids_close_ms) for account in state.silent
        )
    if state.phase == "awarding":
        return tuple(award_message(state, entry) for entry in state.placements if entry.phase == "awarded")
    if state.phase in ("unfilled", "cancelled"):
        ended = (entry for entry in state.placements if entry.award.ends_ms > at_ms)
        return tuple(cancel(entry, state.reason, at_ms) for entry in ended)
    return ()
