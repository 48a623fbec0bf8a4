"""The way out of a sandbox: for each run that may speak to hosts outside, an HTTP proxy on a unix socket of its own.

A sandbox has no network. Where the tender asked for hosts and the owner allows them, the socket is bound into the
sandbox and is the only thing there that leads anywhere: to the granted hosts, at the public addresses that they have at
that moment, for so many bytes and no more. Every request is judged by itself, so a redirect leads nowhere that the job
could not have gone at once. What passes is counted where it meets the outside, both ways together.
"""

import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import trio

from hansa.node.isolation.unix_sockets import take_no_descriptors
from hansa.node.runs.egress_dial import Dialler, Refusal
from hansa.node.runs.egress_relay import Meter, UsedUp, forward, tunnel
from hansa.node.runs.egress_request import RequestReader, Unreadable, Wanted, refusal
from hansa.node.runs.pace import Pace
from hansa.proto.egress import covers, matches

SOCKET_NAME = "egress.sock"
READ_BYTES = 16 << 10
CONNECTIONS_PER_RUN = 32
CONNECTIONS = 128
"""Of all runs together; each takes two file descriptors."""
HEAD_S = 10.0
"""From the connection to the whole head of its request."""
GOODBYE_S = 1.0
GOODBYES = 32
"""So many are told in words at once that there are too many connections; others are closed."""
MOST_LINES = 40
"""In a run's log. Beyond them refusals are only counted."""

Say = Callable[[bytes, str], None]


@dataclass(slots=True, kw_only=True, eq=False)
class _Way:
    """One run's way out."""

    run: bytes
    granted: tuple[str, ...]
    meter: Meter
    directory: Path
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    connections: int = 0
    turned_away: int = 0
    told: set[str] = field(default_factory=set)


