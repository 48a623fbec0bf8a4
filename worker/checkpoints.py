"""Which of a shard's checkpoints is on its way, and which one waits. Pure.

The daemon takes one at a time. While one is on its way a newer one replaces the one that waits, and the worker may
forget what was replaced. When the run is to leave, the first checkpoint that was given after that is its last.
"""

from dataclasses import dataclass

from hansa.worker.handed_over import HandedOver


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that worker 0 holds.

    Attributes:
        given: its bytes, or where they are.
        last: whether the run ends when it is stored.
    """

    given: HandedOver
    round: int
    step: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSaved:
    """Fetch this checkpoint and send it out."""

    saved: Saved


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSaved:
    """A newer checkpoint has replaced this one."""

    saved: Saved


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveNow:
    """The last checkpoint is stored."""


class Checkpoints:
    """The checkpoints of one shard."""

    def __init__(self) -> None:
        """There is none yet."""
        self._sent: Saved | None = None
        self._waiting: Saved | None = None

    @property
    def waiting(self) -> bool:
        """Whether there is one that was not sent yet."""
        return self._waiting is not None

    def took(self, saved: Saved) -> list[SendSaved | DropSaved]:
        """Worker 0 gave one."""
        if self._sent is None:
            self._sent = saved
            return [SendSaved(saved=saved)]
        replaced, self._waiting = self._waiting, saved
        return [] if replaced is None else [DropSaved(saved=replaced)]

    def stored(self) -> list[SendSaved | LeaveNow]:
        """The daemon has the one that was sent."""
        sent, self._sent, self._waiting = self._sent, self._waiting, None
        orders: list[SendSaved | LeaveNow] = []
        if sent is not None and sent.last:
            orders.append(LeaveNow())
        if self._sent is not None:
            orders.append(SendSaved(saved=self._sent))
        return orders
