"""What a run needs is brought here: within its limits, in its place, held while the run lives, and gone after it."""
# ruff: noqa: ASYNC110 - a task that ends tells no event, and a test may look at files

import errno
import io
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from integration.agent_house import a_report
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.memory_party import key
from kit.trading import LEASE, award, bid, spec, tender

from hansa.market.sale_state import Sale
from hansa.node.agents.agent_cluster import Cluster
from hansa.node.api.desk import NodeDesk
from hansa.node.daemon import bringing, laying_out, run_logs, staging
from hansa.node.daemon.daemon import Daemon
from hansa.node.devices.inventory import Inventory
from hansa.node.faults import OperatorError
from hansa.node.isolation import trees
from hansa.node.runs.executor import Executor
from hansa.node.runs.run_order import RunOrder
from hansa.node.storage.packages import pack
from hansa.proto.blob import CHUNK_BYTES, BlobRef, blob_ref
from hansa.proto.codec import encode
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.proto.workload import FILE_IMAGE, FILE_LOCK, FileList, ListedFile
from hansa.scheduler.job_state import Checkpoint, Job, Shard
from hansa.scheduler.mirror import Copy, Mirror
from hansa.scheduler.run import STAGING, Run, RunStopWanted, StartRun

pytestmark = pytest.mark.trio
ORDER = StartRun(run=LEASE, checkpoint=None, round=0)
JOB = b"j" * 32


class Started:
    """What the executor was ordered to start; nothing is."""

    def __init__(self) -> None:
        self.orders: list[RunOrder] = []

    async def start(self, _executor: Executor, order: RunOrder) -> None:
        await trio.lowlevel.checkpoint()
        self.orders.append(order)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    found = Started()

    async def start(executor: Executor, order: RunOrder) -> None:
        await found.start(executor, order)

    monkeypatch.setattr(Executor, "start", start)
    monkeypatch.setattr(bringing, "RETRY_S", 0.05)
    return found


@pytest.fixture
def package(tmp_path: Path) -> bytes:
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text("def main(ctx): ...\n")
    archive = io.BytesIO()
    pack(code, archive)
    return archive.getvalue()


class Pair:
    """A buyer with a job of two shards and a provider with the lease of one of them."""

    def __init__(self, buyer: Daemon, provider: Daemon, package: bytes) -> None:
        self.buyer, self.provider = buyer, provider
        self.package = buyer.store.put_bytes(package)

    def listed(self, *files: tuple[str, bytes, tuple[int, ...]]) -> FileList:
        entries = [
            ListedFile(kind="input", path=path, blob=self.buyer.store.put_bytes(data), shards=shards)
            for path, data, shards in files
        ]
        return FileList(image="", files=tuple(sorted(entries, key=lambda file: (file.path, file.shards))))

    def lease(self, files: FileList, *, fetch_bytes: int = 1 << 30, shard: int = 0) -> None:
        """Both sides know of the lease and of its files; its run is being staged."""
        ref = self.buyer.store.put_bytes(encode(files))
        self.buyer.file_lists.keep(ref, files)
        wanted = spec(fetch_bytes=fetch_bytes)
        provider = self.provider.account.address
        shards = tuple(
            Shard(shard=number, phase="starting", lease=LEASE, provider=provider if number == shard else bytes(20))
            for number in range(2)
        )
        self.buyer.state.jobs[JOB] = Job(
            phase="running", job=JOB, spec=wanted, package=self.package, files=ref, shards=shards, submitted_ms=1
        )
        called = tender(signer=self.buyer.account.address, shards=(shard,))
        made = bid(called).document
        bid_digest = digest(DOMAIN, made)
        self.provider.state.sales[bid_digest] = Sale(
            phase="settled",
            tender=called,
            bid=made,
            bid_digest=bid_digest,
            grace_ms=1,
            award=award(made, shard=shard),
            lease=LEASE,
            workload=wanted.workload(JOB, self.package, ref),
        )
        self.provider.state.sale_of[LEASE] = bid_digest
        self.provider.state.runs[LEASE] = Run(run=LEASE, phase=STAGING)


