"""What this node knows of others' dealings, and what it makes of it: who is invited, admitted, blocked.

Its own channels tell of those it dealt with itself. What others showed of theirs (``hansa.node.messaging.histories``)
is kept as far as it can ever count: where one of the two is somebody whom this node has dealt with.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from hansa.market.pricing import ProviderTerms
from hansa.market.reputation import BUYER, PROVIDER, Dealt, Heard, Standing, newest, standing
from hansa.market.track_record import Record, doubted
from hansa.node.engine.events import AccountBlocked, AccountUnblocked, DealingsHeard
from hansa.node.engine.state import NodeState
from hansa.proto.market_documents import Tender

MOST_HEARD = 1_024
"""Dealings of others that are kept; those of least value go first."""


def own_dealings(state: NodeState) -> Iterator[Dealt]:
    """Every channel of this node on which something was metered."""
    for key, paying in state.paying.all():
        if paying.accepted is not None:
            receipt = paying.accepted.receipt
            yield Dealt(
                channel_id=key,
                currency=paying.currency,
                buyer=paying.config.payer_signer,
                provider=paying.config.payee_signer,
                value=receipt.amount_total,
                at_ms=receipt.period_end_ms,
            )
    for key, earning in state.earning.all():
        done = earning.vouched.receipt if earning.vouched else None
        out = earning.out.receipt if earning.out else None
        if done is None and out is None:
            continue
        before = done.amount_total if done else 0
        disputed = sum(earning.disputed.values())
        yield Dealt(
            channel_id=key,
            currency=earning.currency,
            buyer=earning.config.payer_signer,
            provider=earning.config.payee_signer,
            value=before,
            at_ms=done.period_end_ms if done else 0,
            unpaid=disputed + (max(0, out.amount_total - before) if out else 0),
            unpaid_ms=out.period_end_ms if out else done.period_end_ms if done and disputed else 0,
        )


def known_dealings(state: NodeState) -> dict[bytes, Dealt]:
    """Everything that is known, one dealing for each channel."""
    return newest([*own_dealings(state), *(heard.dealt for heard in state.heard.values())])


def standing_of(
    state: NodeState,
    subject: bytes,
    role: str,
    *,
    currency: str,
    at_ms: int,
    dealings: Mapping[bytes, Dealt] | None = None,
) -> Standing:
    """A subject's figure in this node's eyes.

    Args:
        state: the node's.
        subject: about whom.
        role: as provider or as buyer.
        currency: only dealings in it count.
        at_ms: the time for which it is worked out.
        dealings: ``known_dealings``, where many are asked about at once.
    """
    known = known_dealings(state) if dealings is None else dealings
    false = frozenset(state.proven)
    return standing(state.account, subject, role, known, currency=currency, proven_false=false, at_ms=at_ms)


def records_for(state: NodeState, accounts: tuple[bytes, ...], *, currency: str, at_ms: int) -> dict[bytes, Record]:
    """What a purchase knows of those whom it invites: how leases with us ended, and what signed dealings say."""
    dealings = known_dealings(state)
    totals = Record(
        own=sum(one.own for one in state.records.values()), good=sum(one.good for one in state.records.values())
    )
    records: dict[bytes, Record] = {}
    for account in accounts:
        told = standing_of(state, account, PROVIDER, currency=currency, at_ms=at_ms, dealings=dealings)
        known = state.records.get(account, Record())
        others = Record(own=totals.own - known.own, good=totals.good - known.good)
        record = replace(known, told_ppm=told.ppm, bad=known.bad + doubted(known, [others]))
        if record != Record():
            records[account] = record
    return records


def unwelcome(state: NodeState, tender: Tender, terms: ProviderTerms, *, at_ms: int) -> tuple[str, str] | None:
    """Why the owner does not deal with the buyer of a tender: (reason, nearest change); None if it does."""
    if tender.signer in state.blocked:
        return "this provider does not deal with you", ""
    if not terms.min_buyer_ppm:
        return None
    found = standing_of(state, tender.signer, BUYER, currency=tender.currency, at_ms=at_ms)
    if found.ppm >= terms.min_buyer_ppm:
        return None
    least, has = percent(terms.min_buyer_ppm), percent(found.ppm)
    return (
        f"buyers need a reputation of {least} here, and yours is {has} as far as this provider knows",
        f"a reputation of {least}: buy from providers with whom this one deals",
    )


def percent(ppm: int) -> str:
    """Millionths as percent, rounded down, so that nothing looks better than it is."""
    return f"{ppm // 10_000}.{ppm % 10_000 // 1_000} %"


def worth_keeping(state: NodeState, shown: Iterable[Heard]) -> tuple[Heard, ...]:
    """Those of the dealings that say something new and can ever count: one of the two is no stranger to this node.

    This is looked at before anything is journaled, too: others may show as much as they like.
    """
    known_for = _known_for(state)
    kept = []
    for heard in shown:
        dealt, known = heard.dealt, state.heard.get(heard.dealt.channel_id)
        newer = known is None or (dealt.value, dealt.unpaid) > (known.dealt.value, known.dealt.unpaid)
        if newer and known_for.keys() & {dealt.buyer, dealt.provider}:
            kept.append(heard)
    return tuple(kept)


def _known_for(state: NodeState) -> dict[bytes, int]:
    """Those whom this node dealt with, and for how much in all: the most that their word counts."""
    known_for: dict[bytes, int] = {}
    for dealt in own_dealings(state):
        for party in {dealt.buyer, dealt.provider} - {state.account}:
            known_for[party] = known_for.get(party, 0) + dealt.value
    return {party: value for party, value in known_for.items() if value}


def take_dealings(state: NodeState, event: DealingsHeard) -> list[Any]:
    """Others showed dealings, checked by now: keep those that can count for something, the weightiest."""
    for heard in worth_keeping(state, event.heard):
        state.heard[heard.dealt.channel_id] = heard
    known_for = _known_for(state)

    def weight(key: bytes) -> tuple[int, bytes]:
        dealt = state.heard[key].dealt
        most = max(known_for.get(dealt.buyer, 0), known_for.get(dealt.provider, 0))
        return min(dealt.value + dealt.unpaid, most), key

    for least in sorted(state.heard, key=weight)[: max(0, len(state.heard) - MOST_HEARD)]:
        del state.heard[least]
    return []


def block(state: NodeState, event: AccountBlocked) -> list[Any]:
    """The owner wants nothing more to do with an account. What runs already goes on as it was agreed."""
    state.blocked[event.account] = event.reason
    return []


def unblock(state: NodeState, event: AccountUnblocked) -> list[Any]:
    """The owner changed its mind."""
    if state.blocked.pop(event.account, None) is None:
        state.ignore("reputation", "an account that is not blocked")
    return []
