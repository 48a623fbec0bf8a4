"""A chain as far as nodes can tell: wallets, deposits that become final after a while, and channels that close there.

It takes nobody's word: a channel ends only at a sum that both parties signed, and at most at what lies in it.
"""

from collections import Counter
from typing import Any

from simulation.world import World

from hansa.market.funding import ChannelSettled, FundingFailed, FundingWanted, FundsKnown, SettlementWanted
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.documents import CooperativeClose
from hansa.proto.errors import BadSignature
from hansa.proto.signing import Signed, check

CHAIN_CURRENCY = escrow_currency(31_337, b"\xee" * 20, b"\x70" * 20)
REFILL_MS = 30_000


class Bank:
    """All deposits of one world."""

    def __init__(self, world: World, market: Any) -> None:
        """Nothing is there yet."""
        self._world, self._market = world, market
        self.wallets: Counter[bytes] = Counter()
        self.deposits: Counter[bytes] = Counter()
        self.configs: dict[bytes, Any] = {}
        self.paid: dict[bytes, int] = {}
        self._refills: set[bytes] = set()

    def want(self, node: Any, wanted: FundingWanted) -> None:
        """``FundingWanted``: what the wallet has of it is final after a while."""
        if currency_of(wanted.currency).is_on_chain:
            self._world.after(self._world.random.randint(200, 20_000), self._fund, node, wanted)

    def _fund(self, node: Any, wanted: FundingWanted) -> None:
        key = wanted.channel_id
        if key in self.paid:
            return
        self.configs[key] = wanted.config
        lacking = max(0, wanted.amount - self.deposits[key])
        given = min(lacking, self.wallets[node.account])
        self.wallets[node.account] -= given
        self.deposits[key] += given
        if given < lacking:
            self._market.auditor.moves["channels that a wallet could not fund"] += 1
            node.hear(FundingFailed(channel_id=key, reason="the wallet is empty …", at_ms=node.now_ms()))
            if node.account not in self._refills:
                self._refills.add(node.account)
                self._world.after(self._world.random.randint(0, REFILL_MS), self._refill, node.account)
        self._tell(key)

    def _refill(self, account: bytes) -> None:
        self._refills.discard(account)
        self.wallets[account] += self._world.random.choice((10_000, 10**6, 10**12))

    def _tell(self, key: bytes) -> None:
        """Both parties see the deposit, each in its own time."""
        for account in (self.configs[key].payer_signer, self.configs[key].payee_signer):
            self._world.after(self._world.random.randint(0, 2_000), self._say, account, key)

    def _say(self, account: bytes, key: bytes) -> None:
        node = self._market.nodes[account]
        if key in self.paid:
            node.hear(ChannelSettled(channel_id=key, paid=self.paid[key], at_ms=node.now_ms()))
        else:
            node.hear(FundsKnown(channel_id=key, most=self.deposits[key], at_ms=node.now_ms()))

    def say_all(self, node: Any) -> None:
        """A daemon began: its backend says what stands there."""
        for key, config in self.configs.items():
            if node.account in (config.payer_signer, config.payee_signer):
                self._say(node.account, key)

    def end(self, node: Any, wanted: SettlementWanted) -> None:
        """``SettlementWanted``: both signed the sum, and it lies there."""
        if not currency_of(wanted.currency).is_on_chain:
            return
        other = wanted.config.payee_signer if wanted.config.payer_signer == node.account else wanted.config.payer_signer
        close = CooperativeClose(channel_id=wanted.channel_id, cumulative=wanted.cumulative)
        try:
            domain = currency_of(wanted.currency).domain
            check(domain, Signed(document=close, signature=wanted.other_signature), other)
        except BadSignature as fault:
            raise AssertionError("a channel would be closed without the other's signature") from fault
        if wanted.channel_id not in self.configs:
            # Nobody ever put anything into it, and nothing moved.
            self.configs[wanted.channel_id] = wanted.config
        deposit = self.deposits[wanted.channel_id]
        assert wanted.cumulative <= deposit, "a channel would pay more than lies in it"
        if wanted.channel_id not in self.paid:
            self.paid[wanted.channel_id] = wanted.cumulative
            self.wallets[wanted.config.payer] += deposit - wanted.cumulative
        assert self.paid[wanted.channel_id] == wanted.cumulative, "a channel ended at two sums"
        self._tell(wanted.channel_id)
