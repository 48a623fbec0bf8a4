"""`hansa agent run`: lends this machine's devices through the daemon of another machine of the same provider.

The agent dials, so only the daemon's machine need be reachable. It reports what is here, and hands the daemon's orders
to a launcher of its own, which makes the sandboxes exactly as on the daemon's machine. What a sandbox says goes to the
daemon as bytes on a connection of its own: the agent looks at none of it.

When the connection to the daemon ends, or the daemon is silent for too long, every sandbox here is ended and the agent
dials again. So a daemon that was killed leaves nothing behind on any machine.
"""

import contextlib
import os
import random
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from hansa.node.agents.agent_config import DaemonPlace
from hansa.node.agents.agent_keys import Identity
from hansa.node.agents.agent_messages import (
    NO_TOKEN,
    Beat,
    FromDaemon,
    FromLauncher,
    Gone,
    Hello,
    Report,
    StartThere,
    ToLauncher,
    TurnedAway,
    Welcome,
    Wire,
)
from hansa.node.agents.agent_trees import TreeStore
from hansa.node.fault_groups import leaf
from hansa.node.isolation import launcher_protocol
from hansa.node.isolation.launcher_link import Launch
from hansa.node.isolation.launcher_protocol import Ended, Refused, Start, Started
from hansa.node.isolation.overlay_packets import carry_packets
from hansa.node.storage.agent_streams import BROKEN, bridge
from hansa.node.storage.pinned_tls import dialling_context, pin_of
from hansa.proto.errors import ProtocolError

DIAL_S: Final = 15.0
CLOSE_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
REAP_S: Final = 20.0
TREES_BYTES: Final = 50 << 30
MOST_WAYS_OUT: Final = 64
"""Connections of one run to the outside, at one time."""
DIALS_AT_ONCE: Final = 4
"""Connections of this machine that are being made. The daemon keeps eight of one address that have not proved
themselves, and of more puts out the oldest: a job that connects to everything at once would put out its neighbours'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How patient the agent is.

    Attributes:
        beat_s: a sign of life goes out this often.
        look_s: it looks this often whether its devices are still the same.
    """

    beat_s: float = 2.0
    look_s: float = 30.0


class WrongDaemon(Exception):
    """Whoever answers there has another key than the daemon that this machine belongs to."""


@asynccontextmanager
async def dialled(
    identity: Identity, daemon: DaemonPlace, purpose: str, token: bytes = NO_TOKEN
) -> AsyncIterator[Wire]:
    """A connection to the daemon, proven on both sides, its first words said; closed at the end.

    Raises:
        Gone: there is none to be had.
        WrongDaemon: whoever answers is not the daemon that is known by the pin.
    """
    place = f"{daemon.host}:{daemon.port}"
    try:
        with trio.fail_after(DIAL_S):
            raw = await trio.open_tcp_stream(daemon.host, daemon.port)
    except (OSError, trio.TooSlowError) as error:
        raise Gone(f"nobody answers at {place}") from error
    stream = trio.SSLStream(raw, dialling_context(identity.file))
    try:
        with trio.fail_after(DIAL_S):
            await stream.do_handshake()
            certificate = stream.getpeercert(binary_form=True)
            if not isinstance(certificate, bytes) or pin_of(certificate) != daemon.pin:
                raise WrongDaemon(f"{place} is not the daemon that this machine belongs to")
            wire = Wire(stream)
            await wire.send(Hello(purpose=purpose, token=token))
        yield wire
    except (trio.BrokenResourceError, ssl.SSLError, trio.TooSlowError) as error:
        raise Gone("the handshake failed") from error
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S):
            await stream.aclose()


