"""The daemon as its user sees it: a real daemon's rooms over the network that keeps to memory."""
# ruff: noqa: ASYNC110 - what is waited for is seen through the desk, which tells no event

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import trio
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.trading import needs, spec

from hansa.node.api.desk import NodeDesk
from hansa.node.daemon import buyer_tasks
from hansa.node.faults import OperatorError
from hansa.proto.blob import CHUNK_BYTES, BlobRef, blob_ref
from hansa.proto.signing import checksum_address
from hansa.scheduler.job_queue import WAITED_FOR_MONEY
from hansa.scheduler.job_spec import JobSpec

pytestmark = pytest.mark.trio
PACKAGE = b"the job's directory, packed"
Json = dict[str, Any]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buyer_tasks, "NOBODY_PATIENCE_S", 0.3)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await trio.lowlevel.checkpoint()
        yield part


async def submitted(desk: NodeDesk, job: JobSpec) -> bytes:
    return await desk.submit(job, await desk.put_blob(pieces(PACKAGE)))


async def watched(desk: NodeDesk, job: bytes) -> list[Json]:
    with trio.fail_after(20):
        async with aclosing(desk.watch(job)) as flow:
            return [view async for view in flow]


async def test_a_job_without_its_package_or_in_another_currency_is_refused_and_leaves_no_trace(
    tmp_path: Path,
) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        desk = NodeDesk(daemon)
        with pytest.raises(OperatorError, match="package is not here") as told:
            await desk.submit(spec(), blob_ref(PACKAGE))
        assert "upload" in told.value.hint
        package = await desk.put_blob(pieces(PACKAGE))
        with pytest.raises(OperatorError, match="pays in EUR, this node in USD"):
            await desk.submit(spec(currency="EUR"), package)
        assert desk.job_ids() == []
        assert desk.job_views() == []


async def test_a_job_that_nobody_hears_of_ends_unfilled_and_its_watcher_is_let_go(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        desk = NodeDesk(daemon)
        job = await submitted(desk, spec())
        seen = await watched(desk, job)
        assert [view["phase"] for view in seen][-1] == "failed"
        assert "unfilled: no provider is known" in seen[-1]["reason"]
        assert seen[-1]["settled"]
        assert all(one != other for one, other in pairwise(seen)), "only what is new"
        assert [view["job"] for view in desk.job_views()] == [job.hex()]
        with pytest.raises(OperatorError, match="it failed"):
            await desk.cancel(job)


async def test_who_gives_money_to_a_job_that_has_ended_is_told_what_helps_that_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        desk = NodeDesk(daemon)
        job = await submitted(desk, spec())
        await watched(desk, job)
        found = daemon.state.jobs.get(job)
        for phase, reason, hint in (
            ("failed", found.reason, "it needs no money any more; submit it again to have it run again"),
            ("failed", WAITED_FOR_MONEY, "submit it again, with a larger budget"),
            (
                "cancelled",
                "cancelled by its developer",
                "it needs no money any more; submit it again to have it run again",
            ),
            ("succeeded", "", "it needs no money any more"),
        ):
            monkeypatch.setattr(desk, "_job", Mock(return_value=replace(found, phase=phase, reason=reason)))
            with pytest.raises(OperatorError, match=f"it {phase}") as told:
                await desk.top_up(job, 1)
            assert told.value.hint == hint


async def test_a_provider_that_cannot_serve_is_asked_all_the_same_and_says_why(tmp_path: Path) -> None:
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as daemon, a_daemon(tmp_path, hub, 2, lends=True) as lender:
        daemon.net.learn(lender.net.peer_id, lender.net.addrs())
        await daemon.net.connect(lender.net.peer_id)
        desk = NodeDesk(daemon)
        with trio.fail_after(5):
            while not desk.providers():
                await trio.sleep(0.05)
        (provider,) = desk.providers()
        assert provider["account"] == checksum_address(lender.account.address)
        assert provider["connected"]
        job = await submitted(desk, spec(shards=1, requirements=needs(kind="gpu", tier="none")))
        last = (await watched(desk, job))[-1]
        assert last["phase"] == "failed"
        (decline,) = last["tenders"][0]["declines"]
        assert decline["provider"] == provider["account"]
        assert decline["reason"] == "no device here meets kind"
        assert decline["relaxation"] == "kind = cpu"
        view = desk.node_view()
        assert json.loads(json.dumps(view)) == view
        assert [peer["account"] for peer in view["peers"]] == [provider["account"]]
        assert not [name for name in view["counters"] if "delivered" in name], "a delivery is no drop"
        assert daemon.outbox.delivered > 0


async def test_a_job_that_still_gathers_can_be_cancelled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buyer_tasks, "NOBODY_PATIENCE_S", 60.0)
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        desk = NodeDesk(daemon)
        job = await submitted(desk, spec())
        seen: list[Json] = []
        with trio.move_on_after(1.5):
            async with aclosing(desk.watch(job)) as flow:
                async for view in flow:
                    seen.append(view)  # noqa: PERF401 - the flow does not end by itself
        assert [view["phase"] for view in seen] == ["gathering"], "what has not changed is not said again"
        assert await desk.cancel(job) == {"job": job.hex(), "phase": "cancelled"}
        with pytest.raises(OperatorError, match="it cancelled"):
            await desk.cancel(job)
        last = (await watched(desk, job))[-1]
        assert (last["phase"], last["reason"]) == ("cancelled", "cancelled by its developer")


