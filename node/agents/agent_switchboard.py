"""Between the executor and the launchers of all machines: to the executor it is a launcher like any other.

Who starts a run says first where it goes (`Switchboard.place`). A run on one machine, here or afar, is passed on as it
is. A run on several is as many sandboxes with one switch between them (`hansa.node.isolation.overlay_packets`); the
executor speaks to the first, and hears of the run's end when every one of them has ended. Whichever ends first takes
the others with it, and its words say on which machine it was.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import trio

from hansa.node.agents.agent_fleet import Fleet
from hansa.node.agents.agent_machine import Arrival
from hansa.node.agents.agent_messages import Gone
from hansa.node.isolation import launcher_protocol
from hansa.node.isolation.launcher_link import Launch
from hansa.node.isolation.launcher_protocol import NO_PROCESS, Counted, Ended, Kill, Message, Refused, Start, Started
from hansa.node.isolation.overlay_packets import Afar, Interface, PacketLine, Switch
from hansa.node.isolation.sandbox import SandboxSpec
from hansa.node.runs.executor_launcher import LauncherService
from hansa.node.storage.agent_streams import BROKEN
from hansa.proto.gang import Gang

HERE: Final = ""
"""The daemon's own machine, among machines' names."""
OWN: Final = "the daemon's own machine"
KILLED: Final = -9
MEMBER: Final = "hansa.worker.member"
WORDS: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What of a run is on one machine.

    Attributes:
        machine: its name, or `HERE`.
        workers: Ray workers there.
        gpu_minors: as in ``SandboxSpec``, and so the other three.
    """

    machine: str
    gpu_minors: tuple[int, ...] = ()
    device_nodes: tuple[str, ...] = ()
    cuda_devices: tuple[str, ...] = ()
    rocm_devices: tuple[str, ...] = ()
    cpu_millis: int
    memory_bytes: int
    workers: int

    @property
    def gpus(self) -> int:
        """How many it has."""
        return max(len(self.gpu_minors), len(self.cuda_devices) + len(self.rocm_devices))


@dataclass(slots=True, kw_only=True, eq=False)
class _Seat:
    """One sandbox of a run."""

    part: Part
    started: Started | None = None
    descriptors: list[int] = field(default_factory=list)
    packets: Arrival | None = None
    ended: Ended | None = None
    refused: Refused | None = None

    @property
    def over(self) -> bool:
        return self.ended is not None or self.refused is not None


@dataclass(slots=True, kw_only=True, eq=False)
class _Held:
    """A run that has not ended."""

    seats: list[_Seat]
    told_started: bool = False
    ending: bool = False
    first: _Seat | None = None
    why: str = ""
    switch: trio.CancelScope = field(default_factory=trio.CancelScope)


