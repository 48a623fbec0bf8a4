"""Serving the daemon's HTTP applications: one on a private unix socket, one on loopback for metrics and health.

Sockets are bound here and not by hypercorn, which would make the unix socket open to others for a moment and replace
one that a living daemon answers on.
"""

import logging
import math
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Updated
from hypercorn.trio import run as hypercorn_run
from hypercorn.trio import serve
from hypercorn.trio.tcp_server import TCPServer
from starlette.applications import Starlette

from hansa.node.faults import ConfigError, PortInUse

_log = logging.getLogger("hansa.http")

Value_contra = TypeVar("Value_contra", contravariant=True)


class Announce(Protocol[Value_contra]):
    """What ``nursery.start`` hands in. The type stubs that come with py-libp2p's dependencies lack trio's own name."""

    def started(self, value: Value_contra, /) -> None:
        """It serves now."""


MOST_ON_LOOPBACK = 32
"""Every user of the machine can connect there, and each connection takes a descriptor that the daemon needs. When more
come, the oldest of those that ask for nothing goes: who asks at once is not kept out by who says nothing."""
ANSWER_S = 2.0
"""An answer takes milliseconds. Who has not taken it by then may have to go for another, too."""
LOOPBACK_S = 10.0
"""How long a connection there may last: an answer takes milliseconds, and who says nothing keeps others out."""
GRACEFUL_S = 1.0
"""How long an answer that is being given may take after the daemon was told to stop."""


class _Config(HypercornConfig):  # type: ignore[misc] # hypercorn is not typed for us
    """hypercorn's, with how many connections there may be at once and for how long each; ``None`` is no limit.

    Attributes:
        held: the connections that there are, the oldest first, each with the time since when it is being answered.
    """

    most: int | None = None
    longest_s: float = math.inf

    def __init__(self) -> None:
        """Nobody is here yet."""
        super().__init__()
        self.held: dict[_Connection, float | None] = {}

    def has_room(self) -> bool:
        """Whether one more may come; for its sake another may have to leave."""
        if self.most is None or len(self.held) < self.most:
            return True
        slow_s = trio.current_time() - ANSWER_S
        idle = (one for one, since_s in self.held.items() if since_s is None)
        leaves = next(idle, None) or next(
            (one for one, since_s in self.held.items() if since_s is not None and since_s < slow_s), None
        )
        if leaves is None:
            return False
        leaves.leave()
        return True


class _Connection(TCPServer):  # type: ignore[misc] # hypercorn is not typed for us
    """One client's connection, whose end is its own.

    hypercorn lets whatever it did not foresee out of a connection's task, and so out of the server and of the daemon:
    a client that went away in the middle of what it sent, at the moment of its answer, ended them all (seen).
    """

    async def run(self) -> None:
        """Serve it. What goes wrong closes it, and is for the owner's log."""
        if not self.config.has_room():
            await trio.aclose_forcefully(self.stream)
            return
        self.config.held[self] = None
        try:
            with trio.move_on_after(self.config.longest_s) as self.scope:
                await super().run()
        except* Exception as faults:  # noqa: BLE001 - whatever it is, it is one client's
            kinds = sorted({type(fault).__name__ for fault in _leaves(faults)})
            _log.info("a connection to the API broke: %s", ", ".join(kinds))
            await trio.aclose_forcefully(self.stream)
        finally:
            self.config.held.pop(self, None)

    async def protocol_send(self, event: Any) -> None:
        """What the protocol has to say; in passing it tells when a request has come, and when it is answered."""
        if isinstance(event, Updated) and self in self.config.held:
            self.config.held[self] = None if event.idle else trio.current_time()
        await super().protocol_send(event)

    def leave(self) -> None:
        """Make room for another."""
        self.config.held.pop(self, None)
        self.scope.cancel()


hypercorn_run.TCPServer = _Connection


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    """The exceptions in a group of groups."""
    for fault in group.exceptions:
        if isinstance(fault, BaseExceptionGroup):
            yield from _leaves(fault)
        else:
            yield fault


def _bind_private_socket(path: Path) -> socket.socket:
    """A listening unix socket of mode 0600. One that a dead daemon left behind is replaced, a living one's is not."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} is in the way and is no socket", "move it away, then start again")
        if _answers(path):
            raise PortInUse(f"another daemon answers on {path}", "stop it first, or use another --data DIR")
        path.unlink()
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        # Until it listens nobody can connect, so there is no moment at which others could.
        path.chmod(0o600)
        listener.listen(64)
    except OSError as fault:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {fault.strerror or fault}", "check the data directory") from None
    listener.setblocking(False)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            # A full backlog or a socket of somebody else: in doubt it is alive, and stays.
            return True
        return True


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def _remove_ours(path: Path, inode: int | None) -> None:
    """Take our own socket away, and not one that a successor has put in its place."""
    if _inode(path) == inode:
        path.unlink(missing_ok=True)


async def serve_api(
    app: Starlette, socket_path: Path, *, task_status: Announce[Path] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the API until cancelled; the socket's path is handed to ``task_status`` once it answers.

    Raises:
        PortInUse: another daemon answers there.
        ConfigError: something else is in the way.
    """
    listener = _bind_private_socket(socket_path)
    mine = _inode(socket_path)
    try:
        await _serve(app, listener, task_status, socket_path, most=None, longest_s=math.inf)
    finally:
        listener.close()
        _remove_ours(socket_path, mine)


async def _serve(
    app: Starlette, listener: socket.socket, task_status: Any, name: Any, *, most: int | None, longest_s: float
) -> None:
    """Run hypercorn on a socket that is already bound."""
    config = _Config()
    config.most, config.longest_s = most, longest_s
    # hypercorn owns and closes the descriptor it is given, so it gets one of its own.
    descriptor = os.dup(listener.fileno())
    config.bind = [f"fd://{descriptor}"]
    config.graceful_timeout = GRACEFUL_S
    config.errorlog = None
    config.accesslog = None
    config.h11_max_incomplete_size = 16 << 10
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, app, config)
        # hypercorn makes its sockets outlive an exec for its own workers. Nothing that the daemon starts may hold ours.
        os.set_inheritable(descriptor, False)
        task_status.started(name)


async def serve_loopback(app: Starlette, port: int, *, task_status: Announce[int] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve an application on TCP at 127.0.0.1 until cancelled; port 0 chooses a free one, which ``task_status`` gets.

    Raises:
        PortInUse: somebody else listens there.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as fault:
            why = fault.strerror or fault
            raise PortInUse(f"cannot listen on 127.0.0.1:{port}: {why}", "set metrics.port to another, or 0") from None
        listener.listen(64)
        listener.setblocking(False)
        port = listener.getsockname()[1]
        await _serve(app, listener, task_status, port, most=MOST_ON_LOOPBACK, longest_s=LOOPBACK_S)
    finally:
        listener.close()
