"""What a buyer knows of one tender: the state of ``hansa.market.purchase``."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hansa.market.bandwidth import Bandwidth
from hansa.market.gang import Company
from hansa.market.pace import Pace
from hansa.market.pricing import ITSELF
from hansa.market.scoring import Scored
from hansa.market.track_record import Record, Trial
from hansa.proto.documents import ChannelConfig
from hansa.proto.market_documents import Award, Bid, Decline, Tender
from hansa.proto.units import Address, Amount, Bytes32, DurationMs, Line, Uint32, UnixMs
from hansa.proto.workload import Workload

SILENT = "did not confirm in time"
UNHEARD = "its confirmation was due while the buyer was away"
ONLY_BIDS = "bids were asked for, and nothing was to be awarded"
DEAF = "its confirmation was due while nobody at all was heard"
ENDED_BADLY = "ended badly"
TAKEN_BACK = "its devices were taken back in time"
WITHOUT_FAULT = "it was ended early, and not through its provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One shard given to one bid.

    Attributes:
        shard: the shard.
        bid: the bid's digest.
        provider: who made it.
        award: the award that was sent.
        lease: its digest.
        channel: the channel that pays.
        phase: ``awarded``, ``confirmed``, ``failed`` (never became a lease) or ``ended``.
        why: why it was chosen, or why it failed.
        deserted: its provider refused it, and is to blame for that.
    """

    shard: Uint32
    bid: Bytes32
    provider: Address
    award: Award
    lease: Bytes32
    channel: ChannelConfig
    phase: str = "awarded"
    why: str = ""
    deserted: bool = False

    @property
    def is_to_blame(self) -> bool:
        """Whether its provider won and did not come, by its own fault as far as its buyer can see."""
        return self.why == SILENT or self.deserted


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """The state.

    Attributes:
        phase: tendering, awarding, running, settling, settled, unfilled or cancelled.
        tender: the call for bids.
        tender_digest: its digest.
        workload: what the award will buy the running of.
        funds: the most that all of this purchase's leases may cost together.
        max_prepay_ms: how much device time is paid ahead at the most.
        invited: accounts that the tender was sent to.
        payer: whose money leases are paid with; ``ITSELF`` where it is the tender's signer's own.
        channels: the open channel to a provider, where there is one already.
        records: how earlier leases with each provider ended.
        trials: how fast jobs of this kind ran, and on what; forgotten once bidding is closed.
        lines: what was measured of the lines to those invited; forgotten with the trials.
        pace: how the rounds of this kind of job go; None where nothing is known of any.
        company: those of the job's other shards that run.
        bids: by digest.
        declines: by provider.
        ranking: the table as it was when bidding closed.
        opened_ms: when the tender went out.
        closes_ms: until when it pays to wait for more bids, by those that are here; 0 before the first answer.
        away: leases that were awarded when the buyer's own daemon went away: nobody is blamed for what it did not hear.
        placements: every award made, failed ones included.
        most_each: how many shards of the job one provider may have; 0 for any number.
        only_bids: when bidding is closed everybody is let go, and what was bid is shown.
        elsewhere: how many of its other shards each provider had when the tender went out, if that is limited.
        undelivered: who never got the tender, and why not.
        reason: why it ended as it did.
    """

    phase: str = "tendering"
    tender: Tender
    tender_digest: Bytes32
    workload: Workload
    funds: Amount
    max_prepay_ms: DurationMs = 0
    invited: tuple[Address, ...]
    payer: Address = ITSELF
    channels: Mapping[bytes, ChannelConfig] = field(default_factory=dict)
    records: Mapping[bytes, Record] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    lines: tuple[Bandwidth, ...] = ()
    pace: Pace | None = None
    company: Company = field(default_factory=Company)
    bids: Mapping[bytes, Bid] = field(default_factory=dict)
    declines: Mapping[bytes, Decline] = field(default_factory=dict)
    ranking: tuple[Scored, ...] = ()
    opened_ms: UnixMs = 0
    closes_ms: UnixMs = 0
    away: tuple[Bytes32, ...] = ()
    placements: tuple[Placement, ...] = ()
    most_each: Uint32 = 0
    only_bids: bool = False
    elsewhere: Mapping[Address, Uint32] = field(default_factory=dict)
    undelivered: Mapping[Address, Line] = field(default_factory=dict)
    reason: str = ""

    @property
    def live(self) -> tuple[Placement, ...]:
        """Placements that are, or may become, leases."""
        return tuple(placement for placement in self.placements if placement.phase in ("awarded", "confirmed"))

    @property
    def deserters(self) -> frozenset[Address]:
        """Who won and did not confirm, and is to blame for that."""
        return frozenset(entry.provider for entry in self.placements if entry.is_to_blame)

    @property
    def silent(self) -> tuple[Address, ...]:
        """Who was invited and has not answered."""
        answered = {bid.signer for bid in self.bids.values()} | set(self.declines)
        return tuple(account for account in self.invited if account not in answered)
