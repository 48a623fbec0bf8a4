"""What a job does when money runs low: it waits with what it has, and goes on from there when there is more.

A tender that the budget cannot pay for does not end the job, nor does a lease whose channel was not funded. The shards
that it was for wait, however long, for their developer to raise the budget (or to say that the wallet was filled), or
for another shard of the job to end below the most that it could have cost. They go on from their last checkpoints.

What a lease that ends leaves of the budget is anybody's, but what it leaves of a channel is its provider's next, and
one that starved left nothing there. A gang would else wake each other, in vain and without end.
"""

from collections.abc import Sequence
from dataclasses import replace

from hansa.market.machine import Step
from hansa.market.sale_funding import UNFUNDED
from hansa.scheduler.job_events import BudgetRaised, TenderFailed, TenderWanted
from hansa.scheduler.job_losses import tender_for
from hansa.scheduler.job_state import Job, Shard, with_shards


def wait_for_money(state: Job, event: TenderFailed) -> Step[Job]:
    """A tender would have cost more than is left: its shards wait."""
    waiting = [state.shards[number] for number in event.shards if state.shards[number].phase == "waiting"]
    short = (replace(shard, short=True, over_budget=True, retry_ms=0) for shard in waiting)
    return Step(state=replace(with_shards(state, *short), missing=max(state.missing, event.missing)))


def raise_budget(state: Job, event: BudgetRaised) -> Step[Job]:
    """There is more money: what waited for it is tendered again."""
    raised = replace(state, spec=replace(state.spec, budget=state.spec.budget + event.amount))
    return _tender_short_shards(raised, event.at_ms)


def try_short_shards_again(before: Job, step: Step[Job], at_ms: int) -> Step[Job]:
    """Where a lease of the job ended, what it could still have cost is free for those that wait for that money."""
    after = step.state
    both = list(zip(before.shards, after.shards, strict=True))
    ended = [shard for was, shard in both if before.on(was.lease) and not after.on(was.lease)]
    able = {shard.provider for shard in ended if shard.phase == "finished" or shard.kind != UNFUNDED}
    # Never one that became short just now: a step that makes one short ends no other lease, and its own starved.
    waited = [shard for shard in after.shards if shard.short and (shard.lacks_budget or shard.provider in able)]
    if after.phase != "running" or not ended or not waited:
        return step
    again = _tender(after, waited, at_ms)
    return Step(state=again.state, effects=(*step.effects, *again.effects))


def _tender_short_shards(state: Job, at_ms: int) -> Step[Job]:
    return _tender(state, [shard for shard in state.shards if shard.phase == "waiting" and shard.short], at_ms)


def _tender(state: Job, short: Sequence[Shard], at_ms: int) -> Step[Job]:
    looking = [replace(shard, short=False, over_budget=False, waiting_ms=at_ms) for shard in short]
    after = replace(with_shards(state, *looking), missing=0)
    if not looking:
        return Step(state=after)
    if state.phase == "gathering":
        numbers = tuple(shard.shard for shard in looking)
        tender = TenderWanted(job=state.job, shards=numbers, attempt=state.desertions, at_ms=at_ms)
        return Step(state=after, effects=(tender,))
    return Step(state=after, effects=tuple(tender_for(state, shard, at_ms) for shard in looking))
