"""Who is awarded what, and who is let go: the part of a purchase that comes when bidding is closed.

The shards go to the best bids that are left and that the money is enough for (``hansa.market.affordable``), the best
together where they wait for each other (``hansa.market.gang``). When one comes to nothing another takes its place at
once; when there is none, everybody is freed in the same step. Until then the bids that lost are kept: they are what
replaces a winner.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from hansa.market import choice
from hansa.market.affordable import Candidate, Headroom, Parts, cheapest, one_after_the_other
from hansa.market.effects import Send, channel_salt, clipped, derived_nonce, unsigned
from hansa.market.funding import start_ms
from hansa.market.gang import Company, best_gang, with_waiting
from hansa.market.machine import Step
from hansa.market.pricing import ITSELF
from hansa.market.purchase_events import Unfilled
from hansa.market.purchase_state import DEAF, ONLY_BIDS, SILENT, UNHEARD, Placement, Purchase
from hansa.market.scoring import Scored
from hansa.market.settlement import CHALLENGE_PERIOD_S
from hansa.market.shares import cost, share_given, width_milli
from hansa.market.value_forms import percent_text
from hansa.proto.currency import currency_of
from hansa.proto.documents import ChannelConfig, channel_id
from hansa.proto.market_documents import Award, Bid
from hansa.proto.messages import AwardSent, BidReleased, LeaseCancelled
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.proto.units import HOUR_MS, format_amount

LONGEST_REASON_BYTES = 250
CONFIRM_MS = 4_000
"""A winner that has not confirmed for so long is replaced."""


def fill(state: Purchase, at_ms: int) -> Step[Purchase]:
    """Award what has no live award; give up and free everybody when that cannot be done."""
    placed = {placement.shard for placement in state.live}
    wanted = [shard for shard in state.tender.shards if shard not in placed]
    left = state.funds - sum(state.bids[placement.bid].max_total for placement in state.live)
    candidates, room = _candidates(state), _room(state)
    best = best_gang(candidates, len(wanted), left, room, company=_company(state), work_ms=_work_ms(state))
    if best is None or left < 0:
        least = cheapest(candidates, len(wanted), room)
        if len(least) < len(wanted):
            return give_up(state, shortage(state), at_ms)
        promised = state.funds - left + sum(one.most for one in least)
        reason = (
            f"price, devices and limits.wall allow the leases to cost {format_amount(promised)},"
            f" and {format_amount(state.funds)} is left of the budget"
        )
        return give_up(state, reason, at_ms, missing=max(1, promised - state.funds))
    new = tuple(placement_for(state, shard, one.bid, at_ms) for shard, one in zip(wanted, best, strict=True))
    after = replace(state, placements=(*state.placements, *new))
    awards = tuple(award_message(after, placement) for placement in new)
    return Step(state=after, effects=awards)


def would_win(state: Purchase) -> tuple[bytes, ...]:
    """The bids that would be awarded, of a tender that is only asked about; none where the money is too short."""
    count, work_ms = len(state.tender.shards), _work_ms(state)
    company = _company(state)
    best = best_gang(_candidates(state), count, state.funds, _room(state), company=company, work_ms=work_ms)
    return tuple(one.bid for one in best or ())


def _candidates(state: Purchase) -> list[Candidate]:
    """The bids that were not tried, of providers that answer; the best first."""
    used = {placement.bid for placement in state.placements}
    return [
        _candidate(state, entry)
        for entry in state.ranking
        if not entry.excluded and entry.bid not in used and entry.provider not in state.deserters
    ]


def _candidate(state: Purchase, entry: Scored) -> Candidate:
    bid = state.bids[entry.bid]
    return Candidate(
        bid=entry.bid,
        provider=entry.provider,
        cost=entry.expected_cost - entry.rounds,
        most=bid.max_total,
        parts=_parts(bid),
        hourly=_hourly(bid),
        way_ms=entry.way_ms,
    )


def _hourly(bid: Bid) -> int:
    """What an hour of all of a bid's devices costs."""
    return cost(HOUR_MS, width_milli(bid), bid.price_e18_per_device_ms)


