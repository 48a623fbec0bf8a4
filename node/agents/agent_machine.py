"""What a daemon keeps of one connected machine of its owner, and who listens to the launcher there."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import trio

from hansa.market.clauses import written
from hansa.market.shares import SHARE
from hansa.node.agents.agent_keys import Enrolled
from hansa.node.agents.agent_messages import Report, Wire
from hansa.node.devices.sandbox_devices import devices_fault
from hansa.node.isolation.launcher_protocol import Message
from hansa.proto.market_documents import KIND_CPU, KIND_GPU, Device
from hansa.proto.workload import LARGEST_SIZE_BYTES

MOST_REPORTS: Final = 20
"""The times of so many are kept, to see whether a machine reports too much."""


def fault_in(report: Report) -> str | None:
    """What of a report no machine of ours says of itself, in words for its owner; nothing if it is sound.

    What it says goes into the provider's own adverts and bids, and peers bar who signs what is out of order.
    """
    ids = {device.id for device in report.devices}
    if len(ids) != len(report.devices):
        return "it reports a device that is reported already"
    if not {gpu.device for gpu in report.gpus} <= ids:
        return "it reports the node of a device that it does not have"
    for gpu in report.gpus:
        fault = devices_fault(gpu.gpu_minors, gpu.device_nodes, gpu.cuda_devices, gpu.rocm_devices)
        if fault is not None:
            return f"it reports {fault}"
    return None if all(map(_is_sound, report.devices)) else "it reports a device such as there is none"


def _is_sound(device: Device) -> bool:
    told = {fact.name: fact.value for fact in device.facts}
    return (
        device.kind in (KIND_CPU, KIND_GPU)
        and device.model.isprintable()
        and device.memory_bytes <= LARGEST_SIZE_BYTES
        # Who has which part of a device is watched on the daemon's own machine only.
        and SHARE not in told
        and written(told) == device.facts
    )


class Ear(Protocol):
    """Who listens to the launchers of machines."""

    async def heard(self, machine: str, message: Message, descriptors: list[int], packets: "Arrival | None") -> None:
        """A launcher said something; what came with it is the ear's now.

        Args:
            machine: whose launcher.
            message: what it said.
            descriptors: local sockets that stand for what came with the message.
            packets: the stream of a run's interface, if it has one.
        """

    async def lost(self, machine: str, why: str) -> None:
        """Everything on that machine is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """How patient the fleet is.

    Attributes:
        beat_s: a sign of life goes out this often.
        silence_s: who says nothing for so long is gone.
    """

    beat_s: float = 2.0
    silence_s: float = 15.0


@dataclass(slots=True, kw_only=True, eq=False)
class Arrival:
    """A stream that a machine dialled, or is about to.

    Attributes:
        came: it is here.
        taken: somebody uses it.
        done: nobody does any more, and it may be closed.
    """

    came: trio.Event = field(default_factory=trio.Event)
    taken: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)
    stream: trio.abc.Stream | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Machine:
    """A machine whose agent is connected.

    Attributes:
        arrivals: streams that are waited for, or that nobody has taken yet, by token.
        trees: directories that it may fetch, and for which run, by token.
        ways_out: sockets of the runs' ways out, by token.
        gone: its connection has ended.
        scope: cancelled to end the connection.
        why: why it was ended, if it was.
        reported: when it reported lately.
    """

    enrolled: Enrolled
    wire: Wire
    report: Report
    arrivals: dict[bytes, Arrival] = field(default_factory=dict)
    trees: dict[bytes, tuple[bytes, Path]] = field(default_factory=dict)
    ways_out: dict[bytes, tuple[bytes, str]] = field(default_factory=dict)
    gone: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    why: str = "its connection ended"
    reported: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_REPORTS))

    @property
    def name(self) -> str:
        """What the owner calls it."""
        return self.enrolled.name

    def let_go(self, why: str) -> None:
        """End the connection."""
        self.why = why
        self.scope.cancel()