class Agent:
    """Serves one daemon for as long as the machine is its."""

    def __init__(
        self,
        *,
        identity: Identity,
        daemon: DaemonPlace,
        trees: TreeStore,
        sockets: Path,
        launch: Launch,
        report: Callable[[Welcome], Report],
        log: Callable[[str], None],
        settings: AgentSettings | None = None,
    ) -> None:
        """Be the agent of this machine.

        Args:
            identity: its key.
            daemon: host, port and pin of the daemon.
            trees: directories that were brought here.
            sockets: directory for the sockets of runs' ways out.
            launch: gives a launcher; called in the main thread.
            report: what the machine has, for a provider that says this. Called in a thread: it asks the driver.
            log: one line for the owner.
            settings: how patient it is.
        """
        self._identity = identity
        self._daemon = daemon
        self.trees = trees
        self.sockets = sockets
        self.launch = launch
        self.report = report
        self._log = log
        self._dials = trio.Semaphore(DIALS_AT_ONCE)
        self.settings = settings or AgentSettings()

    async def serve(self) -> None:
        """Be connected, again and again, until cancelled."""
        pause_s, told = FIRST_PAUSE_S, ""
        while True:
            try:
                async with self.dial("control") as wire:
                    session = await self._begin(wire)
                    self._log(f"connected to {self._daemon.host}:{self._daemon.port}")
                    pause_s, told = FIRST_PAUSE_S, ""
                    await session.serve()
            except* (Gone, ProtocolError, WrongDaemon, OSError) as group:
                why = str(leaf(group))
            if why != told:  # the same trouble is told once, not every half minute
                self._log(f"not connected: {why}")
                told = why
            await trio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - only so that a rack does not dial as one
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    @asynccontextmanager
    async def dial(self, purpose: str, token: bytes = NO_TOKEN) -> AsyncIterator[Wire]:
        """A connection to the daemon, made in its turn; see `dialled`."""
        async with AsyncExitStack() as held:
            async with self._dials:
                wire = await held.enter_async_context(dialled(self._identity, self._daemon, purpose, token))
            yield wire

    async def _begin(self, wire: Wire) -> "_Session":
        welcome = await wire.receive(Welcome | TurnedAway, within_s=DIAL_S)
        if isinstance(welcome, TurnedAway):
            raise Gone(f"the daemon says: {welcome.reason}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_beat, wire, self.settings.beat_s)  # trying the sandbox takes a while
            report = await trio.to_thread.run_sync(self.report, welcome)
            await wire.send(report)
            nursery.cancel_scope.cancel()
        return _Session(self, wire, welcome, report)


class _Session:
    """One connection to the daemon, and the launcher and runs that live no longer than it."""

    def __init__(self, agent: Agent, wire: Wire, welcome: Welcome, report: Report) -> None:
        self._agent = agent
        self._wire = wire
        self._welcome = welcome
        self._silence_s = welcome.silence_ms / 1000
        self._reported = report
        self._control: trio.socket.SocketType
        self._nursery: trio.Nursery
        self._in_use: dict[bytes, contextlib.ExitStack] = {}
        self._with_overlay: set[bytes] = set()

    async def serve(self) -> None:
        """Until the daemon or the launcher is gone; then nothing of any run is left here."""
        process, control = self._agent.launch()
        try:
            control.setblocking(False)
            self._control = trio.socket.from_stdlib_socket(control)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(_beat, self._wire, self._agent.settings.beat_s)
                nursery.start_soon(self._look)
                nursery.start_soon(self._hear_launcher)
                await self._hear_daemon()
        finally:
            control.close()  # the launcher ends everything when it sees this
            for held in self._in_use.values():
                held.close()
            if process is not None:
                with trio.CancelScope(shield=True):
                    await _reap(process)

    async def _hear_daemon(self) -> None:
        while True:
            message = await self._wire.receive(FromDaemon, within_s=self._silence_s)
            match message:
                case StartThere():
                    self._nursery.start_soon(self._start, message)
                case ToLauncher():
                    launcher_protocol.unpack(message.packet)
                    await self._control.send(message.packet)
                case TurnedAway():
                    raise Gone(f"the daemon says: {message.reason}")
                case _:
                    pass

    async def _hear_launcher(self) -> None:
        while True:
            packet, ancillary, _flags, _address = await self._control.recvmsg(
                launcher_protocol.MAX_PACKET_BYTES, socket.CMSG_SPACE(16)
            )
            if not packet:
                raise Gone("this machine's launcher ended")
            message = launcher_protocol.unpack(packet)
            descriptors = launcher_protocol.descriptors_in(ancillary)
            tokens = tuple(os.urandom(32) for _ in descriptors)
            await self._wire.send(FromLauncher(packet=packet, streams=tokens))
            for number, (descriptor, token) in enumerate(zip(descriptors, tokens, strict=True)):
                is_overlay = number == 1 and isinstance(message, Started) and message.run in self._with_overlay
                self._nursery.start_soon(self._carry_packets if is_overlay else self._carry, descriptor, token)
            if isinstance(message, Ended | Refused) and message.run in self._in_use:
                self._in_use.pop(message.run).close()
                self._with_overlay.discard(message.run)

    async def _start(self, order: StartThere) -> None:
        """Have the directories here, then let the launcher make the sandbox."""
        message = launcher_protocol.unpack(order.packet)
        if not isinstance(message, Start) or message.run in self._in_use:
            return
        held = self._in_use[message.run] = contextlib.ExitStack()
        places: dict[str, Any] = {}
        try:
            for tree in order.trees:
                held.enter_context(self._agent.trees.used(tree.digest))
                places[tree.field] = str(await self._bring(tree.digest, tree.token))
            if order.way_out != NO_TOKEN:
                places["egress"] = str(await self._make_way_out(message.run, order.way_out, held))
            spec = replace(message.spec, **places)
        except (*BROKEN, Gone, ProtocolError, ExceptionGroup, TypeError) as error:
            self._in_use.pop(message.run).close()
            words = f"its files could not be brought to this machine: {leaf(error)}"
            packet = launcher_protocol.pack(Refused(run=message.run, reason=words[:500]))
            await self._wire.send(FromLauncher(packet=packet, streams=()))
            return
        if spec.gang is not None:
            self._with_overlay.add(message.run)
        await self._control.send(launcher_protocol.pack(Start(run=message.run, spec=spec)))

    async def _bring(self, digest: bytes, token: bytes) -> Path:
        found = await trio.to_thread.run_sync(self._agent.trees.find, digest)
        if found is not None:
            return found
        async with self._agent.dial("stream", token) as wire:
            return await self._agent.trees.receive(digest, wire.stream)

    async def _make_way_out(self, run: bytes, token: bytes, held: contextlib.ExitStack) -> Path:
        """A socket here that leads to the proxy on the daemon's machine, for as long as the run is here."""
        folder = self._agent.sockets
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)  # an older one was open to all
        path = folder / run.hex()[:32]
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o666)  # the sandbox runs as another user; the directory above keeps everybody else out
        listener.listen()
        listener.setblocking(False)
        scope = trio.CancelScope()
        held.callback(path.unlink, missing_ok=True)
        held.callback(listener.close)
        held.callback(scope.cancel)
        self._nursery.start_soon(self._lead_out, trio.socket.from_stdlib_socket(listener), token, scope)
        return path

    async def _lead_out(self, listener: trio.socket.SocketType, token: bytes, scope: trio.CancelScope) -> None:
        with scope, contextlib.suppress(OSError):
            async with trio.open_nursery() as nursery:
                room = trio.Semaphore(MOST_WAYS_OUT)
                while True:
                    await room.acquire()
                    near, _address = await listener.accept()
                    nursery.start_soon(self._lead_one_out, near, token, room)

    async def _lead_one_out(self, near: trio.socket.SocketType, token: bytes, room: trio.Semaphore) -> None:
        try:
            await self._carry(near.detach(), token)
        finally:
            room.release()

    async def _carry(self, descriptor: int, token: bytes) -> None:
        with socket.socket(fileno=descriptor) as local, contextlib.suppress(Gone):
            async with self._agent.dial("stream", token) as wire:
                await bridge(local, wire.stream)

    async def _carry_packets(self, descriptor: int, token: bytes) -> None:
        with contextlib.suppress(Gone):
            try:
                async with self._agent.dial("stream", token) as wire:
                    await carry_packets(descriptor, wire.stream)
            finally:
                os.close(descriptor)

    async def _look(self) -> None:
        """Say so when the devices are other ones than before."""
        while True:
            await trio.sleep(self._agent.settings.look_s)
            report = await trio.to_thread.run_sync(self._agent.report, self._welcome)
            if report != self._reported:
                self._reported = report
                await self._wire.send(report)


async def _beat(wire: Wire, every_s: float) -> None:
    while True:
        await trio.sleep(every_s)
        await wire.send(Beat())


async def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a launcher to end its sandboxes and itself."""
    with trio.move_on_after(REAP_S):
        while process.poll() is None:  # noqa: ASYNC110 - no event tells it
            await trio.sleep(0.02)
    if process.poll() is None:
        process.kill()
        process.wait()
