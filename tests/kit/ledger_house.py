"""The ledger as a settlement backend: one log of channels, in a file, and a credit line of the payee for the payer."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kit.settlement_house import START_S, House

from hansa.market.settlement import Backend
from hansa.node.ledger.ledger_backend import LedgerBackend, LedgerChannels
from hansa.proto.currency import currency_id, unit_of
from hansa.proto.documents import CreditLine
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey


class LedgerHouse:
    """A ledger that is closed and read again before every backend that is asked for: a restart each time."""

    def __init__(self, path: Path) -> None:
        self.domain = DOMAIN
        self.token = currency_id("USD")
        self.holds_deposits = False
        self._path = path
        self._limit = 0
        self._now_s = START_S
        self.channels = self._opened()

    def _opened(self) -> LedgerChannels:
        return LedgerChannels(self._path, line_of=self._line_of)

    def _line_of(self, creditor: bytes, debtor: bytes) -> CreditLine | None:
        """Everybody trusts everybody as far as somebody was given money."""
        if not self._limit:
            return None
        return CreditLine(
            creditor=creditor,
            debtor=debtor,
            unit=unit_of("USD"),
            limit=self._limit,
            not_after=(self._now_s + 10 * 365 * 86_400) * 1000,
            nonce=1,
        )

    def reopen(self) -> None:
        """The daemon ends and begins again."""
        self.channels.close()
        self.channels = self._opened()

    async def backend(self, key: SigningKey) -> Backend:
        self.reopen()
        return LedgerBackend(_Current(self), key.address, self.now_s)  # type: ignore[arg-type]

    async def fund(self, key: SigningKey, amount: int) -> None:  # noqa: ARG002 (the protocol's)
        self._limit += amount

    def now_s(self) -> int:
        return self._now_s

    async def pass_time(self, seconds: int) -> None:
        self._now_s += seconds

    async def held(self) -> int:
        assert self.channels.books.total() == 0, "the books do not sum to zero"
        return 0

    async def purse(self, account: bytes) -> int:
        return self.channels.books.balance(f"paid:{account.hex()}")


class _Current:
    """Whatever channels the house has open now: a backend outlives a restart of the file."""

    def __init__(self, house: LedgerHouse) -> None:
        self._house = house

    def __getattr__(self, name: str) -> object:
        return getattr(self._house.channels, name)


@asynccontextmanager
async def open_house() -> AsyncIterator[House]:
    """A ledger of its own."""
    with tempfile.TemporaryDirectory() as folder:
        house = LedgerHouse(Path(folder) / "channels.sqlite")
        yield house
        await house.held()
        house.channels.close()
