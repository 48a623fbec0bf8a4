"""What every ``Desk`` promises, held against a daemon's own and the one in memory for tests of the command line."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import trio
from kit.memory_daemon import a_daemon
from kit.memory_desk import MemoryDesk, job_view
from kit.memory_net import MemoryHub
from kit.trading import JOB, spec
from simulation.market import Market

from hansa.node.api import views
from hansa.node.api.desk import NodeDesk
from hansa.node.api.http_api import Desk
from hansa.node.daemon import buyer_tasks
from hansa.node.faults import OperatorError
from hansa.proto.blob import CHUNK_BYTES, BlobRef, blob_ref
from hansa.proto.market_documents import FEATURE_SEALED

PACKAGE = b"the job's directory, packed"
Json = dict[str, Any]
Say = Callable[[bytes, int, str], None]
Open = Callable[[], AbstractAsyncContextManager[tuple[Desk, Say]]]

BRIEFLY_LEFT_OUT = {"tenders", "history", "rounds"}


@asynccontextmanager
async def _a_daemons(folder: Path) -> AsyncIterator[tuple[Desk, Say]]:
    async with a_daemon(folder, MemoryHub(), 1) as daemon:
        desk = NodeDesk(daemon)
        yield desk, lambda job, shard, text: daemon.job_logs.append(job, shard, f"{text}\n", 1)


@asynccontextmanager
async def _in_memory() -> AsyncIterator[tuple[Desk, Say]]:
    desk = MemoryDesk(fate="")
    yield desk, lambda _job, shard, text: desk.lines.append({"shard": shard, "at_ms": 1, "text": text})


@pytest.fixture(params=["daemon", "memory"])
def opener(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """A desk, and how a shard of a job on it prints a line. Jobs submitted there live until they are cancelled."""
    monkeypatch.setattr(buyer_tasks, "NOBODY_PATIENCE_S", 600.0)
    return partial(_a_daemons, tmp_path) if request.param == "daemon" else _in_memory


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await trio.lowlevel.checkpoint()
        yield part


async def submitted(desk: Desk, **changes: Any) -> bytes:
    return await desk.submit(replace(spec(), **changes), await desk.put_blob(pieces(PACKAGE)))


async def lines(desk: Desk, job: bytes, shard: int | None) -> list[str]:
    async with aclosing(desk.logs(job, shard, follow=False)) as flow:
        return [line["text"] async for line in flow]


def plain(view: Any) -> Any:
    read = json.loads(json.dumps(view, allow_nan=False))
    assert read == view
    return read


# What is shown has the same shape.


def shape(value: Any, at: str = "", found: dict[str, set[str]] | None = None) -> dict[str, set[str]]:
    """Every path in a view and the types found there. What a job or a machine names itself has no paths of its own."""
    found = defaultdict(set) if found is None else found
    found[at].add(type(value).__name__)
    if isinstance(value, dict) and not at.endswith(("metrics", "parameters", "facts", "counters")):
        for name, each in value.items():
            shape(each, f"{at}.{name}", found)
    elif isinstance(value, list):
        for each in value:
            shape(each, f"{at}[]", found)
    return found


def differences(fake: dict[str, set[str]], real: dict[str, set[str]]) -> list[str]:
    """Where they differ. What only the real one has counts where the fake shows the object that it stands in."""
    named = (path for path in real if path not in fake and not path.endswith("[]"))
    lacking = [path for path in named if "dict" in fake.get(path.rpartition(".")[0], ())]
    strange = [path for path in fake if path not in real]
    other = [path for path in fake if path in real and not fake[path] <= real[path] | {"NoneType"}]
    return sorted(lacking + strange + other)


@cache
def real_shapes() -> tuple[dict[str, set[str]], dict[str, set[str]], dict[str, set[str]]]:
    """Of jobs, books and entries in real markets, of which so many are played that some provider was silent too."""
    jobs: dict[str, set[str]] = defaultdict(set)
    books: dict[str, set[str]] = defaultdict(set)
    entries: dict[str, set[str]] = defaultdict(set)
    for seed in range(13, 33):
        market = Market(seed)
        market.play()
        for node in market.nodes.values():
            assert node.engine is not None
            state = node.engine.state
            for _, job in state.jobs.all():
                shape(views.job_view(state, job), "", jobs)
            shape(views.balance_view(state, "USD", 3), "", books)
            shape(views.entries_view(node.ledger.entries.values()), "", entries)
        if ".tenders[].silent[]" in jobs and ".outputs[].path" in jobs and "dict" in jobs[".shards[].checkpoint"]:
            break
    return jobs, books, entries


def test_a_jobs_view_in_memory_has_the_shape_of_those_of_real_markets():
    real, _, _ = real_shapes()
    ours = shape(plain(job_view(JOB.hex())))
    assert differences(ours, real) == []
    lists = {path for path in real if path.endswith("[]")}
    assert lists - set(ours) <= {".rounds[].rejected[]", ".outputs[]"}, "so that what stands in the others is compared"
    assert "dict" in ours[".shards[].checkpoint"]
    with pytest.raises(AssertionError, match="no such thing"):
        job_view(JOB.hex(), progress=3)


def test_money_in_memory_has_the_shape_of_that_of_real_markets():
    _, books, entries = real_shapes()
    desk = MemoryDesk()
    assert differences(shape(plain(desk.balance())), books) == []
    assert desk.entries()
    assert differences(shape(plain(desk.entries())), entries) == []


@pytest.mark.trio
async def test_a_node_and_its_neighbours_in_memory_have_the_shape_of_a_daemons(tmp_path: Path):
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as daemon, a_daemon(tmp_path, hub, 2, lends=True) as lender:
        await daemon.net.connect(lender.net.addrs()[0])
        real = NodeDesk(daemon)
        with trio.fail_after(20):
            while not real.providers():  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert differences(shape(MemoryDesk().node_view()), shape(real.node_view())) == []
        assert set(MemoryDesk().node_view()) == set(real.node_view())
        assert differences(shape(MemoryDesk().providers()), shape(real.providers())) == []
        assert differences(shape(MemoryDesk().balance()), shape(real.balance())) == [
            ".channels[]",
            *(
                f".channels[].{name}"
                for name in ("channel_id", "counterparty", "metered", "phase", "prepaid", "role", "vouched")
            ),
        ], "a fresh node has no channels, and all the rest"


# What is done has the same outcome.


@pytest.mark.trio
async def test_a_job_needs_its_package_and_is_known_once_it_is_taken(opener: Open):
    async with opener() as (desk, _):
        with pytest.raises(OperatorError, match="package is not here") as told:
            await desk.submit(spec(), blob_ref(PACKAGE))
        assert told.value.hint
        assert list(desk.job_ids()) == []
        job = await submitted(desk, name="first")
        assert list(desk.job_ids()) == [job]
        assert plain(desk.job_view(job))["name"] == "first"
        assert desk.budget(job) == spec().budget
        (brief,) = desk.job_views()
        whole = desk.job_view(job)
        assert brief == {name: value for name, value in whole.items() if name not in BRIEFLY_LEFT_OUT}
        assert set(whole) - set(brief) == BRIEFLY_LEFT_OUT


@pytest.mark.trio
async def test_a_sealed_job_comes_with_its_key_and_no_other_does(opener: Open):
    async with opener() as (desk, _):
        sealed = replace(spec().requirements, features=(FEATURE_SEALED,))
        with pytest.raises(OperatorError, match="is sealed"):
            await submitted(desk, requirements=sealed)
        assert list(desk.job_ids()) == []


@pytest.mark.trio
async def test_the_newest_job_is_listed_first(opener: Open):
    async with opener() as (desk, _):
        names = []
        for name in ("first", "second", "third"):
            await submitted(desk, name=name)
            names.append(name)
            await trio.sleep(0.005)
        assert [view["name"] for view in desk.job_views()] == names[::-1]


@pytest.mark.trio
async def test_a_job_that_lives_is_cancelled_once_and_costs_no_more_then(opener: Open):
    async with opener() as (desk, _):
        job = await submitted(desk)
        before = desk.budget(job)
        answer = await desk.top_up(job, 250_000)
        assert answer == {"job": job.hex(), "budget": desk.job_view(job)["spend"]["budget"]}
        assert desk.budget(job) == before + 250_000
        assert await desk.cancel(job) == {"job": job.hex(), "phase": "cancelled"}
        assert desk.job_view(job)["phase"] == "cancelled"
        for again in (desk.cancel, partial(desk.top_up, amount=1)):
            with pytest.raises(OperatorError, match="the job has ended: it cancelled") as told:
                await again(job)
            assert told.value.hint
        assert desk.budget(job) == before + 250_000


@pytest.mark.trio
async def test_a_watcher_sees_each_change_once_and_is_let_go_at_the_end(opener: Open):
    async with opener() as (desk, _), trio.open_nursery() as nursery:
        job = await submitted(desk)
        seen: list[Json] = []

        async def watch() -> None:
            async with aclosing(desk.watch(job)) as flow:
                async for view in flow:
                    seen.append(plain(view))  # noqa: PERF401 - it is looked at meanwhile

        nursery.start_soon(watch)
        with trio.fail_after(30):
            while not seen:  # noqa: ASYNC110
                await trio.sleep(0.02)
            await trio.sleep(1.5)
            assert len(seen) == 1, "what has not changed is not said again"
            await desk.cancel(job)
            while nursery.child_tasks:  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert seen[0]["phase"] not in ("succeeded", "failed", "cancelled")
        assert seen[-1]["phase"] == "cancelled"
        assert all(set(view) == set(seen[0]) for view in seen)


@pytest.mark.trio
async def test_what_shards_print_is_told_by_shard_and_followed_to_the_jobs_end(opener: Open):
    async with opener() as (desk, say), trio.open_nursery() as nursery:
        job = await submitted(desk)
        say(job, 0, "one")
        say(job, 1, "other")
        assert await lines(desk, job, None) == ["one", "other"]
        assert await lines(desk, job, 1) == ["other"]
        assert await lines(desk, job, 7) == []
        heard: list[Json] = []

        async def follow() -> None:
            async with aclosing(desk.logs(job, 0, follow=True)) as flow:
                async for line in flow:
                    heard.append(plain(line))  # noqa: PERF401 - it is looked at meanwhile

        nursery.start_soon(follow)
        with trio.fail_after(30):
            while not heard:  # noqa: ASYNC110
                await trio.sleep(0.02)
            say(job, 0, "two")
            while len(heard) < 2:  # noqa: ASYNC110
                await trio.sleep(0.02)
            await desk.cancel(job)
            while nursery.child_tasks:  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert [line["text"] for line in heard] == ["one", "two"]
        assert all(set(line) == {"shard", "at_ms", "text"} for line in heard)


@pytest.mark.trio
async def test_blobs_come_back_as_they_were_and_what_is_not_here_is_said(opener: Open):
    async with opener() as (desk, _):
        data = bytes(range(256)) * (CHUNK_BYTES // 256) + b"and a little more"
        blob = await desk.put_blob(pieces(data[:1_000], data[1_000:]))
        assert blob == blob_ref(data)
        never = blob_ref(b"never seen")
        assert desk.missing_blobs([never, blob, never]) == [0, 2]
        assert desk.missing_blobs([]) == []
        flow = desk.open_blob(blob)
        assert flow is not None
        async with aclosing(flow):
            assert b"".join([piece async for piece in flow]) == data
        assert desk.open_blob(BlobRef(root=blob.root, size_bytes=blob.size_bytes + 1)) is None
        assert desk.open_blob(never) is None


@pytest.mark.trio
async def test_an_output_is_opened_for_its_job_and_one_that_is_not_here_is_nothing(opener: Open):
    async with opener() as (desk, _):
        job = await submitted(desk)
        blob = await desk.put_blob(pieces(b"weights"))
        flow = await desk.open_output(job, blob)
        assert flow is not None
        async with aclosing(flow):
            assert b"".join([piece async for piece in flow]) == b"weights"
        assert await desk.open_output(job, blob_ref(b"never seen")) is None


@pytest.mark.trio
async def test_without_a_chain_there_is_no_voucher_to_guard_and_no_deposit_to_make(opener: Open):
    async with opener() as (desk, _):
        assert desk.vouchers() == []
        assert desk.deposits() == []
