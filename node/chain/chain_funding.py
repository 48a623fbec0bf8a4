"""A node's deposits: a channel is made good for a total, by being opened or by what is missing in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from hansa.market.funding import FundingWanted
from hansa.market.settlement import CLOSED, CLOSING, UNSET, Refused
from hansa.node.chain.chain_errands import Errands
from hansa.node.chain.evm_backend import EvmBackend
from hansa.node.engine.state import NodeState
from hansa.proto.signing import checksum_address
from hansa.proto.units import format_amount

MOST_PAYMENTS: Final = 4
"""An opening and a top-up that were begun before, and the rest; then one more look. More would be no end of paying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidIn:
    """What was done for a channel.

    Attributes:
        amount: what was paid in by it. Not always what was missing: a deposit that was begun before keeps its sum.
        words: the same for people; empty where nothing was missing.
    """

    amount: int
    words: str


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
            done = await pay_in(self._backend, wanted)
            if done.words:
                self._log(f"chain: {done.words}")
                self._errands.counters["chain: deposits"] += 1


async def pay_in(backend: EvmBackend, wanted: FundingWanted) -> PaidIn:
    """Make a channel good for a total out of the backend's own account, and never for more.

    What was begun in an earlier life has the sum that was missing then. It is done first, for that sum; what is still
    missing after it is paid in by itself.

    Raises:
        Refused: it is another account's to pay in, the channel is ending, or the account has too little.
        RpcFault: the chain cannot be asked.
    """
    if wanted.config.payer != backend.account:
        # Anybody may top up a channel. What comes back of it would be its payer's, and not this account's.
        raise Refused("the channel is another account's to pay in")
    total, said = 0, list[str]()
    for _ in range(MOST_PAYMENTS):
        state = await backend.state(wanted.channel_id, final=False)
        if state.phase in (CLOSING, CLOSED):
            raise Refused("the channel is being closed")
        # One reading decides how much and from where: a node that lags cannot have it paid in twice.
        before = await backend.deposit(wanted.channel_id)
        missing = wanted.amount - before
        if missing <= 0:
            return PaidIn(amount=total, words=" and ".join(said))
        has = await backend.tokens(backend.account)
        if has < missing:
            words = f"a deposit needs {format_amount(missing)} {backend.symbol}, and there are {format_amount(has)}"
            raise Refused(f"{words}: send some to {checksum_address(backend.account)}")
        if state.phase == UNSET and not said:
            paid = await backend.pay_in_first(wanted.config, wanted.splits, wanted.amount)
            said.append(f"opened a channel with {format_amount(paid)} {backend.symbol}")
        else:
            paid = await backend.pay_in_more(wanted.config, missing, before=before)
            said.append(f"added {format_amount(paid)} {backend.symbol} to a channel")
        total += paid
    raise Refused("the chain does not show what was paid in")