@pytest.fixture
async def pair(tmp_path: Path, package: bytes, started: Started) -> AsyncIterator[Pair]:
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as buyer, a_daemon(tmp_path, hub, 2, lends=True) as provider:
        provider.net.learn(buyer.net.peer_id, buyer.net.addrs())
        provider.directory.hint(buyer.account.address, buyer.net.peer_id)
        yield Pair(buyer, provider, package)


async def failure(daemon: Daemon) -> Run:
    with trio.fail_after(10):
        while LEASE in daemon.state.runs.live:
            await daemon.changed.wait()
    ended = daemon.state.runs.get(LEASE)
    assert ended is not None
    return ended


def pins(daemon: Daemon) -> set[str]:
    return {name for name, reasons in daemon.store._pins.items() if any(why.startswith("run ") for why in reasons)}


async def test_a_shard_gets_its_files_as_links_to_the_store_and_no_others(pair: Pair, started: Started) -> None:
    mine, others, all_ = b"mine" * 9, b"others", bytes(CHUNK_BYTES + 7)
    pair.lease(pair.listed(("part", mine, (0,)), ("part", others, (1,)), ("set/deep/all", all_, ())))
    await staging.start_run(pair.provider, ORDER)
    (order,) = started.orders
    assert order.inputs is not None
    assert (order.inputs / "part").read_bytes() == mine
    assert (order.inputs / "set/deep/all").read_bytes() == all_
    store = pair.provider.store
    assert not store.has(blob_ref(others)), "what other shards need is not even fetched"
    path = store.path(blob_ref(all_))
    assert path is not None
    assert path.stat().st_ino == (order.inputs / "set/deep/all").stat().st_ino, "a link, no copy"
    assert (order.inputs / "part").stat().st_mode & 0o777 == 0o444
    assert (order.code / "a.py").exists()


async def test_a_checkpoint_is_fetched_without_what_an_earlier_one_of_the_same_shard_has(
    pair: Pair, started: Started
) -> None:
    before = os.urandom(2 * CHUNK_BYTES)
    after = before[:CHUNK_BYTES] + os.urandom(CHUNK_BYTES)
    pair.lease(pair.listed())
    old, new = pair.provider.store.put_bytes(before), pair.buyer.store.put_bytes(after)
    state = pair.buyer.state
    saved = Checkpoint(round=0, step=1, blob=new)
    shards = tuple(replace(shard, checkpoint=saved) for shard in state.jobs.live[JOB].shards)
    state.jobs[JOB] = replace(state.jobs.live[JOB], shards=shards)
    sale = pair.provider.state.sale_on(LEASE)
    assert sale is not None
    earlier = b"e" * 32
    pair.provider.state.sale_of[earlier] = sale.bid_digest
    pair.provider.state.runs[earlier] = Run(run=earlier, phase="failed", checkpoint=old, checkpoint_at_ms=1)
    asked: list[int] = []
    read_chunk = pair.buyer.store.read_chunk

    def watched(ref: BlobRef, index: int) -> bytes:
        if ref == new:
            asked.append(index)
        return read_chunk(ref, index)

    pair.buyer.store.read_chunk = watched  # type: ignore[method-assign]
    await staging.start_run(pair.provider, replace(ORDER, checkpoint=new))
    (order,) = started.orders
    assert order.checkpoint == new
    assert asked == [1]
    assert pair.provider.store.read_bytes(new, 1 << 30) == after


def withhold(pair: Pair, data: bytes) -> None:
    """The buyer knows the name of a blob and has not got it: it lies at the provider for somebody else."""
    assert pair.provider.store.put_bytes(data) == pair.buyer.store.put_bytes(data)
    pair.buyer.store.delete(blob_ref(data))


