"""Why a job found no provider: everybody's "no" merged into a table, and the nearest changes that would help.

A provider says in what it falls short (``Decline.shortfalls``); an advert says it of providers that were not asked. A
provider counts for a change only where the change covers *all* of its shortfalls: who has too little memory and is
too dear is not won by a higher price alone. So every provider's own set of shortfalls is a candidate; whoever needs no
more than that comes with it; and a candidate that costs more than another and brings nobody beyond it is left out.

A condition is made wider, never another one: a bound is moved, a name is added to those that would do, an exclusion or
the whole condition is dropped. So whoever met it before meets it afterwards, and the bids that there are stay. The one
exceptions are what a job has one of: its currency, and the kind of its devices.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from hansa.market.clauses import relaxed_requirements
from hansa.market.pricing import MOST_SHORTFALLS, price_not_below
from hansa.market.purchase_state import SILENT, Purchase
from hansa.market.selection import rank, shortfalls_of
from hansa.market.shares import SHARE
from hansa.market.track_record import Record
from hansa.market.vocabulary import ANY, find
from hansa.proto.market_documents import KIND_CPU, Shortfall
from hansa.proto.units import Address, Line, Note, Uint32, e18_to_price_per_hour, format_amount

BID = "bid"
EXCLUDED = "excluded"
DECLINED = "declined"
NO_ANSWER = "silent"
UNREACHED = "unreached"
DESERTED = "deserted"
NOT_ASKED = "not asked"
QUIET = (NO_ANSWER, UNREACHED)
OUTCOMES = (BID, EXCLUDED, DECLINED, DESERTED, NO_ANSWER, UNREACHED, NOT_ASKED)

PRICE = "price"
"""The price of one device and hour, in the currency: the one thing of which a change is told as a difference."""
TIER = "tier"
BUSY = "free"
"""The devices are there and somebody has them: a shortfall that goes away by waiting."""
LATER = "tender again later"
"""What a provider says to that: no change of the tender's would help, so it names no shortfall."""
SWAPPED = frozenset({"currency", "kind"})
"""A job has one of these: who changes it loses those that it was right for."""
OF_THE_JOB = frozenset({"devices", "shards", "wall", "prepay", "features", "network", "licence", "purpose"})
"""What a job says it will take or do, or what it is, and not a bound on what others have."""
SETS = frozenset({"features", "network"})
"""Of these the nearest value is what of the job's list may stay."""
NOTHING = ("any", "none")
MOST_RELAXATIONS = 12
MOST_CANDIDATES = 128
"""More different sets of shortfalls are not weighed, the cheapest first: beyond that nobody reads the list."""

