"""A provider's machines as its daemon has them: one inventory, one launcher, and where each run goes.

Made only where `[cluster]` in ``config.toml`` says where to listen. The devices of the machines that are connected are
sold with the daemon's own; a run is placed on the machines of its lease's devices.
"""

import platform
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import trio

from hansa.market.isolation import is_served
from hansa.node.agents.agent_fleet import Fleet
from hansa.node.agents.agent_gate import Gate
from hansa.node.agents.agent_keys import Register, load_identity
from hansa.node.agents.agent_messages import Report
from hansa.node.agents.agent_switchboard import HERE, Part, Switchboard
from hansa.node.devices.inventory import Inventory
from hansa.node.engine.events import InventoryChanged
from hansa.node.faults import ConfigError
from hansa.node.isolation.launcher_link import Launch
from hansa.node.isolation.preflight import SandboxReport
from hansa.node.isolation.sandbox import MIN_MEMORY_BYTES
from hansa.proto.market_documents import TIER_SANDBOX
from hansa.scheduler.devices import Topology

FOLDER: Final = "cluster"
NODE_FIELDS: Final = ("gpu_minors", "device_nodes", "cuda_devices", "rocm_devices")
WAIT_S: Final = 60.0
"""For a machine that a run was leased on to come back, after a restart of the daemon for example."""


class Unplaceable(Exception):
    """A run cannot be placed on the machines of its devices; why, in words for its buyer."""


def own_features() -> tuple[str, ...]:
    """What all machines must have alike: a run's packages are made for one Python, and a gang for one Ray."""
    python = ".".join(platform.python_version_tuple()[:2])
    return f"python{python}", f"ray{version('ray')}"