def _work_ms(state: Purchase) -> int:
    """How long shards work between two rounds; 0 where nothing is known of rounds."""
    return state.pace.work_ms if state.pace is not None else 0


def _company(state: Purchase) -> Company:
    """Who is in the gang: the job's other shards, and those of this tender that are placed."""
    ways = {entry.bid: entry.way_ms for entry in state.ranking}
    company = state.company
    for placement in state.live:
        company = company.with_member(_hourly(state.bids[placement.bid]), ways[placement.bid])
    return company


def with_rounds(state: Purchase) -> tuple[Scored, ...]:
    """The table with what each bid's line costs the gang, beside those that would be awarded now."""
    if not _work_ms(state):
        return state.ranking
    candidates = [_candidate(state, entry) for entry in state.ranking if not entry.excluded]
    count = len(state.tender.shards)
    room = Headroom(had=state.elsewhere, most_each=state.most_each)
    best = best_gang(candidates, count, state.funds, room, company=state.company, work_ms=_work_ms(state))
    if best is None:
        best = one_after_the_other(candidates, count, room)
    hourly = {bid_digest: _hourly(bid) for bid_digest, bid in state.bids.items()}
    return with_waiting(state.ranking, hourly, [one.bid for one in best], state.company, _work_ms(state))


def choice_of(state: Purchase, taken: Collection[bytes]) -> choice.Choice | None:
    """What taking these bids costs or saves beside others that could have been; ``None`` where there are none."""
    return choice.compare(
        state.ranking,
        taken,
        company=state.company,
        work_ms=_work_ms(state),
        parts={bid_digest: _parts(bid) for bid_digest, bid in state.bids.items()},
        room=Headroom(had=state.elsewhere, most_each=state.most_each),
    )


def _parts(bid: Bid) -> Parts:
    """What a bid gives of which devices, in thousandths."""
    return Counter({(bid.signer, device): share_given(bid) for device in bid.devices})


def _room(state: Purchase) -> Headroom:
    """What was bought already, in this tender and by the job's other shards."""
    room = Headroom(had=state.elsewhere, most_each=state.most_each)
    for placement in state.placements:
        if placement.phase != "failed":
            bid = state.bids[placement.bid]
            room = room.after(Candidate(bid=placement.bid, provider=bid.signer, cost=0, most=0, parts=_parts(bid)))
    return room


def usable(state: Purchase) -> list[Scored]:
    """The bids that could all win beside each other: the best of those that name a device twice."""
    eligible = [entry for entry in state.ranking if not entry.excluded]
    room = Headroom(had=state.elsewhere, most_each=state.most_each)
    taken = one_after_the_other([_candidate(state, entry) for entry in eligible], len(eligible), room)
    bids = {one.bid for one in taken}
    return [entry for entry in eligible if entry.bid in bids]


def shortage(state: Purchase) -> str:
    """Of what there is too little, in words."""
    eligible = sum(not entry.excluded for entry in state.ranking)
    wanted = len(state.tender.shards)
    if eligible < wanted:
        bids = "1 bid" if wanted == 1 else f"{wanted} bids at once"
        return f"it takes {bids}, and {eligible or 'none'} could win"
    if state.most_each and len(usable(state)) < wanted:
        each = f"{state.most_each} shard{'s' * (state.most_each != 1)}"
        return f"no provider may have more than {each} of the job, and those that bid are too few for that"
    return "too many of the winners did not confirm"


