"""How an event finds its machines: from the words of the outside to theirs, and from one machine's effects to another.

``advance`` is pure but for the holder it changes: the same events in the same order give the same state and the same
orders to the world. Buyer's rooms are in ``hansa.node.engine.buying``, the provider's in ``hansa.node.engine.selling``.
"""

from collections.abc import Callable
from typing import Any

from hansa.market.funding import ChannelSettled, FundingFailed, FundsKnown
from hansa.market.ledger import Post
from hansa.node.engine import (
    answering,
    buying,
    buying_turns,
    lines,
    mirroring,
    mutual_credit,
    queueing,
    selling,
    selling_runs,
    selling_turns,
    standings,
    withdrawing,
)
from hansa.node.engine.events import (
    AccountBlocked,
    AccountUnblocked,
    BlobFetched,
    BlobNotFetched,
    CopyFetched,
    CreditDecided,
    DealingsHeard,
    DevicesReturned,
    DevicesUsed,
    DevicesWithdrawn,
    EquivocationProven,
    InventoryChanged,
    JobCancelled,
    JobSubmitted,
    JobToppedUp,
    LineMeasured,
    MessageArrived,
    NettingDue,
    NobodyFits,
    NodeEvent,
    PaymentReceived,
    RoomAppeared,
    RoundNotReduced,
    RoundReduced,
    Started,
    TenderPrepared,
    TenderPriced,
    TenderUndelivered,
    TimeCame,
)
from hansa.node.engine.filing import filed
from hansa.node.engine.state import NodeState
from hansa.scheduler.capacity import with_inventory

Effects = list[Any]
MOST_ROUNDS_OF_TIME = 64
"""A machine whose deadline has come must move on; if all of them do not within so many turns, it is our fault."""


def advance(state: NodeState, event: NodeEvent) -> Effects:
    """Let one event happen. Answers what the world is ordered to do, in order; money is already in the books."""
    if isinstance(event, Started):
        state.before_ms = state.at_ms
    state.at_ms = max(state.at_ms, event.at_ms)
    if isinstance(event, MessageArrived) and event.sender != state.account:
        state.last_heard_ms = event.at_ms
    effects: Effects = []
    # What channels can pay follows from the books as they stand after the event.
    for turn in (_handler(event), mutual_credit.follow):
        for effect in turn(state, event):
            if isinstance(effect, Post):
                state.ledger = state.ledger.post(effect.entry)
            effects.append(effect)
    # The documents go first: whoever says something has it in the ledger by then.
    return [*filed(state, event, effects), *effects]


_HEARD = buying.HEARD | selling.HEARD | mutual_credit.HEARD


def _hear_nothing(state: NodeState, _: MessageArrived) -> Effects:
    state.ignore("node", "a message that no machine listens to")
    return []


def _handler(event: NodeEvent) -> Callable[[NodeState, Any], Effects]:
    match event:
        case MessageArrived(message=message):
            return _HEARD.get(type(message), _hear_nothing)
        case JobSubmitted():
            return buying.submit
        case JobCancelled():
            return buying.cancel
        case JobToppedUp():
            return buying.top_up
        case TenderPrepared():
            return buying.open_tender
        case TenderUndelivered():
            return buying.note_undelivered
        case NobodyFits():
            return queueing.take_nobody
        case RoomAppeared():
            return queueing.take_room
        case TenderPriced():
            return answering.take_price
        case BlobFetched() | BlobNotFetched():
            return buying.take_blob
        case CopyFetched():
            return mirroring.take_copy
        case RoundReduced() | RoundNotReduced():
            return buying.take_reduction
        case LineMeasured():
            return lines.note_transfer
        case InventoryChanged():
            return _take_inventory
        case DevicesWithdrawn():
            return withdrawing.withdraw
        case DevicesReturned():
            return withdrawing.give_back
        case DevicesUsed():
            return selling_runs.take_use
        case DealingsHeard():
            return standings.take_dealings
        case AccountBlocked():
            return standings.block
        case AccountUnblocked():
            return standings.unblock
        case PaymentReceived():
            return mutual_credit.take_payment
        case CreditDecided():
            return mutual_credit.decide_credit
        case NettingDue():
            return mutual_credit.propose_nettings
        case EquivocationProven():
            return mutual_credit.prove
        case FundsKnown() | FundingFailed() | ChannelSettled():
            return _take_funding
        case TimeCame():
            return _pass_time
        case Started():
            return _start
        case _:
            return selling_runs.take_run_news


def _take_inventory(state: NodeState, event: InventoryChanged) -> Effects:
    state.capacity = with_inventory(state.capacity, event.devices, event.topology)
    return []


def _take_funding(state: NodeState, event: FundsKnown | FundingFailed | ChannelSettled) -> Effects:
    """A backend speaks of a channel: whoever pays on it hears it, and whoever earns on it. It may be one node."""
    effects: Effects = []
    if state.paying.get(event.channel_id) is not None:
        effects += buying_turns.advance_channel(state, event.channel_id, event)
    if state.earning.get(event.channel_id) is not None and not isinstance(event, FundingFailed):
        effects += selling_turns.advance_channel(state, event.channel_id, event)
    return effects


def _start(state: NodeState, event: Started) -> Effects:
    """Take the owner's rules, and do again whatever was left undone when the daemon ended."""
    assert state.account in (bytes(20), event.account), "this journal is another account's"
    state.account, state.peer_id, state.terms = event.account, event.peer_id, event.terms
    state.currency, state.netting = event.currency or state.currency, event.netting
    state.capacity, state.payer = with_inventory(state.capacity, event.devices), event.payer
    return [
        *buying.restart(state, event.at_ms),
        *selling.restart(state, event.at_ms),
        *mutual_credit.restart(state, event.at_ms),
    ]


def deadline_ms(state: NodeState) -> int | None:
    """When time alone will change something: the earliest deadline of any machine."""
    times = [*buying.deadlines_ms(state), *selling.deadlines_ms(state)]
    return min(times, default=None)


def _pass_time(state: NodeState, event: TimeCame) -> Effects:
    effects: Effects = []
    for _ in range(MOST_ROUNDS_OF_TIME):
        effects += buying.pass_time(state, event.at_ms)
        effects += selling.pass_time(state, event.at_ms)
        deadline = deadline_ms(state)
        if deadline is None or deadline > event.at_ms:
            return effects
    raise AssertionError("a machine's deadline came and the machine did not move on")