async def test_a_blob_that_lies_here_for_another_buyer_is_not_laid_out_for_who_cannot_show_it(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "STAGE_PATIENCE_S", 0.5)
    pair.lease(pair.listed(("x", b"another's data", ())))
    withhold(pair, b"another's data")
    with trio.fail_after(20):
        await staging.start_run(pair.provider, ORDER)
    ended = await failure(pair.provider)
    assert ended.end_kind == "refused"
    assert "could not be fetched in time" in ended.end_reason
    assert started.orders == []


async def test_anothers_code_is_not_laid_out_either(
    pair: Pair, package: bytes, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "STAGE_PATIENCE_S", 0.5)
    pair.lease(pair.listed())
    withhold(pair, package)
    with trio.fail_after(20):
        await staging.start_run(pair.provider, ORDER)
    assert (await failure(pair.provider)).end_kind == "refused"
    assert started.orders == []
    buyer = pair.buyer.account.address
    assert not pair.provider.grants.allow(pair.provider.state, buyer, pair.package), "nor is it given to its node"


async def test_a_checkpoint_of_another_buyers_is_not_gone_on_from(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "STAGE_PATIENCE_S", 0.5)
    state = blob_ref(b"another's weights")
    pair.lease(pair.listed())
    withhold(pair, b"another's weights")
    run = pair.provider.state.runs.live[LEASE]
    pair.provider.state.runs[LEASE] = replace(run, checkpoint=state)
    with trio.fail_after(20):
        await staging.start_run(pair.provider, replace(ORDER, checkpoint=state))
    assert (await failure(pair.provider)).end_kind == "refused"
    assert started.orders == []
    assert not pair.provider.grants.allow(pair.provider.state, pair.buyer.account.address, state)


async def test_what_another_buyer_brought_is_laid_out_for_who_shows_it_and_nothing_is_fetched_again(
    pair: Pair, started: Started
) -> None:
    data = bytes(3 * CHUNK_BYTES + 1)
    listed = pair.listed(("x", data, ()))
    pair.provider.store.put_bytes(data)
    pair.lease(listed)
    asked: list[int] = []
    read_chunk = pair.buyer.store.read_chunk

    def watched(ref: BlobRef, index: int) -> bytes:
        asked.extend([index] if ref == blob_ref(data) else [])
        return read_chunk(ref, index)

    pair.buyer.store.read_chunk = watched  # type: ignore[method-assign]
    await staging.start_run(pair.provider, ORDER)
    assert len(started.orders) == 1
    assert len(asked) == 1, "one chunk, drawn by chance"
    await staging.start_run(pair.provider, ORDER)
    assert len(asked) == 1, "the next shard of the same buyer shows it no more"


async def test_a_run_that_had_begun_goes_on_after_a_crash_while_its_buyer_is_away(pair: Pair, started: Started) -> None:
    pair.lease(pair.listed(("x", b"some data", ())))
    await staging.start_run(pair.provider, ORDER)
    pair.provider.exchange._shown.clear()
    made = pair.provider.store.put_bytes(b"made here")
    run = pair.provider.state.runs.live[LEASE]
    pair.provider.state.runs[LEASE] = replace(run, counted_ms=5, checkpoint=made, checkpoint_at_ms=7)
    pair.buyer.exchange._allow = lambda _context, _blob: False
    with trio.fail_after(20):
        await staging.start_run(pair.provider, replace(ORDER, checkpoint=made))
    assert len(started.orders) == 2