class EgressProxy:
    """The ways out of all runs of one daemon.

    Use it as a task: ``await nursery.start(proxy.serve)``. Cancelling that task closes them all.
    """

    def __init__(
        self,
        directory: Path,
        *,
        allow: Sequence[str],
        say: Say,
        bytes_per_s: int = 0,
        bytes_per_run: int = 0,
        dialler: Dialler | None = None,
    ) -> None:
        """Keep sockets below ``directory``, which is the daemon's own.

        Args:
            directory: where each run's socket gets a directory of its own.
            allow: the patterns that the owner allows.
            say: puts a line into a run's log; must not block.
            bytes_per_s: of all runs together; 0 is no limit.
            bytes_per_run: the owner's limit for one run, whatever its tender asked for; 0 is none.
            dialler: makes the connections.
        """
        self._directory = directory
        self._allow = tuple(allow)
        self._say = say
        self._pace = Pace(bytes_per_s)
        self._bytes_per_run = bytes_per_run
        self._dialler = dialler or Dialler()
        self._ways: dict[bytes, _Way] = {}
        self._counts: Counter[str] = Counter()
        self._closed_bytes = 0
        self._nursery: trio.Nursery | None = None

    async def serve(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Be ready for runs until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
                for run in list(self._ways):
                    self.close(run)

    def counters(self) -> Mapping[str, int]:
        """Refusals by their kind."""
        return self._counts

    @property
    def passed_bytes(self) -> int:
        """What all runs have exchanged with the outside, both ways together."""
        return self._closed_bytes + sum(way.meter.used_bytes for way in self._ways.values())

    def open(self, run: bytes, *, wanted: Sequence[str], limit_bytes: int) -> Path:
        """Open a run's way out to the wanted hosts that the owner allows, and give its socket."""
        assert self._nursery is not None, "serve first"
        self.close(run)
        granted = tuple(pattern for pattern in wanted if covers(self._allow, pattern))
        limit_bytes = min(limit_bytes, self._bytes_per_run) if self._bytes_per_run else limit_bytes
        directory = self._directory / f"{run.hex()}.egress"
        shutil.rmtree(directory, ignore_errors=True)
        listener = _listen(directory)
        way = _Way(run=run, granted=granted, meter=Meter(limit_bytes, self._pace), directory=directory)
        self._ways[run] = way
        self._nursery.start_soon(self._serve_way, way, listener)
        hosts = ", ".join(granted) or "no hosts"
        self._say(run, f"network: {hosts}; at most {limit_bytes} bytes both ways together\n")
        return directory / SOCKET_NAME

    def close(self, run: bytes) -> None:
        """The run has ended: nothing of it gets out any more."""
        way = self._ways.pop(run, None)
        if way is not None:
            way.scope.cancel()
            self._closed_bytes += way.meter.used_bytes
            shutil.rmtree(way.directory, ignore_errors=True)

    async def _serve_way(self, way: _Way, listener: trio.SocketListener) -> None:
        with way.scope:
            async with trio.open_nursery() as nursery, listener:
                await trio.serve_listeners(partial(self._serve_one, way), [listener], handler_nursery=nursery)

    async def _serve_one(self, way: _Way, client: trio.SocketStream) -> None:
        """One connection of the job, which is good for one request."""
        async with client:
            if self._is_full(way):
                await self._turn_away(way, client)
                return
            way.connections += 1
            try:
                await self._answer(way, client)
            finally:
                way.connections -= 1

    async def _turn_away(self, way: _Way, client: trio.SocketStream) -> None:
        """Say that there are too many; but not to so many that the words themselves take all descriptors there are."""
        full = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too-many", "too many connections at once")
        if sum(each.turned_away for each in self._ways.values()) >= GOODBYES:
            self._note(way, full.kind, full.why)
            return
        way.turned_away += 1
        try:
            await self._refuse(way, client, full, "")
        finally:
            way.turned_away -= 1

    def _is_full(self, way: _Way) -> bool:
        return (
            way.connections >= CONNECTIONS_PER_RUN
            or sum(each.connections for each in self._ways.values()) >= CONNECTIONS
        )

    async def _answer(self, way: _Way, client: trio.SocketStream) -> None:
        name = ""
        reader = RequestReader()
        try:
            wanted = await _read_head(reader, client)
            name = wanted.name
            async with await self._dial(way, wanted) as upstream:
                if wanted.forward is None:
                    await tunnel(way.meter, client, upstream, reader.client.trailing_data[0])
                else:
                    await forward(way.meter, reader.client, client, upstream, wanted.forward)
        except Unreadable as fault:
            kind = "private" if fault.is_private else "unreadable"
            await self._refuse(way, client, Refusal(fault.status, kind, fault.why), name)
        except Refusal as no:
            await self._refuse(way, client, no, name)
        except UsedUp as fault:
            self._note(way, "used-up", f"{fault}; the connection to {name} is cut")

    async def _dial(self, way: _Way, wanted: Wanted) -> trio.SocketStream:
        if not matches(way.granted, wanted.host, wanted.port):
            raise Refusal(HTTPStatus.FORBIDDEN, "not-granted", f"the job may not speak to {wanted.name}")
        if way.meter.left_bytes <= 0:
            raise Refusal(HTTPStatus.FORBIDDEN, "used-up", str(way.meter.used_up()))
        return await self._dialler.dial(wanted.host, wanted.port)

    async def _refuse(self, way: _Way, client: trio.SocketStream, no: Refusal, name: str) -> None:
        self._note(way, no.kind, no.why if not name or name in no.why else f"{name}: {no.why}")
        with trio.move_on_after(GOODBYE_S):
            try:
                await client.send_all(refusal(no.status, no.why))
                await client.send_eof()
                # What it still sends is read away: a connection that is closed on unread bytes may lose our answer.
                while await client.receive_some(READ_BYTES):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    def _note(self, way: _Way, kind: str, words: str) -> None:
        """Count what was refused, and tell the job's developer once."""
        self._counts[f"egress.refused {kind}"] += 1
        if words in way.told or len(way.told) > MOST_LINES:
            return
        way.told.add(words)
        last = "; more of these are not shown" if len(way.told) > MOST_LINES else ""
        self._say(way.run, f"network: {words}{last}\n")


async def _read_head(reader: RequestReader, client: trio.SocketStream) -> Wanted:
    with trio.move_on_after(HEAD_S):
        wanted = None
        while wanted is None:
            try:
                data = await client.receive_some(READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            wanted = reader.feed(data)
        return wanted
    raise Unreadable(HTTPStatus.REQUEST_TIMEOUT, f"no request came within {HEAD_S:g} s")


def _listen(directory: Path) -> trio.SocketListener:
    """A socket in a directory that only its owner can enter.

    The socket itself is open to all, for a root launcher starts the sandbox as another uid: it reaches the socket by
    the bind into its sandbox, and nobody else gets past the directory.
    """
    directory.mkdir(mode=0o700)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # By way of the descriptor: an address holds 108 bytes, and data directories may be deep.
        connection.bind(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
        take_no_descriptors(connection)
        (directory / SOCKET_NAME).chmod(0o666)
        connection.listen(CONNECTIONS_PER_RUN)
        connection.setblocking(False)
    except OSError:
        connection.close()
        raise
    finally:
        os.close(descriptor)
    return trio.SocketListener(trio.socket.from_stdlib_socket(connection))
