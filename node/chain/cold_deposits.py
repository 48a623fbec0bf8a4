"""Deposits that another account than the node's own must make: which are wanted, and how they are told of.

With ``[buyer] payer`` a channel's money is that account's, and its key is not on this machine. The daemon cannot open
such a channel: the escrow takes a first deposit from its payer only. It says what is wanted; ``hansa wallet deposit``
has the payer's signer sign it (``hansa.node.chain.cold_wallet``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hansa.market.funding import FundingWanted
from hansa.market.paying_channel import PayingChannel
from hansa.market.settlement import CHALLENGE_PERIOD_S
from hansa.node.engine.state import NodeState
from hansa.proto.currency import currency_of
from hansa.proto.documents import ChannelConfig, channel_id
from hansa.proto.errors import Malformed
from hansa.proto.signing import checksum_address
from hansa.proto.splits import Split, check_splits, splits_hash
from hansa.proto.typed_json import from_json, to_plain
from hansa.proto.units import Amount, Line, format_amount


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedDeposit:
    """A channel that its payer should make good for a total.

    Attributes:
        currency: which chain, escrow and token.
        config: what the channel is.
        splits: whose hash stands in the config.
        amount: what should be in it in all.
    """

    currency: Line
    config: ChannelConfig
    splits: tuple[Split, ...]
    amount: Amount

    @property
    def channel_id(self) -> bytes:
        """The channel's id."""
        return channel_id(currency_of(self.currency).domain, self.config)

    @property
    def order(self) -> FundingWanted:
        """The same as what a node's own deposits are made from."""
        return FundingWanted(
            channel_id=self.channel_id,
            currency=self.currency,
            config=self.config,
            splits=self.splits,
            amount=self.amount,
        )


def is_paid_by_another(config: ChannelConfig, account: bytes) -> bool:
    """Whether a channel's money is another account's than the node's."""
    return config.payer != account


def lacks_deposit(channel: PayingChannel) -> bool:
    """Whether a channel may still have to pay more than what is final in it."""
    return channel.phase == "open" and channel.limit is not None and channel.limit < channel.wanted


def wanted_deposits(state: NodeState) -> list[dict[str, Any]]:
    """What other accounts should pay in, as the local API gives it, with the jobs that it is for."""
    return [
        {
            "deposit": to_plain(
                WantedDeposit(
                    currency=channel.currency, config=channel.config, splits=channel.splits, amount=channel.wanted
                )
            ),
            "jobs": _jobs_of(state, channel),
        }
        for channel in state.paying.live.values()
        if is_paid_by_another(channel.config, state.account) and lacks_deposit(channel)
    ]


def _jobs_of(state: NodeState, channel: PayingChannel) -> list[str]:
    keys = dict.fromkeys(terms.job for terms in channel.terms.values())
    return [known.spec.name for key in keys if (known := state.jobs.get(key)) is not None]


def read_deposit(raw: Mapping[str, Any], *, payer: bytes, signer: bytes, currency: str) -> WantedDeposit:
    """A deposit as a daemon told of it, if it is one that this payer may be asked for.

    Args:
        raw: what the daemon said.
        payer: who is asked.
        signer: the account that signs vouchers for it: the node's.
        currency: the only one that is settled in.

    Raises:
        Malformed: it is something else, or of somebody else.
    """
    wanted = from_json(WantedDeposit, raw)
    parties = (wanted.config.payer, wanted.config.payer_signer, wanted.currency)
    if parties != (payer, signer, currency) or wanted.config.token != currency_of(currency).token:
        raise Malformed("deposit", "is not for a channel of this payer, this node and this currency")
    if wanted.config.challenge_period != CHALLENGE_PERIOD_S:
        # How long a deposit may be kept from its payer once the node is lost: no daemon chooses that.
        raise Malformed("deposit", f"is for a channel whose challenge period is not {CHALLENGE_PERIOD_S} seconds")
    check_splits(wanted.splits)
    if splits_hash(wanted.splits) != wanted.config.splits_hash:
        raise Malformed("deposit.splits", "are not those of the channel")
    if not wanted.amount:
        raise Malformed("deposit.amount", "is nothing")
    return wanted


def remedy(payer: bytes, missing: int, symbol: str) -> str:
    """What the owner has to do, in words."""
    who = checksum_address(payer)
    return f"{format_amount(missing)} {symbol} must come from {who}: run `hansa wallet deposit`"