class Cluster:
    """The daemon's side of several machines."""

    def __init__(
        self,
        *,
        data_dir: Path,
        account: bytes,
        tier: str,
        own: Callable[[], Inventory],
        launch: Launch,
        tell: Callable[[InventoryChanged], None],
        log: Callable[[str], None],
        now_ms: Callable[[], int],
    ) -> None:
        """Be ready to listen.

        Args:
            data_dir: the daemon's.
            account: the provider's.
            tier: what the provider promises; no machine may be weaker.
            own: what the daemon's own machine has, now.
            launch: the daemon's own launcher.
            tell: hears of every change to what all machines have together.
            log: one line for the owner.
            now_ms: the daemon's clock.
        """
        self._tier = tier
        self._own = own
        self._tell = tell
        self._now_ms = now_ms
        try:
            identity = load_identity(data_dir / FOLDER)
        except ssl.SSLError as fault:
            raise ConfigError(f"the key in {data_dir / FOLDER} cannot be read", "remove it, and enrol anew") from fault
        register = Register(data_dir / FOLDER)
        self.fleet = Fleet(
            register=register, account=account, tier=tier, objection=self._objection, changed=self._change, log=log
        )
        self.switchboard = Switchboard(launch, self.fleet)
        self._gate = Gate(
            register=register,
            identity=identity,
            now_ms=now_ms,
            serve_control=self.fleet.serve_control,
            serve_stream=self.fleet.serve_stream,
        )

    async def serve(self, host: str, port: int, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Listen for machines and be the executor's launcher, until cancelled. Tells the port.

        Raises:
            PortInUse: somebody else has it.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self.fleet.serve)
            await nursery.start(self.switchboard.serve)
            task_status.started(await nursery.start(self._gate.serve, host, port))

    def complete(self, event: InventoryChanged) -> InventoryChanged:
        """The same with the devices of all other machines, and where they are."""
        own = {device.id for device in event.devices}
        # A device that moved from one machine to another is where it is reported now; here counts most.
        afar = tuple(device for device in self.fleet.devices() if device.id not in own)
        apart = {name for name, machine in self.fleet.machines.items() if not machine.report.overlay}
        machine_of = {device: name for device, name in self.fleet.machine_of().items() if device not in own}
        topology = Topology(machine_of=machine_of, apart=frozenset(apart))
        return replace(event, devices=(*event.devices, *afar), topology=topology)

    async def wait_for(self, devices: Sequence[bytes]) -> None:
        """Return once every machine that these devices are on is here.

        Raises:
            Unplaceable: one has not come.
        """
        with trio.move_on_after(WAIT_S) as patience:
            await self.fleet.wait_for(devices, self._own())
        if patience.cancelled_caught:
            raise Unplaceable("the machine that its devices are on is not connected")

    def place(self, run: bytes, devices: Sequence[bytes], workers: int, memory_bytes: int) -> dict[str, Any]:
        """Say where a run will be, before it is started. Answers what its GPUs are called, wherever they are.

        Raises:
            Unplaceable: it cannot be there.
        """
        parts = self._parts(devices, workers, memory_bytes)
        self.switchboard.place(run, parts)
        return {name: tuple(each for part in parts for each in getattr(part, name)) for name in NODE_FIELDS}

    def _parts(self, devices: Sequence[bytes], workers: int, memory_bytes: int) -> list[Part]:
        """The run's share of each machine, the daemon's own first, then the fullest."""
        machine_of = self.fleet.machine_of()
        own = {device.id: device for device in self._own().devices}
        known = {**{device.id: device for device in self.fleet.devices()}, **own}
        groups: dict[str, list[bytes]] = {}
        for device in devices:
            if device not in known:
                raise Unplaceable("the machine that its devices are on was lost")
            groups.setdefault(HERE if device in own else machine_of[device], []).append(device)
        order = sorted(groups, key=lambda name: (name != HERE, -len(groups[name]), name))
        if workers < len(order):
            raise Unplaceable(
                f"its {len(devices)} devices are on {len(order)} machines here, and {workers} workers cannot be on all"
            )
        shares = share_out(workers, [len(groups[name]) for name in order])
        parts = []
        for name, share in zip(order, shares, strict=True):
            there = tuple(groups[name])
            nodes = nodes_here(self._own(), there) if name == HERE else self.fleet.nodes(name, there)
            cpu_millis = sum(known[device].cores_milli for device in there)
            memory = memory_bytes * len(there) // len(devices)
            if memory < MIN_MEMORY_BYTES and len(order) > 1:
                raise Unplaceable(f"its memory, shared by {len(order)} machines, is too little on each of them for Ray")
            parts.append(
                Part(
                    machine=name,
                    **nodes,
                    cpu_millis=max(cpu_millis, 100),
                    memory_bytes=memory,
                    workers=share,
                )
            )
        return parts

    def view(self) -> list[dict[str, Any]]:
        """Every machine that is enrolled or was turned away, for the owner."""
        known = self.fleet.enrolled()
        return [
            {
                "name": machine.name,
                "since_ms": machine.since_ms,
                "connected": machine.name in self.fleet.machines,
                "devices": self._device_count(machine.name),
                "note": self._note(machine.name),
                "gangs": machine.name in self.fleet.machines and self.fleet.machines[machine.name].report.overlay,
            }
            for machine in sorted(known, key=lambda one: one.name)
        ]

    def _device_count(self, name: str) -> int:
        machine = self.fleet.machines.get(name)
        return len(machine.report.devices) if machine is not None else 0

    def _note(self, name: str) -> str:
        machine = self.fleet.machines.get(name)
        if machine is not None:
            return machine.report.note
        return self.fleet.turned_away.get(name, "not connected")

    def _change(self) -> None:
        self._tell(InventoryChanged(devices=self._own().devices, at_ms=self._now_ms()))

    def _objection(self, report: Report) -> str | None:
        """Why a machine that reports this cannot be lent under this provider's name."""
        if not is_served(self._tier, report.tier):
            return f"this provider promises the tier {self._tier}, and this machine has {report.tier}: {report.reason}"
        lacking = [feature for feature in own_features() if feature not in report.features]
        if lacking:
            return f"runs here are made for {' and '.join(own_features())}, and this machine has no {lacking[0]}"
        return None


def nodes_here(own: Inventory, devices: tuple[bytes, ...]) -> dict[str, tuple[Any, ...]]:
    """As `Fleet.nodes`, of the daemon's own machine."""
    return {name: getattr(own, name)(devices) for name in NODE_FIELDS}


def share_out(workers: int, devices: Sequence[int]) -> list[int]:
    """So many workers over machines with so many devices each: at least one on each, else in proportion."""
    assert workers >= len(devices) > 0, "each machine gets one"
    shares = [1] * len(devices)
    for _ in range(workers - len(devices)):
        # Whoever is furthest below its due gets the next.
        place = max(range(len(devices)), key=lambda one: (devices[one] / shares[one], -one))
        shares[place] += 1
    return shares


def makes_gangs(sandbox: SandboxReport | None) -> bool:
    """Whether this machine's launcher gives sandboxes interfaces of their own."""
    # gVisor brings a network of its own into the namespace, for which nobody has tried this.
    return sandbox is not None and sandbox.tier == TIER_SANDBOX and "gangs" in sandbox.limits