async def test_logs_are_followed_line_by_line_until_the_job_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buyer_tasks, "NOBODY_PATIENCE_S", 60.0)
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon, trio.open_nursery() as nursery:
        desk = NodeDesk(daemon)
        job = await submitted(desk, replace(spec(), shards=2))
        daemon.job_logs.append(job, 0, "one\ntw", 1)
        daemon.job_logs.append(job, 1, "other\n", 1)
        assert [line["text"] async for line in desk.logs(job, None, False)] == ["one", "other", "tw"]
        heard: list[str] = []

        async def follow() -> None:
            async for line in desk.logs(job, 0, True):
                heard.append(line["text"])  # noqa: PERF401 - it is looked at meanwhile
            heard.append("(the end)")

        nursery.start_soon(follow)
        await trio.sleep(0.1)
        assert heard == ["one"]
        daemon.job_logs.append(job, 0, "o\nthree\nno end", 2)
        with trio.fail_after(5):
            while heard != ["one", "two", "three"]:
                await trio.sleep(0.05)
            await desk.cancel(job)
            while heard[-1] != "(the end)":
                await trio.sleep(0.05)
        assert heard == ["one", "two", "three", "no end", "(the end)"]


async def test_uploads_come_back_as_they_were_and_a_broken_one_leaves_nothing(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        desk = NodeDesk(daemon)
        data = bytes(range(256)) * (CHUNK_BYTES // 256) + b"and a little more"
        blob = await desk.put_blob(pieces(data[:1_000], data[1_000:]))
        assert blob == blob_ref(data)
        flow = desk.open_blob(blob)
        assert flow is not None
        assert b"".join([piece async for piece in flow]) == data
        assert desk.open_blob(BlobRef(root=blob.root, size_bytes=blob.size_bytes + 1)) is None
        assert desk.open_blob(blob_ref(b"never seen")) is None

        async def breaks_off() -> AsyncIterator[bytes]:
            yield b"half"
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await desk.put_blob(breaks_off())
        assert not list(daemon.store.directory.glob(".upload-*"))


async def test_a_fresh_node_owes_nothing(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        balance = NodeDesk(daemon).balance()
        assert balance["earned"] == balance["spent"] == balance["sum"] == "0.000000"
        assert balance["channels"] == NodeDesk(daemon).entries() == []
