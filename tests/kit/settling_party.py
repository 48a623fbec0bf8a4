"""One side's settler on a real chain, with a state that the test writes and events that it reads."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from kit.rpc_house import RpcHouse
from kit.settlement_scene import Scene

from hansa.market.earning_channel import EarningChannel
from hansa.market.funding import FundingWanted, FundsKnown
from hansa.market.paying_channel import PayingChannel
from hansa.node.chain.chain_settling import ChainSettler, settler_for
from hansa.node.engine.state import NodeState
from hansa.node.settings.chain_config import ChainConfig
from hansa.node.settings.evm_limits import FeeLimits
from hansa.proto.documents import ChannelConfig
from hansa.proto.signing import SigningKey


class Party:
    """One side."""

    def __init__(
        self, house: RpcHouse, key: SigningKey, url: str = "", payer: bytes | None = None, **limits: int
    ) -> None:
        self.house, self.key = house, key
        self.state = NodeState(account=key.address)
        self.events: list[Any] = []
        self.lines: list[str] = []
        self.ahead_ms = 0
        house.chain.give_coins(key.address, 10**22)
        self.config = config = ChainConfig(
            rpc=(url or house.chain.url,),
            currency=house.currency,
            confirmations=0,
            limits=FeeLimits(most_per_gas=10**12, most_per_day=10**20),
            claim_at_least=limits.get("claim_at_least", 10),
            claim_above=limits.get("claim_above", 1_000_000),
            withdraw_above=limits.get("withdraw_above", 1 << 60),
            poll_ms=30,
        )
        self.settler: ChainSettler = settler_for(
            config,
            house._folder / f"settler-{key.address.hex()}-{time.monotonic_ns()}.sqlite",
            key,
            state=lambda: self.state,
            tell=self.events.append,
            log=self.lines.append,
            now_ms=lambda: time.time_ns() // 1_000_000 + self.ahead_ms,
            payer=payer,
        )

    def earns_on(self, scene: Scene, config: ChannelConfig, vouched: int, **fields: Any) -> None:
        key = scene.id(config)
        voucher = scene.voucher(config, vouched) if vouched else None
        self.state.earning[key] = EarningChannel(
            config=config,
            channel_id=key,
            currency=self.house.currency.name,
            voucher=voucher,
            **{"safe": voucher, **fields},
        )

    def pays_on(self, scene: Scene, config: ChannelConfig, phase: str = "open", **fields: Any) -> None:
        key = scene.id(config)
        self.state.paying[key] = PayingChannel(
            phase=phase, config=config, channel_id=key, currency=self.house.currency.name, **fields
        )

    def funds(self) -> list[int]:
        return [event.most for event in self.events if isinstance(event, FundsKnown)]

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def serving(*parties: Party, mines: bool = True) -> AsyncIterator[None]:
    async def mine() -> None:
        while mines:
            parties[0].house.chain.mine()
            await trio.sleep(0.05)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine)
            for party in parties:
                await nursery.start(party.settler.serve)
            yield
            nursery.cancel_scope.cancel()
    finally:
        # Also after a failure: what is left open would be a fault of whichever test comes next.
        for party in parties:
            party.settler.close()


async def until(holds: Any, what: str) -> None:
    for _ in range(1_000):
        if holds():
            return
        await trio.sleep(0.03)
    raise AssertionError(f"it never held that {what}")


def wanted(scene: Scene, config: ChannelConfig, amount: int) -> FundingWanted:
    name = scene.house.currency.name  # type: ignore[attr-defined]
    return FundingWanted(channel_id=scene.id(config), currency=name, config=config, splits=(), amount=amount)
