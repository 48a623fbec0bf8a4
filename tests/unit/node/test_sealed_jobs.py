"""A sealed job on both sides: opened into the run's own folder and nowhere else, and never taken unsealed."""

import io
import logging
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.memory_party import key as account_key
from kit.trading import LEASE, award, bid, spec, tender

from hansa.node.api.desk import NodeDesk
from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.daemon import bringing, buyer_tasks, provider_tasks, staging
from hansa.node.daemon.daemon import Daemon
from hansa.node.daemon.laying_out import Unstageable
from hansa.node.engine.selling import DeliverRound
from hansa.node.faults import OperatorError
from hansa.node.messaging import key_exchange
from hansa.node.runs.executor import Executor
from hansa.node.runs.run_order import RunOrder
from hansa.node.settings.config import FILE_NAME, parse_config
from hansa.node.storage.packages import pack
from hansa.node.storage.sealed_blobs import read_blob
from hansa.node.storage.sealing import BlobKey, ContentKey, SealBroken, new_content_key, seal
from hansa.proto.blob import BlobRef, blob_ref
from hansa.proto.codec import encode
from hansa.proto.market_documents import FEATURE_SEALED
from hansa.proto.network import DOMAIN
from hansa.proto.tensors import encode_state
from hansa.proto.typed_data import digest
from hansa.proto.workload import FileList, ListedFile
from hansa.scheduler.job_state import Checkpoint, Job, Output, Shard
from hansa.scheduler.rounds import Contribution
from hansa.scheduler.run import STAGING, Run, StartRun

pytestmark = pytest.mark.trio
ORDER = StartRun(run=LEASE, checkpoint=None, round=0)
JOB, SHARD = b"j" * 32, 1
WORDS = b"nobody is to find these words "


def sealed_spec(**changes: Any) -> Any:
    plain = spec(**changes)
    return replace(plain, requirements=replace(plain.requirements, features=(FEATURE_SEALED,)))


def package() -> bytes:
    archive = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.py").write_bytes(b"# " + WORDS + b"\ndef main(ctx): ...\n")
        pack(Path(folder), archive)
    return archive.getvalue()


class Pair:
    """A buyer with a sealed job, a provider with the lease of its shard 1, and the orders that came of it."""

    def __init__(self, buyer: Daemon, provider: Daemon) -> None:
        self.buyer, self.provider, self.content = buyer, provider, new_content_key()
        self.orders: list[RunOrder] = []
        buyer.job_keys.keep(JOB, self.content)

    def put(self, data: bytes, key: BlobKey | None = None) -> BlobRef:
        return self.buyer.store.put_bytes(data if key is None else seal(key, data))

    def lease(self, *files: ListedFile, code: BlobRef | None = None) -> None:
        listed = FileList(image="", files=files)
        ref = self.put(encode(listed), self.content.shared)
        self.buyer.file_lists.keep(ref, listed)
        code = code or self.put(package(), self.content.shared)
        wanted = sealed_spec(fetch_bytes=1 << 30)
        account = self.provider.account.address
        shards = tuple(
            Shard(shard=number, phase="starting", lease=LEASE if number == SHARD else bytes(32), provider=account)
            for number in range(2)
        )
        self.buyer.state.jobs[JOB] = Job(
            phase="running", job=JOB, spec=wanted, package=code, files=ref, shards=shards, submitted_ms=1
        )
        called = tender(signer=self.buyer.account.address, shards=(SHARD,), requirements=wanted.requirements)
        made = bid(called).document
        bid_digest = digest(DOMAIN, made)
        self.provider.state.sales[bid_digest] = staging.Sale(
            phase="settled",
            tender=called,
            bid=made,
            bid_digest=bid_digest,
            grace_ms=1,
            award=award(made, shard=SHARD),
            lease=LEASE,
            workload=wanted.workload(JOB, code, ref),
        )
        self.provider.state.sale_of[LEASE] = bid_digest
        self.provider.state.runs[LEASE] = Run(run=LEASE, phase=STAGING)

    async def failure(self) -> Run:
        await staging.start_run(self.provider, ORDER)
        with trio.fail_after(10):
            while LEASE in self.provider.state.runs.live:
                await self.provider.changed.wait()
        ended = self.provider.state.runs.get(LEASE)
        assert ended is not None
        assert not self.orders
        return ended


@pytest.fixture
async def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    monkeypatch.setattr(bringing, "RETRY_S", 0.05)
    monkeypatch.setattr(key_exchange, "RETRY_S", 0.02)
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as buyer, a_daemon(tmp_path, hub, 2, lends=True) as provider:
        provider.net.learn(buyer.net.peer_id, buyer.net.addrs())
        provider.directory.hint(buyer.account.address, buyer.net.peer_id)
        pair = Pair(buyer, provider)

        async def start(_executor: Executor, order: RunOrder) -> None:
            await trio.lowlevel.checkpoint()
            pair.orders.append(order)

        monkeypatch.setattr(Executor, "start", start)
        yield pair


