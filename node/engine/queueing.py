"""Jobs that wait for a provider: what they hear of the market, and the look at the book that tells them.

The book is soft and changes by itself, so nothing of it is journaled but the word that somebody is there. What a job
makes of that word, and how often it asks, is in ``hansa.scheduler.job_queue``.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import trio

from hansa.node.engine.buying_turns import advance_job
from hansa.node.engine.events import NobodyFits, RoomAppeared
from hansa.node.engine.state import NodeState
from hansa.node.messaging.book import Book
from hansa.proto.market_documents import Requirements
from hansa.scheduler import job_events
from hansa.scheduler.fitting import room_for as room_for_shards
from hansa.scheduler.job_queue import looks_until_ms
from hansa.scheduler.job_state import Job

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

LOOK_EVERY_S = 2.0
MOST_LOOKED_AT = 500


def take_room(state: NodeState, event: RoomAppeared) -> list[Any]:
    """Somebody appeared who could take a shard of a job that waits."""
    return advance_job(state, event.job, job_events.RoomSeen(at_ms=event.at_ms))


def take_nobody(state: NodeState, event: NobodyFits) -> list[Any]:
    """A tender was not even sent."""
    of = state.jobs.live.get(event.job)
    waiting = [number for number in event.shards if of is not None and of.shards[number].phase == "waiting"]
    if not waiting:
        state.ignore("job", "nobody for shards that do not wait")
        return []
    failed = job_events.TenderFailed(shards=tuple(waiting), reason=event.reason, deserted=False, at_ms=event.at_ms)
    return advance_job(state, event.job, failed)


def has_asked(of: Job, shards: tuple[int, ...]) -> bool:
    """Whether a tender for these shards came to nothing before: who does not fit has said by then what would help."""
    return any(of.shards[number].tries for number in shards)


@dataclass(frozen=True, slots=True)
class ShardPlaces:
    """For how many shards some providers have devices, and free ones, as their adverts say."""

    owned: int
    free: int


def places(book: Book, accounts: Collection[bytes], needs: Requirements) -> ShardPlaces:
    """How many shards these providers could take between them."""
    least = _least_devices(needs)
    adverts = [known.advert for known in book.standing() if known.advert.signer in accounts]
    rooms = [room_for_shards(advert, needs, least) for advert in adverts]
    return ShardPlaces(owned=sum(owned for owned, _free in rooms), free=sum(free for _owned, free in rooms))


def _least_devices(needs: Requirements) -> int:
    """Of how many devices a shard could do with one set or another."""
    return max(1, min((choice.devices for choice in needs.choices), default=needs.devices))


def queue_view(of: Job) -> dict[str, Any] | None:
    """What a job waits for that found no provider: since when it failed, when it asks again, how long it looks."""
    waiting = [shard for shard in of.shards if shard.phase == "waiting" and shard.tries and not shard.short]
    if not waiting or of.ended_ms:
        return None
    shard = min(waiting, key=lambda one: one.retry_ms)
    return {
        "shards": [one.shard for one in waiting],
        "tries": shard.tries,
        "reason": shard.unfilled,
        "next_ms": shard.retry_ms or None,
        "until_ms": min(looks_until_ms(of, one) for one in waiting),
    }


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen for one job: after which tender, and who had room then."""

    tried_ms: int
    room: frozenset[bytes]


def room_for(book: Book, of: Job) -> frozenset[bytes]:
    """Accounts whose adverts fit a shard of the job and say that enough of their devices are free."""
    spec, needs = of.spec, of.spec.requirements
    least = _least_devices(needs)
    serving = book.serving(needs, spec.currency, spec.price_ceiling_e18_per_device_ms)
    # More than these would not be waited for.
    looked_at = islice(serving, MOST_LOOKED_AT)
    return frozenset(advert.signer for advert in looked_at if room_for_shards(advert, needs, least)[1])


def look(book: Book, state: NodeState, before: Mapping[bytes, Look]) -> tuple[dict[bytes, Look], list[bytes]]:
    """Look at the book for every job that waits. Answers what was seen, and the jobs for which somebody is new.

    Who was asked and bid is not news when it has its devices back: it would bid again, and that was not enough. Who was
    asked and declined is news once its devices are free.
    """
    after: dict[bytes, Look] = {}
    news: list[bytes] = []
    for key, of in state.jobs.live.items():
        waiting = [shard for shard in of.shards if shard.phase == "waiting"]
        seen = before.get(key)
        if not waiting:
            continue
        if not any(shard.retry_ms for shard in waiting):
            if seen is not None:
                after[key] = seen  # A tender is out: who comes meanwhile is compared with what was before it.
            continue
        asked, bidders = _newest_answers(state, key)
        tried_ms = max(shard.tried_ms for shard in waiting)
        room = room_for(book, of) - bidders
        known = seen.room if seen is not None else asked
        if seen is not None and seen.tried_ms != tried_ms:
            known |= asked
        if room - known:
            news.append(key)
        after[key] = Look(tried_ms, room)
    return after, news


def _newest_answers(state: NodeState, job: bytes) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """Whom the job's newest tender was sent to, and who bid on it."""
    ours = (bought for _, bought in state.purchases.all() if bought.tender.job == job)
    newest = max(ours, key=lambda bought: bought.tender.bids_close_ms, default=None)
    if newest is None:
        return frozenset(), frozenset()
    return frozenset(newest.invited), frozenset(bid.signer for bid in newest.bids.values())


async def watch_book(daemon: "Daemon") -> None:
    """Tell jobs that wait of providers that appear, or are free again."""
    seen: dict[bytes, Look] = {}
    while True:
        await trio.sleep(LOOK_EVERY_S)
        seen, news = look(daemon.book, daemon.state, seen)
        for job in news:
            daemon.tell(RoomAppeared(job=job, at_ms=daemon.now_ms()))
