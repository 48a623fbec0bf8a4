"""What a choice among bids cost or saved: beside the cheapest for the hour, and beside the mean of all that could win.

For the eye: amounts of a whole gang and one hour's work at the usual speed, as the score has it. Where shards wait for
each other the term for that is worked out anew for each gang, since the table has it beside the chosen ones only. It is
always that of the whole gang, the job's other shards included, or what these cost would look like a loss.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import comb

from hansa.market.affordable import Candidate, Headroom, Parts, one_after_the_other
from hansa.market.gang import Company, waiting
from hansa.market.scoring import MOST_TERM, Scored
from hansa.market.shares import WHOLE_MILLI
from hansa.proto.units import Amount, Uint32, format_amount, parse_amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Some bids beside what else could have been taken for as many shards.

    Attributes:
        shards: how many bids were taken.
        eligible: how many could have been.
        hourly, expected: what is paid for an hour, and what an hour's work is expected to cost, of those taken.
        cheapest_hourly, cheapest_expected: the same of the cheapest for the hour.
        mean_hourly, mean_expected: the same in the mean of all sets of as many bids.
    """

    shards: Uint32
    eligible: Uint32
    hourly: Amount
    expected: Amount
    cheapest_hourly: Amount
    cheapest_expected: Amount
    mean_hourly: Amount
    mean_expected: Amount

    @property
    def extra_hourly(self) -> int:
        """What the hour costs more than the cheapest."""
        return self.hourly - self.cheapest_hourly

    @property
    def saved(self) -> int:
        """What is expected to be saved on the work against the cheapest for the hour."""
        return self.cheapest_expected - self.expected

    @property
    def saved_against_mean(self) -> int:
        """The same against the mean."""
        return self.mean_expected - self.expected


def hourly_cost(entry: Scored) -> int:
    """What an hour of all of a bid's devices costs, or of its part of one."""
    return parse_amount(entry.price_per_hour) * max(entry.devices, 1) * entry.share_milli // WHOLE_MILLI


def compare(
    ranking: Sequence[Scored],
    taken: Collection[bytes],
    *,
    company: Company | None = None,
    work_ms: int = 0,
    parts: Mapping[bytes, Parts] | None = None,
    room: Headroom | None = None,
) -> Choice | None:
    """What was taken beside the rest; ``None`` where nothing was.

    Args:
        ranking: the table.
        taken: which bids.
        company: who was in the gang already.
        work_ms: how long shards work between two rounds; 0 where nothing is known of rounds.
        parts: the devices that bids give: no two that give the same are the cheapest together.
        room: what was given before.
    """
    beside = company or Company()
    eligible = [entry for entry in ranking if not entry.excluded]
    won = [entry for entry in eligible if entry.bid in taken]
    if not won:
        return None
    cheapest = _cheapest(eligible, len(won), parts or {}, room or Headroom()) or won
    return Choice(
        shards=len(won),
        eligible=len(eligible),
        hourly=sum(map(hourly_cost, won)),
        expected=_expected(won, beside, work_ms),
        cheapest_hourly=sum(map(hourly_cost, cheapest)),
        cheapest_expected=_expected(cheapest, beside, work_ms),
        mean_hourly=sum(map(hourly_cost, eligible)) * len(won) // len(eligible),
        mean_expected=_mean_expected(eligible, len(won), beside, work_ms),
    )


def _cheapest(eligible: Sequence[Scored], count: int, parts: Mapping[bytes, Parts], room: Headroom) -> list[Scored]:
    """The cheapest for the hour that may stand beside each other; none if these are too few."""
    by_bid = {entry.bid: entry for entry in eligible}
    candidates = [
        Candidate(bid=entry.bid, provider=entry.provider, cost=0, most=0, parts=parts.get(entry.bid, Counter()))
        for entry in sorted(eligible, key=lambda entry: (hourly_cost(entry), entry.bid))
    ]
    found = one_after_the_other(candidates, count, room)
    return [by_bid[one.bid] for one in found] if len(found) == count else []


def _expected(gang: Sequence[Scored], company: Company, work_ms: int) -> int:
    if not work_ms:
        return sum(entry.expected_cost for entry in gang)
    for entry in gang:
        company = company.with_member(hourly_cost(entry), entry.way_ms)
    return sum(entry.expected_cost - entry.rounds for entry in gang) + waiting(company, work_ms)


def _mean_expected(eligible: Sequence[Scored], count: int, company: Company, work_ms: int) -> int:
    """What ``_expected`` says in the mean of all sets of so many of them, worked out without trying each.

    Of the sets in which a bid's way is the longest, all others are among those before it, by their ways.
    """
    number = len(eligible)
    if not work_ms:
        return sum(entry.expected_cost for entry in eligible) * count // number
    own = sum(entry.expected_cost - entry.rounds for entry in eligible)
    waits = before = 0
    for place, entry in enumerate(sorted(eligible, key=lambda entry: entry.way_ms)):
        hourly, sets = hourly_cost(entry), comb(place, count - 1)
        of_others = before * comb(place - 1, count - 2) if count > 1 and place else 0
        paid = (company.hourly + hourly) * sets + of_others
        waits += paid * max(company.way_ms, entry.way_ms)
        before += hourly
    every = comb(number, count)
    waits = min(waits, MOST_TERM * every * work_ms)
    # Divided once, so that a gang that is like all others costs what the mean does.
    return (own * count * every * work_ms + waits * number) // (number * every * work_ms)


def in_words(choice: Choice, currency: str) -> str:
    """``It costs 0.10 USD an hour more than the cheapest, and is expected to save 0.30 USD ...``."""
    hour = f"{_shown(choice.hourly)} {currency} an hour for {choice.shards} shard{'s' * (choice.shards != 1)}"
    if choice.eligible <= choice.shards:
        return f"{hour}; there was no other bid to choose."
    if choice.extra_hourly <= 0:
        against = "the cheapest for the hour too"
    else:
        more = f"{_shown(choice.extra_hourly)} {currency} an hour more than the cheapest"
        saves = "save" if choice.saved >= 0 else "cost"
        by = f"{_shown(abs(choice.saved))} {currency}{' more' * (choice.saved < 0)}"
        against = f"{more}, and is expected to {saves} {by} on as much work as an hour does"
    mean = choice.saved_against_mean
    beside = f"{_shown(abs(mean))} {currency} {'below' if mean >= 0 else 'above'} the mean of {choice.eligible} bids"
    return f"{hour}: {against}; its expected cost is {beside}."


def _shown(amount: int) -> str:
    whole, _, places = format_amount(amount).partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"
