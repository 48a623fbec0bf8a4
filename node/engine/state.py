"""Everything that a daemon must not forget: all of its machines, side by side. One task owns it.

The parts are frozen; only this holder changes, and only in ``hansa.node.engine.routing``. It can be written down whole
and read back (a snapshot), and is otherwise the fold of the journal.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from hansa.market.bandwidth import Bandwidth
from hansa.market.device_time import Charged
from hansa.market.earning_channel import EarningChannel
from hansa.market.holding import Holdings
from hansa.market.ledger import Ledger
from hansa.market.machine import Phased, Step
from hansa.market.mutual import Mutual
from hansa.market.pace import Pace
from hansa.market.paying_channel import PayingChannel
from hansa.market.pricing import ITSELF, ProviderTerms
from hansa.market.purchase_state import Purchase
from hansa.market.reputation import Heard
from hansa.market.sale_state import Sale
from hansa.market.track_record import Record, Trial
from hansa.node.engine.tender_log import Declined
from hansa.proto.units import Address, Bytes32, Line, UnixMs
from hansa.scheduler.capacity import Capacity
from hansa.scheduler.demand import Demand
from hansa.scheduler.job_state import Job
from hansa.scheduler.mirror import Mirror
from hansa.scheduler.rounds import Rounds
from hansa.scheduler.run import Run

M = TypeVar("M")
P = TypeVar("P", bound=Phased)

MOST_TURNS = 1_000
MOST_ENDED = 2_000
"""How many machines of a kind are remembered after their end, so that late news of them is understood."""

TERMINAL = frozenset(
    {
        *("settled", "unfilled", "cancelled", "lapsed", "declined", "stopped", "unpaid"),
        *("closed", "succeeded", "failed", "published", "released"),
    }
)


class Shelf(Generic[M]):
    """Machines of one kind by their key: all that live, and the last of those that ended."""

    def __init__(self, machines: Mapping[bytes, M] | None = None) -> None:
        """Take machines as they were written down."""
        self.live: dict[bytes, M] = {}
        self.ended: dict[bytes, M] = {}
        for key, machine in (machines or {}).items():
            self[key] = machine

    def __setitem__(self, key: bytes, machine: M) -> None:
        """Put a machine's newest state where it belongs."""
        if getattr(machine, "phase") in TERMINAL:  # noqa: B009 - M is any machine; all have a phase
            self.live.pop(key, None)
            self.ended[key] = machine
            while len(self.ended) > MOST_ENDED:
                del self.ended[next(iter(self.ended))]
        else:
            self.ended.pop(key, None)
            self.live[key] = machine

    def get(self, key: bytes) -> M | None:
        """The machine of that key, ended or not."""
        return self.live.get(key) or self.ended.get(key)

    def all(self) -> Iterator[tuple[bytes, M]]:
        """Every machine that is remembered; those that ended come first."""
        yield from self.ended.items()
        yield from self.live.items()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self.live) + len(self.ended)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One machine went from one phase to another: for the log, and for nothing else."""

    machine: str
    key: bytes
    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole state as one value for the codec."""

    account: Address
    peer_id: Line
    terms: ProviderTerms | None
    at_ms: UnixMs
    ledger: Ledger
    capacity: Capacity
    records: Mapping[Address, Record]
    jobs: Mapping[Bytes32, Job]
    rounds: Mapping[Bytes32, Rounds]
    purchases: Mapping[Bytes32, Purchase]
    paying: Mapping[Bytes32, PayingChannel]
    sales: Mapping[Bytes32, Sale]
    runs: Mapping[Bytes32, Run]
    earning: Mapping[Bytes32, EarningChannel]
    ignored: Mapping[str, int]
    mirrors: Mapping[Bytes32, Mirror] = field(default_factory=dict)
    heard: Mapping[Bytes32, Heard] = field(default_factory=dict)
    blocked: Mapping[Address, Line] = field(default_factory=dict)
    currency: Line = ""
    last_heard_ms: UnixMs = 0
    netting: bool = True
    payer: Address = ITSELF
    mutual: Mapping[Address, Mutual] = field(default_factory=dict)
    proven: Mapping[Address, Line] = field(default_factory=dict)
    trials: Mapping[Bytes32, Trial] = field(default_factory=dict)
    lines: Mapping[Address, Bandwidth] = field(default_factory=dict)
    paces: Mapping[Bytes32, Pace] = field(default_factory=dict)
    declined: Mapping[Bytes32, Declined] = field(default_factory=dict)
    holdings: Holdings = field(default_factory=Holdings)
    demand: Demand = field(default_factory=Demand)
    charged: Mapping[Bytes32, tuple[Charged, ...]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class NodeState:
    """The state.

    Attributes:
        account: who this node trades for.
        peer_id: the node's own name on the network.
        terms: the owner's rules as a provider; None where it provides nothing.
        at_ms: the time of the newest event.
        last_heard_ms: when another node was heard last.
        before_ms: what that was when the daemon started: whatever ended with the daemon before lived until then.
        ledger: the books.
        capacity: the devices and who was promised them.
        records: how leases with each provider ended.
        trials: how fast each kind of job ran on which devices, the newest last.
        lines: what was measured of the line to each provider, the newest last.
        paces: how the rounds of each kind of job go, the newest last.
        jobs, rounds: as buyer, by job.
        purchases: as buyer, by tender.
        paying: as buyer, by channel.
        sales: as provider, by bid.
        runs: as provider, by lease: a lease has one run, which may be restarted.
        earning: as provider, by channel.
        mirrors: as provider, by lease: other shards' checkpoints that are kept for its buyer.
        sale_of: which bid a lease came from.
        placed: which tender a lease came from.
        heard: dealings of others, by channel.
        blocked: accounts that the owner wants nothing to do with, and why.
        currency: this node's unit of account, or token; empty before it ever started.
        netting: whether mutual debts may cancel out without a word of the owner.
        payer: whose money pays for jobs on a chain; ``ITSELF`` is this account's own.
        mutual: credit, payments and nettings, by account.
        proven: accounts that are proven to have signed two things that contradict each other, and what.
        declined: as provider, by tender: the newest to which the answer was no.
        holdings: as provider: what was held for buyers that did not use it.
        demand: as provider: what it was asked for, the newest counting most.
        charged: as provider, by device: until when its time is charged.
        ignored: why events were ignored, and how often.
        turns: what changed its phase since the daemon last looked; bounded, and not part of what is written down.
    """

    account: bytes = bytes(20)
    peer_id: str = ""
    terms: ProviderTerms | None = None
    at_ms: int = 0
    last_heard_ms: int = 0
    before_ms: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    capacity: Capacity = field(default_factory=Capacity)
    records: dict[bytes, Record] = field(default_factory=dict)
    trials: dict[bytes, Trial] = field(default_factory=dict)
    lines: dict[bytes, Bandwidth] = field(default_factory=dict)
    paces: dict[bytes, Pace] = field(default_factory=dict)
    jobs: Shelf[Job] = field(default_factory=Shelf)
    rounds: Shelf[Rounds] = field(default_factory=Shelf)
    purchases: Shelf[Purchase] = field(default_factory=Shelf)
    paying: Shelf[PayingChannel] = field(default_factory=Shelf)
    sales: Shelf[Sale] = field(default_factory=Shelf)
    runs: Shelf[Run] = field(default_factory=Shelf)
    earning: Shelf[EarningChannel] = field(default_factory=Shelf)
    mirrors: Shelf[Mirror] = field(default_factory=Shelf)
    sale_of: dict[bytes, bytes] = field(default_factory=dict)
    placed: dict[bytes, bytes] = field(default_factory=dict)
    heard: dict[bytes, Heard] = field(default_factory=dict)
    blocked: dict[bytes, str] = field(default_factory=dict)
    currency: str = ""
    netting: bool = True
    payer: bytes = ITSELF
    mutual: dict[bytes, Mutual] = field(default_factory=dict)
    proven: dict[bytes, str] = field(default_factory=dict)
    declined: dict[bytes, Declined] = field(default_factory=dict)
    holdings: Holdings = field(default_factory=Holdings)
    demand: Demand = field(default_factory=Demand)
    charged: dict[bytes, tuple[Charged, ...]] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    turns: deque[Turn] = field(default_factory=lambda: deque(maxlen=MOST_TURNS))

    def ignore(self, machine: str, reason: str | None) -> None:
        """Count what came to nothing, by machine and reason. Both come from our own code, so the names are few."""
        if reason is not None:
            name = f"{machine}: {reason}"
            self.ignored[name] = self.ignored.get(name, 0) + 1

    def begin(self, name: str, shelf: Shelf[P], key: bytes, machine: P) -> None:
        """Put a new machine on its shelf."""
        shelf[key] = machine
        self.turns.append(Turn(machine=name, key=key, before="new", after=machine.phase, reason=""))

    def turn(
        self, name: str, shelf: Shelf[P], key: bytes, advance: Callable[[P, Any], Step[P]], event: Any
    ) -> tuple[Any, ...]:
        """Let one machine have an event, keep what became of it, count if nothing did. Answers its effects."""
        machine = shelf.get(key)
        if machine is None:
            self.ignore(name, "news of none of ours")
            return ()
        step = advance(machine, event)
        self.ignore(name, step.ignored)
        shelf[key] = step.state
        if machine.phase != step.state.phase:
            reason = str(getattr(step.state, "reason", "") or getattr(step.state, "end_reason", ""))
            turn = Turn(machine=name, key=key, before=machine.phase, after=step.state.phase, reason=reason)
            self.turns.append(turn)
        return step.effects

    def reindex(self) -> None:
        """Make the indexes anew from the shelves, without the leases of machines that were forgotten since."""
        self.sale_of = {sale.lease: bid for bid, sale in self.sales.all() if sale.terms is not None}
        self.placed = {
            placement.lease: tender for tender, purchase in self.purchases.all() for placement in purchase.placements
        }

    def sale_on(self, lease: bytes) -> Sale | None:
        """The provider's side of a lease."""
        return self.sales.get(self.sale_of.get(lease, b""))

    def purchase_on(self, lease: bytes) -> Purchase | None:
        """The buyer's side of a lease."""
        return self.purchases.get(self.placed.get(lease, b""))


SHELVES = ("jobs", "rounds", "purchases", "paying", "sales", "runs", "earning", "mirrors")


def snapshot(state: NodeState) -> Snapshot:
    """The state as one value."""
    shelves: dict[str, Any] = {name: dict(getattr(state, name).all()) for name in SHELVES}
    return Snapshot(
        account=state.account,
        peer_id=state.peer_id,
        terms=state.terms,
        at_ms=state.at_ms,
        ledger=state.ledger,
        capacity=state.capacity,
        records=dict(state.records),
        ignored=dict(state.ignored),
        heard=dict(state.heard),
        blocked=dict(state.blocked),
        currency=state.currency,
        last_heard_ms=state.last_heard_ms,
        netting=state.netting,
        payer=state.payer,
        mutual=dict(state.mutual),
        proven=dict(state.proven),
        trials=dict(state.trials),
        lines=dict(state.lines),
        paces=dict(state.paces),
        declined=dict(state.declined),
        holdings=state.holdings,
        demand=state.demand,
        charged=dict(state.charged),
        **shelves,
    )


def restored(written: Snapshot) -> NodeState:
    """The state that was written down, its indexes made anew."""
    state = NodeState(
        account=written.account,
        peer_id=written.peer_id,
        terms=written.terms,
        at_ms=written.at_ms,
        ledger=written.ledger,
        capacity=written.capacity,
        records=dict(written.records),
        ignored=dict(written.ignored),
        heard=dict(written.heard),
        blocked=dict(written.blocked),
        currency=written.currency,
        last_heard_ms=written.last_heard_ms,
        netting=written.netting,
        payer=written.payer,
        mutual=dict(written.mutual),
        proven=dict(written.proven),
        trials=dict(written.trials),
        lines=dict(written.lines),
        paces=dict(written.paces),
        declined=dict(written.declined),
        holdings=written.holdings,
        demand=written.demand,
        charged=dict(written.charged),
    )
    for name in SHELVES:
        setattr(state, name, Shelf(getattr(written, name)))
    state.reindex()
    return state
