"""A settlement backend with what a test needs around it: money, a clock, and somebody's own way to settle."""

from collections.abc import Sequence
from typing import Protocol

from hansa.market.escrow_model import EscrowModel
from hansa.market.settlement import Backend, ChannelState, Claim, ClaimResult
from hansa.proto.documents import ChannelConfig, Voucher, escrow_domain
from hansa.proto.signing import Signed, SigningKey
from hansa.proto.splits import Split
from hansa.proto.typed_data import Domain

TOKEN = b"\x70" * 20
ESCROW = b"\xe5" * 20
START_S = 1_700_000_000


class House(Protocol):
    """One backend's world.

    Attributes:
        domain: where its documents are signed for.
        token: what stands in channels' configs as their token.
        holds_deposits: whether a deposit is money that somebody holds; on the ledger it is a limit of what may be owed.
    """

    domain: Domain
    token: bytes
    holds_deposits: bool

    async def backend(self, key: SigningKey) -> Backend:
        """A party's own way to settle."""
        ...

    async def fund(self, key: SigningKey, amount: int) -> None:
        """Give a party money that its backend can deposit."""
        ...

    def now_s(self) -> int:
        """The backend's time."""
        ...

    async def pass_time(self, seconds: int) -> None:
        """Turn its clock on."""
        ...

    async def held(self) -> int:
        """How much the backend holds in all: deposits that came in, less what was withdrawn. Zero on the ledger."""
        ...

    async def purse(self, account: bytes) -> int:
        """How much an account has outside of the backend."""
        ...


class ModelHouse:
    """The model itself."""

    def __init__(self) -> None:
        self.domain = escrow_domain(31337, ESCROW)
        self.token = TOKEN
        self.holds_deposits = True
        self.model = EscrowModel(self.domain)
        self.purses: dict[bytes, int] = {}
        self._now_s = START_S

    async def backend(self, key: SigningKey) -> Backend:
        return ModelBackend(self, key.address)

    async def fund(self, key: SigningKey, amount: int) -> None:
        self.purses[key.address] = self.purses.get(key.address, 0) + amount

    def now_s(self) -> int:
        return self._now_s

    async def pass_time(self, seconds: int) -> None:
        self._now_s += seconds

    async def held(self) -> int:
        self.model.assert_conserved()
        return self.model.held(self.token)

    async def purse(self, account: bytes) -> int:
        return self.purses.get(account, 0)


class ModelBackend:
    """The model, as one account's way to settle."""

    def __init__(self, house: ModelHouse, account: bytes) -> None:
        self._house = house
        self._model = house.model
        self.account = account
        self.domain = house.domain

    async def open(self, config: ChannelConfig, splits: Sequence[Split], amount: int) -> bytes:
        id_ = self._model.open(self.account, config, splits, amount, now_s=self._house.now_s())
        self._house.purses[self.account] -= amount
        return id_

    async def top_up(self, config: ChannelConfig, amount: int) -> None:
        self._model.top_up(self.account, config, amount, now_s=self._house.now_s())
        self._house.purses[self.account] -= amount

    async def state(self, channel_id: bytes, *, final: bool = True) -> ChannelState:  # noqa: ARG002  (the protocol's)
        return self._model.state(channel_id)

    async def claim(self, claims: Sequence[Claim]) -> tuple[ClaimResult, ...]:
        return self._model.claim(claims, now_s=self._house.now_s())

    async def settle(self, config: ChannelConfig, splits: Sequence[Split]) -> None:
        self._model.settle(config, splits, now_s=self._house.now_s())

    async def request_close(self, config: ChannelConfig) -> None:
        self._model.request_close(self.account, config, now_s=self._house.now_s())

    async def finalize(self, config: ChannelConfig, splits: Sequence[Split]) -> None:
        self._model.finalize(self.account, config, splits, now_s=self._house.now_s())

    async def payee_close(
        self, config: ChannelConfig, splits: Sequence[Split], voucher: Signed[Voucher] | None
    ) -> None:
        self._model.payee_close(self.account, config, splits, voucher, now_s=self._house.now_s())

    async def cooperative_close(
        self,
        config: ChannelConfig,
        splits: Sequence[Split],
        cumulative: int,
        payer_signature: bytes,
        payee_signature: bytes,
    ) -> None:
        self._model.cooperative_close(
            self.account,
            config,
            splits,
            cumulative,
            payer_signature=payer_signature,
            payee_signature=payee_signature,
            now_s=self._house.now_s(),
        )

    async def credit(self, account: bytes) -> int:
        return self._model.credit(self._house.token, account)

    async def withdraw(self, account: bytes) -> int:
        amount = self._model.withdraw(self._house.token, account, now_s=self._house.now_s())
        self._house.purses[account] = self._house.purses.get(account, 0) + amount
        return amount

    async def events(self, cursor: int):
        for happening in self._model.history[cursor:]:
            yield happening
