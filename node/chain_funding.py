"""A node's deposits: a channel is made good for a total, by being opened or by what is missing in it."""

from collections.abc import Callable

import trio

from hansa.market.funding import FundingWanted
from hansa.market.settlement import CLOSED, CLOSING, UNSET, Refused
from hansa.node.chain_errands import Errands
from hansa.node.evm_backend import EvmBackend
from hansa.node.state import NodeState
from hansa.proto.signing import checksum_address
from hansa.proto.units import format_amount


class Funder:
    """Pays into one node's channels."""

    def __init__(
        self, backend: EvmBackend, errands: Errands, *, state: Callable[[], NodeState], log: Callable[[str], None]
    ) -> None:
        """Nothing is paid in yet."""
        self._backend = backend
        self._errands = errands
        self._state = state
        self._log = log
        self._one_at_a_time = trio.Lock()

    async def fund(self, wanted: FundingWanted) -> None:
        """Make a channel good for a total: open it, or add what is missing. One after the other."""
        async with self._one_at_a_time:
            channel = self._state().paying.get(wanted.channel_id)
            if channel is None or channel.phase not in ("opening", "open"):
                # It ended while others were paid into: a deposit would lie there for nothing.
                self._errands.counters["chain: deposits that were not wanted any more"] += 1
                return
            await self._pay_in(wanted)

    async def _pay_in(self, wanted: FundingWanted) -> None:
        state = await self._backend.state(wanted.channel_id, final=False)
        if state.phase in (CLOSING, CLOSED):
            raise Refused("the channel is being closed")
        # One reading decides how much and from where: a node that lags cannot have it paid in twice.
        before = await self._backend.deposit(wanted.channel_id)
        missing = wanted.amount - before
        if missing <= 0:
            return
        has = await self._backend.tokens(self._backend.account)
        if has < missing:
            words = (
                f"a deposit needs {format_amount(missing)} {self._backend.symbol}, and there are {format_amount(has)}"
            )
            raise Refused(f"{words}: send some to {checksum_address(self._backend.account)}")
        if state.phase == UNSET:
            await self._backend.open(wanted.config, wanted.splits, wanted.amount)
            self._log(f"chain: opened a channel with {format_amount(wanted.amount)} {self._backend.symbol}")
        else:
            await self._backend.top_up(wanted.config, missing, before=before)
            self._log(f"chain: added {format_amount(missing)} {self._backend.symbol} to a channel")
        self._errands.counters["chain: deposits"] += 1
