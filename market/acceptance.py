"""Whom and what a provider takes: its own rules over a tender's facts, and what jobs cannot have there.

A rule is a clause over facts of the job: who buys, for how long, with which network, under which licence. What the
tender itself shows is read from it; the rest its buyer states, and a buyer that states nothing meets no rule on it.
Whatever fails is told with the value of the *tender's* that would be no obstacle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hansa.market.clauses import Failure, failures
from hansa.market.isolation import is_served
from hansa.market.needs_rendering import render_clause
from hansa.market.pricing import ProviderTerms
from hansa.market.shares import SHARE, WHOLE_MILLI, most_ahead, share_asked
from hansa.market.value_forms import Kind, duration_ms, duration_text, number_text, share_text
from hansa.market.vocabulary import ANY, BUYERS_WORDS, find
from hansa.proto.egress import covers
from hansa.proto.market_documents import Bid, Clause, Shortfall, Tender
from hansa.proto.units import e18_to_price_per_hour

NONE: Final = "none"
PREPAY: Final = "prepay"
_UNCHANGEABLE: Final = ("buyer", "reputation")
"""Facts that no change of the tender's makes others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """One thing for which a provider does not take a tender: in words, the nearest change, and that for a machine."""

    reason: str
    relaxation: str
    shortfall: Shortfall


def job_facts(tender: Tender, *, reputation_ppm: int = 0) -> dict[str, str]:
    """What is known of a job: what its buyer states, and over that what the tender shows.

    Args:
        tender: the buyer's.
        reputation_ppm: the buyer's, in this provider's eyes.
    """
    needs = tender.requirements
    stated = {fact.name: fact.value for fact in tender.facts if fact.name in BUYERS_WORDS}
    shown = {
        "buyer": "0x" + tender.signer.hex(),
        "devices": str(max((one.devices for one in needs.choices), default=needs.devices)),
        "kind": needs.kind,
        "lease": tender.lease,
        "network": ",".join(needs.egress) or NONE,
        "price": _price(tender),
        "reputation": share_text(reputation_ppm),
        SHARE: number_text(share_asked(needs) or WHOLE_MILLI),
        "shards": str(len(tender.shards)),
        "tier": needs.tier,
        "wall": duration_text(needs.wall_ms),
    }
    return stated | shown


def _price(tender: Tender) -> str:
    return e18_to_price_per_hour(tender.price_ceiling_e18_per_device_ms)


def provider_facts(terms: ProviderTerms) -> dict[str, str]:
    """What is true of every device there, by name."""
    told = {fact.name: fact.value for fact in terms.facts}
    shown = {"tier": terms.tier, "features": ",".join(terms.features)}
    return told | shown | {"notice": duration_text(terms.reclaim_notice_ms)}


def lacks(tender: Tender, terms: ProviderTerms, *, reputation_ppm: int = 0) -> tuple[Lack, ...]:
    """Everything for which a tender is not taken, whatever the devices."""
    needs, found = tender.requirements, list[Lack]()
    if not is_served(needs.tier, terms.tier):
        shortfall = Shortfall(name="tier", wanted=f"tier = {needs.tier}"[:250], nearest=terms.tier)
        found.append(_lack(f"the isolation here is {terms.tier!r}", f"tier = {terms.tier!r}", shortfall))
    lacking = [feature for feature in needs.features if feature not in terms.features]
    if lacking:
        names = ", ".join(lacking)
        left = ",".join(feature for feature in needs.features if feature in terms.features) or ANY
        shortfall = Shortfall(
            name="features", wanted=_line(f"features = {','.join(needs.features)}"), nearest=_line(left)
        )
        found.append(_lack(f"jobs cannot have {names} here", f"features without {names}", shortfall))
    closed = [host for host in needs.egress if not covers(terms.egress, host)]
    if closed:
        hosts = ", ".join(closed)
        left = ",".join(host for host in needs.egress if host not in closed) or NONE
        shortfall = Shortfall(name="network", wanted=_line(f"network = {','.join(needs.egress)}"), nearest=_line(left))
        found.append(
            _lack(f"jobs cannot reach {hosts} from here", f"no network, or a network without {hosts}", shortfall)
        )
    return (*found, *refusals(terms.accepts, tender, reputation_ppm=reputation_ppm))


def beyond_prepay(tender: Tender, bid: Bid, terms: ProviderTerms) -> Lack | None:
    """Why a bid could not win: it wants more paid ahead than its buyer says that the job pays. Not all say it."""
    said = {fact.name: fact.value for fact in tender.facts}.get(PREPAY)
    try:
        said_ms = duration_ms(said) if said is not None else None
    except ValueError:
        return None
    if said_ms is None or bid.prepay <= most_ahead(bid, said_ms):
        return None
    wanted, paid = duration_text(terms.prepay_ms), duration_text(said_ms)
    return _lack(
        f"{wanted} of device time is to be paid ahead here, and the job pays {paid}",
        f"max_prepay = {wanted}",
        Shortfall(name=PREPAY, wanted=_line(f"{PREPAY} <= {paid}"), nearest=_line(wanted)),
    )


def refusals(accepts: Sequence[Clause], tender: Tender, *, reputation_ppm: int = 0) -> tuple[Lack, ...]:
    """The owner's rules that a tender fails."""
    if not accepts:
        return ()
    return tuple(_refusal(failure) for failure in failures(accepts, job_facts(tender, reputation_ppm=reputation_ppm)))


def _refusal(failure: Failure) -> Lack:
    clause = failure.clause
    rule = render_clause(clause)
    nearest = _nearest(clause)
    has = failure.has or ANY
    # A tender that wants ten hours where five are given asks for at least ten.
    operator = {"<": ">=", "<=": ">=", ">": "<=", ">=": "<="}.get(clause.operator, "=") if failure.has else "="
    shortfall = Shortfall(name=clause.name, wanted=_line(f"{clause.name} {operator} {has}"), nearest=_line(nearest))
    told = f"the job's {clause.name} is {failure.has}" if failure.has else f"the job does not say its {clause.name}"
    return Lack(
        reason=f"this provider takes only jobs with {rule}, and {told}",
        relaxation=f"{clause.name} = {nearest}" if nearest else "",
        shortfall=shortfall,
    )


def _nearest(clause: Clause) -> str:
    """The value of a fact that would satisfy a rule; empty where nobody can change it, or there is no one value."""
    word, value = find(clause.name), clause.values[0] if clause.values else ""
    if word is None or clause.name in _UNCHANGEABLE or clause.operator in ("!=", "not in"):
        return ""
    if clause.operator in ("<", ">"):
        return word.stepped(value, -1 if clause.operator == "<" else 1)
    return value.split(",")[0] if word.kind is Kind.WORDS and clause.operator == "in" else value


def _lack(reason: str, relaxation: str, shortfall: Shortfall) -> Lack:
    return Lack(reason=reason, relaxation=relaxation, shortfall=shortfall)


def _line(text: str) -> str:
    return text.encode()[:250].decode("utf-8", "ignore")
