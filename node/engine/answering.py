"""How a provider answers a tender: the devices first, then the price of those very devices, and only then a hold.

Where the owner prices by a program of their own, the price is asked for outside (``PriceWanted``) and comes back as an
event of the journal. Nothing is held and nothing is remembered meanwhile: the event brings the tender along, and the
devices are chosen anew. If they are others by then, the price was not for them, and is asked for once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hansa.market import sale
from hansa.market.acceptance import Lack, beyond_prepay, lacks, provider_facts
from hansa.market.clauses import relaxed_requirements
from hansa.market.effects import Send, clipped, unsigned
from hansa.market.ledger import owed_by
from hansa.market.pricing import LONGEST_NOTE_BYTES, ProviderTerms, bid_for, decline_for, objection, too_cheap
from hansa.market.reputation import BUYER
from hansa.market.sale_state import Sale
from hansa.market.shares import share_asked, share_given
from hansa.market.shortfalls import busy
from hansa.node.engine.events import MessageArrived, TenderPriced
from hansa.node.engine.held_time import held_too_long
from hansa.node.engine.mutual_credit import beyond_credit, limit_for
from hansa.node.engine.standings import standing_of, unwelcome
from hansa.node.engine.state import NodeState
from hansa.node.engine.tender_log import note_decline
from hansa.proto import messages
from hansa.proto.market_documents import Bid, Device, Shortfall, Tender
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.proto.units import Bytes32, Line, PriceE18, Uint32, Uint64
from hansa.scheduler import capacity
from hansa.scheduler.demand import noted
from hansa.scheduler.device_lacks import Shortage
from hansa.scheduler.devices import choose
from hansa.scheduler.placement import Choosing

Effects = list[Any]
MOST_TRIES = 2
"""A price is asked for so often, if the devices change between the question and the answer."""
OTHER_DEVICES = "other devices are free by now"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceWanted:
    """Effect: ask the owner's program what these sets of devices cost.

    Attributes:
        tender: what would be answered.
        lease: the kind of lease that it would get.
        sets: the devices of each shard that there is room for.
        rule_e18: what the owner's rule says of each.
        share_ppm: how much of the own devices is leased.
        tries: how often it was asked for, with this time.
    """

    tender: Tender
    lease: Line
    sets: tuple[tuple[Bytes32, ...], ...]
    rule_e18: tuple[PriceE18, ...]
    share_ppm: Uint64
    tries: Uint32


@dataclass(frozen=True, slots=True, kw_only=True)
class _No:
    """Why there is no bid, or none more: in words, the nearest change, and that for a machine."""

    reason: str
    relaxation: str = ""
    shortfalls: tuple[Shortfall, ...] = ()


def answer_tender(state: NodeState, event: MessageArrived) -> Effects:
    """A bid for every shard that there is room for, held in the same instant; a decline if there is not for all."""
    message: messages.TenderSent = event.message  # type: ignore[assignment]
    tender = message.tender.document
    if tender.signer != event.sender or state.terms is None:
        state.ignore(
            "sale", "a tender that is not its sender's" if state.terms else "a tender, and nothing is provided here"
        )
        return []
    return _answer(state, tender, None, at_ms=event.at_ms)


def take_price(state: NodeState, event: TenderPriced) -> Effects:
    """The owner's program has named its prices, or failed to."""
    if state.terms is None:
        state.ignore("sale", "a price, and nothing is provided here")
        return []
    return _answer(state, event.tender, event, at_ms=event.at_ms)


def _answer(state: NodeState, tender: Tender, priced: TenderPriced | None, *, at_ms: int) -> Effects:
    assert state.terms is not None
    tender_digest = digest(DOMAIN, tender)
    if any(entry.bid.tender == tender_digest for _, entry in state.sales.all()):
        state.ignore("sale", "a tender that is known")
        return []
    terms = replace(state.terms, credit_limit=limit_for(state, tender.signer))
    lease = terms.lease_for(tender)
    no = _objection(state, tender, terms, lease, at_ms=at_ms)
    if no is not None or lease is None:
        assert no is not None, "a lease that is not to be had is an objection"
        return _decline(state, tender, tender_digest, no)
    held = held_too_long(state, tender.signer, at_ms=at_ms)
    if held is not None:
        waits = (busy(tender.requirements.devices),)
        return _decline(state, tender, tender_digest, _No(reason=held[0], relaxation=held[1], shortfalls=waits))
    sets, no = _sets(state, tender, terms, at_ms=at_ms)
    found = _prices(state, tender, terms, sets, priced, at_ms=at_ms)
    if isinstance(found, PriceWanted):
        return [found]
    if sets or no is None or not no.shortfalls:
        # What could never be had here says nothing of what to keep room for.
        state.demand = noted(state.demand, tender.requirements, at_ms=at_ms)
    prices, refused = found
    effects: Effects = []
    is_stranger = _is_stranger(state, tender.signer)
    for number, chosen in enumerate(() if refused is not None else sets):
        refused = _too_cheap(tender, prices[number])
        if refused is not None:
            break
        bid = bid_for(
            tender,
            tender_digest,
            chosen,
            terms,
            price_e18=prices[number],
            lease=lease,
            number=number,
            is_stranger=is_stranger,
            at_ms=at_ms,
        )
        ahead = beyond_prepay(tender, bid, terms)
        if ahead is not None:
            refused = _No(reason=ahead.reason, relaxation=ahead.relaxation, shortfalls=(ahead.shortfall,))
            break
        lacking = beyond_credit(state, tender.signer, bid)
        if lacking is not None:
            refused = _No(reason=lacking[0], relaxation=lacking[1])
            break
        effects += _hold(state, tender, bid, chosen, terms, at_ms=at_ms)
    no = refused or no
    return effects if no is None else effects + _decline(state, tender, tender_digest, no)