def held_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and WORDS in path.read_bytes()]


async def nothing_left(daemon: Daemon) -> None:
    with trio.fail_after(5):
        while list(daemon.runs_dir.iterdir()):  # noqa: ASYNC110 - a thread that ends tells no event
            await trio.sleep(0.02)


def listed(path: str, blob: BlobRef, *shards: int, kind: str = "input") -> ListedFile:
    return ListedFile(kind=kind, path=path, blob=blob, shards=shards)


# A provider's side.


async def test_what_a_run_is_given_is_opened_below_its_own_folder_alone_and_goes_with_it(pair: Pair) -> None:
    own = pair.put(WORDS * 9, pair.content.own(SHARD))
    shared = pair.put(WORDS * 9_000, pair.content.shared)
    pair.lease(listed("own", own, SHARD), listed("set/deep/all", shared))
    await staging.start_run(pair.provider, ORDER)
    (order,) = pair.orders
    assert order.inputs is not None
    assert (order.inputs / "own").read_bytes() == WORDS * 9
    assert (order.inputs / "set/deep/all").read_bytes() == WORDS * 9_000
    assert order.keys == pair.content.of_shard(SHARD)
    data = pair.provider.config.data_dir
    folder = staging.run_folder(pair.provider, LEASE)
    assert len(held_in(data)) == 3
    assert all(path.is_relative_to(folder) for path in held_in(data))
    assert held_in(pair.buyer.config.data_dir) == []
    staging.forget_run(pair.provider, LEASE)
    await nothing_left(pair.provider)
    assert held_in(data) == []


async def test_a_node_that_wins_its_own_sealed_job_has_its_keys_at_home(pair: Pair) -> None:
    pair.lease()
    of = pair.buyer.state.jobs.live[JOB]
    own = pair.buyer.account.address
    shards = (of.shards[0], replace(of.shards[1], provider=own))
    pair.buyer.state.jobs[JOB] = replace(of, shards=shards)
    entry = pair.provider.state.sale_on(LEASE)
    assert entry is not None
    assert await staging._keys(pair.buyer, LEASE, entry) == pair.content.of_shard(SHARD)
    with pytest.raises(Unstageable, match="the lease of this sealed job is over"):
        await staging._keys(pair.buyer, bytes(32), entry)


async def test_no_key_is_in_what_is_printed_or_written_of_a_run(pair: Pair) -> None:
    pair.lease()
    await staging.start_run(pair.provider, ORDER)
    (order,) = pair.orders
    assert order.keys is not None
    texts = [repr(order), repr(staging.Staged(code=order.code, keys=order.keys)), repr(pair.provider.state)]
    for secret in (order.keys.own.secret(), order.keys.shared.secret(), pair.content.secret()):
        assert not any(secret.hex() in text or repr(secret)[2:-1] in text for text in texts)
        for data in (pair.provider.config.data_dir, pair.buyer.config.data_dir):
            for path in data.rglob("*"):
                assert not path.is_file() or (
                    secret not in path.read_bytes() and secret.hex().encode() not in path.read_bytes()
                ), path


async def test_a_sealed_jobs_code_is_not_run_if_it_came_unsealed(pair: Pair) -> None:
    pair.lease(code=pair.put(package()))
    ended = await pair.failure()
    assert (ended.end_kind, ended.end_reason) == ("bad-entry", "the job's package cannot be unpacked: it is not sealed")


async def test_a_file_under_another_shards_key_cannot_be_opened(pair: Pair) -> None:
    pair.lease(listed("x", pair.put(WORDS, pair.content.own(0)), SHARD))
    ended = await pair.failure()
    assert ended.end_reason == "one of the job's files cannot be opened: it is sealed under another key"
    await nothing_left(pair.provider)
    assert held_in(pair.provider.config.data_dir) == []


@pytest.mark.parametrize(("kind", "name"), [("wheel", "a-1-py3-none-any.whl"), ("image", "image.tar")])
async def test_what_a_provider_would_keep_unpacked_is_refused(pair: Pair, kind: str, name: str) -> None:
    pair.lease(listed(name, pair.put(WORDS, pair.content.shared), kind=kind))
    ended = await pair.failure()
    assert ended.end_reason == "a sealed job may bring no packages or images of its own"


