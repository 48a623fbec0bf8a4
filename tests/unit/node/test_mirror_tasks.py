"""Copies of checkpoints between real daemons: fetched from whoever answers, proved, brought back to who lost them."""
# ruff: noqa: ASYNC110 - a task that ends tells no event, and a test may look at files

import errno
import io
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.trading import award, bid, spec, tender, terms

from hansa.market.sale_state import Sale
from hansa.node.daemon import bringing, buyer_tasks, checkpoint_check, chores, mirror_tasks, staging
from hansa.node.daemon.daemon import Daemon
from hansa.node.engine.steady_clock import wall_clock_ms as now_ms
from hansa.node.network.net import Context
from hansa.node.runs.executor import Executor
from hansa.node.runs.run_order import RunOrder
from hansa.node.storage.blob_exchange import ChunkWanted, TreeWanted
from hansa.node.storage.packages import pack
from hansa.proto.blob import CHUNK_BYTES, BlobRef, blob_ref
from hansa.proto.codec import decode
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import BLOB
from hansa.proto.tensors import Tensors, encode_state
from hansa.proto.typed_data import digest
from hansa.scheduler.job_events import FetchWanted
from hansa.scheduler.job_state import Checkpoint, Job, Mirrored, Shard
from hansa.scheduler.mirror import Copy, FetchCopy, Grant, Mirror
from hansa.scheduler.run import STAGING, Run, StartRun

pytestmark = pytest.mark.trio
JOB = b"j" * 32
FIRST, SECOND = b"1" * 32, b"2" * 32
STATE = os.urandom(2 * CHUNK_BYTES + 3)
REF = blob_ref(STATE)


async def bring_back(daemon: Daemon) -> None:
    """For every job that lives."""
    for job in tuple(daemon.state.jobs.live):
        await mirror_tasks.bring_back_for(daemon, job)


class Three:
    """A buyer, the provider of shard 0 and the provider of shard 1, who know of each other."""

    def __init__(self, buyer: Daemon, first: Daemon, second: Daemon, package: bytes) -> None:
        self.buyer, self.first, self.second = buyer, first, second
        self.package = buyer.store.put_bytes(package)
        self.package_bytes = package
        self.of = Job(phase="running", job=JOB, spec=spec(mirror=True), package=self.package, shards=(), submitted_ms=1)
        self.buyer.state.jobs[JOB] = replace(self.of, shards=(self.shard(0), self.shard(1)))
        for shard, provider in enumerate((first, second)):
            self.lease(shard, provider)

    def shard(self, number: int, **changes: object) -> Shard:
        provider, lease = ((self.first, FIRST), (self.second, SECOND))[number]
        running = Shard(shard=number, phase="running", lease=lease, provider=provider.account.address, attempts=1)
        alive = replace(running, heard_ms=now_ms(), ends_ms=now_ms() + 3_600_000)
        return replace(alive, **changes)

    def lease(self, shard: int, provider: Daemon) -> None:
        called = tender(signer=self.buyer.account.address, shards=(0, 1))
        made = bid(called).document
        key = digest(DOMAIN, made)
        lease = (FIRST, SECOND)[shard]
        provider.state.sales[key] = Sale(
            phase="running",
            tender=called,
            bid=made,
            bid_digest=key,
            grace_ms=1,
            award=award(made, shard=shard),
            lease=lease,
            terms=terms(lease=lease, begins_ms=now_ms(), ends_ms=now_ms() + 3_600_000),
            workload=self.of.spec.workload(JOB, self.package, None),
        )
        provider.state.sale_of[lease] = key
        provider.state.runs[lease] = Run(run=lease, phase="running", begun=True)

    def copied(self, **changes: BlobRef | None) -> None:
        """The second provider mirrors the first one's checkpoint."""
        copy = replace(Copy(shard=0, holder=self.first.account.address), **changes)
        self.second.state.mirrors[SECOND] = Mirror(lease=SECOND, buyer=self.buyer.account.address, copies=(copy,))

    def checkpoint(self) -> None:
        """The buyer knows of a checkpoint of shard 0, and that the second provider holds it too."""
        mirror = Mirrored(provider=self.second.account.address, lease=SECOND, held=REF)
        saved = self.shard(0, checkpoint=Checkpoint(round=0, step=1, blob=REF), mirror=mirror)
        self.buyer.state.jobs[JOB] = replace(self.of, shards=(saved, self.shard(1)))

    def order(self) -> FetchCopy:
        return FetchCopy(
            lease=SECOND,
            shard=0,
            buyer=self.buyer.account.address,
            holder=self.first.account.address,
            checkpoint=REF,
            like=None,
        )


