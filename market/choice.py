"""What a choice among bids cost or saved: beside the cheapest for the hour, and beside the mean of all that could win.

For the eye: amounts of a whole gang and one hour's work at the usual speed, as the score has it. Where shards wait for
each other the term for that is worked out anew for each gang, since the table has it beside the chosen ones only.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hansa.market.gang import Company, waiting
from hansa.market.scoring import Scored
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
        mean_hourly, mean_expected: the same if all shards cost what the mean of all bids does.
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
    ranking: Sequence[Scored], taken: Collection[bytes], *, company: Company | None = None, work_ms: int = 0
) -> Choice | None:
    """What was taken beside the rest; ``None`` where nothing was.

    Args:
        ranking: the table.
        taken: which bids.
        company: who was in the gang already.
        work_ms: how long shards work between two rounds; 0 where nothing is known of rounds.
    """

    def expected(gang: Sequence[Scored]) -> int:
        if not work_ms:
            return sum(entry.expected_cost for entry in gang)
        whole = company or Company()
        for entry in gang:
            whole = whole.with_member(hourly_cost(entry), entry.way_ms)
        return sum(entry.expected_cost - entry.rounds for entry in gang) + waiting(whole, work_ms)

    def alone(entry: Scored) -> int:
        """The slowest of all that bid keeps nobody waiting."""
        if not work_ms:
            return entry.expected_cost
        own = Company(hourly=hourly_cost(entry), way_ms=entry.way_ms)
        return entry.expected_cost - entry.rounds + waiting(own, work_ms)

    eligible = [entry for entry in ranking if not entry.excluded]
    won = [entry for entry in eligible if entry.bid in taken]
    if not won:
        return None
    cheapest = sorted(eligible, key=lambda entry: (hourly_cost(entry), entry.bid))[: len(won)]
    return Choice(
        shards=len(won),
        eligible=len(eligible),
        hourly=sum(map(hourly_cost, won)),
        expected=expected(won),
        cheapest_hourly=sum(map(hourly_cost, cheapest)),
        cheapest_expected=expected(cheapest),
        mean_hourly=sum(map(hourly_cost, eligible)) * len(won) // len(eligible),
        mean_expected=sum(map(alone, eligible)) * len(won) // len(eligible),
    )


def in_words(choice: Choice, currency: str) -> str:
    """``It costs 0.10 USD an hour more than the cheapest, and is expected to save 0.30 USD ...``."""
    hour = f"{_shown(choice.hourly)} {currency} an hour for {choice.shards} shard{'s' * (choice.shards != 1)}"
    if choice.eligible <= choice.shards:
        return f"{hour}; there was no other bid to choose."
    if choice.extra_hourly <= 0:
        against = "the cheapest for the hour too"
    else:
        more = f"{_shown(choice.extra_hourly)} {currency} an hour more than the cheapest"
        against = f"{more}, and is expected to save {_shown(choice.saved)} {currency} on as much work as an hour does"
    mean = choice.saved_against_mean
    beside = f"{_shown(abs(mean))} {currency} {'below' if mean >= 0 else 'above'} the mean of {choice.eligible} bids"
    return f"{hour}: {against}; its expected cost is {beside}."


def _shown(amount: int) -> str:
    whole, _, places = format_amount(amount).partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"
