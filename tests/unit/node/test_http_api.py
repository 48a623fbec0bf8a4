"""The local API over its real socket: who may connect, what it answers, and what a mistake looks like."""
# ruff: noqa: ASYNC110, ASYNC240 - waiting for a server's own clean-up has no event, and a test may touch a file

import contextlib
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from kit.memory_desk import MemoryDesk, job_view

from hansa.node.api.http_api import build_api
from hansa.node.api.http_server import serve_api
from hansa.node.api.job_json import spec_to_json
from hansa.node.faults import ConfigError, PortInUse
from hansa.node.jobs.job_file import read_job_file

pytestmark = pytest.mark.trio


@asynccontextmanager
async def served(desk: MemoryDesk, path: Path, budget: int | None = None) -> AsyncIterator[httpx.AsyncClient]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_api, build_api(desk, max_job_budget=budget), path)
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://hansa", timeout=10) as client:
            yield client
        nursery.cancel_scope.cancel()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def a_spec(directory: Path) -> dict[str, Any]:
    (directory / "train.py").write_text("def train(context): ...\n")
    (directory / "job.toml").write_text('name = "digits"\nentry = "train.py:train"\n')
    return spec_to_json(read_job_file(directory).spec)


async def test_the_socket_is_its_owners_alone_and_goes_with_the_daemon(path: Path) -> None:
    async with served(MemoryDesk(), path) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await client.get("/v1/node")).json()["peer_id"] == "16Uiu2"
    assert not path.exists()


async def test_a_socket_that_a_dead_daemon_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with served(MemoryDesk(), path) as client:
        assert (await client.get("/v1/node")).status_code == 200


async def test_a_living_daemon_keeps_its_socket(path: Path) -> None:
    async with served(MemoryDesk(), path) as client:
        with pytest.raises(PortInUse, match="another daemon"):
            await serve_api(build_api(MemoryDesk()), path)
        assert (await client.get("/v1/node")).status_code == 200


async def test_a_file_in_the_way_is_not_removed(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match="no socket"):
        await serve_api(build_api(MemoryDesk()), path)
    assert path.read_text() == "precious"


async def test_the_socket_is_not_inherited_by_what_the_daemon_starts(path: Path) -> None:
    async with served(MemoryDesk(), path):
        for descriptor in Path("/proc/self/fd").iterdir():
            try:
                found = socket.socket(fileno=int(descriptor.name))
            except OSError:
                continue
            name = found.getsockname() if found.family == socket.AF_UNIX else ""
            inheritable = found.get_inheritable()
            found.detach()
            assert name != str(path) or not inheritable


async def test_a_job_is_submitted_with_its_package(path: Path, tmp_path: Path) -> None:
    desk = MemoryDesk()
    async with served(desk, path) as client:
        package = (await client.post("/v1/blobs", content=b"p" * 3_000_000)).json()
        answer = await client.post("/v1/jobs", json={"spec": a_spec(tmp_path), "package": package})
        assert answer.status_code == 201
        ((spec, blob),) = desk.submitted
        assert (spec.name, blob.size_bytes) == ("digits", 3_000_000)
        job = answer.json()["job"]
        assert (await client.get(f"/v1/jobs/{job}")).json()["name"] == "digits"
        content = await client.get(f"/v1/blobs/{package['root']}", params={"size_bytes": package["size_bytes"]})
        assert content.content == b"p" * 3_000_000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"[1", "JSON"),
        (b"{}", "spec"),
        (b'{"spec": {}, "package": {"root": "x", "size_bytes": 1}}', "root"),
        (b'{"spec": {}, "package": {"root": "' + b"ab" * 32 + b'", "size_bytes": -1}}', "size_bytes"),
        (b'{"spec": {"name": 3}, "package": {"root": "' + b"ab" * 32 + b'", "size_bytes": 1}}', "spec"),
        (b"\xff", "JSON"),
    ],
)
async def test_a_body_out_of_shape_is_a_mistake_and_no_fault(path: Path, body: bytes, words: str) -> None:
    async with served(MemoryDesk(), path) as client:
        answer = await client.post("/v1/jobs", content=body)
        assert answer.status_code == 400
        assert words in answer.json()["error"]
        assert answer.json()["hint"]
        assert (await client.get("/v1/node")).status_code == 200


