"""What a channel can pay, and who has to know: the words between channels and whatever stands behind their money.

Behind a channel stands a deposit in the escrow contract, or on the ledger the provider's own readiness to be owed. A
backend of settlement (``hansa.market.settlement``) says what it knows in events that are journaled like all others, and
hears what is wanted in effects that state a total, so that a repeat changes nothing::

    buyer                                             provider
    FundingWanted -> its backend opens or tops up
    FundsKnown    <- its backend                      FundsKnown    <- its backend, once it cannot be taken back
                                                      the run starts, pauses and goes on within these funds
    SettlementWanted -> its backend                   SettlementWanted -> its backend claims and closes
    ChannelSettled   <- its backend                   ChannelSettled   <- its backend
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hansa.proto.currency import currency_of
from hansa.proto.documents import ChannelConfig
from hansa.proto.splits import Split
from hansa.proto.units import Amount, Bytes32, Line, Note, UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class FundsKnown:
    """A backend says what a channel can pay in all: its final deposit on a chain, what may be owed on the ledger.

    It is said whenever it changes, and for every channel that lives when the daemon starts. It may also fall: a channel
    that somebody closes pays no more than what can still be claimed.

    Attributes:
        channel_id: the channel.
        most: everything that it can ever pay, what it paid already counted in.
        at_ms: when.
    """

    channel_id: Bytes32
    most: Amount
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class FundingFailed:
    """A backend could not do what ``FundingWanted`` asks, and says why; it tries again when it is asked again."""

    channel_id: Bytes32
    reason: Note
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettled:
    """A backend says that a channel has ended for good, and what it paid in all."""

    channel_id: Bytes32
    paid: Amount
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class FundingWanted:
    """Effect of the buyer's side: make the channel good for so much in total; open it if it is not open yet.

    Attributes:
        channel_id: the channel.
        currency: what it pays in, which says on which books.
        config: what the channel is.
        splits: whose hash stands in the config.
        amount: what it should be able to pay in all. More is there already: nothing is to be done.
    """

    channel_id: Bytes32
    currency: Line
    config: ChannelConfig
    splits: tuple[Split, ...]
    amount: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementWanted:
    """Effect of either side: the channel is closed between the two, and its backend should end it at that sum.

    Both signatures follow from the state: the other side's is in it (``EarningChannel.proposed``,
    ``PayingChannel.close_signature``), one's own is made from the same words. It is repeated until ``ChannelSettled``.

    Attributes:
        channel_id: the channel.
        currency: what it pays in, which says on which books.
        config: what the channel is.
        splits: whose hash stands in the config.
        cumulative: the final sum.
        other_signature: the other side's signature over it.
    """

    channel_id: Bytes32
    currency: Line
    config: ChannelConfig
    splits: tuple[Split, ...]
    cumulative: Amount
    other_signature: bytes


START_MS = 30_000
"""A lease that was not ordered to start for so long, or whose money did not come, lapses."""
CHAIN_START_MS = 20 * 60_000
"""The same where money must be final on a chain first: some chains take a quarter of an hour for that."""
LONGEST_WAIT_MS = 2 * 60_000
"""A lease holds its devices unpaid until its start; no award may have that take longer than this."""
CHAIN_LONGEST_WAIT_MS = CHAIN_START_MS + LONGEST_WAIT_MS


def start_ms(currency: str) -> int:
    """How long after its confirmation a lease may be started."""
    return CHAIN_START_MS if currency_of(currency).is_on_chain else START_MS


def longest_wait_ms(currency: str) -> int:
    """How long a provider lets a buyer hold its devices before the start."""
    return CHAIN_LONGEST_WAIT_MS if currency_of(currency).is_on_chain else LONGEST_WAIT_MS


def shares_of_funds(most: int, used: Mapping[bytes, int], live: Mapping[bytes, int]) -> dict[bytes, int]:
    """How far each live lease on a channel may run up, so that all of them together never pass what it can pay.

    Args:
        most: what the channel can pay in all.
        used: what each lease on it ran up so far, those that ended too.
        live: the most that each lease that may still run up something can cost.

    What is left is shared equally; what a lease cannot use is the others'.
    """
    left = max(0, most - sum(used.values()))
    shares: dict[bytes, int] = {}
    for number, lease in enumerate(sorted(live, key=lambda lease: (live[lease] - used.get(lease, 0), lease))):
        had = used.get(lease, 0)
        share = max(0, min(live[lease] - had, left // (len(live) - number)))
        shares[lease] = had + share
        left -= share
    return shares


def deposit_of(currency: str, funds: int | None) -> int | None:
    """What a voucher must not pass: on a chain the deposit as far as anybody saw it, since one above it pays nothing.

    None on the ledger, where a voucher is a promise, and counts beyond a credit line too.
    """
    return limit_of(currency, funds) if currency_of(currency).is_on_chain else None


def limit_of(currency: str, funds: int | None) -> int | None:
    """What a channel can pay in all, as far as anybody said; None where nothing limits it but the parties' own rules.

    Of a ledger's channel nothing need ever be said; on a chain there is nothing as long as nobody has seen it there.
    """
    if funds is None and currency_of(currency).is_on_chain:
        return 0
    return funds
