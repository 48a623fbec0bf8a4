"""Vouchers on their way to the chain: which are worth a claim now, and each claimed once at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hansa.market.earning_channel import EarningChannel
from hansa.market.settlement import OPEN, Claim, Refused
from hansa.node.chain.chain_errands import Errands, FirstSeen
from hansa.node.chain.claim_policy import (
    PATIENCE_MS,
    ChannelStanding,
    claim_is_due,
    is_agreed,
    is_closing,
    is_worth_claiming,
    unclaimed,
    voucher_to_claim,
)
from hansa.node.chain.evm_backend import EvmBackend
from hansa.node.settings.chain_config import ChainConfig
from hansa.proto.units import format_amount

NEVER_MS: Final = 1 << 62


@dataclass(slots=True)
class Claims:
    """What one look finds worth a claim.

    Attributes:
        urgent: on channels that are being closed.
        urgent_ms: since when there is one; the end of time where there is none.
        others: on channels that are open.
        is_due: whether one of those should be claimed now; the others then go along.
    """

    urgent: list[tuple[bytes, Claim]] = field(default_factory=list)
    urgent_ms: int = NEVER_MS
    others: list[tuple[bytes, Claim]] = field(default_factory=list)
    is_due: bool = False

    def take_urgent(self) -> list[tuple[bytes, Claim]]:
        """What must not wait for the rest of the look. It is not found again."""
        taken, self.urgent, self.urgent_ms = self.urgent, [], NEVER_MS
        return taken

    def take(self) -> list[tuple[bytes, Claim]]:
        """Everything that should be claimed at the end of a look."""
        urgent = self.take_urgent()
        return [*urgent, *self.others] if urgent or self.is_due else []


class Claimer:
    """Claims for one node.

    Attributes:
        under_way: since when a channel's voucher is being claimed, by the channel's id.
    """

    def __init__(
        self,
        config: ChainConfig,
        *,
        backend: EvmBackend,
        errands: Errands,
        first_seen: FirstSeen,
        log: Callable[[str], None],
        now_ms: Callable[[], int],
    ) -> None:
        """Nothing is claimed yet."""
        self.under_way: dict[bytes, int] = {}
        self._config = config
        self._backend = backend
        self._errands = errands
        self._first_seen = first_seen
        self._log = log
        self._now_ms = now_ms

    def find(
        self, key: bytes, channel: EarningChannel, standing: ChannelStanding, found: Claims, unsure_ms: int
    ) -> None:
        """Add what one channel has to be claimed, if it is worth a claim.

        Args:
            key: the channel's id.
            channel: what is known of it here.
            standing: what the chain has of it.
            found: what this look has found.
            unsure_ms: for how long it has not been known what is final.
        """
        voucher, at_ms = voucher_to_claim(channel, standing), self._now_ms()
        if voucher is None or not unclaimed(channel, standing):
            return
        since_ms = self._first_seen.since_ms(f"unclaimed since {key.hex()} {standing.newest.claimed}")
        if is_agreed(channel) and standing.newest.phase == OPEN:
            return  # both have signed its end: the close pays all of it, and is under way
        if not is_worth_claiming(channel, standing, self._config):
            return
        claim = Claim(config=channel.config, voucher=voucher)
        if is_closing(standing):
            found.urgent_ms = min(found.urgent_ms, at_ms)
            found.urgent.append((key, claim))
            return
        found.others.append((key, claim))
        found.is_due |= claim_is_due(
            channel, standing, self._config, since_ms=since_ms, at_ms=at_ms, unsure_ms=unsure_ms
        )

    def begin(self, found: Sequence[tuple[bytes, Claim]]) -> None:
        """Claim what is not being claimed already. One that does not come back for long keeps no later one back."""
        at_ms = self._now_ms()
        fresh = {
            key: claim for key, claim in found if at_ms - self.under_way.get(key, at_ms - PATIENCE_MS) >= PATIENCE_MS
        }
        if fresh and self._errands.begin_beside("claim", self._claim, fresh, at_ms):
            self.under_way.update(dict.fromkeys(fresh, at_ms))

    async def _claim(self, claims: dict[bytes, Claim], begun_ms: int) -> None:
        try:
            results = await self._backend.claim(list(claims.values()))
        finally:
            for key in claims:
                if self.under_way.get(key) == begun_ms:
                    del self.under_way[key]
        paid = sum(result.paid for result in results)
        self._errands.counters["chain: vouchers claimed"] += sum(not result.fault for result in results)
        self._log(f"chain: claimed {format_amount(paid)} {self._backend.symbol} on {len(claims)} channels")
        faults = [result.fault for result in results if result.fault]
        if faults:
            raise Refused(f"{len(faults)} of {len(results)} vouchers were not counted: {faults[0]}")
