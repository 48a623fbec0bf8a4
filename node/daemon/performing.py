"""What is done about each effect of the engine: the one list of all its orders, and who carries each out."""

from typing import TYPE_CHECKING, Any

from hansa.market.effects import Send, sealed
from hansa.market.funding import FundingWanted, SettlementWanted
from hansa.market.ledger import Post
from hansa.market.ledger_records import File
from hansa.market.sale_events import PauseWanted, ResumeWanted
from hansa.node.daemon import buyer_tasks, mirror_tasks, provider_tasks, staging
from hansa.node.engine.answering import PriceWanted
from hansa.node.engine.events import MessageArrived
from hansa.node.engine.selling import DeliverRound
from hansa.scheduler.job_events import FetchWanted, TenderWanted
from hansa.scheduler.mirror import FetchCopy
from hansa.scheduler.rounds import ReductionWanted
from hansa.scheduler.run import LeaveRun, StartRun, StopRun

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon


def perform(daemon: "Daemon", effect: Any) -> None:
    """Obey one order of the engine. Nothing here waits: what takes time becomes a task."""
    start = daemon.start
    match effect:
        case Send(to=to, message=message) if to == daemon.account.address:
            # A node that lends and buys may win its own tender; it then talks to itself, through the journal.
            at_ms = daemon.now_ms()
            daemon.tell(MessageArrived(sender=to, message=sealed(message, daemon.account), at_ms=at_ms))
        case Send(to=to, message=message):
            daemon.grants.give(to, message)
            daemon.outbox.put(effect)
            daemon.ledger_keeper.show(effect)
        case Post() | File():
            # They are on disk already (hansa.node.engine.filing): before anything is said of them.
            pass
        case FundingWanted() | SettlementWanted():
            # A channel on the ledger is good for what its provider trusts, and ends in the books alone.
            if daemon.settler is not None:
                daemon.settler.want(effect)
        case TenderWanted():
            start(buyer_tasks.prepare_tender, daemon, effect)
        case FetchWanted():
            start(buyer_tasks.fetch_for_job, daemon, effect)
        case FetchCopy():
            start(mirror_tasks.fetch_copy, daemon, effect)
        case ReductionWanted():
            start(buyer_tasks.reduce, daemon, effect)
        case PriceWanted():
            start(provider_tasks.price_tender, daemon, effect)
        case StartRun():
            start(staging.start_run, daemon, effect)
        case StopRun(run=run, grace_ms=grace_ms):
            start(provider_tasks.stop_run, daemon, run, grace_ms)
        case PauseWanted(lease=lease):
            start(daemon.executor.pause, lease)
        case ResumeWanted(lease=lease):
            start(daemon.executor.resume, lease)
        case LeaveRun():
            start(provider_tasks.leave_run, daemon, effect)
        case DeliverRound():
            start(provider_tasks.deliver_round, daemon, effect)
        case _:
            raise AssertionError(f"nobody performs {type(effect).__name__}")