class Switchboard:
    """All machines' launchers as one."""

    def __init__(self, launch: Launch, fleet: Fleet) -> None:
        """Use this machine's launcher, and the machines of the fleet."""
        self._local = LauncherService(launch, hear=self._heard_here, lost=self._lost_here)
        self._fleet = fleet
        fleet.ear = self
        self._parts: dict[bytes, tuple[Part, ...]] = {}
        self._runs: dict[bytes, _Held] = {}
        self._nursery: trio.Nursery | None = None
        self._up: trio.socket.SocketType | None = None
        self._fresh = trio.Event()
        self._telling = trio.Lock()

    def place(self, run: bytes, parts: Sequence[Part]) -> None:
        """Where this run will be; to be said before it is started. The first part is its head."""
        assert parts, "nowhere"
        self._parts[run] = tuple(parts)

    def launch(self) -> tuple[None, socket.socket]:
        """Be the executor's launcher; see `hansa.node.isolation.launcher_link.Launch`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._up = trio.socket.from_stdlib_socket(ours)
        self._fresh.set()
        self._fresh = trio.Event()
        return None, theirs

    async def serve(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the local launcher and pass on what is asked and said, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._serve_local)
            task_status.started()
            while True:
                if self._up is None:
                    await self._fresh.wait()
                assert self._up is not None, "fresh"
                with contextlib.suppress(OSError):
                    while packet := await self._up.recv(launcher_protocol.MAX_PACKET_BYTES):
                        await self._take(launcher_protocol.unpack(packet))
                self._up.close()
                self._up = None
                for run in list(self._runs):
                    await self._end(run, self._runs[run])

    async def _serve_local(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        await self._local.serve(task_status)

    # What the executor asks.

    async def _take(self, message: Message) -> None:
        held = self._runs.get(message.run)
        if isinstance(message, Start):
            assert self._nursery is not None, "serve first"
            if held is not None:
                await self._tell(Refused(run=message.run, reason="this run has a sandbox already"))
            else:
                self._nursery.start_soon(self._start, message)
            return
        if held is None:
            return  # it has ended, and `Ended` is on its way
        if isinstance(message, Kill):
            await self._end(message.run, held)
            return
        for seat in held.seats:
            if not seat.over:
                await self._ask(seat.part.machine, message)

    async def _start(self, message: Start) -> None:
        """Have every sandbox of a run made; what cannot even be asked for ends it."""
        parts = self._parts.pop(message.run, None) or (_all_here(message),)
        held = self._runs[message.run] = _Held(seats=[_Seat(part=part) for part in parts])
        for seat, spec in zip(held.seats, _specs(message, parts), strict=True):
            why: str | None = "it was ended before it had begun"
            if not held.ending:
                why = await self._start_at(seat.part.machine, Start(run=message.run, spec=spec))
            if why is not None and not seat.over:
                await self._hear(seat.part.machine, Refused(run=message.run, reason=why), [], None)

    async def _start_at(self, machine: str, message: Start) -> str | None:
        """Ask a machine for a sandbox. Answers why that cannot be done."""
        try:
            if machine != HERE:
                await self._fleet.start(machine, message)
            elif self._local.connected:
                await self._local.ask(message)
            else:
                return "the launcher is not there"
        except (Gone, OSError) as error:
            return str(error)
        return None

    async def _end(self, run: bytes, held: _Held) -> None:
        """End every sandbox of a run."""
        held.ending = True
        held.switch.cancel()
        for seat in held.seats:
            if not seat.over:
                await self._ask(seat.part.machine, Kill(run=run))

    async def _ask(self, machine: str, message: Message) -> None:
        if machine == HERE:
            await self._local.ask(message)
        else:
            await self._fleet.tell(machine, message)

    # What the launchers say.

    async def heard(self, machine: str, message: Message, descriptors: list[int], packets: Arrival | None) -> None:
        """A launcher on another machine said something."""
        await self._hear(machine, message, descriptors, packets)

    async def lost(self, machine: str, why: str) -> None:
        """A machine is gone, and with it everything on it."""
        for run, held in list(self._runs.items()):
            for seat in held.seats:
                if seat.part.machine == machine and not seat.over:
                    held.why = why  # which says more than that it took its connections with it
                    ended = Ended(run=run, status=KILLED, memory_kills=0, peak_bytes=0, words=why)
                    await self._hear(machine, ended, [], None)

    async def _heard_here(self, message: Message, descriptors: list[int]) -> None:
        await self._hear(HERE, message, descriptors, None)

    def _lost_here(self) -> None:
        assert self._nursery is not None, "serve first"
        self._nursery.start_soon(self.lost, HERE, "the launcher died")

    async def _hear(self, machine: str, message: Message, descriptors: list[int], packets: Arrival | None) -> None:
        held = self._runs.get(message.run)
        seat = next((one for one in held.seats if one.part.machine == machine), None) if held is not None else None
        if held is None or seat is None or seat.over or (seat.started and isinstance(message, Started)):
            _drop(descriptors, packets)
            if isinstance(message, Started):
                await self._ask(machine, Kill(run=message.run))  # it came too late to be of use, or twice
            return
        match message:
            case Started():
                seat.started, seat.descriptors, seat.packets = message, descriptors, packets
                if held.ending:
                    await self._ask(machine, Kill(run=message.run))
                elif not descriptors:
                    # The kernel drops what comes when too many are open. Nobody could speak with this sandbox.
                    held.why = "too many descriptors are open"
                    await self._end(message.run, held)
                elif all(one.started is not None for one in held.seats):
                    await self._tell_started(held)
            case Ended() | Refused():
                _drop(descriptors, packets)
                if isinstance(message, Ended):
                    seat.ended = message
                else:
                    seat.refused = message
                held.first = held.first or seat
                if not held.ending:
                    await self._end(message.run, held)
                if all(one.over for one in held.seats) and self._runs.get(message.run) is held:
                    await self._finish(message.run, held)
            case _:
                if isinstance(message, Counted) and machine != HERE:
                    message = replace(message, pids=())  # they number other processes here
                if seat is held.seats[0]:
                    await self._tell(message, descriptors)
                _drop(descriptors if seat is not held.seats[0] else [], packets)

    async def _tell_started(self, held: _Held) -> None:
        """Every sandbox is there: join them, and give the executor the first one's socket."""
        assert self._nursery is not None, "serve first"
        head = held.seats[0]
        assert head.started is not None, "all are"
        if len(held.seats) > 1:
            lines = [line for line in map(_line_of, held.seats) if line is not None]
            if len(lines) < len(held.seats):
                held.why = "a launcher made no interface for it"
                await self._end(head.started.run, held)
                return
            self._nursery.start_soon(self._switch, head.started.run, held, lines)
            for seat in held.seats[1:]:
                self._nursery.start_soon(_drain, seat)
        held.told_started = True
        descriptor, head.descriptors[:1] = head.descriptors[0], []
        # The number of a process elsewhere means another process here, of which nothing is to be measured.
        afar = head.part.machine != HERE
        await self._tell(replace(head.started, pid=NO_PROCESS) if afar else head.started, [descriptor])

    async def _switch(self, run: bytes, held: _Held, lines: list[PacketLine]) -> None:
        try:
            with held.switch:
                await Switch(lines).serve()
        finally:
            for seat in held.seats:
                _drop(seat.descriptors, seat.packets)
                seat.descriptors = []
        if not held.ending:
            held.why = "the machines' connection with each other broke"
            await self._end(run, held)

    async def _finish(self, run: bytes, held: _Held) -> None:
        """Nothing of a run is left: say so, with the words of what ended first."""
        del self._runs[run]
        self._fleet.forget(run)
        held.switch.cancel()
        if not held.told_started:
            for seat in held.seats:
                _drop(seat.descriptors, seat.packets)
        first = held.first
        assert first is not None, "something ended"
        told = first.refused.reason if first.refused is not None else first.ended.words if first.ended else ""
        where = f"on {first.part.machine or OWN}: " if len(held.seats) > 1 and not held.why else ""
        words = (where + (held.why or told or "it ended"))[:WORDS] if where or held.why else told
        if not held.told_started:
            await self._tell(Refused(run=run, reason=words or "it ended before it had begun"))
            return
        ends = [seat.ended for seat in held.seats if seat.ended is not None]
        await self._tell(
            Ended(
                run=run,
                status=first.ended.status if first.ended is not None else KILLED,
                memory_kills=sum(one.memory_kills for one in ends),
                peak_bytes=sum(one.peak_bytes for one in ends),
                words=words,
            )
        )

    async def _tell(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Say something to the executor, whose the descriptors are then."""
        try:
            if self._up is not None:
                async with self._telling:
                    await _send(self._up, launcher_protocol.pack(message), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _specs(message: Start, parts: Sequence[Part]) -> list[SandboxSpec]:
    """The sandbox of each part of a run."""
    gang = Gang(
        place=0,
        workers=tuple(part.workers for part in parts),
        gpus=tuple(part.gpus for part in parts),
        token=secrets.token_hex(32),
    )
    specs = []
    for place, part in enumerate(parts):
        spec = replace(
            message.spec,
            gpu_minors=part.gpu_minors,
            device_nodes=part.device_nodes,
            cuda_devices=part.cuda_devices,
            rocm_devices=part.rocm_devices,
            cpu_millis=part.cpu_millis,
            memory_bytes=part.memory_bytes,
        )
        if len(parts) > 1:
            program = spec.program if place == 0 else MEMBER
            spec = replace(spec, program=program, gang=replace(gang, place=place))
        specs.append(spec)
    return specs


def _all_here(message: Start) -> Part:
    spec = message.spec
    return Part(
        machine=HERE,
        gpu_minors=spec.gpu_minors,
        device_nodes=spec.device_nodes,
        cuda_devices=spec.cuda_devices,
        rocm_devices=spec.rocm_devices,
        cpu_millis=spec.cpu_millis,
        memory_bytes=spec.memory_bytes,
        workers=1,
    )


def _line_of(seat: _Seat) -> PacketLine | None:
    if seat.packets is not None and seat.packets.stream is not None:
        return Afar(seat.packets.stream)
    return Interface(seat.descriptors[1]) if len(seat.descriptors) > 1 else None


def _drop(descriptors: Sequence[int], packets: Arrival | None) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    if packets is not None:
        packets.done.set()


async def _drain(seat: _Seat) -> None:
    """A member's sandbox has nothing to say; what it says all the same must not fill its socket."""
    descriptor, seat.descriptors[:1] = seat.descriptors[0], []
    local = socket.socket(fileno=descriptor)
    local.setblocking(False)
    with contextlib.suppress(*BROKEN):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(local))
        while await stream.receive_some():
            pass
    local.close()


async def _send(to: trio.socket.SocketType, packet: bytes, descriptors: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(one.to_bytes(4, "little") for one in descriptors))]
    with contextlib.suppress(OSError):
        await to.sendmsg([packet], ancillary if descriptors else [])