@pytest.fixture
async def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Three]:
    monkeypatch.setattr(mirror_tasks, "RETRY_S", 0.05)
    monkeypatch.setattr(bringing, "RETRY_S", 0.05)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("def main(ctx): ...\n")
    archive = io.BytesIO()
    pack(tmp_path / "code", archive)
    hub = MemoryHub()
    async with (
        a_daemon(tmp_path, hub, 1) as buyer,
        a_daemon(tmp_path, hub, 2, lends=True) as first,
        a_daemon(tmp_path, hub, 3, lends=True) as second,
    ):
        daemons = (buyer, first, second)
        for one in daemons:
            for other in daemons:
                one.net.learn(other.net.peer_id, other.net.addrs())
                one.directory.hint(other.account.address, other.net.peer_id)
        yield Three(buyer, first, second, archive.getvalue())


async def held(daemon: Daemon) -> None:
    """Wait until a copy is held."""
    with trio.fail_after(10):
        while daemon.state.mirrors.live[SECOND].copies[0].held != REF:
            await trio.sleep(0.01)


async def test_a_copy_comes_from_the_buyer(three: Three) -> None:
    three.buyer.store.put_bytes(STATE)
    three.checkpoint()
    three.buyer.grants.give(three.second.account.address, three.order())
    three.copied(wanted=REF)
    with trio.fail_after(10):
        await mirror_tasks.fetch_copy(three.second, three.order())
    await held(three.second)
    assert three.second.store.has(REF)


async def test_a_copy_comes_from_who_made_it_and_its_buyer_shows_a_part_of_it(three: Three) -> None:
    """The holder gives what this node may have there, for whomever: that proves nothing for the buyer who names it."""
    three.first.store.put_bytes(STATE)
    three.first.state.runs[FIRST] = Run(run=FIRST, phase="running", checkpoint=REF, checkpoint_at_ms=1)
    grant = Grant(account=three.second.account.address, checkpoint=REF)
    three.first.state.mirrors[FIRST] = Mirror(lease=FIRST, buyer=three.buyer.account.address, grants=(grant,))
    three.copied(wanted=REF)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirror_tasks.fetch_copy, three.second, three.order())
        with trio.fail_after(30):
            while not three.second.store.has(REF):  # it comes from who made it
                await trio.sleep(0.01)
        await trio.sleep(20 * mirror_tasks.RETRY_S)
        assert (SECOND, 0) in three.second.copies, "that is not enough"
        nursery.cancel_scope.cancel()
    assert three.second.state.mirrors.live[SECOND].copies[0].held is None
    three.buyer.store.put_bytes(STATE)
    three.buyer.grants.give(three.second.account.address, three.order())
    with trio.fail_after(10):
        await mirror_tasks.fetch_copy(three.second, three.order())
    await held(three.second)


