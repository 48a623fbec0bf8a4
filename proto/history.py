"""What one node shows another of its dealings: the newest words that both sides of a channel signed.

Whoever gets it checks the signatures and needs to believe nobody. ``hansa.market.reputation`` makes a figure of it.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from hansa.proto.documents import ChannelConfig, Receipt, Voucher
from hansa.proto.signing import Signed
from hansa.proto.units import Address, AtMost, Line

MAX_DEALINGS: Final = 256
"""In one answer: the most valuable ones."""
MAX_HISTORY_BYTES: Final = 512 << 10
HISTORY: Final = "/hansa/history/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealing:
    """One channel, as both sides signed it.

    Attributes:
        currency: what it pays in.
        config: what the channel is; its digest is its id.
        receipt: the newest receipt that was vouched for, signed by the payee's signer; None where none was.
        voucher: the voucher that names it, signed by the payer's signer; None where there is none.
        unpaid: the receipt after it, where there is one that was not vouched for, signed by the payee's signer.
    """

    currency: Line
    config: ChannelConfig
    receipt: Signed[Receipt] | None
    voucher: Signed[Voucher] | None
    unpaid: Signed[Receipt] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRequested:
    """To any node: what have you had with this account? To the account's own node: what have you had with anybody?"""

    account: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySent:
    """The answer: the most valuable dealings first."""

    dealings: Annotated[tuple[Dealing, ...], AtMost(MAX_DEALINGS)]
