"""The provider's end of shells in runs: whoever bought a lease may look around in its run.

Protocol ``/hansa/shell/1``; see ``hansa.proto.shell_messages``. Nothing here is journaled: a shell is gone when the
daemon is, and its buyer opens another. Each has a task that reads what its program writes and one that types, so no
request that comes too late or twice can lose or repeat anything.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from hansa.node.fault_groups import leaf
from hansa.node.messaging.directory import Directory
from hansa.node.network.net import Context, Net, Refused
from hansa.node.runs.pace import Pace
from hansa.node.runs.run_shell import LOST_STATUS, RunShell, ShellRefused
from hansa.proto.codec import decode, encode
from hansa.proto.frames import MAX_TERMINAL_SIDE
from hansa.proto.protocols import SHELL
from hansa.proto.shell_messages import (
    MAX_SAID_BYTES,
    MAX_SHELL_REQUEST_BYTES,
    ShellAwaited,
    ShellClosed,
    ShellRequest,
    ShellSaid,
    ShellTaken,
    ShellTyped,
    ShellWanted,
)

SHELLS_PER_LEASE = 2
SHELLS = 16
KNOWN = 64
"""Shells that ended are kept for a while, so that their last answer can be asked for again."""
HOLD_S = 1.0
"""A request waits so long for output, or for room to type."""
IDLE_S = 600.0
"""A shell through which nothing passes for so long is closed."""
GONE_S = 60.0
"""Without a request for so long, its buyer is taken to have gone."""
LOOK_S = 2.0
BYTES_PER_S = 2 << 20
"""Of what one shell's program writes."""
TIMEOUT_MS = 20_000
# Whatever runs the terminal inside is this very interpreter, also where a job's own image has no Python.
PIPED = ("/proc/self/exe", "-P", "-m", "hansa.worker.piped")
PLAIN_SHELL = ("/bin/sh",)
_LOG = logging.getLogger("hansa.shells")

Key = tuple[bytes, bytes]