async def test_another_buyer_here_is_not_asked_for_a_copy(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    honest = mirror_tasks.peers_of

    async def watched(daemon: Daemon, accounts: Sequence[bytes]) -> list[str]:
        asked.extend(accounts)
        return await honest(daemon, accounts)

    monkeypatch.setattr(mirror_tasks, "peers_of", watched)
    called = replace(tender(), signer=three.first.account.address)
    made = bid(called).document
    three.second.state.sales[b"v" * 32] = Sale(
        phase="settled", tender=called, bid=made, bid_digest=b"v" * 32, grace_ms=1
    )
    three.buyer.store.put_bytes(STATE)
    three.buyer.grants.give(three.second.account.address, three.order())
    three.copied(wanted=REF)
    with trio.fail_after(10):
        await mirror_tasks.fetch_copy(three.second, three.order())
    await held(three.second)
    assert set(asked) == {three.buyer.account.address}


async def test_a_copy_on_a_disk_that_fails_is_tried_again_and_the_daemon_lives(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.buyer.store.put_bytes(STATE)
    three.second.store.put_bytes(STATE)
    three.buyer.grants.give(three.second.account.address, three.order())
    three.copied(wanted=REF)
    read, failures = three.second.store.read_chunk, [errno.EIO, errno.EMFILE, errno.EROFS]

    def failing(ref: BlobRef, index: int) -> bytes:
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return read(ref, index)

    monkeypatch.setattr(three.second.store, "read_chunk", failing)
    with trio.fail_after(20):
        await mirror_tasks.fetch_copy(three.second, three.order())
    await held(three.second)
    assert not failures


async def test_a_part_that_cannot_be_given_up_ends_no_daemon(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = three.buyer.store.put_bytes(STATE)
    hang(three.buyer, ref)
    three.buyer.grants.give(three.second.account.address, three.order())
    three.copied(wanted=ref)

    def broken(_ref: BlobRef) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(three.second.store, "discard_part", broken)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirror_tasks.fetch_copy, three.second, three.order())
        await part_of(three.second, ref)
        three.copied(wanted=None)
        nursery.cancel_scope.deadline = trio.current_time() + 10
    assert not nursery.cancel_scope.cancelled_caught


async def test_a_copy_that_is_not_wanted_any_more_is_fetched_no_longer(three: Three) -> None:
    three.copied(wanted=REF)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirror_tasks.fetch_copy, three.second, three.order())
        await trio.sleep(0.2)
        three.copied(wanted=None)
        nursery.cancel_scope.deadline = trio.current_time() + 10
    assert not nursery.cancel_scope.cancelled_caught


async def test_who_only_knows_the_name_of_a_blob_that_is_here_gets_no_right_to_it(three: Three) -> None:
    """The bytes of somebody else lie here; a buyer that never had them asks for them to be held for it."""
    three.second.store.put_bytes(STATE)
    three.copied(wanted=REF)
    with trio.move_on_after(0.5) as patience:
        await mirror_tasks.fetch_copy(three.second, three.order())
    assert patience.cancelled_caught
    assert three.second.state.mirrors.live[SECOND].copies[0].held is None
    three.buyer.store.put_bytes(STATE)
    three.buyer.grants.give(three.second.account.address, three.order())
    with trio.fail_after(10):
        await mirror_tasks.fetch_copy(three.second, three.order())
    await held(three.second)


async def test_a_buyer_that_lost_its_blobs_gets_checkpoint_and_code_back(three: Three) -> None:
    three.checkpoint()
    three.second.store.put_bytes(STATE)
    three.copied(held=REF)
    three.first.store.put_bytes(three.package_bytes)
    three.buyer.store.delete(three.package)
    assert {blob for blob, _ in mirror_tasks.lost(three.buyer, three.buyer.state.jobs.live[JOB])} == {
        REF,
        three.package,
    }
    await bring_back(three.buyer)
    assert three.buyer.store.read_bytes(REF, 1 << 30) == STATE
    assert three.buyer.store.has(three.package)
    assert mirror_tasks.lost(three.buyer, three.buyer.state.jobs.live[JOB]) == []


async def test_what_nobody_has_any_more_is_no_reason_to_stop(three: Three) -> None:
    three.checkpoint()
    await bring_back(three.buyer)
    assert not three.buyer.store.has(REF)


async def test_a_shard_goes_on_from_its_mirror_when_its_buyer_lost_everything(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shard 0 moves to the first provider anew; the buyer has neither its checkpoint nor its code."""
    started: list[RunOrder] = []

    async def start(_executor: Executor, order: RunOrder) -> None:
        await trio.lowlevel.checkpoint()
        started.append(order)

    monkeypatch.setattr(Executor, "start", start)
    three.checkpoint()
    three.buyer.store.delete(three.package)
    for data in (STATE, three.package_bytes):
        three.second.store.put_bytes(data)
    three.copied(held=REF)
    grant = Grant(account=three.first.account.address, checkpoint=REF)
    held_there = three.second.state.mirrors.live[SECOND]
    three.second.state.mirrors[SECOND] = replace(held_there, grants=(grant,))
    sources = (three.second.account.address,)
    three.first.state.mirrors[FIRST] = Mirror(lease=FIRST, buyer=three.buyer.account.address, sources=sources)
    three.first.state.runs[FIRST] = Run(run=FIRST, phase=STAGING)
    with trio.fail_after(20):
        await staging.start_run(three.first, StartRun(run=FIRST, checkpoint=REF, round=0))
    (order,) = started
    assert order.checkpoint == REF
    assert three.first.store.read_bytes(REF, 1 << 30) == STATE
    assert (order.code / "a.py").exists()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
async def test_a_good_checkpoint_is_not_refused_because_it_cannot_be_read_now(
    three: Three, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(buyer_tasks, "DISK_RETRY_S", 0.05)
    ref = three.first.store.put_bytes(encode_state({"round": 0, "step": 1, "state": [1, 2]}))
    three.first.state.runs[FIRST] = Run(run=FIRST, phase="running", checkpoint=ref, checkpoint_at_ms=1)
    copying = Checkpoint(round=0, step=1, blob=ref)
    three.buyer.state.jobs[JOB] = replace(three.of, shards=(three.shard(0, copying=copying), three.shard(1)))
    failures, mapped = [1, 2, 3], checkpoint_check._mapped

    def failing(path: Path) -> Tensors:
        if failures:
            failures.pop()
            raise OSError(number, os.strerror(number))
        return mapped(path)

    monkeypatch.setattr(checkpoint_check, "_mapped", failing)
    wanted = FetchWanted(job=JOB, lease=FIRST, provider=three.first.account.address, blob=ref)
    with trio.fail_after(20):
        await buyer_tasks.fetch_for_job(three.buyer, wanted)
        while three.buyer.state.jobs.live[JOB].shards[0].copying is not None:
            await trio.sleep(0.01)
    shard = three.buyer.state.jobs.live[JOB].shards[0]
    assert shard.checkpoint is not None
    assert shard.checkpoint.blob == ref
    assert not shard.refusal


async def test_what_is_no_checkpoint_is_refused_in_words_in_the_jobs_log(three: Three) -> None:
    good = encode_state({"round": 0, "step": 1, "state": [1, 2]})
    first, provider = FetchWanted(job=JOB, lease=FIRST, provider=three.first.account.address, blob=REF), three.first
    for data, expected in ((STATE, None), (good, blob_ref(good))):
        ref = provider.store.put_bytes(data)
        provider.state.runs[FIRST] = Run(run=FIRST, phase="running", checkpoint=ref, checkpoint_at_ms=1)
        copying = Checkpoint(round=0, step=1, blob=ref)
        three.buyer.state.jobs[JOB] = replace(three.of, shards=(three.shard(0, copying=copying), three.shard(1)))
        with trio.fail_after(20):
            await buyer_tasks.fetch_for_job(three.buyer, replace(first, blob=ref))
            while three.buyer.state.jobs.live[JOB].shards[0].copying is not None:
                await trio.sleep(0.01)
        shard = three.buyer.state.jobs.live[JOB].shards[0]
        assert (shard.checkpoint.blob if shard.checkpoint else None) == expected
        assert bool(shard.refusal) == (expected is None)
    told = "".join(
        path.read_text() for path in three.buyer.config.data_dir.joinpath("jobs").rglob("*") if path.is_file()
    )
    assert told.count("the checkpoint of step 1 is refused: it cannot be read") == 1


def hang(daemon: Daemon, *hung: BlobRef) -> None:
    """Give trees, and everything of other blobs; but chunks of these never come."""
    honest = daemon.exchange._answer

    async def answer(context: Context, data: bytes) -> bytes:
        wanted: TreeWanted | ChunkWanted = decode(data, TreeWanted | ChunkWanted, limit_bytes=512)
        if isinstance(wanted, ChunkWanted) and wanted.ref in hung:
            await trio.sleep_forever()
        return await honest(context, data)

    daemon.net.serve(BLOB, answer, timeout_ms=60_000)


async def part_of(daemon: Daemon, blob: BlobRef) -> None:
    """Wait until a fetch has reserved its room."""
    with trio.fail_after(10):
        while daemon.store.tree_of_part(blob) is None:
            await trio.sleep(0.01)


async def gone(daemon: Daemon, blob: BlobRef) -> None:
    """Wait until a fetch has given its room back."""
    with trio.fail_after(10):
        while daemon.store.tree_of_part(blob) is not None:
            await trio.sleep(0.01)


async def test_a_copy_that_is_replaced_gives_its_room_back_and_one_is_fetched_at_a_time(three: Three) -> None:
    """A buyer that names ever new trees has one of them here, not all."""
    several = [os.urandom(CHUNK_BYTES + number) for number in range(4)]
    orders = [replace(three.order(), checkpoint=three.buyer.store.put_bytes(data)) for data in several]
    hang(three.buyer, *(order.checkpoint for order in orders))
    async with trio.open_nursery() as nursery:
        for order in orders:
            three.buyer.grants.give(three.second.account.address, order)
            three.copied(wanted=order.checkpoint)
            nursery.start_soon(mirror_tasks.fetch_copy, three.second, order)
            await part_of(three.second, order.checkpoint)
            assert three.second.store.size_bytes == order.checkpoint.size_bytes
            assert len(nursery.child_tasks) == 1, "however many are ordered, one task fetches them"
        three.copied(wanted=None)
        await gone(three.second, orders[-1].checkpoint)
        assert three.second.store.size_bytes == 0
    assert not three.second.copies


async def test_a_checkpoint_that_its_provider_replaced_gives_its_room_back(three: Three) -> None:
    ref = three.first.store.put_bytes(STATE)
    three.first.state.runs[FIRST] = Run(run=FIRST, phase="running", checkpoint=ref, checkpoint_at_ms=1)
    hang(three.first, ref)
    copying = Checkpoint(round=0, step=1, blob=ref)
    three.buyer.state.jobs[JOB] = replace(three.of, shards=(three.shard(0, copying=copying), three.shard(1)))
    wanted = FetchWanted(job=JOB, lease=FIRST, provider=three.first.account.address, blob=ref)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buyer_tasks.fetch_for_job, three.buyer, wanted)
        await part_of(three.buyer, ref)
        three.buyer.state.jobs[JOB] = replace(three.of, shards=(three.shard(0), three.shard(1)))
        await gone(three.buyer, ref)


async def test_bytes_that_another_fetch_brings_are_no_proof_that_this_buyer_had_them(three: Three) -> None:
    three.copied(wanted=REF)
    stranger = three.first
    stranger.store.put_bytes(STATE)
    stranger.exchange._allow = lambda _context, _blob: True
    hold, honest = trio.Event(), stranger.exchange._answer

    async def slow(context: Context, data: bytes) -> bytes:
        await hold.wait()
        return await honest(context, data)

    stranger.net.serve(BLOB, slow, timeout_ms=60_000)
    order = replace(three.order(), holder=three.second.account.address)  # only the buyer is asked, who has nothing
    async with trio.open_nursery() as nursery:
        nursery.start_soon(three.second.exchange.fetch, REF, [stranger.net.peer_id])
        await trio.sleep(0.1)
        nursery.start_soon(mirror_tasks.fetch_copy, three.second, order)
        await trio.sleep(0.1)
        hold.set()
        with trio.fail_after(10):
            while not three.second.store.has(REF):
                await trio.sleep(0.01)
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert three.second.state.mirrors.live[SECOND].copies[0].held is None


async def test_a_source_that_hands_out_nothing_holds_up_no_other_job(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = blob_ref(b"stuck"), b"k" * 32

    async def never(daemon: Daemon) -> None:
        honest = daemon.exchange._answer

        async def answer(context: Context, data: bytes) -> bytes:
            wanted: TreeWanted | ChunkWanted = decode(data, TreeWanted | ChunkWanted, limit_bytes=512)
            if wanted.ref == stuck:
                await trio.sleep_forever()
            return await honest(context, data)

        daemon.net.serve(BLOB, answer, timeout_ms=60_000)

    for daemon in (three.first, three.second):
        await never(daemon)
        daemon.store.put_bytes(three.package_bytes)
    of = three.buyer.state.jobs.live[JOB]
    three.buyer.store.delete(three.package)
    three.buyer.state.jobs[JOB] = replace(of, package=stuck)
    three.buyer.state.jobs[other] = replace(of, job=other)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chores.keep_checkpoints, three.buyer)
        with trio.fail_after(10):
            while not three.buyer.store.has(three.package):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    monkeypatch.setattr(bringing, "STAGE_PATIENCE_S", 0.3)
    with trio.fail_after(10):
        await bring_back(three.buyer)
