"""What a job does when money runs low: it waits with what it has, and goes on from there when there is more.

A tender that the budget cannot pay for does not end the job, nor does a lease whose channel was not funded. The shards
that it was for wait, however long, for their developer to raise the budget (or to say that the wallet was filled), or
for another shard of the job to end below the most that it could have cost. They go on from their last checkpoints.
"""

from dataclasses import replace

from hansa.market.machine import Step
from hansa.scheduler.job_events import BudgetRaised, TenderFailed, TenderWanted
from hansa.scheduler.job_losses import tender_for
from hansa.scheduler.job_state import Job, with_shards


def wait_for_money(state: Job, event: TenderFailed) -> Step[Job]:
    """A tender would have cost more than is left: its shards wait."""
    waiting = [state.shards[number] for number in event.shards if state.shards[number].phase == "waiting"]
    short = (replace(shard, short=True, retry_ms=0) for shard in waiting)
    return Step(state=replace(with_shards(state, *short), missing=max(state.missing, event.missing)))


def raise_budget(state: Job, event: BudgetRaised) -> Step[Job]:
    """There is more money: what waited for it is tendered again."""
    raised = replace(state, spec=replace(state.spec, budget=state.spec.budget + event.amount))
    return _tender_short_shards(raised, event.at_ms)


def try_short_shards_again(before: Job, step: Step[Job], at_ms: int) -> Step[Job]:
    """Where a lease of the job ended, what it could still have cost is free for those that wait for money."""
    after = step.state
    ended = {shard.lease for shard in before.shards if before.on(shard.lease)} - {
        shard.lease for shard in after.shards if after.on(shard.lease)
    }
    waited = [shard for shard in before.shards if shard.short and after.shards[shard.shard].short]
    if after.phase != "running" or not ended or not waited:
        return step
    again = _tender_short_shards(after, at_ms)
    return Step(state=again.state, effects=(*step.effects, *again.effects))


def _tender_short_shards(state: Job, at_ms: int) -> Step[Job]:
    short = [shard for shard in state.shards if shard.phase == "waiting" and shard.short]
    looking = [replace(shard, short=False, waiting_ms=at_ms) for shard in short]
    after = replace(with_shards(state, *looking), missing=0)
    if not looking:
        return Step(state=after)
    if state.phase == "gathering":
        numbers = tuple(shard.shard for shard in looking)
        tender = TenderWanted(job=state.job, shards=numbers, attempt=state.desertions, at_ms=at_ms)
        return Step(state=after, effects=(tender,))
    return Step(state=after, effects=tuple(tender_for(state, shard, at_ms) for shard in looking))
