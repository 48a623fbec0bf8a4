"""Who has a place: connections that others made to us, until they have proven themselves and after that.

The library counts a slot for each inbound connection and never gives it back, so that after 250 connections a node
refuses everyone for ever. Here places are counted for each household and in all, and given back. A full house makes
room: while they prove themselves by the rule of turns (``fair_turns.py``); afterwards the newest goes of a network that
has more than its part, for one that has less than half as many.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from hansa.node.network.fair_turns import Circles, Turns
from hansa.node.network.neighbourhood import circles_of
from hansa.node.network.net import NetLimits

PARTS = 32
LEAST_PART = 8
"""What a network may have of a full house, however small the house is."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One inbound connection's place.

    Attributes:
        circles: to whom it belongs (``circles_of``).
        number: later ones have larger numbers.
        put_out: ends the connection, for one that has more right to the place.
        is_kept: whether its peer is one that we hold on to.
    """

    circles: Circles
    number: int
    put_out: Callable[[], None] = lambda: None
    is_kept: Callable[[], bool] = lambda: False
    pending: bool = True
    is_out: bool = False

    @property
    def household(self) -> str:
        """What counts as one caller."""
        return self.circles[-1]

    @property
    def network(self) -> str:
        """What has a part of a full house."""
        return self.circles[-2]


class Admission:
    """Who may come in: pending and standing connections, in all and for each address."""

    def __init__(
        self, limits: NetLimits, count: Callable[[str], None], turns: Turns, others: Callable[[], int] = lambda: 0
    ) -> None:
        """Nobody is here.

        Args:
            limits: how many places there are.
            count: told of whom is refused and who is put out.
            turns: who had a turn of late.
            others: how many connections stand that came by no ticket, such as those that we made.
        """
        self._limits, self._count, self._turns, self._others = limits, count, turns, others
        self._numbers = itertools.count()
        self._pending: Counter[str] = Counter()
        self._standing: Counter[str] = Counter()
        self._networks: Counter[str] = Counter()
        self._here: dict[Ticket, None] = {}

    def enter(self, host: str) -> Ticket | None:
        """A place for a new socket, or None and a counter."""
        limits = self._limits
        ticket = Ticket(circles_of(host), next(self._numbers))
        ip = ticket.household
        is_full = self._standing.total() + self._pending.total() >= limits.connections
        reason = ""
        if self._standing[ip] + self._pending[ip] >= limits.connections_per_ip:
            reason = "inbound.ip_full"
        elif self._pending[ip] >= limits.pending_handshakes_per_ip:
            reason = "inbound.ip_pending_full"
        elif is_full and not self._crowds(ticket):
            reason = "inbound.full"
        elif self._pending.total() >= limits.pending_handshakes and not self._one_makes_way(ticket):
            reason = "inbound.pending_full"
        if reason:
            self._count(reason)
            return None
        self._pending[ip] += 1
        self._networks[ticket.network] += 1
        self._here[ticket] = None
        return ticket

    def _one_makes_way(self, newcomer: Ticket) -> bool:
        """Whether somebody goes who has not proven itself yet, for one with more right to try."""
        pending = [each for each in self._here if each.pending and not each.is_out]
        if len(pending) < self._limits.pending_handshakes:
            return True  # somebody is going already
        out = self._turns.dispensable([*pending, newcomer])
        if out is newcomer:
            return False
        self._end(out, "inbound.pending_put_out")
        return True

    def _crowds(self, newcomer: Ticket) -> set[str]:
        """The networks that have more than their part of the house, and more than twice what the newcomer's has."""
        others = self._networks[newcomer.network] - (newcomer in self._here)
        part = max(LEAST_PART, self._limits.connections // PARTS, 2 * others)
        return {network for network, number in self._networks.items() if number > part}

    def admit(self, ticket: Ticket) -> None:
        """The handshake is done. Where the house is full, one of a crowd goes for it."""
        self._less(self._pending, ticket.household)
        ticket.pending = False
        self._standing[ticket.household] += 1
        going = sum(each.is_out and not each.pending for each in self._here)
        if self._standing.total() + self._others() - going <= self._limits.connections:
            return
        crowds = self._crowds(ticket)
        some = [
            each
            for each in self._here
            if each.network in crowds and not (each.pending or each.is_out or each.is_kept())
        ]
        if some:
            self._end(
                max(some, key=lambda each: (self._networks[each.network], self._standing[each.household], each.number)),
                "inbound.put_out_of_a_crowd",
            )

    def _end(self, ticket: Ticket, reason: str) -> None:
        self._count(reason)
        ticket.is_out = True
        ticket.put_out()

    def leave(self, ticket: Ticket) -> None:
        """The connection is gone, whichever way."""
        self._less(self._pending if ticket.pending else self._standing, ticket.household)
        self._less(self._networks, ticket.network)
        del self._here[ticket]

    @staticmethod
    def _less(counter: Counter[str], party: str) -> None:
        counter[party] -= 1
        if counter[party] <= 0:
            del counter[party]
