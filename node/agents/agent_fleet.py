"""The machines of one provider, as its daemon sees them: who is connected, what each has, and its launcher afar.

One task for each machine reads what its agent says. A machine is here from its report until its connection ends or is
silent for too long; then its devices are withdrawn and what ran on it is lost, in words that name it. The agent decides
the same on its side at the same time, so a run is never going on at a machine that the daemon has given up.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Final

import trio

from hansa.node.agents.agent_keys import Enrolled, Register
from hansa.node.agents.agent_machine import MOST_REPORTS, Arrival, Ear, FleetSettings, Machine, fault_in
from hansa.node.agents.agent_messages import (
    NO_TOKEN,
    Beat,
    FromAgent,
    FromLauncher,
    Gone,
    Report,
    StartThere,
    ToLauncher,
    Tree,
    TurnedAway,
    Welcome,
    Wire,
)
from hansa.node.agents.agent_trees import digest_of, send_tree
from hansa.node.devices.inventory import Inventory
from hansa.node.fault_groups import leaf
from hansa.node.isolation import launcher_protocol
from hansa.node.isolation.launcher_protocol import Counted, Ended, Kill, Message, Refused, Start, Started
from hansa.node.storage.agent_streams import BROKEN, bridge
from hansa.proto.errors import Malformed, ProtocolError
from hansa.proto.market_documents import Device

CLAIM_S: Final = 20.0
REPORT_S: Final = 180.0
"""From the welcome to the report: the machine tries its sandbox and asks its driver meanwhile."""
MOST_UNCLAIMED: Final = 64
LOOK_S: Final = 1.0
FAREWELL_S: Final = 1.0
REPORTS_S: Final = 60.0
"""So many reports are taken in so long a time: each is an event that the daemon keeps."""
MOST_DEVICES_OF_ALL: Final = 2048
"""Of all machines but the daemon's own. One list of the journal's holds twice as many, the daemon's own among them."""
STREAMS: Final = {Started: (1, 2), Refused: (0, 0), Counted: (0, 0), Ended: (0, 0)}
"""What a launcher says on its own, and how many connections come with it, at least and at most."""
TREE_FIELDS: Final = ("code", "inputs", "environment", "image")