def _prices(
    state: NodeState,
    tender: Tender,
    terms: ProviderTerms,
    sets: Sequence[Sequence[Device]],
    priced: TenderPriced | None,
    *,
    at_ms: int,
) -> tuple[tuple[int, ...], _No | None] | PriceWanted:
    """The price of each set, and why there is none; or the question to the owner's program, as long as it is open."""
    lease, share_ppm = terms.lease_for(tender), state.capacity.leased_ppm
    assert lease is not None, "a lease that is not to be had is an objection"
    ruled = tuple(terms.price(chosen, lease=lease, share_ppm=share_ppm, at_ms=at_ms).price_e18 for chosen in sets)
    if not sets or not terms.on_price_fault:
        return ruled, None
    # No program is run for a tender that could not be met at its least price.
    hopeless = _too_cheap(tender, terms.rule.floor_e18)
    if hopeless is not None:
        return (), hopeless
    asked = tuple(tuple(device.id for device in chosen) for chosen in sets)
    if priced is not None and (priced.fault or priced.refusal or tuple(one.devices for one in priced.sets) == asked):
        return _named(priced, ruled, terms)
    tries = priced.tries if priced is not None else 0
    if priced is None or tries < MOST_TRIES:
        return PriceWanted(tender=tender, lease=lease, sets=asked, rule_e18=ruled, share_ppm=share_ppm, tries=tries + 1)
    return _named(replace(priced, fault=OTHER_DEVICES), ruled, terms)


def _objection(state: NodeState, tender: Tender, terms: ProviderTerms, lease: str | None, *, at_ms: int) -> _No | None:
    """What speaks against a bid, whatever the devices."""
    owed = owed_by(state.ledger, tender.signer)
    why = unwelcome(state, tender, terms, at_ms=at_ms) or objection(tender, terms, owed=owed, at_ms=at_ms)
    if why is not None:
        return _No(reason=why[0], relaxation=why[1])
    found = [*lacks(tender, terms, reputation_ppm=_reputation(state, tender, terms, at_ms=at_ms))]
    if lease is None:
        shortfall = Shortfall(name="lease", wanted=f"lease = {tender.lease}", nearest=terms.leases[0])
        change = f"lease = {terms.leases[0]}"
        found.append(
            Lack(reason=f"leases here are {' or '.join(terms.leases)}", relaxation=change, shortfall=shortfall)
        )
    return _with_devices(state, tender, terms, found, at_ms=at_ms) if found else None


def _reputation(state: NodeState, tender: Tender, terms: ProviderTerms, *, at_ms: int) -> int:
    """The buyer's, if a rule of the owner's asks for it."""
    if not any(clause.name == "reputation" for clause in terms.accepts):
        return 0
    return standing_of(state, tender.signer, BUYER, currency=tender.currency, at_ms=at_ms).ppm


def _with_devices(state: NodeState, tender: Tender, terms: ProviderTerms, found: Sequence[Lack], *, at_ms: int) -> _No:
    """Everything that speaks against a bid: in what the devices fall short, and the price of the nearest, with it."""
    needs, owned, about = tender.requirements, state.capacity, provider_facts(terms)
    spare = Choosing(spare=owned.spare(terms.tenants))
    devices = choose(needs, owned.free, owned.lent, owned.topology, about, choosing=spare)
    short = devices if isinstance(devices, Shortage) and devices.shortfalls else None
    if isinstance(devices, Shortage):
        eased = relaxed_requirements(needs, devices.shortfalls)
        devices = choose(eased, owned.lent, owned.lent, owned.topology, about)
    dear = None
    if not isinstance(devices, Shortage):
        lease = terms.lease_for(tender) or terms.leases[0]
        price = terms.price(devices, lease=lease, share_ppm=owned.leased_ppm, at_ms=at_ms)
        dear = _too_cheap(tender, price.price_e18)
    noes = [*(_No(reason=one.reason, relaxation=one.relaxation, shortfalls=(one.shortfall,)) for one in found)]
    noes += [_No(reason=short.reason, relaxation=short.relaxation, shortfalls=short.shortfalls)] if short else []
    noes += [dear] if dear else []
    return _No(
        reason="; ".join(no.reason for no in noes),
        relaxation=" and ".join(no.relaxation for no in noes if no.relaxation),
        shortfalls=tuple(shortfall for no in noes for shortfall in no.shortfalls),
    )


