"""Shards of one job hold each other's checkpoints: between engines, within the owner's limit, while leases last."""

from dataclasses import replace
from typing import Any

import pytest
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, NOW_MS, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, THIRD, spec

from hansa.node.daemon.keeping import BlobGrants, wanted_blobs
from hansa.node.engine import events
from hansa.node.engine.state import restored, snapshot
from hansa.proto import messages
from hansa.proto.blob import BlobRef, blob_ref
from hansa.scheduler import run
from hansa.scheduler.mirror import FetchCopy

STATE, NEWER, STRANGE = blob_ref(b"state"), blob_ref(b"newer"), blob_ref(b"strange")


def market(**rules: Any) -> tuple[SmallMarket, dict[bytes, bytes]]:
    """A job of two shards that runs on two providers; answers the lease of each."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    for key in (PROVIDER_KEY, OTHER_KEY):
        made.add(key, devices=1, **{"mirror_bytes": 1 << 20, **rules})
    made.submit(BUYER, of=spec(mirror=True))
    made.tender(BUYER, (PROVIDER, OTHER), shards=(0, 1))
    leases = {shard.provider: shard.lease for shard in made.engines[BUYER].state.jobs.live[JOB].shards}
    assert set(leases) == {PROVIDER, OTHER}
    for account, lease in leases.items():
        made.take(account, run.RunStarted(run=lease, at_ms=made.now_ms))
    return made, leases


def save(made: SmallMarket, lease: bytes, blob: BlobRef = STATE, step: int = 1) -> None:
    """The provider's run makes a checkpoint, and the buyer copies it."""
    made.take(PROVIDER, run.RunCheckpointed(run=lease, round=0, step=step, checkpoint=blob, at_ms=made.now_ms))
    made.take(BUYER, events.BlobFetched(job=JOB, lease=lease, blob=blob, at_ms=made.now_ms))


def bring(made: SmallMarket, lease: bytes, blob: BlobRef = STATE) -> None:
    """The mirror has fetched its copy."""
    made.take(OTHER, events.CopyFetched(lease=lease, checkpoint=blob, at_ms=made.now_ms))


def ordered(made: SmallMarket) -> list[FetchCopy]:
    return [effect for account, effect in made.effects if account == OTHER and isinstance(effect, FetchCopy)]


def shard_of(made: SmallMarket, provider: bytes) -> Any:
    shards = made.engines[BUYER].state.jobs.get(JOB).shards
    return next(shard for shard in shards if shard.provider == provider)


def test_a_checkpoint_goes_to_the_other_provider_and_the_buyer_knows_where_it_lies() -> None:
    made, leases = market()
    save(made, leases[PROVIDER])
    shard = shard_of(made, PROVIDER).shard
    order = FetchCopy(lease=leases[OTHER], shard=shard, buyer=BUYER, holder=PROVIDER, checkpoint=STATE, like=None)
    assert ordered(made) == [order]
    assert STATE in wanted_blobs(made.engines[OTHER].state), "it is not evicted while it comes"
    bring(made, leases[OTHER])
    assert shard_of(made, PROVIDER).mirror.held == STATE
    assert BlobGrants().allow(made.engines[OTHER].state, BUYER, STATE)
    assert not BlobGrants().allow(made.engines[OTHER].state, THIRD, STATE)


def test_the_provider_that_made_it_gives_it_to_the_mirror_and_to_nobody_else() -> None:
    made, leases = market()
    save(made, leases[PROVIDER])
    state = made.engines[PROVIDER].state
    assert BlobGrants().allow(state, OTHER, STATE)
    assert not BlobGrants().allow(state, THIRD, STATE)


def test_a_buyer_gives_on_nothing_that_it_may_not_have_itself() -> None:
    made, leases = market()
    grant = messages.CheckpointGranted(lease=leases[PROVIDER], checkpoint=STRANGE, account=THIRD)
    made.tell(BUYER, PROVIDER, grant)
    grants, state = BlobGrants(), made.engines[PROVIDER].state
    assert not grants.allow(state, THIRD, STRANGE)
    package = made.engines[BUYER].state.jobs.get(JOB).package
    assert grants.allow(state, THIRD, package), "the job's code goes with its checkpoints"
    assert grants.allow(state, BUYER, package), "and its buyer may have its own code back"


def test_what_is_over_the_owners_limit_or_is_not_wanted_by_the_owner_is_refused_in_words() -> None:
    for limit in (0, STATE.size_bytes - 1):
        made, leases = market(mirror_bytes=limit)
        save(made, leases[PROVIDER])
        assert ordered(made) == []
        assert "keeps no" in shard_of(made, PROVIDER).mirror.refusal


