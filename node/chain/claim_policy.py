"""When vouchers are worth a claim, and when a channel is ended without its other side. Rules over what is known.

A claim costs a fee, and a voucher that is not claimed in time is lost: so a provider claims when its buyer asks for the
end of a channel, when much is unclaimed, and at the latest halfway through the challenge period after the first voucher
that was not claimed: in the other half somebody may notice that this machine is off.

As long as nobody closes a channel no more is claimed than was earned. What was claimed anybody may have settled, and
below what was settled no agreed end is possible: what was paid ahead would be lost to its buyer.
"""

from dataclasses import dataclass

from hansa.market.earning_channel import EarningChannel
from hansa.market.paying_channel import PayingChannel
from hansa.market.settlement import CLOSED, CLOSING, OPEN, UNSET, ChannelState
from hansa.node.settings.chain_config import ChainConfig
from hansa.proto.documents import Voucher
from hansa.proto.signing import Signed

PATIENCE_MS = 10 * 60_000
"""How long the other side of a channel may take to agree to its end, before it is ended without it."""
SECOND_HAND_MS = 2 * 60_000
"""The payee brings a cooperative close to the chain, as the money is its; the payer only if it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStanding:
    """A channel as the chain has it.

    Attributes:
        final: in the last block that cannot be dropped.
        newest: in the newest block.
    """

    final: ChannelState
    newest: ChannelState


def funds_of(standing: ChannelStanding, vouched: int) -> int:
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


def _for_claims(standing: ChannelStanding) -> ChannelState:
    """The view that claims go by: a node that does not know a channel yet, or hides it, keeps no claim back."""
    return standing.final if standing.newest.phase == UNSET else standing.newest


def is_closing(standing: ChannelStanding) -> bool:
    """Whether either view says that the channel is being closed."""
    return standing.newest.phase != CLOSED and CLOSING in (standing.final.phase, standing.newest.phase)


def safe_voucher(channel: EarningChannel) -> Signed[Voucher] | None:
    """The best voucher for no more than was earned."""
    newest = channel.voucher
    return newest if newest is not None and channel.cumulative <= channel.earned else channel.safe


def best_voucher(channel: EarningChannel, standing: ChannelStanding) -> Signed[Voucher] | None:
    """The best voucher that the chain would count: none may pass the deposit."""
    deposit = _for_claims(standing).deposit
    held = (channel.safe, channel.voucher, channel.waiting)
    fitting = [voucher for voucher in held if voucher is not None and voucher.document.cumulative <= deposit]
    return max(fitting, key=lambda voucher: voucher.document.cumulative, default=None)


def voucher_to_claim(channel: EarningChannel, standing: ChannelStanding) -> Signed[Voucher] | None:
    """The voucher that a claim would bring now; None where the chain would count none."""
    if is_closing(standing):
        return best_voucher(channel, standing)
    safe = safe_voucher(channel)
    fits = safe is not None and safe.document.cumulative <= _for_claims(standing).deposit
    return safe if fits else None


def last_voucher(channel: EarningChannel, standing: ChannelStanding) -> Signed[Voucher] | None:
    """The voucher with which this side ends a channel by itself: no more than was agreed, where an end was."""
    best, safe = best_voucher(channel, standing), safe_voucher(channel)
    if not is_agreed(channel) or best is None:
        return best
    return safe if safe is not None and safe.document.cumulative <= best.document.cumulative else None


def unclaimed(channel: EarningChannel, standing: ChannelStanding) -> int:
    """How much more than what was claimed a claim would bring now."""
    state, voucher = _for_claims(standing), voucher_to_claim(channel, standing)
    if state.phase not in (OPEN, CLOSING) or voucher is None:
        return 0
    return max(0, voucher.document.cumulative - state.claimed)


def uncredited(channel: EarningChannel, standing: ChannelStanding) -> int:
    """What the channel's end would credit, with the last voucher, that nothing has credited so far."""
    state, voucher = standing.newest, last_voucher(channel, standing)
    if state.phase not in (OPEN, CLOSING):
        return 0
    return max(state.claimed, voucher.document.cumulative if voucher else 0) - state.settled


def is_agreed(channel: EarningChannel) -> bool:
    """Whether both sides have signed the sum at which the channel ends."""
    return channel.phase == "closed" and channel.proposed is not None


def is_worth_claiming(channel: EarningChannel, standing: ChannelStanding, config: ChainConfig) -> bool:
    """Whether a claim brings what a fee may cost."""
    return unclaimed(channel, standing) >= config.claim_at_least


def claim_is_due(
    channel: EarningChannel,
    standing: ChannelStanding,
    config: ChainConfig,
    *,
    since_ms: int,
    at_ms: int,
    unsure_ms: int = 0,
) -> bool:
    """Whether this channel's voucher should be claimed now; others that are worth it may go along.

    Args:
        channel: this side's books of it.
        standing: what the chain says.
        config: the owner's settings.
        since_ms: since when something is unclaimed.
        at_ms: the time.
        unsure_ms: for how long the nodes have not agreed on what is final: one may be hiding a close.
    """
    if not is_worth_claiming(channel, standing, config):
        return False
    if is_closing(standing) or unclaimed(channel, standing) > config.claim_above:
        return True
    if min(unsure_ms, at_ms - since_ms) >= PATIENCE_MS:
        return True
    return at_ms - since_ms >= channel.config.challenge_period * 1000 // 2


def ends_alone(channel: EarningChannel, standing: ChannelStanding, *, since_ms: int, at_ms: int) -> bool:
    """Whether the payee should end a channel by itself: no lease is on it, and its buyer says nothing.

    An end that both have signed goes first. It is not possible below what was settled.
    """
    newest, half_ms = standing.newest, channel.config.challenge_period * 1000 // 2
    if newest.phase not in (OPEN, CLOSING) or channel.live or not uncredited(channel, standing):
        return False
    waited_ms = at_ms - since_ms
    if is_agreed(channel) and newest.settled <= channel.earned:
        ends_soon = newest.phase == CLOSING and newest.closable_at_s * 1000 <= at_ms + half_ms
        return ends_soon or waited_ms >= (PATIENCE_MS if newest.phase == CLOSING else half_ms)
    if newest.phase == CLOSING or is_agreed(channel):
        return True
    return channel.phase == "open" and waited_ms >= half_ms


def wants_refund(channel: PayingChannel, standing: ChannelStanding, *, since_ms: int, at_ms: int) -> bool:
    """Whether the payer should ask for a channel's end by itself: it is over here, and does not end there.

    The payee may not agree, or what it agreed to does not go through. Below what was settled it never can: anybody may
    settle what was claimed, so a claim of what was paid ahead is enough for that.
    """
    if channel.phase not in ("closing", "closed") or standing.newest.phase != OPEN:
        return False
    if standing.newest.settled > channel.metered or (channel.phase == "closed" and not channel.close_signature):
        return True
    return at_ms - since_ms >= PATIENCE_MS


def can_finalize(standing: ChannelStanding, *, chain_s: int) -> bool:
    """Whether a closing channel's challenge period is over, as the chain counts."""
    return standing.newest.phase == CLOSING and chain_s >= standing.newest.closable_at_s


def is_untouched(standing: ChannelStanding) -> bool:
    """Whether the chain has never heard of a channel."""
    return standing.newest.phase == UNSET and standing.final.phase == UNSET
