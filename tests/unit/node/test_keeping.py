"""A blob is kept while it is needed and given only to those who were told of it or hold a lease for it."""

from dataclasses import replace
from typing import Any

from kit.trading import BUYER, CHANNEL, JOB, LEASE, NOW_MS, OTHER, OTHER_LEASE, PROVIDER, award, bid, spec, tender

from hansa.market.sale_state import Sale
from hansa.node.daemon import keeping
from hansa.node.daemon.keeping import BlobGrants, blobs_in, checkpoint_blobs, wanted_blobs
from hansa.node.engine.state import NodeState
from hansa.proto import messages
from hansa.proto.blob import BlobRef, blob_ref
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed
from hansa.proto.typed_data import digest
from hansa.scheduler.job_state import Checkpoint, Job, Output, Shard
from hansa.scheduler.rounds import Rounds
from hansa.scheduler.run import Run, RunResult

PACKAGE, STATE, CHECKPOINT, OUTPUT, ELSEWHERE = (
    blob_ref(name) for name in (b"package", b"state", b"checkpoint", b"output", b"elsewhere")
)


def buying(**changes: Any) -> NodeState:
    """A buyer whose job of two shards runs: the provider has one, another has the other."""
    state = NodeState(account=BUYER)
    kept = Checkpoint(round=1, step=5, blob=CHECKPOINT)
    outputs = (Output(path="a", blob=OUTPUT, here=True), Output(path="b", blob=ELSEWHERE))
    shards = (
        Shard(shard=0, phase="running", lease=LEASE, provider=PROVIDER, attempts=1, checkpoint=kept, outputs=outputs),
        Shard(shard=1, phase="running", lease=OTHER_LEASE, provider=OTHER, attempts=1),
    )
    job = Job(phase="running", job=JOB, spec=spec(), package=PACKAGE, shards=shards, submitted_ms=NOW_MS)
    state.jobs[JOB] = replace(job, **changes)
    state.rounds[JOB] = Rounds(job=JOB, shards=2, timeout_ms=1, published=1, state=STATE)
    return state


def selling(phase: str) -> NodeState:
    """A provider with one run for the buyer."""
    state = NodeState(account=PROVIDER)
    called = tender()
    made = bid(called).document
    key = digest(DOMAIN, made)
    state.sales[key] = Sale(
        phase=phase, tender=called, bid=made, bid_digest=key, grace_ms=1, award=award(made), lease=LEASE
    )
    state.sale_of[LEASE] = key
    outputs = (RunResult(path="a", blob=OUTPUT),)
    state.runs[LEASE] = Run(run=LEASE, phase="running", begun=True, checkpoint=CHECKPOINT, outputs=outputs)
    return state


def may(state: NodeState, account: bytes, grants: BlobGrants | None = None) -> set[BlobRef]:
    grants = grants or BlobGrants()
    every = (PACKAGE, STATE, CHECKPOINT, OUTPUT, ELSEWHERE)
    return {blob for blob in every if grants.allow(state, account, blob)}


def test_a_provider_with_a_lease_may_have_the_code_its_own_checkpoint_and_the_round() -> None:
    state = buying()
    assert may(state, PROVIDER) == {PACKAGE, CHECKPOINT, STATE}
    assert may(state, OTHER) == {PACKAGE, STATE}, "not the checkpoint of somebody else's shard"
    assert may(state, bytes(20)) == set()
    assert may(state, b"\x09" * 20) == set()


def test_a_lease_that_is_over_opens_nothing() -> None:
    state = buying()
    job = state.jobs.live[JOB]
    lost = replace(job.shards[0], phase="waiting")
    state.jobs[JOB] = replace(job, shards=(lost, job.shards[1]))
    assert may(state, PROVIDER) == set()
    assert may(buying(phase="succeeded"), PROVIDER) == set()


def test_a_buyer_may_have_what_its_runs_made_and_nobody_else_may() -> None:
    state = selling("delivering")
    assert may(state, BUYER) == {OUTPUT, CHECKPOINT}
    assert may(state, OTHER) == set()


