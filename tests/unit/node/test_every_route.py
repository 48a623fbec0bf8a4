"""Every route of the daemon, found by asking the daemon itself: who reaches it, and what it may change.

The local API has no token. Its guard is the socket: mode 0600 in a directory of mode 0700, so nobody but the daemon's
own user (and root) can connect. What is on TCP is for reading, on loopback, and tells nobody's name.
"""

import os
import re
import socket
import stat
from pathlib import Path

import httpx
import pytest
import trio
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from starlette.routing import Route

from hansa.node.api.http_server import serve_api, serve_loopback
from hansa.node.api.local_api import local_api
from hansa.node.api.metrics import Metrics, build_metrics_app
from hansa.node.daemon import chores
from hansa.proto.signing import checksum_address

pytestmark = pytest.mark.trio

NODE = Path(__file__).resolve().parents[3] / "node"
STRANGER_UID = 65_534
CHANGING = {
    "/v1/blobs",
    "/v1/blocked/remove",
    "/v1/debts/credit",
    "/v1/debts/paid",
    "/v1/devices/return",
    "/v1/devices/withdraw",
    "/v1/jobs/{job}/cancel",
    "/v1/jobs/{job}/top-up",
    "/v1/shells",
    "/v1/shells/{shell}/close",
    "/v1/shells/{shell}/input",
}
"""What is there to change something and nothing else; ``/v1/jobs`` and ``/v1/blocked`` also list."""


async def test_what_is_read_changes_nothing_and_what_changes_something_is_posted(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon, trio.open_nursery() as tasks:
        api = local_api(daemon)
        await tasks.start(serve_api, api, daemon.config.api_socket)
        routes = [route for route in api.routes if isinstance(route, Route)]
        assert len(routes) == len(api.routes) > 20
        assert all(route.path.startswith("/v1/") for route in routes)
        transport = httpx.AsyncHTTPTransport(uds=str(daemon.config.api_socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://hansa", timeout=30) as client:
            taken = daemon.engine.events
            assert {route.path for route in routes} >= CHANGING
            for route in routes:
                assert route.path not in CHANGING or route.methods == {"POST"}, route
                path = re.sub(r"\{[a-z]+\}", "ab" * 32, route.path)
                if route.methods == {"GET", "HEAD"}:
                    assert (await client.get(path)).status_code < 500, path
                    refused = await client.post(path, json={})
                    twin = {other.path for other in routes if "POST" in (other.methods or ())}
                    assert refused.status_code == 405 or route.path in twin, path
                else:
                    assert route.methods == {"POST"}, route
            await trio.sleep(0.1)
            assert daemon.engine.events == taken, "something that was only read was journaled"
        tasks.cancel_scope.cancel()


async def test_nobody_but_the_daemons_own_user_reaches_the_local_api(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon, trio.open_nursery() as tasks:
        await tasks.start(serve_api, local_api(daemon), daemon.config.api_socket)
        path = daemon.config.api_socket
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(daemon.config.data_dir.stat().st_mode) == 0o700
        if os.getuid() == 0:
            # The directory alone would do; here the socket's own mode has to.
            for parent in (daemon.config.data_dir, *daemon.config.data_dir.parents):
                if parent.stat().st_uid == 0 and parent != Path("/"):
                    parent.chmod(parent.stat().st_mode | 0o711)
            assert not await trio.to_thread.run_sync(_stranger_connects, str(path))
        tasks.cancel_scope.cancel()


def _stranger_connects(path: str) -> bool:
    """Whether a process of another user can connect, as it says itself."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(STRANGER_UID, STRANGER_UID, STRANGER_UID)
            os.setresuid(STRANGER_UID, STRANGER_UID, STRANGER_UID)
            socket.socket(socket.AF_UNIX).connect(path)
        except PermissionError:
            os._exit(1)
        except BaseException:  # noqa: BLE001 - this process must not go on as a second test
            os._exit(2)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status != 2, "it failed for another reason than its rights"
    return status == 0


async def test_what_is_on_tcp_is_read_only_and_names_nobody(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as daemon, trio.open_nursery() as tasks:
        metrics = Metrics(daemon.figures)
        metrics.update(chores._readings(daemon))
        app = build_metrics_app(metrics, daemon.unhealthy)
        shown = {(route.path, tuple(sorted(route.methods or ()))) for route in app.routes if isinstance(route, Route)}
        assert shown == {("/metrics", ("GET", "HEAD")), ("/healthz", ("GET", "HEAD"))}
        assert len(app.routes) == len(shown)
        port = await tasks.start(serve_loopback, app, 0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            page = (await client.get("/metrics")).text
            for private in (daemon.account.address.hex(), checksum_address(daemon.account.address), daemon.net.peer_id):
                assert private.lower() not in page.lower()
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                assert (await client.request(method, "/metrics")).status_code == 405
        tasks.cancel_scope.cancel()


async def test_nothing_else_of_the_daemon_listens_on_tcp_for_http() -> None:
    """A second server would need rules of its own; then this test is to be changed with open eyes."""
    calls = [
        (path.name, line.strip())
        for path in sorted(NODE.glob("*/*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"\.start(_soon)?\(serve_(loopback|api)\b", line)
    ]
    assert calls == [
        ("daemon.py", "await nursery.start(serve_api, local_api(self), self.config.api_socket)"),
        ("daemon.py", "await nursery.start(serve_loopback, shown, self.config.metrics.port)"),
    ]
