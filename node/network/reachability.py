"""What others say of whether we can be dialled, and what to believe of it.

Nobody is believed alone, and observers of one network count as one: with a single liar a node would take itself for
public, give its places at relays up, and be found by nobody. That observers cannot reach us is no proof either, and a
node that believes it serves the table of providers no more: it takes two networks, and more than say the opposite.
"""

from dataclasses import dataclass
from typing import Literal

CONFIRMATIONS = 2
"""Networks that must say the same."""
OPINION_LIFE_S = 1_800.0
MOST_OPINIONS = 16
Reachability = Literal["public", "private", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """One observer's newest word on us.

    Attributes:
        observer: its peer id.
        network: what it counts as among observers.
        seen_at: the address from which it sees us come, host and port; empty if it did not say.
        reached_at: the multiaddr at which it reached us; empty if it could not, None if it did not try.
        at_s: when.
    """

    observer: str
    network: str
    seen_at: tuple[str, int] | None
    reached_at: str | None
    at_s: float


@dataclass(frozen=True, slots=True)
class Opinions:
    """The newest word of each observer, the oldest observers dropped first."""

    said: tuple[Opinion, ...] = ()

    def with_new(self, opinion: Opinion) -> "Opinions":
        """These and one more."""
        others = tuple(each for each in self.said if each.observer != opinion.observer)
        return Opinions((*others, opinion)[-MOST_OPINIONS:])

    def at(self, now_s: float) -> "Opinions":
        """Those that are not too old."""
        return Opinions(tuple(each for each in self.said if each.at_s > now_s - OPINION_LIFE_S))

    def confirmed(self) -> tuple[str, ...]:
        """Addresses at which enough networks reached us."""
        reached = {each.reached_at for each in self.said if each.reached_at}
        return tuple(addr for addr in sorted(reached) if self._networks_at(addr) >= CONFIRMATIONS)

    def verdict(self) -> Reachability:
        """What the observers together are to be believed."""
        yes = {each.network for each in self.said if each.reached_at}
        no = {each.network for each in self.said if each.reached_at == ""} - yes
        if self.confirmed() and len(yes) > len(no):
            return "public"
        return "private" if len(no) >= CONFIRMATIONS and len(no) > len(yes) else "unknown"

    def seen_at(self) -> tuple[tuple[str, int], ...]:
        """From which addresses we are seen to come, those that most networks name first."""
        networks: dict[tuple[str, int], set[str]] = {}
        for each in self.said:
            if each.seen_at is not None:
                networks.setdefault(each.seen_at, set()).add(each.network)
        return tuple(sorted(networks, key=lambda seen: (-len(networks[seen]), seen)))

    def hides_ports(self) -> bool:
        """Whether our router gives each of our connections a port of its own, so that no hole can be made in it."""
        ports: dict[str, set[int]] = {}
        for host, port in self.seen_at():
            ports.setdefault(host, set()).add(port)
        return any(len(each) > 1 for each in ports.values())

    def _networks_at(self, addr: str) -> int:
        return len({each.network for each in self.said if each.reached_at == addr})