_TERM = re.compile(r"(?:[a-z_]{1,32} )?(<=|>=|!=|==|=|<|>|not in\b|in\b) *(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one provider.

    Attributes:
        provider: who.
        outcome: one of ``OUTCOMES``.
        reason: why it does not serve the job, in words that may be its own.
        relaxation: the nearest change in its own words, for a provider that names no shortfalls.
        shortfalls: with all of these changed it would bid. Empty where that is not known, or nothing would help.
    """

    provider: Address
    outcome: Line
    reason: Note = ""
    relaxation: Note = ""
    shortfalls: tuple[Shortfall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """One condition, and how many providers fail it, whatever else they fail."""

    name: Line
    wanted: Line
    nearest: Line
    providers: Uint32


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """Changes that, made together, would win providers.

    Attributes:
        changes: all of them have to be made; none where ``words`` is a provider's own sentence.
        words: that sentence.
        providers: who would bid then.
        swaps: whether providers that fit the job as it is would not fit it any more.
        enough: whether these providers, with the bids that would still be there, could take every shard, one each.
    """

    changes: tuple[Shortfall, ...]
    words: Note = ""
    providers: tuple[Address, ...]
    swaps: bool = False
    enough: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything merged.

    Attributes:
        summary: in one paragraph; never empty.
        wanted: shards to be placed.
        eligible: bids that could have won.
        failing: what is failed by how many, the most failed first.
        relaxations: the cheapest first.
        helpless: providers that no change of the job's would win.
        answers: each provider's own.
    """

    summary: str
    wanted: Uint32
    eligible: Uint32
    failing: tuple[Failing, ...]
    relaxations: tuple[Relaxation, ...]
    helpless: Uint32
    answers: tuple[Answer, ...]


def answers_of(purchases: Iterable[Purchase]) -> tuple[Answer, ...]:
    """What the providers that were invited said to a job's tenders, the newest of each. The oldest tender comes first.

    A silence does not undo what a provider said to the tender before.
    """
    newest: dict[bytes, Answer] = {}
    for bought in purchases:
        for answer in _answers_to(bought):
            known = newest.get(answer.provider)
            if answer.outcome not in QUIET or known is None or known.outcome in QUIET:
                newest[answer.provider] = answer
    return tuple(newest.values())


def _answers_to(bought: Purchase) -> Iterable[Answer]:
    excluded = {entry.bid: entry.excluded for entry in bought.ranking}
    deserted = {entry.provider for entry in bought.placements if entry.why == SILENT}
    for account in bought.invited:
        bids = {key: bid for key, bid in bought.bids.items() if bid.signer == account}
        why_not = [excluded.get(key, "") for key in bids]
        if account in deserted:
            yield Answer(provider=account, outcome=DESERTED, reason="it won and did not confirm the lease in time")
        elif bids and not all(why_not):
            yield Answer(provider=account, outcome=BID)
        elif bids:
            yield Answer(
                provider=account, outcome=EXCLUDED, reason=why_not[0], shortfalls=_shortfalls_of_bids(bought, account)
            )
        elif (decline := bought.declines.get(account)) is not None:
            waits = not decline.shortfalls and decline.relaxation == LATER
            yield Answer(
                provider=account,
                outcome=DECLINED,
                reason=decline.reason,
                relaxation=decline.relaxation,
                shortfalls=(busy(bought.tender.requirements.devices),) if waits else decline.shortfalls,
            )
        elif why := bought.undelivered.get(account, ""):
            yield Answer(provider=account, outcome=UNREACHED, reason=why)
        else:
            yield Answer(provider=account, outcome=NO_ANSWER, reason="it did not answer before bidding closed")


def _shortfalls_of_bids(bought: Purchase, account: bytes) -> tuple[Shortfall, ...]:
    """What a bid that cannot win lacks, where that is all: judged once more as if the tender had asked for less."""
    tender, record = bought.tender, bought.records.get(account, Record())
    mine = {key: bid for key, bid in bought.bids.items() if bid.signer == account}
    key, bid = min(mine.items(), key=lambda one: (one[1].price_e18_per_device_ms, one[0]))
    lacks = shortfalls_of(tender, bid, record)
    eased = replace(tender, requirements=relaxed_requirements(tender.requirements, lacks))
    if bid.price_e18_per_device_ms > tender.price_ceiling_e18_per_device_ms:
        lacks += (price_shortfall(tender.price_ceiling_e18_per_device_ms, bid.price_e18_per_device_ms),)
        eased = replace(eased, price_ceiling_e18_per_device_ms=bid.price_e18_per_device_ms)
    # As of then: by now it may have expired.
    at_ms = min(tender.bids_close_ms, bid.expires_ms - 1)
    (judged,) = rank(eased, {key: bid}, {account: record}, max_prepay_ms=bought.max_prepay_ms, at_ms=at_ms)
    return () if judged.excluded else lacks


def busy(devices: int) -> Shortfall:
    """So many devices are there, and not free."""
    return Shortfall(name=BUSY, wanted=f"{BUSY} = {devices}", nearest="later")


def price_shortfall(ceiling_e18: int, price_e18: int) -> Shortfall:
    """A price that is above the ceiling."""
    wanted = e18_to_price_per_hour(ceiling_e18)
    return Shortfall(name=PRICE, wanted=f"{PRICE} <= {wanted}", nearest=price_not_below(price_e18))


# Values: whether one covers another, and how far a change goes.


@lru_cache(maxsize=16_384)
def _operator_and_value(wanted: str) -> tuple[str, str]:
    """What a condition says, such as ``>=`` and ``24 GiB``; an empty operator where only the value stands."""
    match = _TERM.fullmatch(wanted.strip())
    return (match[1], match[2].strip()) if match else ("", wanted.strip())


@lru_cache(maxsize=16_384)
def _size_of(name: str, value: str) -> Any:
    """A value that has a size, as something that is compared; ``None`` for any other."""
    word = find(name)
    if word is None or not word.is_ordered:
        return None
    try:
        return word.key(word.read(value))
    except ValueError:
        return None


def _covers(change: Shortfall, need: Shortfall) -> bool:
    """Whether a condition that is changed like this is one that a provider with this shortfall meets."""
    if (change.name, change.wanted) != (need.name, need.wanted):
        return False
    if change.nearest in (need.nearest, ANY):
        return True
    operator, value = _operator_and_value(change.wanted)
    if operator in ("!=", "not in"):
        # What stays excluded is named: the fewer, the more come.
        return set(change.nearest.split("; ")) <= set(need.nearest.split("; "))
    if change.name in SETS:
        return _listed(change.nearest) <= _listed(need.nearest)
    wanted, given, needed = (_size_of(change.name, text) for text in (value, change.nearest, need.nearest))
    if wanted is None or given is None or needed is None:
        return False
    return bool(given <= needed <= wanted or wanted <= needed <= given)


def _listed(value: str) -> frozenset[str]:
    return frozenset() if value in NOTHING else frozenset(value.split(","))


def _cost(change: Shortfall) -> Fraction:
    """How much is given up: the share by which a size changes, one for anything else, half of it for waiting."""
    if change.name == BUSY:
        return Fraction(1, 2)
    value = _operator_and_value(change.wanted)[1]
    if change.name in SETS:
        return Fraction(len(_listed(value) - _listed(change.nearest)), max(1, len(_listed(value))))
    wanted, nearest = _size_of(change.name, value), _size_of(change.name, change.nearest)
    if type(wanted) is not int or type(nearest) is not int or change.name == TIER:
        return Fraction(1)
    return Fraction(abs(nearest - wanted), max(wanted, nearest, 1))


# Merging.


def explain(*, wanted: int, eligible: int, answers: Sequence[Answer], reason: str = "") -> Explanation:
    """Merge what is known.

    Args:
        wanted: shards to be placed, all or none.
        eligible: bids on them that could have won.
        answers: one of each provider that is known.
        reason: what the tender itself said, if it ended for another reason than that nobody would.
    """
    answers = tuple(replace(answer, shortfalls=_bounded(answer.shortfalls)) for answer in answers)
    told = [replace(answer, shortfalls=_in_one_form(answer.shortfalls)) for answer in answers if answer.outcome != BID]
    fixable = [answer for answer in told if answer.shortfalls and not any(map(_is_hopeless, answer.shortfalls))]
    spoken = [answer for answer in told if not answer.shortfalls and answer.relaxation]
    found = [*_merge(fixable, wanted, eligible), *_merge_spoken(spoken, max(0, wanted - eligible))]
    return Explanation(
        summary=_summary(wanted, eligible, answers, reason),
        wanted=wanted,
        eligible=eligible,
        failing=_failing(told),
        relaxations=tuple(found[:MOST_RELAXATIONS]),
        helpless=len(told) - len(fixable) - len(spoken),
        answers=tuple(sorted(answers, key=lambda answer: (OUTCOMES.index(answer.outcome), answer.provider))),
    )


def _is_hopeless(shortfall: Shortfall) -> bool:
    """Whether no change would help, or one that makes another job of it: what is written for a GPU needs one."""
    return not shortfall.nearest or (shortfall.name == "kind" and shortfall.nearest == KIND_CPU)


def _bounded(shortfalls: Sequence[Shortfall]) -> tuple[Shortfall, ...]:
    """What a stranger says it lacks, one of each condition. Naming more than any node would is taken for naming none.

    Every answer is weighed against every other, and all of them are strangers' words.
    """
    if len(shortfalls) > MOST_SHORTFALLS:
        return ()
    return tuple({(one.name, one.wanted): one for one in reversed(shortfalls)}.values())[::-1]


def _in_one_form(shortfalls: Iterable[Shortfall]) -> tuple[Shortfall, ...]:
    """Sizes as the vocabulary writes them, so that ``price <= 0.420000`` and ``price <= 0.42`` are counted as one."""
    return tuple(
        replace(one, wanted=_wanted_in_one_form(one), nearest=_value_in_one_form(one.name, one.nearest))
        for one in shortfalls
    )


def _wanted_in_one_form(shortfall: Shortfall) -> str:
    operator, value = _operator_and_value(shortfall.wanted)
    same = _value_in_one_form(shortfall.name, value)
    return f"{shortfall.name} {operator} {same}" if operator and same != value else shortfall.wanted


def _value_in_one_form(name: str, value: str) -> str:
    word = find(name)
    if word is None or not word.is_ordered:
        return value
    try:
        return word.read(value)
    except ValueError:
        return value


def _failing(told: Sequence[Answer]) -> tuple[Failing, ...]:
    failed: dict[tuple[str, str], dict[bytes, Shortfall]] = {}
    for answer in told:
        for one in answer.shortfalls:
            failed.setdefault((one.name, one.wanted), {})[answer.provider] = one
    rows = []
    for (name, wanted), who in failed.items():
        near = [one for one in who.values() if one.nearest]
        nearest = min(near, key=_cost).nearest if near else ""
        rows.append(Failing(name=name, wanted=wanted, nearest=nearest, providers=len(who)))
    return tuple(sorted(rows, key=lambda row: (-row.providers, row.name, row.wanted)))


def _merge(fixable: Sequence[Answer], wanted: int, eligible: int) -> list[Relaxation]:
    """Every provider's own shortfalls as a candidate, with all whom it wins; what another one beats is left out."""
    alike: dict[tuple[Shortfall, ...], list[bytes]] = {}
    for answer in fixable:
        alike.setdefault(_sorted(answer.shortfalls), []).append(answer.provider)
    priced = sorted(((sum(map(_cost, changes)), changes) for changes in alike), key=lambda one: (one[0], _key(one[1])))
    fails = {needs: frozenset((one.name, one.wanted) for one in needs) for needs in alike}
    weighed = []
    for cost, changes in priced[:MOST_CANDIDATES]:
        near = (needs for needs in alike if fails[needs] <= fails[changes])
        won = tuple(sorted(who for needs in near if _wins(changes, needs) for who in alike[needs]))
        weighed.append((cost, changes, won))
    weighed.sort(key=lambda entry: (entry[0], len(entry[1]), -len(entry[2]), _key(entry[1])))
    kept: list[Relaxation] = []
    best: list[frozenset[bytes]] = []
    for _, changes, won in weighed:
        if any(frozenset(won) <= earlier for earlier in best):
            continue  # A cheaper change wins all of them.
        best.append(frozenset(won))
        swaps = any(one.name in SWAPPED for one in changes)
        enough = len(won) + (0 if swaps else eligible) >= wanted
        kept.append(Relaxation(changes=changes, providers=won, swaps=swaps, enough=enough))
    return kept


def _wins(changes: Sequence[Shortfall], needs: Sequence[Shortfall]) -> bool:
    """Whether a provider with these shortfalls bids when the changes are made: all are met, and no swap loses it."""
    swaps = {change for change in changes if change.name in SWAPPED}
    by_condition: dict[tuple[str, str], list[Shortfall]] = {}
    for change in changes:
        by_condition.setdefault((change.name, change.wanted), []).append(change)
    return swaps <= set(needs) and all(
        any(_covers(change, need) for change in by_condition.get((need.name, need.wanted), ())) for need in needs
    )


def _sorted(shortfalls: Iterable[Shortfall]) -> tuple[Shortfall, ...]:
    return tuple(sorted(set(shortfalls), key=lambda one: (one.name, one.wanted, one.nearest)))


def _key(changes: Sequence[Shortfall]) -> tuple[tuple[str, str], ...]:
    return tuple((one.name, one.nearest) for one in changes)


def _merge_spoken(spoken: Sequence[Answer], missing: int) -> list[Relaxation]:
    """Providers that say in words only what would help: those with the same words together, the most first."""
    by_words: dict[str, list[bytes]] = {}
    for answer in spoken:
        by_words.setdefault(answer.relaxation, []).append(answer.provider)
    rows = sorted(by_words.items(), key=lambda row: (-len(row[1]), row[0]))
    return [
        Relaxation(changes=(), words=words, providers=tuple(sorted(who)), enough=len(who) >= missing)
        for words, who in rows
    ]


# Words.


def in_words(relaxation: Relaxation, unit: str = "device-hour") -> str:
    """``2 more providers if vram >= 22 GiB``, ``5 more providers at +0.06 per GPU-hour``, ``1 more provider later``."""
    count = len(relaxation.providers)
    who = f"{count} {'other' if relaxation.swaps else 'more'} provider{'s' * (count != 1)}"
    if not relaxation.changes:
        return f"{who} if {relaxation.words}"
    plain = [one for one in relaxation.changes if one.name not in (PRICE, BUSY)]
    conditions = " and ".join(change_in_words(one) for one in plain)
    parts = [who, *([f"if {conditions}"] if plain else [])]
    parts += [_price_in_words(one, unit) for one in relaxation.changes if one.name == PRICE]
    parts += [_later_in_words(one) for one in relaxation.changes if one.name == BUSY]
    return " ".join(parts)


def change_in_words(change: Shortfall) -> str:
    """The condition as it would have to be: ``vram >= 22 GiB``, ``region may also be us``."""
    name, nearest = change.name, change.nearest
    operator, value = _operator_and_value(change.wanted)
    if name == SHARE:
        return f"{name} = {nearest}" if nearest != ANY else f"{name} = {ANY}, a whole device"
    if name in SETS:
        return f"{name} = {nearest}" if nearest not in NOTHING else f"it asks for no {name}"
    if nearest == ANY:
        return f"{name} may be anything" if operator not in ("<=", ">=", "<", ">") else f"{name} has no limit"
    if operator in ("!=", "not in"):
        return f"{name} not in ({nearest.replace(';', ',')})"
    wanted, size = _size_of(name, value), _size_of(name, nearest)
    if name in OF_THE_JOB or value == ANY or name in SWAPPED or (name == TIER and wanted is not None):
        return f"{name} = {nearest}"
    if wanted is not None and size is not None:
        return f"{name} {'>=' if size < wanted else '<='} {nearest}"
    return f"{name} may also be {nearest}"


def _price_in_words(change: Shortfall, unit: str) -> str:
    wanted, nearest = _size_of(PRICE, _operator_and_value(change.wanted)[1]), _size_of(PRICE, change.nearest)
    if wanted is None or nearest is None:
        return f"at {change.nearest} per {unit}"
    whole, _, places = format_amount(max(0, nearest - wanted)).partition(".")
    return f"at +{whole}.{places.rstrip('0').ljust(2, '0')} per {unit}"


def _later_in_words(change: Shortfall) -> str:
    return "later (busy now)" if change.nearest in ("", "later") else f"later (busy until about {change.nearest})"


def _summary(wanted: int, eligible: int, answers: Sequence[Answer], reason: str) -> str:
    """How many were asked and what they said."""
    if not answers:
        said = "No provider is known here that trades in this job's currency, so there was nobody to ask."
    else:
        counted = {outcome: sum(answer.outcome == outcome for answer in answers) for outcome in OUTCOMES}
        asked = len(answers) - counted[NOT_ASKED]
        words = {
            BID: "made a bid that could win",
            EXCLUDED: "made a bid that could not win",
            DECLINED: "declined",
            DESERTED: "won and did not confirm",
            NO_ANSWER: "did not answer",
            UNREACHED: "never got the tender",
        }
        told = ", ".join(f"{counted[outcome]} {text}" for outcome, text in words.items() if counted[outcome])
        said = f"{_providers(asked)} {'was' if asked == 1 else 'were'} asked: {told}." if asked else "Nobody was asked."
        if counted[NOT_ASKED]:
            count = counted[NOT_ASKED]
            said += f" {_providers(count)} known here {'was' if count == 1 else 'were'} not."
    bids = f"The job needs {wanted} bid{'s' * (wanted != 1)} at once, and {eligible} could win."
    return " ".join(filter(None, (said, bids, f"The tender ended because: {reason}." if reason else "")))


def _providers(count: int) -> str:
    return f"{count} provider{'s' * (count != 1)}"