@pytest.mark.parametrize("phase", ["running", "settled"])
async def test_a_buyer_here_is_asked_for_no_blob_that_another_names(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Nor is one that was here: it gives this node what it once told it of."""
    asked: list[bytes] = []
    honest = bringing.peers_of

    async def watched(daemon: Daemon, accounts: Sequence[bytes]) -> list[str]:
        asked.extend(accounts)
        return await honest(daemon, accounts)

    monkeypatch.setattr(bringing, "peers_of", watched)
    pair.lease(pair.listed())
    state, victim, mirror = pair.provider.state, b"\x07" * 20, b"\x08" * 20
    called = replace(tender(), signer=victim)
    made = bid(called).document
    state.sales[b"v" * 32] = Sale(phase=phase, tender=called, bid=made, bid_digest=b"v" * 32, grace_ms=1)
    state.mirrors[LEASE] = Mirror(lease=LEASE, buyer=pair.buyer.account.address, sources=(victim, mirror))
    await staging.start_run(pair.provider, ORDER)
    assert len(started.orders) == 1
    assert set(asked) == {pair.buyer.account.address, mirror}


async def test_of_what_another_buyer_named_here_the_buyer_alone_is_asked(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever mirrors it would give it to this node for the other buyer's sake."""
    asked: list[tuple[bytes, ...]] = []
    honest = bringing.peers_of

    async def watched(daemon: Daemon, accounts: Sequence[bytes]) -> list[str]:
        asked.append(tuple(accounts))
        return await honest(daemon, accounts)

    monkeypatch.setattr(bringing, "peers_of", watched)
    pair.lease(pair.listed())
    state, mirror, buyer = pair.provider.state, b"\x08" * 20, pair.buyer.account.address
    files = pair.buyer.state.jobs.live[JOB].files
    assert files is not None
    called = replace(tender(), signer=b"\x07" * 20)
    made = bid(called).document
    theirs = spec().workload(b"o" * 32, pair.package, None)
    state.sales[b"v" * 32] = Sale(
        phase="running", tender=called, bid=made, bid_digest=b"v" * 32, grace_ms=1, workload=theirs
    )
    copy = Copy(shard=0, holder=mirror, wanted=files)
    state.mirrors[b"l" * 32] = Mirror(lease=b"l" * 32, buyer=b"\x07" * 20, copies=(copy,))
    state.mirrors[LEASE] = Mirror(lease=LEASE, buyer=buyer, sources=(mirror,))
    await staging.start_run(pair.provider, ORDER)
    assert len(started.orders) == 1
    assert set(asked) == {(buyer,)}


async def test_the_chunk_that_a_buyer_must_show_is_drawn_once(pair: Pair) -> None:
    """Who has one chunk of another's blob could else have it asked for until it is that one."""
    blob = pair.provider.store.put_bytes(os.urandom(CHUNK_BYTES * 5))
    drawn: dict[bytes, set[int]] = {b"a" * 20: set(), b"b" * 20: set(), b"c" * 20: set(), b"d" * 20: set()}

    async def holds(_blob: BlobRef, index: int, _sources: Sequence[str]) -> bool:
        await trio.lowlevel.checkpoint()
        drawn[buyer].add(index)
        return False

    pair.provider.exchange.holds = holds  # type: ignore[method-assign]
    for buyer in drawn:
        for _ in range(20):
            assert not await bringing.is_proved(pair.provider, blob, buyer, [])
    assert all(len(indices) == 1 for indices in drawn.values())


async def test_nobody_may_have_another_shards_files(pair: Pair) -> None:
    listed = pair.listed(("part", b"mine", (0,)), ("part", b"others", (1,)))
    pair.lease(listed)
    allow, account = pair.buyer.grants.allow, pair.provider.account.address
    state = pair.buyer.state
    assert allow(state, account, blob_ref(b"mine"))
    assert not allow(state, account, blob_ref(b"others"))
    assert not allow(state, b"\x09" * 20, blob_ref(b"mine"))
    files = state.jobs.live[JOB].files
    assert files is not None
    assert allow(state, account, files)
    assert not allow(state, b"\x09" * 20, files)


async def test_files_are_held_while_the_run_lives_and_let_go_with_all_that_was_laid_out(
    pair: Pair, started: Started
) -> None:
    pair.lease(pair.listed(("x", b"some data", ())))
    await staging.start_run(pair.provider, ORDER)
    assert str(blob_ref(b"some data")) in pins(pair.provider)
    assert str(pair.package) in pins(pair.provider)
    staging.forget_run(pair.provider, LEASE)
    assert not staging.run_folder(pair.provider, LEASE).exists()
    with trio.fail_after(5):
        while pins(pair.provider) or list(pair.provider.runs_dir.iterdir()):
            await trio.sleep(0.02)
    assert pair.provider.store.has(blob_ref(b"some data")), "it may serve the next run"


async def test_more_than_the_award_was_for_is_not_fetched(pair: Pair, started: Started) -> None:
    pair.lease(pair.listed(("x", bytes(100), ())), fetch_bytes=99)
    await staging.start_run(pair.provider, ORDER)
    ended = await failure(pair.provider)
    assert (ended.end_kind, ended.end_reason) == ("bad-entry", "the job's files are larger than it said")
    assert not pair.provider.store.has(blob_ref(bytes(100)))
    assert not started.orders


async def test_a_list_that_leads_elsewhere_fails_the_run_before_anything_is_fetched(pair: Pair) -> None:
    blob = pair.buyer.store.put_bytes(b"evil")
    pair.lease(FileList(image="", files=(ListedFile(kind="input", path="../../x", blob=blob, shards=()),)))
    await staging.start_run(pair.provider, ORDER)
    ended = await failure(pair.provider)
    assert ended.end_kind == "bad-entry"
    assert "leads elsewhere" in ended.end_reason
    assert not pair.provider.store.has(blob)


@pytest.mark.parametrize(
    "case",
    [
        (FILE_LOCK, "", "this provider installs no packages for jobs"),
        (FILE_IMAGE, "", "this provider runs no images"),
        ("", "example.org/x@sha256:" + "0" * 64, "this provider runs no images"),
    ],
)
async def test_nothing_is_installed_where_the_owner_did_not_allow_it(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, str]
) -> None:
    kind, image, reason = case
    brought: list[object] = []

    async def bring(*of: object) -> Path:
        await trio.lowlevel.checkpoint()
        brought.append(of)
        return Path("/")

    monkeypatch.setattr(pair.provider.environments, "bring", bring)
    monkeypatch.setattr(pair.provider.images, "bring", bring)
    pair.provider.furnishings = frozenset()
    blob = pair.buyer.store.put_bytes(b"name==1.0")
    files = (ListedFile(kind=kind, path="x", blob=blob, shards=()),) if kind else ()
    pair.lease(FileList(image=image, files=files))
    await staging.start_run(pair.provider, ORDER)
    ended = await failure(pair.provider)
    assert (ended.end_kind, ended.end_reason) == ("refused", reason)
    assert started.orders == []
    assert brought == []