async def test_a_body_without_end_is_not_kept(path: Path) -> None:
    async with served(MemoryDesk(), path) as client:
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(b"POST /v1/jobs HTTP/1.1\r\nhost: h\r\ncontent-length: 9000000000\r\n\r\n")
            with contextlib.suppress(trio.BrokenResourceError):
                for _ in range(20):
                    await stream.send_all(b" " * (1 << 16))
            answer = b""
            while b"larger than 1 MiB" not in answer:
                answer += await stream.receive_some() or pytest.fail("closed without a word")
        assert (await client.get("/v1/node")).status_code == 200


async def test_the_daemons_refusal_reaches_the_user_with_its_hint(path: Path, tmp_path: Path) -> None:
    async with served(MemoryDesk(), path) as client:
        unknown = {"root": "ab" * 32, "size_bytes": 1}
        answer = await client.post("/v1/jobs", json={"spec": a_spec(tmp_path), "package": unknown})
        assert (answer.status_code, answer.json()["hint"]) == (409, "upload it first")


async def test_a_budget_above_the_owners_limit_is_refused(path: Path, tmp_path: Path) -> None:
    desk = MemoryDesk()
    async with served(desk, path, budget=999_999) as client:
        package = (await client.post("/v1/blobs", content=b"p")).json()
        answer = await client.post("/v1/jobs", json={"spec": a_spec(tmp_path), "package": package})
        assert (answer.status_code, desk.submitted) == (409, [])
        assert "0.999999" in answer.json()["error"]


async def test_the_beginning_of_an_id_is_enough_while_it_means_one_job(path: Path) -> None:
    desk = MemoryDesk()
    desk.add(job_view("abcd" + "0" * 60))
    desk.add(job_view("abce" + "0" * 60))
    async with served(desk, path) as client:
        assert (await client.get("/v1/jobs/ABCD")).json()["job"].startswith("abcd")
        for wanted, status in (("abc", 400), ("abcf", 404), ("zzzz", 400), ("a" * 65, 400)):
            answer = await client.get(f"/v1/jobs/{wanted}")
            assert answer.status_code == status
            assert answer.json()["hint"]
        desk.add(job_view("abcd" + "1" * 60))
        assert (await client.get("/v1/jobs/abcd")).status_code == 409


async def test_jobs_are_listed_and_cancelled(path: Path) -> None:
    desk = MemoryDesk()
    job = desk.add(job_view("ab" * 32))
    async with served(desk, path) as client:
        (listed,) = (await client.get("/v1/jobs")).json()["jobs"]
        assert (listed["job"], "tenders" in listed) == (job, False)
        assert (await client.post(f"/v1/jobs/{job}/cancel")).json() == {"job": job, "phase": "cancelled"}
        assert (await client.post(f"/v1/jobs/{job}/cancel")).status_code == 409


async def test_a_budget_is_raised_by_plain_amounts_and_up_to_the_owners_own_limit(path: Path) -> None:
    desk = MemoryDesk()
    job = desk.add(job_view("ab" * 32))
    async with served(desk, path) as client:
        answer = await client.post(f"/v1/jobs/{job}/top-up", json={"amount": "0.25"})
        assert answer.json() == {"job": job, "budget": "1.250000"}
        for wrong in (
            {"amount": 1},
            {"amount": "-1"},
            {"amount": "1e3"},
            {"amount": None},
            {},
            {"amount": "1", "x": 1},
        ):
            answer = await client.post(f"/v1/jobs/{job}/top-up", json=wrong)
            assert (answer.status_code, bool(answer.json()["hint"])) == (400, True), wrong
    async with served(desk, path, 2_000_000) as client:
        assert (await client.post(f"/v1/jobs/{job}/top-up", json={"amount": "0.75"})).status_code == 200
        assert (await client.post(f"/v1/jobs/{job}/top-up", json={"amount": "0.000001"})).status_code == 409


async def test_watching_ends_with_the_job(path: Path) -> None:
    desk = MemoryDesk()
    job = desk.add(job_view("ab" * 32), job_view("ab" * 32, round=3), job_view("ab" * 32, phase="succeeded"))
    async with served(desk, path) as client:
        answer = await client.get(f"/v1/jobs/{job}/watch")
        views = [json.loads(line) for line in answer.text.splitlines()]
        assert [(view["round"], view["phase"]) for view in views] == [(2, "running"), (3, "running"), (2, "succeeded")]


async def read_one_view(path: Path, job: str) -> trio.SocketStream:
    stream = await trio.open_unix_socket(path)
    await stream.send_all(f"GET /v1/jobs/{job}/watch HTTP/1.1\r\nhost: h\r\n\r\n".encode())
    heard = b""
    while b'"phase"' not in heard:
        heard += await stream.receive_some()
    return stream


