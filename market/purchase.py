"""The buyer's machine for one tender: from the call for bids to the last lease that came of it.

A job's first tender asks for all of its shards, all or none; a shard that is lost later is tendered again as a purchase
of its own. Nobody is waited for alone: bidding closes when everyone invited has answered or at its deadline, and a
winner that does not confirm in time is replaced by the next bid.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hansa.market.effects import Send, channel_salt, clipped, derived_nonce, unsigned
from hansa.market.funding import start_ms
from hansa.market.machine import SAME, Step, Table, ignore, rows
from hansa.market.selection import Record, Scored, rank
from hansa.market.settlement import CHALLENGE_PERIOD_S
from hansa.proto.currency import currency_of
from hansa.proto.documents import ChannelConfig, channel_id
from hansa.proto.market_documents import Award, Bid, Decline, Tender
from hansa.proto.messages import AwardSent, BidReleased, LeaseCancelled, TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed
from hansa.proto.typed_data import digest
from hansa.proto.units import Address, Amount, Bytes32, DurationMs, Uint32, UnixMs, format_amount
from hansa.proto.workload import Workload

CONFIRM_MS = 4_000
"""A winner that has not confirmed for so long is replaced."""
SILENT = "did not confirm in time"
ENDED_BADLY = "ended badly"
TAKEN_BACK = "its devices were taken back in time"
MOST_BIDS = 1_000
"""More are not read: a tender needs the best few, and a flood must not fill the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BidArrived:
    """A bid with its signer's own signature on it."""

    bid: Signed[Bid]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclineArrived:
    """A provider's "no"."""

    decline: Signed[Decline]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmationArrived:
    """The provider confirmed the lease."""

    lease: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalOfLeaseArrived:
    """The provider did not confirm, and says why."""

    lease: Bytes32
    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnded:
    """Nothing more will run under the lease, and nothing more is owed for it that a receipt could still claim.

    Attributes:
        blameless: it did not end well, and its provider did all that it had promised.
    """

    lease: Bytes32
    well: bool
    blameless: bool = False
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """The buyer does not want it any more."""

    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """The deadline that the machine named has come."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One shard given to one bid.

    Attributes:
        shard: the shard.
        bid: the bid's digest.
        provider: who made it.
        award: the award that was sent.
        lease: its digest.
        channel: the channel that pays.
        phase: ``awarded``, ``confirmed``, ``failed`` (never became a lease) or ``ended``.
        why: why it was chosen, or why it failed.
    """

    shard: Uint32
    bid: Bytes32
    provider: Address
    award: Award
    lease: Bytes32
    channel: ChannelConfig
    phase: str = "awarded"
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Effect to the job: the whole gang is confirmed."""

    tender: Bytes32
    placements: tuple[Placement, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfilled:
    """Effect to the job: the gang did not come together, and why.

    Attributes:
        deserted: winners did not confirm. Without them another tender may well be filled.
        missing: how much more the job's budget would have had to be; 0 where money was not the reason.
    """

    tender: Bytes32
    reason: str
    deserted: bool
    missing: Amount = 0
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """The state.

    Attributes:
        phase: tendering, awarding, running, settling, settled, unfilled or cancelled.
        tender: the call for bids.
        tender_digest: its digest.
        workload: what the award will buy the running of.
        funds: the most that all of this purchase's leases may cost together.
        max_prepay_ms: how much device time is paid ahead at the most.
        invited: accounts that the tender was sent to.
        channels: the open channel to a provider, where there is one already.
        records: how earlier leases with each provider ended.
        bids: by digest.
        declines: by provider.
        ranking: the table as it was when bidding closed.
        placements: every award made, failed ones included.
        reason: why it ended as it did.
    """

    phase: str = "tendering"
    tender: Tender
    tender_digest: Bytes32
    workload: Workload
    funds: Amount
    max_prepay_ms: DurationMs = 0
    invited: tuple[Address, ...]
    channels: Mapping[bytes, ChannelConfig] = field(default_factory=dict)
    records: Mapping[bytes, Record] = field(default_factory=dict)
    bids: Mapping[bytes, Bid] = field(default_factory=dict)
    declines: Mapping[bytes, Decline] = field(default_factory=dict)
    ranking: tuple[Scored, ...] = ()
    placements: tuple[Placement, ...] = ()
    reason: str = ""

    @property
    def live(self) -> tuple[Placement, ...]:
        """Placements that are, or may become, leases."""
        return tuple(placement for placement in self.placements if placement.phase in ("awarded", "confirmed"))

    @property
    def deserters(self) -> frozenset[Address]:
        """Who won and did not confirm."""
        return frozenset(placement.provider for placement in self.placements if placement.why == SILENT)

    @property
    def silent(self) -> tuple[Address, ...]:
        """Who was invited and has not answered."""
        answered = {bid.signer for bid in self.bids.values()} | set(self.declines)
        return tuple(account for account in self.invited if account not in answered)


TABLE: Table[Purchase] = Table(
    name="market.purchase",
    start="tendering",
    terminal=frozenset({"settled", "unfilled", "cancelled"}),
    allowed=rows(
        ("tendering", (BidArrived, DeclineArrived, TimePassed), ("tendering", "awarding", "unfilled")),
        ("tendering", Withdrawn, "cancelled"),
        # A provider that bids twice for one thing, or late, learns at once that its devices are free again.
        (("awarding", "running", "settling", "settled", "unfilled", "cancelled"), BidArrived, SAME),
        ("awarding", (ConfirmationArrived, RefusalOfLeaseArrived), ("awarding", "running", "unfilled")),
        ("awarding", TimePassed, ("awarding", "running", "unfilled")),
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
        return _give_up(state, "no provider is known that could be invited", at_ms)
    return Step(state=state, effects=outstanding(state, at_ms))


def advance(state: Purchase, event: Any) -> Step[Purchase]:
    """One event of a purchase."""
    return TABLE.advance(state, event, _react)


def deadline_ms(state: Purchase) -> int | None:
    """When time alone will change something."""
    if state.phase == "tendering":
        return state.tender.bids_close_ms
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
            return _close_if_complete(declined, event.at_ms)
        case TimePassed() if state.phase == "tendering":
            return _award(state, event.at_ms)
        case TimePassed():
            return _replace_silent(state, event.at_ms)
        case ConfirmationArrived():
            return _confirm(state, event)
        case RefusalOfLeaseArrived():
            return _fail(state, event.lease, event.reason, event.at_ms)
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
        return Step(state=state, effects=(_release(state, bid.signer, bid_digest, "bidding is closed", event.at_ms),))
    if bid.signer not in state.invited:
        return ignore(state, "a bid of somebody who was not invited")
    if len(state.bids) >= MOST_BIDS:
        return ignore(state, "more bids than are read")
    if sum(known.signer == bid.signer for known in state.bids.values()) >= len(state.tender.shards):
        return ignore(state, "more bids of one provider than there are shards")
    bids = {**state.bids, bid_digest: bid}
    return _close_if_complete(replace(state, bids=bids), event.at_ms)


def _close_if_complete(state: Purchase, at_ms: int) -> Step[Purchase]:
    return _award(state, at_ms) if _all_have_answered(state) else Step(state=state)


def _all_have_answered(state: Purchase) -> bool:
    """Whether nobody invited could still send a bid: each sent one for every shard, or said that there are no more."""
    bids: dict[bytes, int] = {}
    for bid in state.bids.values():
        bids[bid.signer] = bids.get(bid.signer, 0) + 1
    wanted = len(state.tender.shards)
    return all(account in state.declines or bids.get(account, 0) >= wanted for account in state.invited)


def _award(state: Purchase, at_ms: int) -> Step[Purchase]:
    """Bidding is closed: rank what is there and give every shard to the best bid that is left."""
    ranking = rank(state.tender, state.bids, state.records, max_prepay_ms=state.max_prepay_ms, at_ms=at_ms)
    return _fill(replace(state, phase="awarding", ranking=ranking), at_ms)


def _fill(state: Purchase, at_ms: int) -> Step[Purchase]:
    """Award what has no live award; give up and free everybody when that cannot be done."""
    placed = {placement.shard for placement in state.live}
    new: list[Placement] = []
    for shard in state.tender.shards:
        if shard in placed:
            continue
        best = _best_left(state, (*state.placements, *new))
        if best is None:
            return _give_up(state, _shortage(state), at_ms)
        new.append(_placement(state, shard, best, at_ms))
    promised = sum(state.bids[placement.bid].max_total for placement in (*state.live, *new))
    if promised > state.funds:
        reason = (
            f"price, devices and limits.wall allow the leases to cost {format_amount(promised)},"
            f" and {format_amount(state.funds)} is left of the budget"
        )
        return _give_up(state, reason, at_ms, missing=promised - state.funds)
    after = replace(state, placements=(*state.placements, *new))
    awards = tuple(_award_message(after, placement) for placement in new)
    return Step(state=after, effects=awards)


def _best_left(state: Purchase, placements: tuple[Placement, ...]) -> bytes | None:
    """The best bid that was not tried, of a provider that answers, on devices that it did not sell us already."""
    used = {placement.bid for placement in placements}
    sold = {
        (placement.provider, device)
        for placement in placements
        if placement.phase != "failed"
        for device in state.bids[placement.bid].devices
    }
    for entry in state.ranking:
        devices = {(entry.provider, device) for device in state.bids[entry.bid].devices}
        tried = entry.bid in used or entry.provider in state.deserters
        if not entry.excluded and not tried and not devices & sold:
            return entry.bid
    return None


def _shortage(state: Purchase) -> str:
    eligible = sum(not entry.excluded for entry in state.ranking)
    wanted = len(state.tender.shards)
    if eligible < wanted:
        return f"{eligible} of the {wanted} bids that it takes"
    return "too many of the winners did not confirm"


def _placement(state: Purchase, shard: int, bid_digest: bytes, at_ms: int) -> Placement:
    bid, tender = state.bids[bid_digest], state.tender
    failed = sum(entry.phase == "failed" and entry.provider == bid.signer for entry in state.placements)
    # What came to nothing may have been the last thing on its channel, which then is closed for good.
    known = state.channels.get(bid.signer) if not failed else None
    channel = (
        known
        if known is not None and (known.splits_hash, known.payee) == (bid.splits_hash, bid.payee)
        else ChannelConfig(
            payer=tender.signer,
            payer_signer=tender.signer,
            payee=bid.payee,
            payee_signer=bid.signer,
            token=currency_of(tender.currency).token,
            challenge_period=CHALLENGE_PERIOD_S,
            splits_hash=bid.splits_hash,
            salt=channel_salt(state.tender_digest, bid.signer, failed),
        )
    )
    starts_ms = at_ms + CONFIRM_MS + start_ms(tender.currency)
    award = Award(
        signer=tender.signer,
        bid=bid_digest,
        shard=shard,
        channel_id=channel_id(currency_of(tender.currency).domain, channel),
        workload=digest(DOMAIN, state.workload),
        confirm_by_ms=at_ms + CONFIRM_MS,
        start_by_ms=starts_ms,
        ends_ms=starts_ms + tender.requirements.wall_ms,
        nonce=derived_nonce(b"award", state.tender_digest, bid_digest),
    )
    return Placement(
        shard=shard,
        bid=bid_digest,
        provider=bid.signer,
        award=award,
        lease=digest(DOMAIN, award),
        channel=channel,
    )


def _award_message(state: Purchase, placement: Placement) -> Send:
    message = AwardSent(award=unsigned(placement.award), channel=placement.channel, workload=state.workload)
    return Send(to=placement.provider, message=message, keep_until_ms=placement.award.confirm_by_ms)


def _confirm(state: Purchase, event: ConfirmationArrived) -> Step[Purchase]:
    placement = next((entry for entry in state.placements if entry.lease == event.lease), None)
    if placement is None:
        return ignore(state, "a confirmation of no lease of ours")
    if placement.phase == "failed":
        cancel = _cancel(placement, "another provider took the shard", event.at_ms)
        return Step(state=state, effects=(cancel,))
    if placement.phase != "awarded":
        return ignore(state, "a confirmation that is known")
    confirmed = _with_phase(state, placement.lease, "confirmed")
    if any(entry.phase == "awarded" for entry in confirmed.placements):
        return Step(state=confirmed)
    gang = tuple(entry for entry in confirmed.placements if entry.phase == "confirmed")
    running = replace(confirmed, phase="running")
    gathered = Gathered(tender=state.tender_digest, placements=gang, at_ms=event.at_ms)
    return Step(state=running, effects=(*_release_losers(running, event.at_ms), gathered))


def _fail(state: Purchase, lease: bytes, reason: str, at_ms: int) -> Step[Purchase]:
    """One award came to nothing: the next bid takes its shard."""
    if not any(entry.lease == lease and entry.phase == "awarded" for entry in state.placements):
        return ignore(state, "a refusal of no award that waits")
    return _fill(_with_phase(state, lease, "failed", reason), at_ms)


def _replace_silent(state: Purchase, at_ms: int) -> Step[Purchase]:
    late = [entry for entry in state.placements if entry.phase == "awarded" and entry.award.confirm_by_ms <= at_ms]
    for placement in late:
        state = _with_phase(state, placement.lease, "failed", SILENT)
    cancels = tuple(_cancel(placement, "not confirmed in time", at_ms) for placement in late)
    step = _fill(state, at_ms)
    return Step(state=step.state, effects=(*cancels, *step.effects))


def _with_phase(state: Purchase, lease: bytes, phase: str, why: str = "") -> Purchase:
    changed = tuple(
        replace(entry, phase=phase, why=why or entry.why) if entry.lease == lease else entry
        for entry in state.placements
    )
    return replace(state, placements=changed)


def _cancel(placement: Placement, reason: str, at_ms: int) -> Send:
    message = LeaseCancelled(lease=placement.lease, reason=clipped(reason, 2_000))
    return Send(to=placement.provider, message=message, keep_until_ms=max(at_ms, placement.award.ends_ms))


def _release(state: Purchase, provider: bytes, bid: bytes, reason: str, at_ms: int) -> Send:
    keep_until_ms = max(at_ms, state.tender.expires_ms)
    return Send(to=provider, message=BidReleased(bid=bid, reason=reason), keep_until_ms=keep_until_ms)


def _release_losers(state: Purchase, at_ms: int) -> tuple[Send, ...]:
    used = {placement.bid for placement in state.placements}
    return tuple(
        _release(state, bid.signer, bid_digest, "another bid won", at_ms)
        for bid_digest, bid in state.bids.items()
        if bid_digest not in used
    )


def _give_up(state: Purchase, reason: str, at_ms: int, *, missing: int = 0) -> Step[Purchase]:
    cancels = tuple(_cancel(placement, f"the gang did not come together: {reason}", at_ms) for placement in state.live)
    unfilled = replace(
        state,
        phase="unfilled",
        reason=reason,
        placements=tuple(replace(entry, phase="failed") for entry in state.placements),
    )
    told = Unfilled(
        tender=state.tender_digest,
        reason=reason,
        deserted=bool(unfilled.deserters),
        missing=missing,
        at_ms=at_ms,
    )
    return Step(state=unfilled, effects=(*cancels, *_release_losers(unfilled, at_ms), told))


def _withdraw(state: Purchase, event: Withdrawn) -> Step[Purchase]:
    if state.phase == "running":
        return Step(state=replace(state, phase="settling" if state.live else "settled", reason=event.reason))
    cancels = tuple(_cancel(placement, event.reason, event.at_ms) for placement in state.live)
    failed = tuple(replace(entry, phase="failed") for entry in state.placements)
    cancelled = replace(state, phase="cancelled", reason=event.reason, placements=failed)
    return Step(state=cancelled, effects=(*cancels, *_release_losers(cancelled, event.at_ms)))


def _end(state: Purchase, event: LeaseEnded) -> Step[Purchase]:
    if not any(entry.lease == event.lease and entry.phase == "confirmed" for entry in state.placements):
        return ignore(state, "the end of no lease that lives")
    why = TAKEN_BACK if event.blameless else ENDED_BADLY
    ended = _with_phase(state, event.lease, "ended", "" if event.well else why)
    return Step(state=replace(ended, phase=state.phase if ended.live else "settled"))


def outstanding(state: Purchase, at_ms: int) -> tuple[Any, ...]:
    """What this purchase waits for somebody to take, said again: after a restart, and when it begins."""
    if state.phase == "tendering":
        message = TenderSent(tender=unsigned(state.tender))
        return tuple(
            Send(to=account, message=message, keep_until_ms=state.tender.bids_close_ms) for account in state.silent
        )
    if state.phase == "awarding":
        return tuple(_award_message(state, entry) for entry in state.placements if entry.phase == "awarded")
    if state.phase in ("unfilled", "cancelled"):
        ended = (entry for entry in state.placements if entry.award.ends_ms > at_ms)
        return tuple(_cancel(entry, state.reason, at_ms) for entry in ended)
    return ()
