"""When vouchers are worth a claim, and when a channel is ended without its other side. Rules over what is known.

A claim costs a fee, and a voucher that is not claimed in time is lost: so a provider claims when its buyer asks for the
end of a channel, when much is unclaimed, and at the latest halfway through the challenge period after the first voucher
that was not claimed: in the other half somebody may notice that this machine is off.
"""

from dataclasses import dataclass

from hansa.market.earning_channel import EarningChannel
from hansa.market.paying_channel import PayingChannel
from hansa.market.settlement import CLOSED, CLOSING, OPEN, UNSET, ChannelState
from hansa.node.chain_config import ChainConfig

PATIENCE_MS = 10 * 60_000
"""How long the other side of a channel may take to agree to its end, before it is ended without it."""
SECOND_HAND_MS = 2 * 60_000
"""The payee brings a cooperative close to the chain, as the money is its; the payer only if it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A channel as the chain has it.

    Attributes:
        final: in the last block that cannot be dropped.
        newest: in the newest block.
    """

    final: ChannelState
    newest: ChannelState


def funds_of(standing: Standing, vouched: int) -> int:
    """What a channel can pay in all: never more than what both views of the chain have in it.

    A channel that is closing pays what is vouched for, and nothing more is to be worked on it.
    """

    def pays(state: ChannelState) -> int:
        if state.phase == OPEN:
            return state.deposit
        if state.phase == CLOSING:
            return min(state.deposit, max(state.claimed, vouched))
        return state.settled if state.phase == CLOSED else 0

    return min(pays(standing.final), pays(standing.newest))


def unclaimed(channel: EarningChannel, standing: Standing) -> int:
    """How much more than what was claimed this side has a voucher for, as far as the deposit goes."""
    state = standing.newest
    if state.phase not in (OPEN, CLOSING):
        return 0
    return max(0, min(channel.cumulative, state.deposit) - state.claimed)


def is_worth_claiming(channel: EarningChannel, standing: Standing, config: ChainConfig) -> bool:
    """Whether a claim brings what a fee may cost, and the chain would count it: no voucher may pass the deposit."""
    fits = channel.cumulative <= standing.newest.deposit
    return fits and unclaimed(channel, standing) >= config.claim_at_least


def claim_is_due(
    channel: EarningChannel, standing: Standing, config: ChainConfig, *, since_ms: int, at_ms: int
) -> bool:
    """Whether this channel's voucher should be claimed now; others that are worth it may go along."""
    if not is_worth_claiming(channel, standing, config):
        return False
    if standing.newest.phase == CLOSING or unclaimed(channel, standing) > config.claim_above:
        return True
    return at_ms - since_ms >= channel.config.challenge_period * 1000 // 2


def ends_alone(channel: EarningChannel, standing: Standing, *, since_ms: int, at_ms: int) -> bool:
    """Whether the payee should end a channel by itself: no lease is on it, and its buyer says nothing."""
    if standing.newest.phase not in (OPEN, CLOSING) or channel.live or channel.voucher is None:
        return False
    if standing.newest.phase == CLOSING:
        return True
    return channel.phase == "open" and at_ms - since_ms >= channel.config.challenge_period * 1000 // 2


def wants_refund(channel: PayingChannel, standing: Standing, *, since_ms: int, at_ms: int) -> bool:
    """Whether the payer should ask for a channel's end by itself: it is over here, and the payee does not agree."""
    over = channel.phase == "closing" or (channel.phase == "closed" and not channel.close_signature)
    waited = at_ms - since_ms >= (PATIENCE_MS if channel.phase == "closing" else 0)
    return over and waited and standing.newest.phase == OPEN


def can_finalize(standing: Standing, *, chain_s: int) -> bool:
    """Whether a closing channel's challenge period is over, as the chain counts."""
    return standing.newest.phase == CLOSING and chain_s >= standing.newest.closable_at_s


def is_untouched(standing: Standing) -> bool:
    """Whether the chain has never heard of a channel."""
    return standing.newest.phase == UNSET and standing.final.phase == UNSET