async def test_a_watcher_that_goes_leaves_nothing_open(path: Path) -> None:
    desk = MemoryDesk()
    job = desk.add(job_view("ab" * 32))
    with trio.fail_after(5):
        async with served(desk, path):
            stream = await read_one_view(path, job)
            await stream.aclose()
            while desk.closed_flows == 0:
                await trio.sleep(0.01)
    assert desk.closed_flows == desk.open_flows == 1


async def test_a_watcher_that_stays_is_cut_off_when_the_daemon_stops(path: Path) -> None:
    desk = MemoryDesk()
    job = desk.add(job_view("ab" * 32))
    with trio.fail_after(5):
        async with served(desk, path):
            stream = await read_one_view(path, job)
        await stream.aclose()
    assert desk.closed_flows == desk.open_flows == 1


async def test_logs_are_chosen_by_shard_and_followed_on_request(path: Path) -> None:
    desk = MemoryDesk()
    job = desk.add(job_view("ab" * 32))
    desk.lines = [{"shard": shard, "at_ms": 1, "text": f"line {shard}"} for shard in (0, 1)]
    async with served(desk, path) as client:
        one = await client.get(f"/v1/jobs/{job}/logs", params={"shard": "1"})
        assert [json.loads(line)["text"] for line in one.text.splitlines()] == ["line 1"]
        desk.later = [{"shard": 0, "at_ms": 2, "text": "followed"}]
        followed = await client.get(f"/v1/jobs/{job}/logs", params={"follow": "1"})
        assert json.loads(followed.text.splitlines()[-1])["text"] == "followed"
        assert (await client.get(f"/v1/jobs/{job}/logs", params={"shard": "x"})).status_code == 400


async def test_a_blob_that_is_not_here_is_said(path: Path) -> None:
    async with served(MemoryDesk(), path) as client:
        assert (await client.get(f"/v1/blobs/{'ab' * 32}", params={"size_bytes": "5"})).status_code == 404
        for url in ("/v1/blobs/xyz?size_bytes=5", f"/v1/blobs/{'ab' * 32}", f"/v1/blobs/{'ab' * 32}?size_bytes=-1"):
            assert (await client.get(url)).status_code == 400


async def test_money_and_providers_are_shown(path: Path) -> None:
    async with served(MemoryDesk(), path) as client:
        assert (await client.get("/v1/balance")).json()["sum"] == "0.000000"
        assert len((await client.get("/v1/entries")).json()["entries"]) == 2
        assert (await client.get("/v1/providers")).json()["providers"][0]["free"] == 1


async def test_unknown_places_and_methods_are_answered_in_the_same_form(path: Path) -> None:
    async with served(MemoryDesk(), path) as client:
        for answer, status in (
            (await client.get("/v2/nothing"), 404),
            (await client.delete("/v1/node"), 405),
            (await client.get("/v1/blobs"), 405),
        ):
            assert answer.status_code == status
            assert set(answer.json()) == {"error", "hint"}


async def test_an_upload_that_breaks_off_stores_nothing(path: Path) -> None:
    desk = MemoryDesk()
    async with served(desk, path) as client:
        stream = await trio.open_unix_socket(path)
        await stream.send_all(b"POST /v1/blobs HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\nabc")
        await stream.aclose()
        assert (await client.get("/v1/node")).status_code == 200
        assert desk.blobs == {}


async def test_clients_that_leave_in_the_middle_take_nobody_with_them(path: Path) -> None:
    async with served(MemoryDesk(), path) as client:

        async def leave() -> None:
            stream = await trio.open_unix_socket(path)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(
                    b"POST /v1/jobs HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999\r\n\r\n" + bytes(1 << 20)
                )
            await stream.aclose()

        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(leave)
            assert (await client.get("/v1/node")).status_code == 200


async def test_a_fault_in_one_connection_is_not_the_servers_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def break_down(_self: Any) -> None:
        raise trio.BusyResourceError("another task is currently sending data on this SocketStream")

    async with served(MemoryDesk(), path) as client:
        with monkeypatch.context() as patched:
            patched.setattr("hypercorn.trio.tcp_server.TCPServer._read_data", break_down)
            stream = await trio.open_unix_socket(path)
            with trio.fail_after(5):
                assert await stream.receive_some(1) == b""
            await stream.aclose()
        assert (await client.get("/v1/node")).status_code == 200