class Fleet:
    """All machines but the daemon's own."""

    def __init__(
        self,
        *,
        register: Register,
        account: bytes,
        tier: str,
        objection: Callable[[Report], str | None],
        changed: Callable[[], None],
        log: Callable[[str], None],
        settings: FleetSettings | None = None,
    ) -> None:
        """Serve machines of this provider.

        Args:
            register: who is enrolled; looked at again every second.
            account: the provider's.
            tier: what the provider promises.
            objection: why a machine that reports this is not taken, in words.
            changed: called when a machine came or went; must not block.
            log: one line for the owner.
            settings: how patient it is.
        """
        self._register = register
        self._account = account
        self._tier = tier
        self._objection = objection
        self._changed = changed
        self._log = log
        self._settings = settings or FleetSettings()
        self._nursery: trio.Nursery | None = None
        self._news = trio.Event()
        self._digests: dict[tuple[str, int, int], bytes] = {}
        self._turns: dict[str, int] = {}
        self.machines: dict[str, Machine] = {}
        self.turned_away: dict[str, str] = {}
        self.ear: Ear | None = None

    async def serve(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Let go of machines that the owner has removed, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(LOOK_S)
                if self.machines:
                    known = self._register.machines()
                    for machine in list(self.machines.values()):
                        if machine.enrolled.pin not in known:
                            machine.let_go("its owner removed it")

    def devices(self) -> tuple[Device, ...]:
        """What all of them lend."""
        return tuple(device for machine in self.machines.values() for device in machine.report.devices)

    def enrolled(self) -> list[Enrolled]:
        """Everybody who may connect."""
        return list(self._register.machines().values())

    def machine_of(self) -> dict[bytes, str]:
        """On which machine each of these devices is."""
        return {device.id: name for name, machine in self.machines.items() for device in machine.report.devices}

    def nodes(self, machine: str, devices: Collection[bytes]) -> dict[str, tuple[Any, ...]]:
        """What a sandbox there is given for these of its GPUs, by the names of ``SandboxSpec``'s fields."""
        gpus = [gpu for gpu in self.machines[machine].report.gpus if gpu.device in devices]
        return {
            "gpu_minors": tuple(sorted({minor for gpu in gpus for minor in gpu.gpu_minors})),
            "device_nodes": tuple(sorted({node for gpu in gpus for node in gpu.device_nodes})),
            "cuda_devices": tuple(name for gpu in gpus for name in gpu.cuda_devices),
            "rocm_devices": tuple(name for gpu in gpus for name in gpu.rocm_devices),
        }

    async def wait_for(self, devices: Iterable[bytes], own: Inventory) -> None:
        """Return when every one of these devices is on a machine that is here."""
        wanted = set(devices) - {device.id for device in own.devices}
        while not wanted <= set(self.machine_of()):
            await self._news.wait()

    async def serve_control(self, enrolled: Enrolled, wire: Wire) -> None:
        """One machine, from its arrival to its loss."""
        turn = self._turns[enrolled.name] = self._turns.get(enrolled.name, 0) + 1
        older = self.machines.get(enrolled.name)
        if older is not None:
            older.let_go("it has connected anew")  # it was gone before we noticed
            while self.machines.get(enrolled.name) is older:
                await self._news.wait()
        silence_ms = round(self._settings.silence_s * 1000)
        await wire.send(Welcome(name=enrolled.name, account=self._account, tier=self._tier, silence_ms=silence_ms))
        report = await self._first_report(wire)
        if self._turns[enrolled.name] != turn:
            return  # it has connected anew meanwhile, and the newer connection is the one that counts
        why = self._fault_in(enrolled.name, report)
        if why is not None:
            self.turned_away[enrolled.name] = why
            self._log(f"machine {enrolled.name} is not taken: {why}")
            await wire.send(TurnedAway(reason=why))
            return
        self.turned_away.pop(enrolled.name, None)
        machine = Machine(enrolled=enrolled, wire=wire, report=report)
        self.machines[machine.name] = machine
        self._log(f"machine {machine.name} is here: {report.note}")
        self._tell_change()
        try:
            with machine.scope:
                await self._listen(machine)
        except* (Gone, ProtocolError) as group:
            machine.why = str(leaf(group))
        finally:
            with trio.CancelScope(shield=True):
                await self._forget(machine)
        if machine.scope.cancelled_caught:
            await _say_why(machine)

    async def serve_stream(self, enrolled: Enrolled, token: bytes, stream: trio.abc.Stream) -> None:
        """A connection that carries one thing; returns when that is done, or the machine is gone."""
        machine = self.machines.get(enrolled.name)
        if machine is None or machine.enrolled.pin != enrolled.pin:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, machine.gone, nursery.cancel_scope)
            tree = machine.trees.pop(token, None)
            if tree is not None:
                with contextlib.suppress(*BROKEN):
                    await send_tree(tree[1], stream)
                    await stream.aclose()
            elif token in machine.ways_out:
                await _lead_out(machine.ways_out[token][1], stream)
            else:
                await self._wait_until_used(machine, token, stream)
            nursery.cancel_scope.cancel()

    async def _wait_until_used(self, machine: Machine, token: bytes, stream: trio.abc.Stream) -> None:
        if token not in machine.arrivals and len(machine.arrivals) >= MOST_UNCLAIMED:
            return
        arrival = machine.arrivals.setdefault(token, Arrival())
        if arrival.stream is not None:
            return
        arrival.stream = stream
        arrival.came.set()
        with trio.move_on_after(min(CLAIM_S, self._settings.silence_s)):
            await arrival.taken.wait()
        if arrival.taken.is_set():
            await arrival.done.wait()
        else:
            machine.arrivals.pop(token, None)

    async def start(self, name: str, message: Start) -> None:
        """Have a sandbox made on a machine; the directories that it is furnished with are brought there.

        Raises:
            Gone: the machine is not here.
            OSError: a directory cannot be read.
        """
        machine = self._here(name)
        trees = []
        for field_name in TREE_FIELDS:
            path = getattr(message.spec, field_name, None)
            if path is None:
                continue
            digest = await self._digest(field_name, Path(path))
            token = os.urandom(32)
            machine.trees[token] = (message.run, Path(path))
            trees.append(Tree(field=field_name, digest=digest, token=token))
        way_out = NO_TOKEN
        if message.spec.egress is not None:
            way_out = os.urandom(32)
            machine.ways_out[way_out] = (message.run, message.spec.egress)
        packet = launcher_protocol.pack(message)
        await machine.wire.send(StartThere(packet=packet, trees=tuple(trees), way_out=way_out))

    async def tell(self, name: str, message: Message) -> None:
        """Hand a machine's launcher a message; one that is gone has nothing left to be told."""
        machine = self.machines.get(name)
        if machine is not None:
            with contextlib.suppress(Gone):
                await machine.wire.send(ToLauncher(packet=launcher_protocol.pack(message)))

    def forget(self, run: bytes) -> None:
        """Nothing of this run will be asked for any more."""
        for machine in self.machines.values():
            for kept in (machine.trees, machine.ways_out):
                for token in [token for token, (of, _) in kept.items() if of == run]:
                    del kept[token]

    def _here(self, name: str) -> Machine:
        machine = self.machines.get(name)
        if machine is None:
            raise Gone(f"machine {name} is not connected")
        return machine

    async def _first_report(self, wire: Wire) -> Report:
        deadline = trio.current_time() + REPORT_S
        while trio.current_time() < deadline:
            message = await wire.receive(Report | Beat | TurnedAway, within_s=self._settings.silence_s)
            if isinstance(message, Report):
                return message
            if isinstance(message, TurnedAway):
                raise Gone(message.reason)
            await wire.send(Beat())
        raise Gone("it did not say what it has")

    def _fault_in(self, name: str, report: Report) -> str | None:
        others = {
            device.id for other, machine in self.machines.items() if other != name for device in machine.report.devices
        }
        if others & {device.id for device in report.devices}:
            return "it reports a device that is reported already"
        if len(others) + len(report.devices) > MOST_DEVICES_OF_ALL:
            return f"all machines together would lend more than {MOST_DEVICES_OF_ALL} devices"
        return fault_in(report) or self._objection(report)

    async def _listen(self, machine: Machine) -> None:
        """Take what the agent says, until it is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat, machine)
            while True:
                message = await machine.wire.receive(FromAgent, within_s=self._settings.silence_s)
                if isinstance(message, TurnedAway):
                    raise Gone(message.reason)
                if isinstance(message, Report):
                    self._take_report(machine, message)
                elif isinstance(message, FromLauncher):
                    await self._pass_on(machine, message, nursery)

    def _take_report(self, machine: Machine, report: Report) -> None:
        why = self._fault_in(machine.name, report)
        if why is not None:
            raise Gone(why)
        now = trio.current_time()
        if len(machine.reported) == MOST_REPORTS and now - machine.reported[0] < REPORTS_S:
            raise Gone("it reports something else all the time")
        machine.reported.append(now)
        if report.devices != machine.report.devices:
            self._log(f"machine {machine.name}: {report.note}")
        machine.report = report
        self._tell_change()

    async def _beat(self, machine: Machine) -> None:
        while True:
            await trio.sleep(self._settings.beat_s)
            with trio.move_on_after(self._settings.silence_s) as patience:
                await machine.wire.send(Beat())
            if patience.cancelled_caught:
                raise Gone(f"it took nothing for {self._settings.silence_s:g} s")

    async def _pass_on(self, machine: Machine, heard: FromLauncher, nursery: trio.Nursery) -> None:
        """Give the ear what a launcher said, with the streams that came with it as file descriptors."""
        assert self.ear is not None, "somebody listens"
        message = launcher_protocol.unpack(heard.packet)
        least, most = STREAMS.get(type(message), (1, 0))
        if not least <= len(heard.streams) <= most:
            raise Malformed("FromLauncher", "is nothing that a launcher says")
        arrivals = [await self._claim(machine, token) for token in heard.streams]
        if None in arrivals:
            for arrival in filter(None, arrivals):
                arrival.done.set()
            await self.tell(machine.name, Kill(run=message.run))
            refused = Refused(run=message.run, reason="the connection for what it says was not made")
            await self.ear.heard(machine.name, refused, [], None)
            return
        descriptors: list[int] = []
        packets: Arrival | None = None
        for number, arrival in enumerate(filter(None, arrivals)):
            if number == 1 and isinstance(message, Started):
                packets = arrival
                continue
            try:
                ours, theirs = socket.socketpair()
            except OSError as fault:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise Gone(f"what it says cannot be handed on: {fault}") from fault
            descriptors.append(theirs.detach())
            nursery.start_soon(_carry, ours, arrival)
        await self.ear.heard(machine.name, message, descriptors, packets)

    async def _claim(self, machine: Machine, token: bytes) -> Arrival | None:
        arrival = machine.arrivals.setdefault(token, Arrival())
        with trio.move_on_after(self._settings.silence_s):
            await arrival.came.wait()
        machine.arrivals.pop(token, None)
        if arrival.stream is None:
            return None
        arrival.taken.set()
        return arrival

    async def _digest(self, field_name: str, path: Path) -> bytes:
        """A directory's digest. Environments and images never change once they are there, and may be large."""
        facts = await trio.to_thread.run_sync(path.stat)
        key = (str(path), facts.st_ino, facts.st_mtime_ns)
        if key in self._digests:
            return self._digests[key]
        digest = await trio.to_thread.run_sync(digest_of, path)
        if field_name in ("environment", "image"):
            self._digests[key] = digest
        return digest

    async def _forget(self, machine: Machine) -> None:
        machine.gone.set()
        if self.machines.get(machine.name) is machine:
            del self.machines[machine.name]
        self._log(f"machine {machine.name} is lost: {machine.why}")
        if self.ear is not None:
            await self.ear.lost(machine.name, f"machine {machine.name} was lost: {machine.why}")
        self._tell_change()

    def _tell_change(self) -> None:
        self._changed()
        self._news.set()
        self._news = trio.Event()


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _carry(local: socket.socket, arrival: Arrival) -> None:
    assert arrival.stream is not None, "it came"
    try:
        await bridge(local, arrival.stream)
    finally:
        local.close()
        arrival.done.set()


async def _lead_out(path: str, stream: trio.abc.Stream) -> None:
    """Join a stream with this machine's socket of a run's way out."""
    local = socket.socket(socket.AF_UNIX)
    # Who listens there is this very process: to wait for it here would be to wait for ever.
    local.setblocking(False)
    try:
        local.connect(path)
    except OSError:
        local.close()  # it was closed with its run, or as many wait there as may
        return
    await bridge(local, stream)


async def _say_why(machine: Machine) -> None:
    """Tell an agent why it is let go. It may be gone itself, or take nothing: it is not waited for."""
    with trio.move_on_after(FAREWELL_S), contextlib.suppress(Gone):
        await machine.wire.send(TurnedAway(reason=machine.why))