def placement_for(state: Purchase, shard: int, bid_digest: bytes, at_ms: int) -> Placement:
    """The award of a bid, on the channel to its provider that is open already or on a new one."""
    bid, tender = state.bids[bid_digest], state.tender
    failed = sum(entry.phase == "failed" and entry.provider == bid.signer for entry in state.placements)
    # What came to nothing may have been the last thing on its channel, which then is closed for good.
    known = state.channels.get(bid.signer) if not failed else None
    payer = tender.signer if state.payer == ITSELF else state.payer
    channel = (
        known
        if known is not None and (known.payer, known.splits_hash, known.payee) == (payer, bid.splits_hash, bid.payee)
        else ChannelConfig(
            payer=payer,
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


def awarded_ms(award: Award) -> int:
    """When an award was made."""
    return award.confirm_by_ms - CONFIRM_MS


def award_message(state: Purchase, placement: Placement) -> Send:
    """The award on its way to the winner."""
    message = AwardSent(award=unsigned(placement.award), channel=placement.channel, workload=state.workload)
    return Send(to=placement.provider, message=message, keep_until_ms=placement.award.confirm_by_ms)


def with_phase(state: Purchase, lease: bytes, phase: str, why: str = "") -> Purchase:
    """The purchase with one of its placements in another phase."""
    changed = tuple(
        replace(entry, phase=phase, why=why or entry.why) if entry.lease == lease else entry
        for entry in state.placements
    )
    return replace(state, placements=changed)


def cancel(placement: Placement, reason: str, at_ms: int) -> Send:
    """The word that nobody waits for a lease any more."""
    message = LeaseCancelled(lease=placement.lease, reason=clipped(reason, 2_000))
    return Send(to=placement.provider, message=message, keep_until_ms=max(at_ms, placement.award.ends_ms))


def release(state: Purchase, provider: bytes, bid: bytes, reason: str, at_ms: int) -> Send:
    """The word that a bid did not win, so that its devices are free at once."""
    keep_until_ms = max(at_ms, state.tender.expires_ms)
    return Send(to=provider, message=BidReleased(bid=bid, reason=reason), keep_until_ms=keep_until_ms)


def release_losers(state: Purchase, at_ms: int) -> tuple[Send, ...]:
    """That word to everybody whose bid was never awarded."""
    used = {placement.bid for placement in state.placements}
    return tuple(
        release(state, bid.signer, bid_digest, why_lost(state, bid_digest), at_ms)
        for bid_digest, bid in state.bids.items()
        if bid_digest not in used
    )


def why_lost(state: Purchase, bid: bytes) -> str:
    """Why a bid came to nothing, for its owner: its place and its own reliability, and nothing of the others' bids."""
    ranked = [entry for entry in state.ranking if not entry.excluded]
    entry = next((entry for entry in state.ranking if entry.bid == bid), None)
    if entry is not None and entry.excluded:
        return clipped(f"it could not win: {entry.excluded}", LONGEST_REASON_BYTES)
    if state.phase == "cancelled":
        return ONLY_BIDS if state.only_bids else "the buyer took the tender back"
    if state.phase == "unfilled":
        return "not all shards found a provider, so none was awarded"
    if entry is None:
        return "another bid won"
    place, reliable = ranked.index(entry) + 1, percent_text(entry.reliability_ppm)
    why = f"another bid won: by expected cost it was number {place} of {len(ranked)}; reliability counted: {reliable}"
    passed = place <= len(state.tender.shards) and entry.provider not in state.deserters
    return f"{why}; the best could not all be taken together" if passed else why


def give_up(state: Purchase, reason: str, at_ms: int, *, missing: int = 0) -> Step[Purchase]:
    """The gang does not come together: all are freed, and the job is told why."""
    cancels = tuple(cancel(placement, f"the gang did not come together: {reason}", at_ms) for placement in state.live)
    unfilled = replace(
        state,
        phase="unfilled",
        reason=reason,
        placements=tuple(replace(entry, phase="failed") for entry in state.placements),
    )
    told = Unfilled(
        tender=state.tender_digest,
        reason=reason,
        deserted=any(entry.deserted or entry.why in (SILENT, UNHEARD, DEAF) for entry in unfilled.placements),
        missing=missing,
        at_ms=at_ms,
    )
    return Step(state=unfilled, effects=(*cancels, *release_losers(unfilled, at_ms), told))
