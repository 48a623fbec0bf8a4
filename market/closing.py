"""When bidding closes: at its deadline, when everybody has answered, or when more bids cannot pay for the wait.

The last of these weighs two amounts. *Waiting costs*: nothing runs meanwhile, and a moment of that costs the buyer what
the gang at hand costs for it. *An answer may gain*: of ``k`` bids that are as good as drawn from one urn, the next
falls into each gap between them with the same chance, one in ``k + 1``; where it falls among the best ``n``, it saves
at most the distance from the dearest of these to the lower end of its gap, for as long as the lease lasts. Answers have
come at the rate of ``k`` in the time since the tender was opened, and are taken to come at that rate on. So the moment
when waiting stops paying follows from the bids alone:

    since opening = k x (what an answer gains) x (the longest run) / (what an hour of the gang costs)

It never closes before there is a bid for every shard and one in five beside them, since a winner may not confirm; nor
before half of those invited have answered; and bids count as at least one part in 500 apart, however alike they are:
a few bids of one owner under several names must not close a dear tender on the others. Integers only.
"""

from collections.abc import Sequence

from hansa.market.scoring import Scored

ONE_BACKUP_FOR = 5
"""One bid more is kept for so many shards, and part of so many."""
LEAST_APART = 500
MOST_WEIGHED = 64
"""With more bids than this, bidding stays open until its deadline or the last answer: weighing them costs time too."""


def enough_bids(shards: int) -> int:
    """How many bids it takes before closing early is thought of: one for each shard, and the backups."""
    return shards + -(-shards // ONE_BACKUP_FOR)


def pays_until_ms(
    usable: Sequence[Scored], *, shards: int, invited: int, answered: int, wall_ms: int, opened_ms: int, latest_ms: int
) -> int:
    """Until when waiting for more bids can pay; ``latest_ms`` where nothing speaks for closing early.

    Args:
        usable: bids that could all win beside each other, the best first.
        shards: how many are to be placed.
        invited: how many were asked.
        answered: how many of them have bid or declined.
        wall_ms: the longest that a lease may run.
        opened_ms: when the tender went out.
        latest_ms: when bidding closes at the latest.
    """
    count = len(usable)
    if count < enough_bids(shards) or count > MOST_WEIGHED or 2 * answered < invited:
        return latest_ms
    costs = [entry.expected_cost for entry in usable]
    dearest = costs[shards - 1]
    # The best is as far above what a better one would cost as the second is above the best.
    ends = [max(0, 2 * costs[0] - costs[1]), *costs]
    gain = max(sum(dearest - ends[gap] for gap in range(shards)), shards * dearest // LEAST_APART)
    an_hour = sum(entry.finishing for entry in usable[:shards])
    worth_ms = count * gain * wall_ms // ((count + 1) * max(1, an_hour))
    return min(latest_ms, opened_ms + worth_ms)