@pytest.mark.parametrize("workers", [0, 1])
async def test_a_run_of_no_workers_is_placed_on_no_machine_and_ended_by_the_executor(
    pair: Pair, started: Started, tmp_path: Path, workers: int
) -> None:
    """A lease from before such awards were refused: its end is the job's fault wherever its devices are."""
    pair.lease(pair.listed())
    daemon = pair.provider
    entry = daemon.state.sale_on(LEASE)
    assert entry is not None
    assert entry.workload is not None
    changed = replace(entry, workload=replace(entry.workload, workers=workers))
    daemon.state.sales[daemon.state.sale_of[LEASE]] = changed
    (device,) = entry.bid.devices
    own = tuple(replace(each, id=device) for each in a_report(1).devices)
    daemon.cluster = Cluster(
        data_dir=tmp_path,
        account=daemon.account.address,
        tier="sandbox",
        own=lambda: Inventory(devices=own, gpus={}, note="", driver_version=""),
        launch=lambda: None,  # type: ignore[arg-type,return-value]
        tell=daemon.tell,
        log=lambda _: None,
        now_ms=daemon.now_ms,
    )
    await staging.start_run(daemon, ORDER)
    (order,) = started.orders
    assert order.workers == workers
    assert set(daemon.cluster.switchboard._parts) == ({LEASE} if workers else set())


