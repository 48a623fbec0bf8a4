"""What a daemon keeps of one connected machine of its owner, and who listens to the launcher there."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import trio

from hansa.node.agents.agent_keys import Enrolled
from hansa.node.agents.agent_messages import Report, Wire
from hansa.node.isolation.launcher_protocol import Message

MOST_REPORTS: Final = 20
"""The times of so many are kept, to see whether a machine reports too much."""


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
