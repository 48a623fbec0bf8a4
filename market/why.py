"""Why a job found no provider: everybody's "no" merged into a table, and the nearest changes that would help.

A provider says in what it falls short (``Decline.shortfalls``); an advert says it of providers that were not asked. A
provider counts for a change only where the change covers *all* of its shortfalls: who has too little memory and is
too dear is not won by a higher price alone. So every provider's own set of shortfalls is a candidate; whoever needs no
more than that comes with it; and a candidate that costs more than another and brings nobody beyond it is left out.

How far one change goes, and whether it covers what somebody lacks, is in ``hansa.market.shortfalls``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hansa.market.clauses import relaxed_requirements
from hansa.market.pricing import MOST_SHORTFALLS
from hansa.market.purchase_state import Purchase
from hansa.market.selection import rank, shortfalls_of
from hansa.market.shortfalls import (
    BUSY,
    LATER,
    PRICE,
    SWAPPED,
    busy,
    change_in_words,
    cost_of,
    covers,
    in_one_form,
    is_hopeless,
    later_in_words,
    price_in_words,
    price_shortfall,
)
from hansa.market.track_record import Record
from hansa.proto.market_documents import Shortfall
from hansa.proto.units import Address, Line, Note, Uint32

BID = "bid"
EXCLUDED = "excluded"
DECLINED = "declined"
NO_ANSWER = "silent"
UNREACHED = "unreached"
DESERTED = "deserted"
NOT_ASKED = "not asked"
QUIET = (NO_ANSWER, UNREACHED)
OUTCOMES = (BID, EXCLUDED, DECLINED, DESERTED, NO_ANSWER, UNREACHED, NOT_ASKED)

MOST_RELAXATIONS = 12
MOST_CANDIDATES = 128
"""More different sets of shortfalls are not weighed, the cheapest first: beyond that nobody reads the list."""


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
    deserted = {entry.provider: entry for entry in bought.placements if entry.is_to_blame}
    for account in bought.invited:
        bids = {key: bid for key, bid in bought.bids.items() if bid.signer == account}
        why_not = [excluded.get(key, "") for key in bids]
        if account in deserted:
            lost = deserted[account]
            said = f"it won and refused the lease: {lost.why}" if lost.deserted else "it won and said nothing more"
            yield Answer(provider=account, outcome=DESERTED, reason=said)
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


def explain(*, wanted: int, eligible: int, answers: Sequence[Answer], reason: str = "") -> Explanation:
    """Merge what is known.

    Args:
        wanted: shards to be placed, all or none.
        eligible: bids on them that could have won.
        answers: one of each provider that is known.
        reason: what the tender itself said, if it ended for another reason than that nobody would.
    """
    answers = tuple(replace(answer, shortfalls=_bounded(answer.shortfalls)) for answer in answers)
    told = [replace(answer, shortfalls=in_one_form(answer.shortfalls)) for answer in answers if answer.outcome != BID]
    fixable = [answer for answer in told if answer.shortfalls and not any(map(is_hopeless, answer.shortfalls))]
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


def _bounded(shortfalls: Sequence[Shortfall]) -> tuple[Shortfall, ...]:
    """What a stranger says it lacks, one of each condition. Naming more than any node would is taken for naming none.

    Every answer is weighed against every other, and all of them are strangers' words.
    """
    if len(shortfalls) > MOST_SHORTFALLS:
        return ()
    return tuple({(one.name, one.wanted): one for one in reversed(shortfalls)}.values())[::-1]


def _failing(told: Sequence[Answer]) -> tuple[Failing, ...]:
    failed: dict[tuple[str, str], dict[bytes, Shortfall]] = {}
    for answer in told:
        for one in answer.shortfalls:
            failed.setdefault((one.name, one.wanted), {})[answer.provider] = one
    rows = []
    for (name, wanted), who in failed.items():
        near = [one for one in who.values() if one.nearest]
        nearest = min(near, key=cost_of).nearest if near else ""
        rows.append(Failing(name=name, wanted=wanted, nearest=nearest, providers=len(who)))
    return tuple(sorted(rows, key=lambda row: (-row.providers, row.name, row.wanted)))


def _merge(fixable: Sequence[Answer], wanted: int, eligible: int) -> list[Relaxation]:
    """Every provider's own shortfalls as a candidate, with all whom it wins; what another one beats is left out."""
    alike: dict[tuple[Shortfall, ...], list[bytes]] = {}
    for answer in fixable:
        alike.setdefault(_sorted(answer.shortfalls), []).append(answer.provider)
    priced = sorted(
        ((sum(map(cost_of, changes)), changes) for changes in alike), key=lambda one: (one[0], _key(one[1]))
    )
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
        any(covers(change, need) for change in by_condition.get((need.name, need.wanted), ())) for need in needs
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


def in_words(relaxation: Relaxation, unit: str = "device-hour") -> str:
    """``2 more providers if vram >= 22 GiB``, ``5 more providers at +0.06 per GPU-hour``, ``1 more provider later``."""
    count = len(relaxation.providers)
    who = f"{count} {'other' if relaxation.swaps else 'more'} provider{'s' * (count != 1)}"
    if not relaxation.changes:
        return f"{who} if {relaxation.words}"
    plain = [one for one in relaxation.changes if one.name not in (PRICE, BUSY)]
    conditions = " and ".join(change_in_words(one) for one in plain)
    parts = [who, *([f"if {conditions}"] if plain else [])]
    parts += [price_in_words(one, unit) for one in relaxation.changes if one.name == PRICE]
    parts += [later_in_words(one) for one in relaxation.changes if one.name == BUSY]
    return " ".join(parts)


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
