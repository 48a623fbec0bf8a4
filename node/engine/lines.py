"""What this node knows of the lines to its providers and of the rounds of its jobs: both learned from its own dealings.

Both are what a purchase takes along (``hansa.market.gang``). Kept are lines to those with whom this node has a channel
to pay on; nobody else's would ever be looked at.
"""

from collections.abc import Iterable
from typing import Any

from hansa.market.bandwidth import BACK, THERE, Bandwidth, noted
from hansa.market.gang import Company
from hansa.market.pace import Pace, with_round
from hansa.market.scoring import LONGEST_WAY_MS
from hansa.market.shares import cost, width_milli
from hansa.market.track_record import job_kind, lower_median
from hansa.node.engine.events import LineMeasured
from hansa.node.engine.state import NodeState
from hansa.proto.units import HOUR_MS
from hansa.proto.workload import Workload
from hansa.scheduler.job_spec import JobSpec
from hansa.scheduler.job_state import Job
from hansa.scheduler.rounds import Rounds

MOST_LINES = 1_024
MOST_PACES = 1_024
"""Of more, those that were measured longest ago are forgotten."""


def is_of_use(state: NodeState, provider: bytes) -> bool:
    """Whether a line to this account can ever count: this node pays it, or has paid it."""
    if provider in state.lines:
        return True
    return any(channel.config.payee_signer == provider for _, channel in state.paying.all())


def note_transfer(state: NodeState, event: LineMeasured) -> list[Any]:
    """A transfer was measured."""
    if not is_of_use(state, event.provider):
        state.ignore("lines", "a line to nobody whom this node pays")
        return []
    before = state.lines.pop(event.provider, Bandwidth(provider=event.provider))
    state.lines[event.provider] = noted(
        before, event.way, event.bytes_per_s, is_bound=event.is_bound, at_ms=event.at_ms
    )
    while len(state.lines) > MOST_LINES:
        del state.lines[next(iter(state.lines))]
    return []


def lines_to(state: NodeState, accounts: Iterable[bytes]) -> tuple[Bandwidth, ...]:
    """What is known of the lines to these."""
    return tuple(state.lines[account] for account in accounts if account in state.lines)


def note_round(state: NodeState, before: Rounds | None, after: Rounds | None) -> None:
    """A round of a job was published, or not: how long its shards worked since the one before is a measurement.

    Each shard's time is taken from the publication to its word that its part is done, both by this node's clock. The
    middle one counts, so that no single shard decides what is usual. The way of the published state to that shard is
    in it: what waiting costs is rather told too small than too large.
    """
    if before is None or after is None or after.published == before.published or not before.history:
        return
    of = state.jobs.get(before.job)
    past = before.history[-1]
    works_ms = [each.at_ms - past.at_ms for each in before.contributions.values() if each.at_ms > past.at_ms]
    if of is None or after.state is None or not works_ms:
        return
    kind = job_kind(of.spec.workload(of.job, of.package, of.files))
    measured = Pace(
        kind=kind,
        state_bytes=after.state.size_bytes,
        works_ms=(lower_median(works_ms),),
        at_ms=after.history[-1].at_ms,
    )
    state.paces[kind] = with_round(state.paces.pop(kind, None), measured)
    while len(state.paces) > MOST_PACES:
        del state.paces[next(iter(state.paces))]


def pace_of(state: NodeState, workload: Workload, spec: JobSpec) -> Pace | None:
    """How the rounds of a job will go: as those of its kind went, else as its file says, else nobody knows."""
    kind = job_kind(workload)
    if kind in state.paces:
        return state.paces[kind]
    if spec.round_bytes and spec.round_every_ms:
        return Pace(kind=kind, state_bytes=spec.round_bytes, works_ms=(spec.round_every_ms,))
    return None


def company_of(state: NodeState, of: Job, shards: Iterable[int], pace: Pace | None, at_ms: int) -> Company:
    """Those of a job's other shards that run: whoever joins them makes them wait, or waits for them."""
    company, wanted = Company(), set(shards)
    if pace is None:
        return company
    for shard in of.shards:
        bought = state.purchase_on(shard.lease) if shard.shard not in wanted and of.on(shard.lease) is shard else None
        if bought is None:
            continue
        taken = next(entry.bid for entry in bought.placements if entry.lease == shard.lease)
        scored_ms = next((entry.way_ms for entry in bought.ranking if entry.bid == taken), 0)
        bid = bought.bids[taken]
        line = state.lines.get(bid.signer, Bandwidth(provider=bid.signer))
        there, back = (line.bytes_per_s(way, at_ms) for way in (THERE, BACK))
        # The table is as it was when the shard was given away; what its line did since is known better.
        times = (min(LONGEST_WAY_MS, pace.state_bytes * 1_000 // max(1, rate)) for rate in (there, back))
        way_ms = sum(times) if there and back else scored_ms
        hourly = cost(HOUR_MS, width_milli(bid), bid.price_e18_per_device_ms)
        company = company.with_member(hourly, way_ms)
    return company