async def test_a_run_whose_keys_cannot_be_had_fails_in_words(pair: Pair) -> None:
    pair.lease()
    pair.buyer.job_keys.keep_only([JOB])
    pair.buyer.job_keys.keep_only([])
    ended = await pair.failure()
    assert ended.end_kind == "refused"
    assert ended.end_reason == (
        "the keys of this sealed job cannot be had: its buyer has lost the key of this sealed job"
    )
    assert not list(pair.provider.store.directory.joinpath("whole").iterdir()), "nothing was even fetched"


async def test_a_round_that_cannot_be_opened_ends_the_run_and_not_the_daemon(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[tuple[str, str]] = []

    async def deliver(_executor: Executor, _run: bytes, _round: int, _state: BlobRef) -> None:
        await trio.lowlevel.checkpoint()
        raise SealBroken("it is not sealed")

    async def fail(_executor: Executor, _run: bytes, kind: str, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        ended.append((kind, reason))

    monkeypatch.setattr(Executor, "running", property(lambda _: frozenset({LEASE})))
    monkeypatch.setattr(Executor, "deliver_round", deliver)
    monkeypatch.setattr(Executor, "fail", fail)
    state = pair.provider.store.put_bytes(b"plain")
    pair.provider.exchange.remember_shown(pair.buyer.account.address, state)
    with trio.fail_after(30):
        await provider_tasks.deliver_round(
            pair.provider, DeliverRound(lease=LEASE, buyer=pair.buyer.account.address, round=1, state=state)
        )
    assert ended == [("bad-state", "what a round came to cannot be opened: it is not sealed")]


# A buyer's side.


def checkpoint(step: int, value: float) -> bytes:
    return encode_state({"state": {"weights": np.full(1000, value)}, "round": 0, "step": step})


async def test_a_sealed_checkpoint_is_looked_at_as_any_other_and_leaves_nothing_behind(pair: Pair) -> None:
    pair.lease()
    store, keys = pair.buyer.store, pair.content.of_shard(SHARD).both
    own = pair.content.own(SHARD)
    good, nan = checkpoint(1, 7.0), checkpoint(2, float("nan"))
    before = Checkpoint(round=0, step=1, blob=pair.put(good, own))
    after = Checkpoint(round=0, step=2, blob=pair.put(nan, own))
    assert buyer_tasks._fault_of(store, before, None, keys) == ""
    assert "holds NaN" in buyer_tasks._fault_of(store, after, before, keys)
    assert "of another step" in buyer_tasks._fault_of(store, replace(before, step=9), None, keys)
    unsealed = Checkpoint(round=0, step=1, blob=pair.put(good))
    assert buyer_tasks._fault_of(store, unsealed, None, keys) == "it cannot be opened: it is not sealed"
    others = Checkpoint(round=0, step=1, blob=pair.put(good, pair.content.own(0)))
    assert "another key" in buyer_tasks._fault_of(store, others, None, keys)
    assert not list((store.directory / "new").iterdir())


async def test_a_checkpoint_of_a_job_whose_key_is_lost_is_refused_in_words(pair: Pair) -> None:
    pair.lease()
    blob = pair.put(checkpoint(1, 7.0), pair.content.own(SHARD))
    of = pair.buyer.state.jobs.live[JOB]
    shard = replace(of.shards[SHARD], copying=Checkpoint(round=0, step=1, blob=blob))
    assert await buyer_tasks._fault_of_copied(pair.buyer, of, shard) == ""
    pair.buyer.job_keys.keep_only([JOB])
    pair.buyer.job_keys.keep_only([])
    assert await buyer_tasks._fault_of_copied(pair.buyer, of, shard) == "this node has lost the key of the sealed job"


def contribution(shard: int, state: BlobRef) -> Contribution:
    return Contribution(shard=shard, provider=b"p" * 20, weight_milli=1000, state=state)


async def test_a_round_is_averaged_of_what_opens_and_the_rest_is_left_out(pair: Pair) -> None:
    content, store = pair.content, pair.buyer.store
    states = [encode_state({"x": np.full(3, float(number))}) for number in range(3)]
    sound = contribution(0, pair.put(states[0], content.own(0)))
    anothers = contribution(1, pair.put(states[1], content.own(0)))
    plain = contribution(2, pair.put(states[2]))
    reduced = buyer_tasks._reduce(store, None, [sound, anothers, plain], 1 << 20, content)
    assert reduced.state is not None
    assert reduced.accepted == (0,)
    assert reduced.rejected == {
        1: "its state cannot be opened: it is sealed under another key",
        2: "its state cannot be opened: it is not sealed",
    }


# Its developer's side.


async def submitted(pair: Pair, key: ContentKey | None) -> bytes:
    code = pair.put(package(), key.shared if key else None)
    return await NodeDesk(pair.buyer).submit(sealed_spec(), code, None, key)


async def test_a_sealed_job_is_taken_with_its_key_and_an_open_one_without(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buyer_tasks, "NOBODY_PATIENCE_S", 0.1)
    desk, key = NodeDesk(pair.buyer), new_content_key()
    with pytest.raises(OperatorError, match="is sealed, and its key is not given"):
        await submitted(pair, None)
    with pytest.raises(OperatorError, match="is not sealed, and a key is given"):
        await desk.submit(spec(), pair.put(b"code"), None, key)
    job = await submitted(pair, key)
    assert pair.buyer.job_keys.find(job) == key
    assert desk.job_view(job)["sealed"] is True
    files = FileList(image="", files=())
    with pytest.raises(OperatorError, match="another key"):
        await desk.submit(
            sealed_spec(), pair.put(b"code"), pair.put(encode(files), new_content_key().shared), new_content_key()
        )


async def read_output(pair: Pair, blob: BlobRef) -> bytes | None:
    flow = await NodeDesk(pair.buyer).open_output(JOB, blob)
    return None if flow is None else b"".join([piece async for piece in flow])


async def test_outputs_are_opened_for_their_developer_and_only_if_all_of_them_opens(pair: Pair) -> None:
    pair.lease()
    own = pair.content.own(SHARD)
    broken = bytearray(seal(own, WORDS * 9_000))
    broken[-1] ^= 1
    good, empty, bad, others = (
        pair.put(data)
        for data in (seal(own, WORDS * 9_000), seal(own, b""), bytes(broken), seal(pair.content.own(0), WORDS))
    )
    outputs = tuple(Output(path=f"{at}", blob=blob, here=True) for at, blob in enumerate((good, empty, bad, others)))
    away = Output(path="away", blob=blob_ref(b"on its way"), here=False)
    outputs = (*outputs, away)
    of = pair.buyer.state.jobs.live[JOB]
    pair.buyer.state.jobs[JOB] = replace(of, shards=(of.shards[0], replace(of.shards[1], outputs=outputs)))
    assert await read_output(pair, good) == WORDS * 9_000
    assert await read_output(pair, empty) == b""
    assert await read_output(pair, of.package) is None
    assert await read_output(pair, away.blob) is None
    with pytest.raises(OperatorError, match="it was changed or cut short"):
        await read_output(pair, bad)
    with pytest.raises(OperatorError, match="another key"):
        await read_output(pair, others)
    pair.buyer.job_keys.keep_only([JOB])
    pair.buyer.job_keys.keep_only([])
    with pytest.raises(OperatorError, match="the key of this sealed job is lost") as told:
        await read_output(pair, good)
    assert str(pair.buyer.config.data_dir / "sealing") in told.value.hint


async def test_who_fetches_a_sealed_blob_by_its_name_has_nothing_to_read(pair: Pair) -> None:
    blob = pair.put(WORDS * 100, pair.content.own(SHARD))
    assert WORDS not in pair.buyer.store.read_bytes(blob, 1 << 20)
    with pytest.raises(SealBroken):
        read_blob(pair.buyer.store, blob, 1 << 20, new_content_key().of_shard(SHARD).both)
    assert blob != blob_ref(WORDS * 100)


async def test_a_buyers_daemon_knows_a_sealed_jobs_files_again_after_a_restart_and_says_if_its_key_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="hansa")
    key = new_content_key()
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as buyer:
        store = buyer.store
        listed_file = listed("x", store.put_bytes(seal(key.shared, WORDS)))
        files = store.put_bytes(seal(key.shared, encode(FileList(image="", files=(listed_file,)))))
        code = store.put_bytes(seal(key.shared, package()))
        wanted = sealed_spec(fetch_bytes=listed_file.blob.size_bytes, bid_window_ms=60_000)
        job = await NodeDesk(buyer).submit(wanted, code, files, key)
    text = config_text(Wishes(provides=False, cpu_slots=0, cpu_cores_per_slot=1, gpus=(), metrics_port=0))
    again = Daemon(parse_config(text, tmp_path / "node-1" / FILE_NAME), account_key(1), account_key(1001), None)
    try:
        assert again.job_keys.find(job) == key
        assert again.file_lists.blobs(files) == {listed_file.blob}
    finally:
        again.close()
    (tmp_path / "node-1" / "sealing" / f"{job.hex()}.key").unlink()
    logger = logging.getLogger("hansa")
    logger.addHandler(caplog.handler)  # another test of this process may have had it tell nobody above it
    try:
        Daemon(parse_config(text, tmp_path / "node-1" / FILE_NAME), account_key(1), account_key(1001), None).close()
    finally:
        logger.removeHandler(caplog.handler)
    (said,) = {record.getMessage() for record in caplog.records if "sealed job" in record.getMessage()}
    assert said.startswith(f"the key of sealed job {job.hex()[:16]} is lost, so it cannot go on: restore /")
