"""Who is asked to bid when a shard has lost its provider, and what becomes of a round that cannot be had."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio
from kit import memory_party
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.memory_party import party
from kit.trading import CHANNEL, JOB, OTHER_KEY, PROVIDER_KEY, award, bid, spec, tender, workload

from hansa.market.purchase_state import ENDED_BADLY, SILENT, TAKEN_BACK, Placement, Purchase
from hansa.node.daemon import buyer_tasks, run_logs
from hansa.node.daemon.buyer_tasks import unwelcome
from hansa.node.engine.events import NodeEvent, RoundNotReduced, RoundReduced
from hansa.node.engine.state import NodeState
from hansa.node.engine.steady_clock import wall_clock_ms as now_ms
from hansa.node.network.net import Context, Refused
from hansa.proto.blob import BlobRef, blob_ref
from hansa.proto.codec import decode, encode
from hansa.proto.market_documents import Tender
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import BLOB
from hansa.proto.signing import SigningKey
from hansa.proto.tensors import encode_state
from hansa.proto.typed_data import digest
from hansa.scheduler.job_events import TenderWanted
from hansa.scheduler.job_state import Job, Shard
from hansa.scheduler.rounds import Contribution, ReductionFailed, ReductionWanted, Rounds, TimePassed, advance

WANTED = TenderWanted(job=JOB, shards=(0,), attempt=1, at_ms=0)


def placed(called: Tender, key: SigningKey, *, phase: str = "ended", why: str = ENDED_BADLY) -> Placement:
    made = bid(called, key=key)
    accepted = award(made.document)
    return Placement(
        shard=0,
        bid=digest(DOMAIN, made.document),
        provider=key.address,
        award=accepted,
        lease=digest(DOMAIN, accepted),
        channel=CHANNEL,
        phase=phase,
        why=why,
    )


def after(*purchases: Purchase) -> NodeState:
    state = NodeState()
    for bought in purchases:
        state.purchases[bought.tender_digest] = bought
    return state


def purchase(called: Tender, *placements: Placement, phase: str = "settled") -> Purchase:
    return Purchase(
        phase=phase,
        tender=called,
        tender_digest=digest(DOMAIN, called),
        workload=workload(),
        funds=1,
        invited=(),
        placements=placements,
    )


GANG = tender(shards=(0, 1))
AGAIN = tender(nonce=b"2" * 32, bids_close_ms=GANG.bids_close_ms + 10_000)


def test_who_failed_the_job_is_not_asked_again_while_there_may_be_others() -> None:
    failed, fine = placed(GANG, PROVIDER_KEY), placed(GANG, OTHER_KEY, phase="confirmed", why="")
    state = after(purchase(GANG, failed, fine, phase="running"))
    assert unwelcome(state, WANTED) == {PROVIDER_KEY.address}
    twice = after(purchase(GANG, failed, fine), purchase(AGAIN, placed(AGAIN, OTHER_KEY)))
    assert unwelcome(twice, WANTED) == {PROVIDER_KEY.address, OTHER_KEY.address}


def test_once_nobody_else_was_found_everybody_is_asked() -> None:
    state = after(purchase(GANG, placed(GANG, PROVIDER_KEY)), purchase(AGAIN, phase="unfilled"))
    assert unwelcome(state, WANTED) == set()
    filled_later = tender(nonce=b"3" * 32, bids_close_ms=AGAIN.bids_close_ms + 1)
    state.purchases[b"3" * 32] = purchase(filled_later, placed(filled_later, OTHER_KEY))
    assert unwelcome(state, WANTED) == {PROVIDER_KEY.address, OTHER_KEY.address}


def test_a_job_may_want_a_lost_shard_never_to_go_to_the_same_provider_again() -> None:
    lost = purchase(GANG, placed(GANG, PROVIDER_KEY), placed(GANG, OTHER_KEY, why=TAKEN_BACK))
    state = after(lost, purchase(AGAIN, phase="unfilled"))
    for same_provider, shard, expected in ((True, 0, set()), (False, 0, {PROVIDER_KEY.address}), (False, 1, set())):
        of = spec(retry_same_provider=same_provider)
        state.jobs[JOB] = Job(job=JOB, spec=of, package=blob_ref(b"p"), shards=(), submitted_ms=0)
        never = replace(AGAIN, shards=(shard,), nonce=bytes([shard]) * 32)
        state.purchases[digest(DOMAIN, never)] = purchase(never, phase="unfilled")
        assert unwelcome(state, replace(WANTED, shards=(shard,))) == expected


def test_another_job_s_failures_do_not_count() -> None:
    other_job = replace(GANG, job=b"o" * 32)
    never = placed(other_job, OTHER_KEY, phase="failed", why=SILENT)
    assert unwelcome(after(purchase(other_job, placed(other_job, PROVIDER_KEY), never)), WANTED) == set()


def test_who_wins_and_does_not_confirm_is_not_invited_again_even_if_nobody_else_was_found() -> None:
    deserter = placed(GANG, OTHER_KEY, phase="failed", why=SILENT)
    state = after(purchase(GANG, placed(GANG, PROVIDER_KEY), deserter), purchase(AGAIN, phase="unfilled"))
    assert unwelcome(state, WANTED) == {OTHER_KEY.address}


@pytest.mark.trio
@pytest.mark.parametrize("is_alone", [True, False])
async def test_a_refusal_in_any_words_fits_into_the_journal_and_what_did_not_come_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_alone: bool
) -> None:
    """Where nothing came nothing is dropped, since nobody gives a state twice; where one came, the round goes on."""
    monkeypatch.setattr(buyer_tasks, "FETCH_PATIENCE_S", 0.5)
    monkeypatch.setattr(buyer_tasks, "RETRY_S", 0.05)
    monkeypatch.setattr(memory_party, "now_ms", now_ms)
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as daemon, party(hub, 2) as liar, party(hub, 3) as slow:

        async def refuse(_context: Context, _data: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            raise Refused("\U0001f4a3" * 255)

        async def wait(_context: Context, _data: bytes) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        liar.net.serve(BLOB, refuse)
        slow.net.serve(BLOB, wait, timeout_ms=60_000)
        for each in (liar, slow):
            daemon.net.learn(each.peer_id, each.net.addrs())
            daemon.directory.hint(each.account.address, each.peer_id)
        shards = (Shard(shard=0), Shard(shard=1))
        daemon.state.jobs[JOB] = Job(
            phase="running", job=JOB, spec=spec(), package=blob_ref(b"p"), shards=shards, submitted_ms=0
        )
        told: list[RoundNotReduced | RoundReduced] = []
        monkeypatch.setattr(daemon, "tell", told.append)
        contributions = tuple(
            Contribution(shard=number, provider=each.account.address, weight_milli=1, state=blob_ref(bytes([number])))
            for number, each in enumerate((liar, slow))
        )
        if not is_alone:
            state = daemon.store.put_bytes(encode_state({"w": np.ones(4)}))
            contributions += (Contribution(shard=2, provider=daemon.account.address, weight_milli=1, state=state),)
        wanted = ReductionWanted(job=JOB, round=1, previous=None, contributions=contributions, at_ms=0)
        with trio.fail_after(5):
            await buyer_tasks.reduce(daemon, wanted)
        (outcome,) = told
        assert decode(encode(outcome), NodeEvent, limit_bytes=1 << 20) == outcome, "the journal can be read again"
        lines = [line["text"] for line in daemon.job_logs.tail(JOB, [0, 1]).lines(last=True)]
        if is_alone:
            assert outcome.rejected == ()
            assert len(lines) == 2
            assert "did not come, and is fetched again: it came too slowly" in lines[1]
        else:
            assert [left.shard for left in outcome.rejected] == [0, 1]
            assert "came too slowly" in outcome.rejected[1].reason
            assert lines == []


@pytest.mark.trio
async def test_no_room_for_a_rounds_result_is_an_outcome_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        state = daemon.store.put_bytes(encode_state({"w": np.ones(4)}))
        daemon.state.jobs[JOB] = Job(
            phase="running", job=JOB, spec=spec(), package=blob_ref(b"p"), shards=(Shard(shard=0),), submitted_ms=0
        )
        told: list[RoundNotReduced] = []
        monkeypatch.setattr(daemon, "tell", told.append)
        own = Contribution(shard=0, provider=daemon.account.address, weight_milli=1_000, state=state)
        other = Contribution(
            shard=1,
            provider=daemon.account.address,
            weight_milli=3_000,
            state=blob_ref(b"not here"),
        )
        monkeypatch.setattr(buyer_tasks, "FETCH_PATIENCE_S", 0.1)
        monkeypatch.setattr(daemon.store, "quota_bytes", 1)
        await buyer_tasks.reduce(
            daemon, ReductionWanted(job=JOB, round=1, previous=None, contributions=(own, other), at_ms=0)
        )
        (outcome,) = told
        assert isinstance(outcome, RoundNotReduced)
        assert outcome.rejected == (), "it was given once, and stays"
        line, missed = daemon.job_logs.tail(JOB, [0, 1]).lines(last=True)
        assert "do not fit into the quota" in line["text"]
        assert "did not come" in missed["text"]


@pytest.mark.trio
@pytest.mark.parametrize(("number", "times"), [(errno.EMFILE, 3), (errno.ENOSPC, 1000), (errno.EIO, 1000)])
async def test_a_disk_that_fails_under_a_round_costs_no_contribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, times: int
) -> None:
    monkeypatch.setattr(buyer_tasks, "RETRY_S", 0.01)
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        given = daemon.store.put_bytes(encode_state({"w": np.ones(4)}))
        daemon.state.jobs[JOB] = Job(
            phase="running", job=JOB, spec=spec(), package=blob_ref(b"p"), shards=(Shard(shard=0),), submitted_ms=0
        )
        told: list[RoundNotReduced | RoundReduced] = []
        left, put = times, daemon.store.put_bytes

        def failing(data: bytes) -> BlobRef:
            nonlocal left
            left -= 1
            if left >= 0:
                raise OSError(number, os.strerror(number), "/home/developer")
            return put(data)

        monkeypatch.setattr(daemon, "tell", told.append)
        monkeypatch.setattr(daemon.store, "put_bytes", failing)
        own = Contribution(shard=0, provider=daemon.account.address, weight_milli=1_000, state=given)
        wanted = ReductionWanted(job=JOB, round=1, previous=None, contributions=(own,), at_ms=0)
        with trio.fail_after(20):
            await buyer_tasks.reduce(daemon, wanted)
        lines = [line["text"] for line in daemon.job_logs.tail(JOB, [0]).lines(last=True)]
        monkeypatch.undo()
    (outcome,) = told
    assert outcome.rejected == ()
    assert isinstance(outcome, RoundReduced) == (number == errno.EMFILE)
    if isinstance(outcome, RoundNotReduced):
        assert lines == [f"[buyer] round 1 could not be averaged here, and is tried again: {os.strerror(number)}"]
        waiting = Rounds(phase="reducing", job=JOB, shards=1, timeout_ms=50, contributions={0: own})
        kept = advance(waiting, ReductionFailed(round=1, rejected=outcome.rejected, at_ms=100)).state
        (again,) = advance(kept, TimePassed(at_ms=kept.deadline)).effects
        assert again.contributions == (own,)


@pytest.mark.trio
async def test_who_follows_a_job_by_its_log_reads_why_an_attempt_came_to_nothing_and_reads_it_once(
    tmp_path: Path,
) -> None:
    hung = "it hung: there was no progress: for 20 s it neither printed nor reported anything, before its first step"
    traced = "its code ended: Traceback (most recent call last):\n  File x\nIndexError: 9\x1b[2J"
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        first = Shard(shard=0, phase="waiting", lease=b"1" * 32, attempts=1, reason=hung)
        fresh = Shard(shard=1, phase="waiting")
        of = Job(phase="running", job=JOB, spec=spec(), package=blob_ref(b""), shards=(first, fresh), submitted_ms=1)
        second = replace(of, shards=(replace(first, lease=b"2" * 32, attempts=2, reason=traced), fresh))
        for now in (of, of, second, second):
            run_logs.tell_of_losses(daemon, now, (0, 1))
        lines = [line["text"] for line in daemon.job_logs.tail(JOB, [0, 1]).lines(last=True)]
    assert lines == [
        f"[buyer] attempt 1 came to nothing: {hung}",
        "[buyer] attempt 2 came to nothing: its code ended: IndexError: 9\N{REPLACEMENT CHARACTER}[2J",
    ]
