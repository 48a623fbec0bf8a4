"""Nodes that play the market: what they say is sound in form, and meant to win more than it gives.

    from simulation.strategies import StrategicMarket
    StrategicMarket(7).play()

A market of them has dozens of nodes: some providers win and do not come, bid in the last moment, bid twice with one
device, copy others' bids, bring old ones back or keep some of theirs to themselves; some buyers have devices held and
never award, award and never start, or tender for one thing many times. ``simulation.bidding`` says what must hold.
"""

from dataclasses import replace
from typing import Any

from simulation.liars import BUYERS_LIES, PROVIDERS_LIES, LyingNode
from simulation.market import Market
from simulation.world import NONE, Faults

from hansa.market.effects import Send, unsigned
from hansa.proto import messages
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

LAST_MOMENT_MS = 3
MOST_KEPT = 50


class StrategicNode(LyingNode):
    """One of the strategies below, followed whenever the occasion comes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """A node that has not played yet."""
        super().__init__(*arguments, **named)
        self._old_bids: list[Send] = []
        self._clones: set[bytes] = set()

    def _count(self, what: str) -> None:
        self.market.auditor.moves[what] += 1

    def _bid_again(self, order: Send, **changes: Any) -> Send:
        """The same bid with something else in it, under this node's own key."""
        bid = replace(order.message.bid.document, **changes)
        return replace(order, message=messages.BidSent(bid=unsigned(bid)))

    # Providers.

    def _no_show(self, order: Send) -> list[Send]:
        """It wins with good bids, and never confirms."""
        if isinstance(order.message, messages.LeaseConfirmed):
            self._count("leases that a winner did not confirm")
            return []
        return [order]

    def _sniper(self, order: Send) -> list[Send]:
        """Its bids come in the last moment, when nobody could answer them."""
        if not isinstance(order.message, messages.BidSent):
            return [order]
        bid = order.message.bid.document
        tender = self.market.auditor.tenders[bid.tender]
        skew_ms = self.market.nodes[tender.signer].skew_ms
        wait_ms = tender.bids_close_ms - skew_ms - self.world.now_ms - self.world.faults.delay_ms // 2 - LAST_MOMENT_MS
        self.world.after(wait_ms, self._send_late, order, self.life)
        return []

    def _send_late(self, order: Send, life: int) -> None:
        if self.engine is not None and self.life == life:
            self._count("bids of the last moment")
            super(LyingNode, self).send(order)

    def _two_faced(self, order: Send) -> list[Send]:
        """It offers each device again and again, cheaper each time, and confirms whatever is awarded."""
        if not isinstance(order.message, messages.BidSent):
            return [order]
        price = order.message.bid.document.price_e18_per_device_ms
        told = [order]
        for number in range(1, 4):
            nonce = self.world.random.randbytes(32)
            again = self._bid_again(order, nonce=nonce, price_e18_per_device_ms=price * (9 - number) // 10, max_total=1)
            self._clones.add(digest(DOMAIN, again.message.bid.document))
            told.append(again)
        return told

    def hear(self, event: Any, acknowledge: Any = None) -> None:
        """A lease on a bid that its engine does not know is confirmed all the same."""
        message = getattr(event, "message", None)
        if isinstance(message, messages.AwardSent) and message.award.document.bid in self._clones:
            self._count("leases confirmed on a device that was offered twice")
            confirmed = messages.LeaseConfirmed(lease=digest(DOMAIN, message.award.document))
            super(LyingNode, self).send(self._say(event.sender, confirmed))
        super().hear(event, acknowledge)

    def _copycat(self, order: Send) -> list[Send]:
        """It bids with others' devices, a little cheaper than they do."""
        if not isinstance(order.message, messages.BidSent):
            return [order]
        bid = order.message.bid.document
        others = [other for other in self.market.auditor.bids.values() if other.tender == bid.tender]
        if not others:
            return [order]
        other = self.world.random.choice(others)
        self._count("bids with another's devices")
        return [order, self._bid_again(order, devices=other.devices, price_e18_per_device_ms=1, max_total=1)]

    def _stale(self, order: Send) -> list[Send]:
        """Beside every bid comes an old one, as it was or with the newest tender's name on it."""
        if not isinstance(order.message, messages.BidSent):
            return [order]
        told = [order]
        if self._old_bids:
            old = self.world.random.choice(self._old_bids)
            tender = order.message.bid.document.tender
            self._count("bids brought back")
            told += [replace(old, keep_until_ms=order.keep_until_ms), self._bid_again(old, tender=tender)]
        self._old_bids = [*self._old_bids, order][-MOST_KEPT:]
        return told

    def _withholder(self, order: Send) -> list[Send]:
        """It keeps some of its bids to itself, so that there are fewer."""
        if isinstance(order.message, messages.BidSent) and self.world.chance(0.5):
            self._count("bids kept back")
            return []
        return [order]

    # Buyers.

    def _window_shopper(self, order: Send) -> list[Send]:
        """It has devices held, and neither awards nor lets go."""
        kept = (messages.AwardSent, messages.BidReleased, messages.LeaseCancelled)
        if isinstance(order.message, kept):
            self._count("awards and releases kept back")
            return []
        return [order]

    def _never_start(self, order: Send) -> list[Send]:
        """It awards, and orders no start."""
        if isinstance(order.message, messages.RunOrdered | messages.LeaseCancelled):
            self._count("starts kept back")
            return []
        return [order]

    def _grabber(self, order: Send) -> list[Send]:
        """It tenders for the same thing under several names, so that more devices are held for it."""
        if not isinstance(order.message, messages.TenderSent):
            return [order]
        told = [order]
        for _ in range(4):
            tender = replace(order.message.tender.document, nonce=self.world.random.randbytes(32))
            self._count("tenders that nobody means")
            told.append(replace(order, message=messages.TenderSent(tender=unsigned(tender))))
        return told


PROVIDERS_STRATEGIES = ("no_show", "sniper", "two_faced", "copycat", "stale", "withholder", "phantom", "dear")
BUYERS_STRATEGIES = ("window_shopper", "never_start", "grabber", "hoard", "award_twice")


class StrategicMarket(Market):
    """Dozens of nodes, many of which play; in half of the worlds there is no other trouble, in the rest all of it."""

    PROVIDERS, BUYERS, JOBS = (8, 24), (2, 5), (4, 10)
    LIAR = StrategicNode

    def __init__(self, seed: int, faults: Faults | None = None, *, players: float = 0.5) -> None:
        """Draw it. ``players`` is the share of nodes that play."""
        self.players = players
        if faults is None and seed % 2:
            faults = NONE
        super().__init__(seed, faults)

    def draws_liar(self) -> bool:
        """Whether the next node plays, or lies where the world has liars."""
        return self.world.random.random() < self.players or self.world.chance(self.world.faults.liars)

    def draw_lie(self, *, provides: bool) -> str:
        """What it does."""
        lies = self.world.chance(self.world.faults.liars / 2)
        if provides:
            return self.world.random.choice(PROVIDERS_LIES if lies else PROVIDERS_STRATEGIES)
        return self.world.random.choice(BUYERS_LIES if lies else BUYERS_STRATEGIES)
