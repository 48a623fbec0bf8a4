"""How fast each kind of job ran on whose devices: what this node measured of the leases that it paid for."""

from hansa.market.purchase_state import Purchase
from hansa.market.receipts import Statement
from hansa.market.selection import stated_in
from hansa.market.track_record import Trial, added, job_kind, lower_median
from hansa.node.engine.state import NodeState
from hansa.proto.workload import Workload

MOST_TRIALS = 4_096
"""Of more, those that were measured longest ago are forgotten."""
MOST_OF_A_KIND = 256
"""One purchase looks at the newest of its kind, and carries them with it."""
ROUNDS_AHEAD = 2
"""In a job that synchronises nobody is further ahead of the others than by so many rounds: reports take their time."""


def note_speeds(state: NodeState, before: Statement | None, after: Statement | None) -> None:
    """A receipt was vouched for: what each of its leases did since the one before it is a measurement.

    The first receipt of a lease measures nothing: steps are the job's own count, and a shard that goes on from a
    checkpoint does not begin at nought.
    """
    if before is None or after is None:
        return
    earlier = {line.lease: (line, proof) for line, proof in zip(before.lines, before.evidence, strict=True)}
    for line, proof in zip(after.lines, after.evidence, strict=True):
        bought = state.purchase_on(line.lease)
        if line.lease not in earlier or bought is None:
            continue
        known_line, known_proof = earlier[line.lease]
        bid = next(bought.bids[entry.bid] for entry in bought.placements if entry.lease == line.lease)
        most = _most_steps(state, bought, bid.signer)
        steps = proof.steps - known_proof.steps if most is None else min(proof.steps, most) - known_proof.steps
        device_ms = line.device_ms - known_line.device_ms
        if steps <= 0 or device_ms <= 0:
            continue
        measured = Trial(
            kind=job_kind(bought.workload),
            provider=bid.signer,
            model=stated_in(bid).model,
            devices=len(bid.devices),
            steps=steps,
            device_ms=device_ms,
            at_ms=line.end_ms,
        )
        state.trials[measured.key] = added(state.trials.pop(measured.key, None), measured)
    while len(state.trials) > MOST_TRIALS:
        del state.trials[next(iter(state.trials))]


def _most_steps(state: NodeState, bought: Purchase, provider: bytes) -> int | None:
    """The most steps that a shard can have come to by what the others did; None where its job does not synchronise.

    A round takes a part of everybody, so all shards are about as far. What each of them says of itself is its
    provider's word; what the others say is not.
    """
    of, rounds = state.jobs.get(bought.tender.job), state.rounds.get(bought.tender.job)
    if of is None or rounds is None or not rounds.published:
        return None
    others = [shard.step for shard in of.shards if shard.step and shard.provider != provider]
    return lower_median(others) * (rounds.published + ROUNDS_AHEAD) // rounds.published if others else None


def trials_of(state: NodeState, workload: Workload) -> tuple[Trial, ...]:
    """What is known of jobs of this kind, the newest last."""
    kind = job_kind(workload)
    return tuple(trial for trial in state.trials.values() if trial.kind == kind)[-MOST_OF_A_KIND:]
