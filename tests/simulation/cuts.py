"""Kill a node at every instant around money, one after the other: ``python tests/simulation/cuts.py --seeds 10``.

A calm world with one job is played once to count its instants: before and after each batch about money is in the
journal, before, between and after the signing, filing and sending of each word about money. Then it is played again for
each of them, and the node dies just there. Chaos hits such instants by chance; this hits all of them.
"""

import argparse
import collections
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from simulation.market import Market
from simulation.sim_node import SimNode
from simulation.world import NONE

from hansa.market.effects import Send, sealed
from hansa.market.funding import ChannelSettled, FundingWanted, FundsKnown, SettlementWanted
from hansa.market.ledger import Post
from hansa.market.ledger_records import File
from hansa.node.engine.events import CreditDecided, JobToppedUp, MessageArrived, NettingDue, PaymentReceived
from hansa.proto import messages

WORDS = (
    messages.VoucherSent,
    messages.ReceiptSent,
    messages.ReceiptRefused,
    messages.CloseProposed,
    messages.CloseAccepted,
    messages.CreditGranted,
    messages.PaymentAcknowledged,
    messages.NettingProposed,
    messages.NettingAccepted,
)
EVENTS = (FundsKnown, ChannelSettled, JobToppedUp, PaymentReceived, CreditDecided, NettingDue)
ORDERS = (Post, File, FundingWanted, SettlementWanted)


class CutNode(SimNode):
    """An honest node that dies at the instant that its market names."""

    about_money = in_batch = False

    def _take(self, inbox: list[tuple[Any, Any]]) -> None:
        self.about_money = any(
            isinstance(event, EVENTS) or (isinstance(event, MessageArrived) and isinstance(event.message, WORDS))
            for event, _ in inbox
        )
        self.in_batch = True
        try:
            super()._take(inbox)
        finally:
            self.in_batch = False

    def _point(self, where: str) -> None:
        self.market.points += 1
        if self.market.points == self.market.cut_at:
            self._crash(where)

    def _maybe_crash(self, where: str) -> None:
        if self.about_money:
            self._point(where)

    def perform(self, effect: Any) -> None:
        """Before and after each order about money."""
        word = isinstance(effect, Send) and isinstance(effect.message, WORDS)
        if not self.in_batch or not (word or isinstance(effect, ORDERS)):
            super().perform(effect)
            return
        name = type(effect.message).__name__ if isinstance(effect, Send) else type(effect).__name__
        self._point(f"before {name}")
        super().perform(effect)
        self._point(f"after {name}")

    def send(self, order: Send) -> None:
        """Signed, and not yet sent."""
        if self.in_batch and isinstance(order.message, WORDS):
            sealed(order.message, self.key)
            self._point(f"between signing and sending {type(order.message).__name__}")
        super().send(order)


class CutMarket(Market):
    """A calm world with one job, in which one node dies once; at 0 none does."""

    def __init__(self, seed: int, cut_at: int = 0) -> None:
        """Draw it, and let its nodes be mortal."""
        self.points, self.cut_at = 0, cut_at
        super().__init__(seed, NONE, jobs=1)
        for node in self.nodes.values():
            node.__class__ = CutNode


def cuts_of(seed: int, step: int, first: int = 1) -> collections.Counter[str]:
    """Play a world once for every ``step``-th instant of it. Answers where nodes died."""
    calm = CutMarket(seed)
    calm.play()
    found: collections.Counter[str] = collections.Counter()
    for cut_at in range(first, calm.points + 1, step):
        market = CutMarket(seed, cut_at)
        try:
            market.play()
        except BaseException as fault:
            fault.add_note(f"seed {seed}, cut at instant {cut_at} of {calm.points}: {dict(market.cuts)}")
            raise
        found.update(market.cuts)
    return found


def main() -> int:
    """Cut, count, and stop at the first world that does not come through."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    chosen = parser.parse_args()
    began = time.monotonic()
    total: collections.Counter[str] = collections.Counter()
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        found = cuts_of(seed, chosen.step)
        total.update(found)
        print(f"seed {seed}: {sum(found.values())} cuts, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{sum(total.values())} cuts, at instants of {len(total)} kinds; every world came to its end")
    for name, count in total.most_common():
        print(f"  {count:7} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