def test_a_buyer_may_have_what_it_named_only_once_its_code_has_run() -> None:
    state = selling("running")
    sale = state.sale_on(LEASE)
    assert sale is not None
    state.sales[sale.bid_digest] = replace(sale, workload=spec().workload(JOB, PACKAGE, None))
    assert may(state, BUYER) == {PACKAGE, CHECKPOINT, OUTPUT}
    state.runs[LEASE] = Run(run=LEASE, phase="staging", checkpoint=CHECKPOINT)
    assert may(state, BUYER) == set(), "the names may be another's"
    state.runs[LEASE] = Run(run=LEASE, phase="staging", checkpoint=CHECKPOINT, checkpoint_at_ms=1)
    assert may(state, BUYER) == {PACKAGE, CHECKPOINT}


def test_who_is_told_of_a_blob_may_have_it_and_only_the_one_who_was_told() -> None:
    grants, state = BlobGrants(), NodeState()
    grants.give(PROVIDER, messages.RoundPublished(lease=LEASE, round=1, state=STATE))
    grants.give(OTHER, messages.RunOrdered(lease=LEASE, round=1, checkpoint=CHECKPOINT, mirrors=()))
    assert may(state, PROVIDER, grants) == {STATE}
    assert may(state, OTHER, grants) == {CHECKPOINT}
    assert may(state, BUYER, grants) == set()


def test_what_a_message_tells_of_is_found_wherever_it_stands_in_it() -> None:
    workload = replace(spec().workload(JOB, PACKAGE, None), package_root=PACKAGE.root, package_bytes=PACKAGE.size_bytes)
    signed = Signed(document=award(bid(tender()).document), signature=bytes(65))
    # The package is whose run is ordered, and not whose bid was merely the cheapest.
    assert blobs_in(messages.AwardSent(award=signed, channel=CHANNEL, workload=workload)) == set()
    assert blobs_in(messages.OutputStored(lease=LEASE, path="a", blob=OUTPUT)) == {OUTPUT}
    assert blobs_in(messages.RunOrdered(lease=LEASE, round=0, checkpoint=None, mirrors=())) == set()
    assert blobs_in(messages.LeaseConfirmed(lease=LEASE)) == set()


def test_grants_are_bounded_and_the_newest_stay(monkeypatch: Any) -> None:
    monkeypatch.setattr(keeping, "MOST_GRANTS", 3)
    grants = BlobGrants()
    for number in range(10):
        grants.give(PROVIDER, messages.OutputStored(lease=LEASE, path="a", blob=blob_ref(bytes([number]))))
    allowed = [number for number in range(10) if grants.allow(NodeState(), PROVIDER, blob_ref(bytes([number])))]
    assert allowed == [7, 8, 9]


def test_a_buyer_keeps_its_code_its_checkpoints_its_round_and_the_outputs_that_are_here() -> None:
    assert wanted_blobs(buying()) == {PACKAGE, CHECKPOINT, STATE, OUTPUT}
    ended = buying(phase="succeeded")
    ended.rounds[JOB] = replace(ended.rounds.live[JOB], phase="published")
    assert wanted_blobs(ended) == {OUTPUT}, "results stay when the job is over"


def test_a_provider_keeps_what_its_run_made_until_it_is_delivered() -> None:
    assert wanted_blobs(selling("running")) == {CHECKPOINT, OUTPUT}
    assert wanted_blobs(selling("delivering")) == {CHECKPOINT, OUTPUT}
    assert wanted_blobs(selling("settled")) == set()
    assert wanted_blobs(selling("stopped")) == set()


def test_the_newest_checkpoints_are_those_of_the_state_and_nothing_besides() -> None:
    assert checkpoint_blobs(buying()) == {CHECKPOINT, STATE}
    assert checkpoint_blobs(selling("running")) == {CHECKPOINT}
    assert checkpoint_blobs(selling("settled")) == set()
    for state in (buying(), selling("running"), selling("delivering")):
        assert checkpoint_blobs(state) <= wanted_blobs(state)
