"""Whatever comes in whatever order, a purchase sells nobody's device twice and promises no more than there is.

A tender's usual course is drawn with strays dropped in anywhere: bids that repeat a device, come late or twice, answers
about leases that failed, times that pass at any moment. What must hold is ``simulation.bidding``'s.
"""

from hypothesis import given, settings
from hypothesis import strategies as st
from kit.trading import BUYER_KEY, NOW_MS, PRICE, bid, decline, tender, workload
from simulation.bidding import check_purchase

from hansa.market import purchase
from hansa.market.effects import Send
from hansa.market.purchase import advance, open_purchase
from hansa.market.purchase_events import (
    BidArrived,
    ConfirmationArrived,
    DeclineArrived,
    Gathered,
    LeaseEnded,
    RefusalOfLeaseArrived,
    TimePassed,
    Unfilled,
    Withdrawn,
)
from hansa.market.purchase_state import Purchase
from hansa.proto.messages import AwardSent, BidReleased, LeaseCancelled
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey
from hansa.proto.typed_data import digest

KEYS = [SigningKey(bytes([number]) * 32) for number in range(10, 15)]
SHARDS = st.integers(1, 3)
MOVES = ("bid", "bid", "bid", "decline", "confirm", "confirm", "confirm", "refuse", "wake", "wake", "end", "withdraw")


def opened(shards, funds):
    asked = tender(shards=tuple(range(shards)), bids_close_ms=NOW_MS + 5_000)
    made = Purchase(
        tender=asked,
        tender_digest=digest(DOMAIN, asked),
        workload=workload(),
        funds=funds,
        invited=tuple(key.address for key in KEYS[:-1]),
    )
    return open_purchase(made, NOW_MS)


def event_of(draw, state, at_ms):
    move = draw(st.sampled_from(MOVES))
    key = draw(st.sampled_from(KEYS))
    leases = [entry.lease for entry in state.placements] or [bytes(32)]
    lease = draw(st.sampled_from(leases))
    match move:
        case "bid":
            price = draw(st.sampled_from((PRICE // 3, PRICE // 2, PRICE, 2 * PRICE, 3 * PRICE)))
            signed = bid(
                state.tender,
                key=key,
                price_e18_per_device_ms=price,
                max_total=600_000 * price // PRICE,
                devices=(bytes([draw(st.integers(1, 3))]) * 32,),
                nonce=bytes([draw(st.integers(1, 3))]) * 32,
                expires_ms=NOW_MS + draw(st.sampled_from((1_000, 60_000))),
            )
            return BidArrived(bid=signed, at_ms=at_ms)
        case "decline":
            return DeclineArrived(decline=decline(state.tender, key=key), at_ms=at_ms)
        case "confirm":
            return ConfirmationArrived(lease=lease, at_ms=at_ms)
        case "refuse":
            return RefusalOfLeaseArrived(lease=lease, kind="channel-closed", reason="no", at_ms=at_ms)
        case "end":
            return LeaseEnded(lease=lease, well=draw(st.booleans()), at_ms=at_ms)
        case "withdraw" if draw(st.integers(0, 5)) == 0:
            return Withdrawn(reason="no more", at_ms=at_ms)
        case _:
            return TimePassed(at_ms=at_ms)


class Heard:
    """What a purchase said to whom, added up."""

    def __init__(self):
        self.awarded, self.let_go, self.ends = {}, set(), []

    def take(self, effects):
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, AwardSent):
                award = effect.message.award.document
                self.awarded[digest(DOMAIN, award)] = award
            elif isinstance(effect, Send) and isinstance(effect.message, LeaseCancelled):
                self.let_go.add(effect.message.lease)
            elif isinstance(effect, Send) and isinstance(effect.message, BidReleased):
                self.let_go.add(effect.message.bid)
            elif isinstance(effect, Gathered | Unfilled):
                self.ends.append(effect)


@settings(max_examples=100, deadline=None)
@given(st.data(), SHARDS, st.sampled_from((10**9, 1_300_000, 500_000)))
def test_nothing_is_bought_twice_no_more_is_promised_than_there_is_and_nobody_is_left_waiting(data, shards, funds):
    step, at_ms, heard = opened(shards, funds), NOW_MS, Heard()
    state = step.state
    heard.take(step.effects)
    for _ in range(data.draw(st.integers(5, 40))):
        at_ms += data.draw(st.sampled_from((0, 100, 1_000)))
        due_ms = purchase.deadline_ms(state)
        event = event_of(data.draw, state, at_ms)
        if due_ms is not None and due_ms <= at_ms:
            event = TimePassed(at_ms=at_ms)
        elif isinstance(event, TimePassed):
            continue
        step = advance(state, event)
        assert advance(state, event) == step
        state = step.state
        heard.take(step.effects)
        check_purchase(state, at_ms)
        promised = sum(state.bids[entry.bid].max_total for entry in state.placements if entry.phase != "failed")
        assert promised <= funds
        again = advance(state, event)
        assert again.state == state or isinstance(event, TimePassed), "an event counts once"
    _check_said(state, heard)


def _check_said(state, heard):
    """The gang is told once, whole; who holds something for nothing was told so; each award is its bid's, unchanged."""
    assert len(heard.ends) <= 1
    for entry in state.placements:
        award, made = heard.awarded[entry.lease], state.bids[entry.bid]
        assert (award.bid, award.signer) == (digest(DOMAIN, made), BUYER_KEY.address)
    if heard.ends and isinstance(heard.ends[0], Gathered):
        gang = heard.ends[0].placements
        assert sorted(entry.shard for entry in gang) == list(state.tender.shards)
        assert all(entry.phase == "confirmed" for entry in gang)
    if state.phase in ("unfilled", "cancelled"):
        refused = {entry.lease for entry in state.placements if entry.why not in ("", "no more")}
        told = heard.let_go | refused
        assert {entry.lease for entry in state.placements} <= told
        used = {entry.bid for entry in state.placements}
        assert state.bids.keys() - used <= heard.let_go


def test_an_award_names_no_price_of_its_own():
    """What a lease costs is what was bid: there is no second price that could differ from it."""
    assert not any("price" in name or "total" in name for name in AwardSent.__dataclass_fields__)
    step = opened(1, 10**9)
    state = advance(step.state, BidArrived(bid=bid(step.state.tender, key=KEYS[0]), at_ms=NOW_MS)).state
    awarded = advance(state, TimePassed(at_ms=NOW_MS + 5_000)).state.placements[0].award
    assert not any("price" in name or "total" in name for name in type(awarded).__dataclass_fields__)