def test_the_limit_counts_the_copies_of_all_leases_together() -> None:
    made, leases = market(mirror_bytes=2 * STATE.size_bytes + NEWER.size_bytes - 1)
    save(made, leases[PROVIDER])
    bring(made, leases[OTHER])
    state = made.engines[OTHER].state
    (held,) = state.mirrors.live.values()
    elsewhere = replace(held, lease=b"e" * 32)
    state.mirrors[b"e" * 32] = elsewhere
    bought = next(entry for _, entry in state.sales.all())
    state.sale_of[b"e" * 32] = bought.bid_digest
    save(made, leases[PROVIDER], NEWER, step=2)
    assert "keeps no" in shard_of(made, PROVIDER).mirror.refusal


@pytest.mark.parametrize("shard", [2, 1 << 31])
def test_a_shard_that_the_job_does_not_have_and_a_copy_over_its_limit_are_ignored(shard: int) -> None:
    made, leases = market()
    lease = leases[OTHER]
    made.tell(BUYER, OTHER, messages.MirrorWanted(lease=lease, shard=shard, checkpoint=STATE, holder=PROVIDER))
    huge = BlobRef(root=b"h" * 32, size_bytes=spec().state_bytes + 1)
    made.tell(BUYER, OTHER, messages.MirrorWanted(lease=lease, shard=0, checkpoint=huge, holder=PROVIDER))
    assert ordered(made) == []
    reason = "mirror: a copy without bytes or over the workload's limit, or of no shard of the job"
    assert made.engines[OTHER].state.ignored[reason] == 2


def test_a_copy_without_bytes_is_no_copy_and_names_no_sources() -> None:
    made, leases = market()
    lease, empty = leases[OTHER], BlobRef(root=b"e" * 32, size_bytes=0)
    made.tell(BUYER, OTHER, messages.MirrorWanted(lease=lease, shard=0, checkpoint=empty, holder=PROVIDER))
    assert ordered(made) == []
    made.tell(BUYER, OTHER, messages.RunOrdered(lease=lease, round=0, checkpoint=empty, mirrors=(PROVIDER,)))
    assert lease not in made.engines[OTHER].state.mirrors.live


def test_nobody_but_the_buyer_of_a_lease_has_copies_held_under_it() -> None:
    made, leases = market()
    wanted = messages.MirrorWanted(lease=leases[OTHER], shard=0, checkpoint=STATE, holder=PROVIDER)
    made.tell(PROVIDER, OTHER, wanted)
    assert ordered(made) == []


def test_when_the_lease_is_over_its_copies_are_nobodys() -> None:
    made, leases = market()
    save(made, leases[PROVIDER])
    bring(made, leases[OTHER])
    made.take(BUYER, events.JobCancelled(job=JOB, reason="enough", at_ms=made.now_ms))
    made.take(OTHER, run.RunStopped(run=leases[OTHER], at_ms=made.now_ms))
    state = made.engines[OTHER].state
    assert STATE not in wanted_blobs(state)
    assert not BlobGrants().allow(state, BUYER, STATE)
    made.tell(BUYER, OTHER, messages.MirrorReleased(lease=leases[OTHER], shard=0))
    assert not state.mirrors.live


def test_a_copy_outlives_its_node_and_what_was_on_its_way_is_fetched_again() -> None:
    made, leases = market()
    save(made, leases[PROVIDER])
    state = made.engines[OTHER].state
    assert restored(snapshot(state)).mirrors.live == state.mirrors.live
    made.effects.clear()
    made.restart(OTHER, devices=1)
    assert [order.checkpoint for order in ordered(made)] == [STATE]


def test_a_buyers_own_node_is_no_second_place() -> None:
    made, leases = market()
    state = made.engines[OTHER].state
    state.account = BUYER
    wanted = messages.MirrorWanted(lease=leases[OTHER], shard=0, checkpoint=STATE, holder=PROVIDER)
    made.tell(BUYER, OTHER, wanted)
    assert ordered(made) == []


def test_a_run_is_told_who_else_has_its_checkpoint() -> None:
    made, leases = market()
    order = messages.RunOrdered(lease=leases[OTHER], round=0, checkpoint=STATE, mirrors=(PROVIDER, THIRD))
    made.tell(BUYER, OTHER, order)
    assert made.engines[OTHER].state.mirrors.live[leases[OTHER]].sources == (PROVIDER, THIRD)
    assert made.now_ms >= NOW_MS
