"""What happens to a purchase, and what it tells the job."""

from dataclasses import dataclass

from hansa.market.purchase_state import Placement
from hansa.proto.market_documents import Bid, Decline
from hansa.proto.messages import RefusalKind
from hansa.proto.signing import Signed
from hansa.proto.units import Amount, Bytes32, UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class BidArrived:
    """A bid with its signer's own signature on it."""

    bid: Signed[Bid]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclineArrived:
    """A provider's "no"."""

    decline: Signed[Decline]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmationArrived:
    """The provider confirmed the lease."""

    lease: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalOfLeaseArrived:
    """The provider did not confirm, and says why: of what kind that is, and in words."""

    lease: Bytes32
    kind: RefusalKind
    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnded:
    """Nothing more will run under the lease, and nothing more is owed for it that a receipt could still claim.

    Attributes:
        blameless: it did not end well, and its provider did all that it had promised.
        reclaimed: blameless since its devices were taken back with all the notice that was promised.
    """

    lease: Bytes32
    well: bool
    blameless: bool = False
    reclaimed: bool = False
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """The buyer does not want it any more."""

    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """The buyer's daemon was away until now, and heard nobody."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """The deadline that the machine named has come.

    Attributes:
        last_heard_ms: when anybody at all was heard last; 0 where that is not known.
    """

    at_ms: UnixMs
    last_heard_ms: UnixMs = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Effect to the job: the whole gang is confirmed."""

    tender: Bytes32
    placements: tuple[Placement, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class BidsShown:
    """Effect to the job: the bids are there, and nothing but them was wanted."""

    tender: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfilled:
    """Effect to the job: the gang did not come together, and why.

    Attributes:
        deserted: winners did not confirm. Without them another tender may well be filled.
        missing: how much more the job's budget would have had to be; 0 where money was not the reason.
    """

    tender: Bytes32
    reason: str
    deserted: bool
    missing: Amount = 0
    at_ms: UnixMs