def _sets(
    state: NodeState, tender: Tender, terms: ProviderTerms, *, at_ms: int
) -> tuple[list[tuple[Device, ...]], _No | None]:
    """The devices that each shard would get, as far as there are any, and why there are no more."""
    owned, about, share = state.capacity, provider_facts(terms), share_asked(tender.requirements)
    assert share is not None, "what cannot be read is an objection"
    sets: list[tuple[Device, ...]] = []
    for number, _ in enumerate(tender.shards):
        going_by = _going_by(state, owned, tender, terms, at_ms=at_ms)
        devices = choose(tender.requirements, owned.free, owned.lent, owned.topology, about, choosing=going_by)
        if isinstance(devices, Shortage):
            if devices.shortfalls and not sets:
                return sets, _with_devices(state, tender, terms, (), at_ms=at_ms)
            return sets, _No(reason=devices.reason, relaxation=devices.relaxation, shortfalls=devices.shortfalls)
        sets.append(devices)
        # As it will be when they are held: nothing is yet, since there may be no bid.
        owned = capacity.hold(owned, b"shard" + number.to_bytes(27, "big"), devices, at_ms, share_milli=share)
    return sets, None


def _going_by(
    state: NodeState, owned: capacity.Capacity, tender: Tender, terms: ProviderTerms, *, at_ms: int
) -> Choosing:
    """What the choice among devices goes by, as the house would stand then."""
    lease, share_ppm = terms.lease_for(tender), state.capacity.leased_ppm
    assert lease is not None, "a lease that is not to be had is an objection"

    def price_e18(devices: Sequence[Device]) -> int:
        return terms.price(devices, lease=lease, share_ppm=share_ppm, at_ms=at_ms).price_e18

    return Choosing(spare=owned.spare(terms.tenants), demand=state.demand, price=price_e18)


def _named(priced: TenderPriced, ruled: Sequence[int], terms: ProviderTerms) -> tuple[tuple[int, ...], _No | None]:
    """The prices that hold once the program has spoken: its own, or the rule's where it did not and that is wanted."""
    if priced.refusal:
        return (), _No(reason=clipped(f"the owner's own pricing declines: {priced.refusal}", LONGEST_NOTE_BYTES))
    if priced.fault:
        if terms.on_price_fault == "decline":
            return (), _No(reason="the owner's own pricing gives no price at present", relaxation="tender again later")
        return tuple(ruled), None
    named = (ruled[at] if one.price_e18 is None else one.price_e18 for at, one in enumerate(priced.sets))
    return tuple(max(price, terms.rule.floor_e18) for price in named), None


def _too_cheap(tender: Tender, price_e18: int) -> _No | None:
    found = too_cheap(tender, price_e18)
    return found and _No(reason=found[0], relaxation=found[1], shortfalls=(found[2],))


def _decline(state: NodeState, tender: Tender, tender_digest: bytes, no: _No) -> Effects:
    note_decline(state, tender, tender_digest, no.reason, no.relaxation)
    decline = decline_for(tender, tender_digest, state.account, (no.reason, no.relaxation), no.shortfalls)
    message = messages.DeclineSent(decline=unsigned(decline))
    return [Send(to=tender.signer, message=message, keep_until_ms=tender.bids_close_ms)]


def _is_stranger(state: NodeState, buyer: bytes) -> bool:
    """Whether a buyer never settled anything here, or left something unpaid."""
    settled = any(
        channel.config.payer_signer == buyer and channel.vouched is not None for channel in state.earning.ended.values()
    )
    return not settled or state.ledger.balance(f"unpaid:{buyer.hex()}") > 0


def _hold(
    state: NodeState, tender: Tender, bid: Bid, devices: Sequence[Device], terms: ProviderTerms, *, at_ms: int
) -> Effects:
    bid_digest = digest(DOMAIN, bid)
    state.capacity = capacity.hold(state.capacity, bid_digest, devices, at_ms, share_milli=share_given(bid))
    begun = Sale(
        tender=tender,
        bid=bid,
        bid_digest=bid_digest,
        grace_ms=terms.grace_ms,
        max_fetch_bytes=terms.max_fetch_bytes,
    )
    step = sale.open_sale(begun)
    state.begin("sale", state.sales, bid_digest, step.state)
    return list(step.effects)