async def test_what_can_never_fit_is_said_at_once(pair: Pair) -> None:
    huge = BlobRef(root=b"h" * 32, size_bytes=pair.provider.store.quota_bytes + 1)
    listed = FileList(image="", files=(ListedFile(kind="input", path="x", blob=huge, shards=()),))
    pair.lease(listed, fetch_bytes=1 << 50)
    await staging.start_run(pair.provider, ORDER)
    ended = await failure(pair.provider)
    assert ended.end_kind == "refused"
    assert "has no room for" in ended.end_reason


async def test_a_disk_that_is_full_costs_one_run_and_not_the_daemon(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(laying_out, "link_or_copy", full)
    pair.lease(pair.listed(("x", b"some data", ())))
    await staging.start_run(pair.provider, ORDER)
    ended = await failure(pair.provider)
    assert ended.end_kind == "refused", "so that the shard is tried elsewhere: its job did nothing wrong"
    assert ended.end_reason.endswith("No space left on device"), "in words, and without paths of the provider's"
    assert not started.orders


async def test_a_disk_that_is_full_under_the_code_is_not_the_jobs_fault(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home/owner")

    monkeypatch.setattr(laying_out, "unpack", full)
    pair.lease(pair.listed())
    await staging.start_run(pair.provider, ORDER)
    ended = await failure(pair.provider)
    assert (ended.end_kind, ended.end_reason.rpartition(": ")[2]) == ("refused", "No space left on device")


class Unreadable:
    """Reading a blob that lies at the provider fails so often, and then goes well."""

    def __init__(self, pair: Pair, blob: BlobRef, number: int, times: int) -> None:
        self.blob, self.number, self.times = blob, number, times
        self._honest = pair.provider.store.read_chunk
        pair.provider.store.read_chunk = self._read  # type: ignore[method-assign]

    def _read(self, ref: BlobRef, index: int) -> bytes:
        if ref == self.blob and self.times:
            self.times -= 1
            raise OSError(self.number, os.strerror(self.number), "/home/owner")
        return self._honest(ref, index)


async def test_a_disk_that_cannot_be_read_is_said_at_once_and_not_taken_for_a_buyer_who_shows_nothing(
    pair: Pair, started: Started
) -> None:
    data = b"here already"
    pair.lease(pair.listed(("x", data, ())))
    pair.provider.store.put_bytes(data)
    Unreadable(pair, blob_ref(data), errno.EIO, 1000)
    with trio.fail_after(20):
        await staging.start_run(pair.provider, ORDER)
    ended = await failure(pair.provider)
    assert ended.end_kind == "refused"
    assert ended.end_reason.endswith("this node's disk failed: Input/output error")
    assert not started.orders


async def test_a_lack_of_descriptors_is_waited_for(pair: Pair, started: Started) -> None:
    data = b"here already"
    pair.lease(pair.listed(("x", data, ())))
    pair.provider.store.put_bytes(data)
    failing = Unreadable(pair, blob_ref(data), errno.EMFILE, 3)
    with trio.fail_after(20):
        await staging.start_run(pair.provider, ORDER)
    assert len(started.orders) == 1
    assert not failing.times


async def test_a_lack_of_descriptors_that_lasts_is_named_when_patience_ends(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "STAGE_PATIENCE_S", 0.5)
    data = b"here already"
    pair.lease(pair.listed(("x", data, ())))
    pair.provider.store.put_bytes(data)
    Unreadable(pair, blob_ref(data), errno.EMFILE, 10_000)
    with trio.fail_after(20):
        await staging.start_run(pair.provider, ORDER)
    assert (await failure(pair.provider)).end_reason.endswith("this node's disk failed: Too many open files")


async def test_a_run_is_forgotten_on_a_disk_that_takes_no_notes_and_the_daemon_lives(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.lease(pair.listed())
    await staging.start_run(pair.provider, ORDER)
    folder, rename, tried = staging.run_folder(pair.provider, LEASE), Path.rename, trio.Event()

    def stuck(path: Path, target: Path) -> Path:
        if path == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return rename(path, target)

    def read_only(*_: object) -> None:
        trio.from_thread.run_sync(tried.set)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", stuck)
    monkeypatch.setattr(pair.provider.store, "pin_exactly", read_only)
    staging.forget_run(pair.provider, LEASE)
    with trio.fail_after(10):
        await tried.wait()
        while folder.exists():
            await trio.sleep(0.02)


async def test_a_fetch_goes_on_for_as_long_as_bytes_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bringing, "STAGE_PATIENCE_S", 1.0)
    monkeypatch.setattr(bringing, "SLOWEST_BYTES_PER_S", 1_000)
    fetching = bringing.Fetching(total_bytes=1 << 20, owners=())
    fetching.begin()
    with fetching.scope:
        for _ in range(8):
            await trio.sleep(0.2)
            fetching.moved(1)
    assert fetching.came_bytes == 8
    assert not fetching.scope.cancelled_caught


async def test_a_fetch_is_given_up_when_no_bytes_move(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "STAGE_PATIENCE_S", 0.5)
    pair.lease(pair.listed(("x", bytes(50_000), ())))
    honest = pair.buyer.exchange._allow
    pair.buyer.exchange._allow = lambda context, blob: blob != blob_ref(bytes(50_000)) and honest(context, blob)
    with trio.fail_after(20):
        await staging.start_run(pair.provider, ORDER)
    ended = await failure(pair.provider)
    assert ended.end_kind == "refused"
    assert "0 B of 48.8 KiB came" in ended.end_reason or "could not be fetched in time" in ended.end_reason
    assert not started.orders


async def test_all_bytes_that_come_are_told(pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    honest = bringing.Fetching.moved

    def counted(fetching: bringing.Fetching, size_bytes: int) -> None:
        moved.append(size_bytes)
        honest(fetching, size_bytes)

    monkeypatch.setattr(bringing.Fetching, "moved", counted)
    pair.lease(pair.listed(("x", bytes(2 * CHUNK_BYTES + 3), ())))
    await staging.start_run(pair.provider, ORDER)
    assert sum(moved) >= 2 * CHUNK_BYTES + 3, "all bytes are told, several chunks together where they come fast"
    assert min(moved) > 0


async def test_a_trickle_is_not_waited_for_for_ever(
    pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "STAGE_PATIENCE_S", 0.4)
    monkeypatch.setattr(bringing, "SLOWEST_BYTES_PER_S", 1 << 40)
    fetching = bringing.Fetching(total_bytes=1 << 30, owners=())
    fetching.begin()
    with trio.fail_after(5), fetching.scope:
        while True:
            await trio.sleep(0.1)
            fetching.moved(1)
    assert fetching.scope.cancelled_caught
    assert fetching.came_bytes < 10


async def test_a_long_fetch_is_told_to_the_buyer(pair: Pair, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bringing, "SAY_EVERY_S", 0.05)
    pair.lease(pair.listed(("x", bytes(3 * CHUNK_BYTES), ())))
    told: list[Any] = []
    monkeypatch.setattr(run_logs, "pass_on", lambda _daemon, event: told.append(event))
    honest = pair.buyer.exchange._allow
    until = trio.current_time() + 0.4
    pair.buyer.exchange._allow = lambda context, blob: trio.current_time() > until and honest(context, blob)
    await staging.start_run(pair.provider, ORDER)
    assert len(started.orders) == 1
    assert any("fetching: 0 B of" in event.text for event in told)


async def test_a_run_that_is_stopped_while_it_is_staged_stops_fetching_at_once(pair: Pair, started: Started) -> None:
    pair.lease(pair.listed(("x", b"never given", ())))
    pair.buyer.exchange._allow = lambda _context, _blob: False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(staging.start_run, pair.provider, ORDER)
        await trio.sleep(0.2)
        pair.provider.tell(RunStopWanted(run=LEASE, grace_ms=0, why="enough", at_ms=1))
        from hansa.node.daemon import provider_tasks

        await provider_tasks.stop_run(pair.provider, LEASE, 0)
        with trio.fail_after(2):
            while nursery.child_tasks:
                await trio.sleep(0.02)
    assert not started.orders
    assert not pair.provider.staging


async def test_pins_of_runs_that_ended_with_an_earlier_daemon_are_taken_back(
    pair: Pair, started: Started, tmp_path: Path
) -> None:
    from hansa.node.storage.blobs import BlobStore

    store = BlobStore(tmp_path / "other", quota_bytes=1 << 20)
    kept, left = store.put_bytes(b"kept"), store.put_bytes(b"left")
    store.pin(kept, "state")
    store.pin_exactly({kept, left}, "run 00")
    again = BlobStore(tmp_path / "other", quota_bytes=1 << 20)
    again.forget_pins("run ")
    assert again._pins == {str(kept): ["state"]}
    assert BlobStore(tmp_path / "other", quota_bytes=1 << 20)._pins == {str(kept): ["state"]}


async def test_a_file_that_cannot_be_linked_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_file_system(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(trees.os, "link", other_file_system)
    source = tmp_path / "source"
    source.write_bytes(b"data")
    trees.link_or_copy(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"data"
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o444


async def test_a_job_is_taken_with_all_its_files_or_not_at_all(pair: Pair) -> None:
    desk, store = NodeDesk(pair.buyer), pair.buyer.store
    listed = pair.listed(("x", b"a file", ()))
    files = store.put_bytes(encode(listed))
    sound = spec(fetch_bytes=len(b"a file"))
    with pytest.raises(OperatorError, match="another size"):
        await desk.submit(replace(sound, fetch_bytes=5), pair.package, files)
    with pytest.raises(OperatorError, match="no list"):
        await desk.submit(sound, pair.package)
    with pytest.raises(OperatorError, match="list of the job's files is not here"):
        await desk.submit(sound, pair.package, blob_ref(b"elsewhere"))
    job = await desk.submit(sound, pair.package, files)
    assert pair.buyer.state.jobs.live[job].files == files
    assert pair.buyer.file_lists.blobs(files) == {blob_ref(b"a file")}
    store.delete(blob_ref(b"a file"))
    with pytest.raises(OperatorError, match="1 of the job's files are not here"):
        await desk.submit(sound, pair.package, files)


async def test_a_buyers_daemon_knows_its_jobs_files_again_after_a_restart(tmp_path: Path, package: bytes) -> None:
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as daemon:
        store = daemon.store
        blob = store.put_bytes(b"a file")
        listed = FileList(image="", files=(ListedFile(kind="input", path="x", blob=blob, shards=()),))
        files = store.put_bytes(encode(listed))
        job = await NodeDesk(daemon).submit(
            spec(fetch_bytes=blob.size_bytes, bid_window_ms=60_000), store.put_bytes(package), files
        )
    from hansa.node.commands.first_setup import Wishes, config_text
    from hansa.node.settings.config import FILE_NAME, parse_config

    text = config_text(Wishes(provides=False, cpu_slots=0, cpu_cores_per_slot=1, gpus=(), metrics_port=0))
    again = Daemon(parse_config(text, tmp_path / "node-1" / FILE_NAME), key(1), key(1001), None)
    try:
        assert again.state.jobs.live[job].files == files
        assert again.file_lists.blobs(files) == {blob}
    finally:
        again.close()