class Opener(Protocol):
    """What starts programs in runs; the executor is one."""

    async def open_shell(self, run: bytes, argv: tuple[str, ...], columns: int, rows: int) -> RunShell:
        """Start one. Raises ``ShellRefused``."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Session:
    """One shell and how far its buyer is with it."""

    lease: bytes
    shell: RunShell
    size: tuple[int, int]
    typing: trio.Lock = field(default_factory=trio.Lock)
    reading: trio.Lock = field(default_factory=trio.Lock)
    changed: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    pace: Pace
    typed: int = 0
    read: int = 0
    answer: bytes = b""
    written: bytearray = field(default_factory=bytearray)
    ended: bool = False
    why: str = ""
    asked_at: float
    moved_at: float
    inbox: Any
    outbox: Any

    def wake(self) -> None:
        """Something is different."""
        self.changed.set()
        self.changed = trio.Event()


class ShellService:
    """All shells that buyers have open in this provider's runs.

    Use it as a task: ``await nursery.start(service.serve)``.
    """

    def __init__(
        self,
        net: Net,
        directory: Directory,
        opener: Opener,
        *,
        buyer_of: Callable[[bytes], bytes | None],
        allowed: bool,
    ) -> None:
        """``buyer_of`` gives the account that holds a lease here, and ``allowed`` is the owner's word."""
        self._net = net
        self._directory = directory
        self._opener = opener
        self._buyer_of = buyer_of
        self._allowed = allowed
        self._sessions: dict[Key, _Session] = {}
        self._closed: OrderedDict[Key, str] = OrderedDict()
        self._opening: dict[Key, trio.Event] = {}
        self._faults: set[type[BaseException]] = set()
        self._nursery: trio.Nursery | None = None

    async def serve(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._net.serve(
                SHELL,
                self._answer,
                max_request_bytes=MAX_SHELL_REQUEST_BYTES,
                timeout_ms=TIMEOUT_MS,
                per_peer=2 * SHELLS + 8,
                total=4 * SHELLS,
            )
            task_status.started()
            try:
                await self._look_after()
            finally:
                self._nursery = None

    @property
    def open_shells(self) -> int:
        """How many programs run."""
        return sum(not session.ended for session in self._sessions.values())

    async def _answer(self, context: Context, data: bytes) -> bytes:
        account = await self._directory.require(context.peer_id)
        return await self.answer(account, data)

    async def answer(self, account: bytes, data: bytes) -> bytes:
        """Answer a request of this account. Raises ``Refused`` in words, or ``ProtocolError``."""
        request: ShellRequest = decode(data, ShellRequest, limit_bytes=MAX_SHELL_REQUEST_BYTES)
        key = (account, request.shell)
        if isinstance(request, ShellWanted):
            await self._open(key, request)
            return encode(ShellTaken(taken=True))
        session = self._sessions.get(key)
        if isinstance(request, ShellClosed):
            if session is not None:
                self._drop(key, "you closed the shell")
            return encode(ShellTaken(taken=True))
        if session is None:
            raise Refused(self._closed.get(key, "there is no such shell, or no more"))
        session.asked_at = trio.current_time()
        if isinstance(request, ShellTyped):
            return encode(ShellTaken(taken=await self._type(session, request)))
        return await self._read(session, request)

    async def _open(self, key: Key, request: ShellWanted) -> None:
        while key in self._opening:
            await self._opening[key].wait()
        if key in self._sessions:
            return  # the request is repeated
        if not self._allowed:
            raise Refused("this provider allows no shells in its runs")
        if self._buyer_of(request.lease) != key[0]:
            raise Refused("you have no such lease here")
        here = [session for session in self._sessions.values() if session.lease == request.lease and not session.ended]
        if len(here) >= SHELLS_PER_LEASE:
            raise Refused(f"{SHELLS_PER_LEASE} shells are open in this run, and more there may not be")
        if self.open_shells + len(self._opening) >= SHELLS:
            raise Refused("too many shells are open at this provider")
        if len(self._sessions) >= KNOWN:
            self._drop(next(key for key, session in self._sessions.items() if session.ended), "the shell has ended")
        self._opening[key] = trio.Event()
        try:
            argv = (*PIPED, *(request.argv or PLAIN_SHELL)) if request.piped else request.argv
            shell = await self._opener.open_shell(request.lease, argv, request.columns, request.rows)
        except ShellRefused as no:
            raise Refused(str(no)) from no
        finally:
            self._opening.pop(key).set()
        self._begin(key, request, shell)

    def _begin(self, key: Key, request: ShellWanted, shell: RunShell) -> None:
        assert self._nursery is not None, "serve first"
        now = trio.current_time()
        inbox, outbox = trio.open_memory_channel[ShellTyped](0)
        session = self._sessions[key] = _Session(
            lease=request.lease,
            shell=shell,
            size=(request.columns, request.rows),
            pace=Pace(BYTES_PER_S),
            asked_at=now,
            moved_at=now,
            inbox=inbox,
            outbox=outbox,
        )
        self._nursery.start_soon(self._keep, key, session)

    async def _keep(self, key: Key, session: _Session) -> None:
        """Pass bytes to and fro. Whatever goes wrong with one shell is that shell's end and nobody else's."""
        try:
            with session.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump_in, session)
                    await self._pump_out(session)
                    nursery.cancel_scope.cancel()
        except* Exception as group:  # noqa: BLE001 - see above
            fault = leaf(group)
            if type(fault) not in self._faults:  # once for each kind: whoever causes it may cause it again and again
                self._faults.add(type(fault))
                _LOG.warning("a shell failed and was closed", exc_info=fault)
            if self._sessions.get(key) is session:
                self._drop(key, "the shell failed at its provider")

    async def _pump_in(self, session: _Session) -> None:
        async for typed in session.outbox:
            size = (typed.columns, typed.rows)
            if size != session.size:
                session.size = size
                await session.shell.resize(*size)
            if typed.data:
                await session.shell.send(typed.data)

    async def _pump_out(self, session: _Session) -> None:
        shell = session.shell
        while shell.ended is None and not shell.closed:
            data = await shell.receive(IDLE_S)
            session.written += data
            session.moved_at = trio.current_time() if data else session.moved_at
            session.wake()
            while len(session.written) >= MAX_SAID_BYTES:
                await session.changed.wait()
        session.ended = True
        session.wake()

    async def _type(self, session: _Session, request: ShellTyped) -> bool:
        if not all(1 <= side <= MAX_TERMINAL_SIDE for side in (request.columns, request.rows)):
            raise Refused(f"a terminal's sides are from 1 to {MAX_TERMINAL_SIDE}")
        async with session.typing:
            if request.sequence <= session.typed or session.ended:
                return True  # it is repeated, or comes too late to be read by anybody
            if request.sequence != session.typed + 1:
                raise Refused("something that was typed before this never came")
            with trio.move_on_after(HOLD_S) as patience:
                await session.inbox.send(request)
                session.typed = request.sequence
                session.moved_at = trio.current_time()
            return not patience.cancelled_caught

    async def _read(self, session: _Session, request: ShellAwaited) -> bytes:
        async with session.reading:
            if request.sequence == session.read and session.answer:
                return session.answer
            if request.sequence != session.read + 1:
                raise Refused("these bytes were read before")
            with trio.move_on_after(HOLD_S):
                while not session.written and not session.ended:
                    await session.changed.wait()
            if session.why:
                raise Refused(session.why)
            # From here to the answer nothing waits: either both the bytes and the count have moved, or neither.
            data = bytes(session.written[:MAX_SAID_BYTES])
            del session.written[:MAX_SAID_BYTES]
            ended = session.ended and not session.written
            status = session.shell.ended if session.shell.ended is not None else LOST_STATUS
            session.read = request.sequence
            session.answer = encode(ShellSaid(data=data, ended=ended, status=status if ended else 0))
            session.wake()
            await session.pace.wait(len(data))
            return session.answer

    async def _look_after(self) -> None:
        """Close what nobody uses."""
        while True:
            await trio.sleep(LOOK_S)
            now = trio.current_time()
            for key, session in list(self._sessions.items()):
                if now - session.asked_at > GONE_S:
                    self._drop(key, "nobody asked for the shell any more")
                elif not session.ended and now - session.moved_at > IDLE_S:
                    self._drop(key, f"nothing passed through the shell for {IDLE_S / 60:g} minutes")

    def _drop(self, key: Key, why: str) -> None:
        assert self._nursery is not None, "serve first"
        session = self._sessions.pop(key)
        self._closed[key] = why
        while len(self._closed) > KNOWN:
            self._closed.popitem(last=False)
        session.scope.cancel()
        session.why = why
        session.ended = True
        session.wake()
        self._nursery.start_soon(session.shell.close)
