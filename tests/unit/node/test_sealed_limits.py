"""The limits of a sealed job count what its code wrote: on both sides, for states, copies and outputs."""

from dataclasses import replace
from typing import Any

from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.node.engine.selling import DeliverRound
from hansa.proto import messages
from hansa.proto.blob import BlobRef
from hansa.proto.sealed import sealed_size_bytes
from hansa.scheduler import run
from hansa.scheduler.job_events import FetchWanted
from hansa.scheduler.mirror import FetchCopy

LIMIT = spec().state_bytes


def blob(plain_bytes: int, name: bytes = b"b") -> BlobRef:
    return BlobRef(root=name * 32, size_bytes=sealed_size_bytes(plain_bytes))


def market(*, knows: bool = True) -> SmallMarket:
    made = SmallMarket()
    made.add(BUYER_KEY)
    for key in (PROVIDER_KEY, OTHER_KEY):
        made.add(key, devices=1, mirror_bytes=1 << 30, features=("mirrors", "sealed") if knows else ("mirrors",))
    needs = replace(spec().requirements, features=("mirrors", "sealed"))
    made.submit(BUYER, of=spec(mirror=True, requirements=needs))
    made.tender(BUYER, (PROVIDER, OTHER), shards=(0, 1), requirements=needs)
    return made


def leases_of(made: SmallMarket) -> dict[bytes, bytes]:
    return {shard.provider: shard.lease for shard in made.engines[BUYER].state.jobs.live[JOB].shards}


def running() -> tuple[SmallMarket, bytes, bytes]:
    made = market()
    leases = leases_of(made)
    for account, lease in leases.items():
        made.take(account, run.RunStarted(run=lease, at_ms=made.now_ms))
    return made, leases[PROVIDER], leases[OTHER]


def effects(made: SmallMarket, account: bytes, kind: type) -> list[Any]:
    return [effect for of, effect in made.effects if of == account and isinstance(effect, kind)]


def test_who_does_not_know_how_to_seal_gets_no_sealed_job() -> None:
    made = market(knows=False)
    said = made.heard(messages.DeclineSent)
    assert len(said) == 2
    assert made.heard(messages.BidSent) == []
    assert all("sealed" in message.decline.document.reason for message in said)


def test_a_checkpoint_as_large_as_allowed_is_copied_and_mirrored_and_a_larger_one_is_not() -> None:
    made, lease, other = running()
    for size_bytes, step in ((LIMIT, 1), (LIMIT + 1, 2)):
        news = run.RunCheckpointed(
            run=lease, round=0, step=step, checkpoint=blob(size_bytes, bytes((step,))), at_ms=made.now_ms
        )
        made.take(PROVIDER, news)
    assert [wanted.blob for wanted in effects(made, BUYER, FetchWanted)] == [blob(LIMIT, b"\1")]
    assert made.engines[BUYER].state.ignored["job: a checkpoint over the job's limit"] == 1
    for size_bytes in (LIMIT, LIMIT + 1):
        wish = messages.MirrorWanted(lease=other, shard=0, checkpoint=blob(size_bytes), holder=PROVIDER)
        made.tell(BUYER, OTHER, wish)
    assert [order.checkpoint for order in effects(made, OTHER, FetchCopy)] == [blob(LIMIT)]


def test_states_of_a_round_as_large_as_allowed_pass_both_ways_and_larger_ones_do_not() -> None:
    made, lease, _ = running()
    for size_bytes in (LIMIT + 1, LIMIT):
        made.tell(BUYER, PROVIDER, messages.RoundPublished(lease=lease, round=1, state=blob(size_bytes)))
        brought = messages.RoundContributed(lease=lease, round=1, weight_milli=1000, state=blob(size_bytes))
        made.tell(PROVIDER, BUYER, brought)
    assert [order.state for order in effects(made, PROVIDER, DeliverRound)] == [blob(LIMIT)]
    (contribution,) = made.engines[BUYER].state.rounds.live[JOB].contributions.values()
    assert contribution.state == blob(LIMIT)


def test_outputs_together_may_be_as_large_as_allowed_without_what_sealing_adds() -> None:
    made, lease, _ = running()
    limit = spec().output_bytes
    for number, size_bytes in enumerate((limit - 10, 11, 10)):
        output = blob(size_bytes, bytes((number,)))
        made.take(PROVIDER, run.RunOutput(run=lease, path=f"{number}", blob=output, at_ms=made.now_ms))
    assert [wanted.blob for wanted in effects(made, BUYER, FetchWanted)] == [
        blob(limit - 10, b"\0"),
        blob(10, b"\2"),
    ]


def test_a_run_is_ordered_from_a_checkpoint_as_large_as_allowed_and_from_no_larger_one() -> None:
    made = market()
    lease = leases_of(made)[PROVIDER]
    reason = "sale: a checkpoint over the workload's limit"
    for size_bytes, ignored in ((LIMIT, 0), (LIMIT + 1, 1)):
        order = messages.RunOrdered(lease=lease, round=0, checkpoint=blob(size_bytes), mirrors=())
        made.tell(BUYER, PROVIDER, order)
        assert made.engines[PROVIDER].state.ignored.get(reason, 0) == ignored
