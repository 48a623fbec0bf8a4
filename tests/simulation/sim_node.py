"""A node of the simulated market: the real engine on a memory journal, and everything around it imitated.

Around it are an outbox that repeats each message until it is in the receiver's journal (and is lost in a crash),
an inbox that becomes batches, a ledger's store that outlives the daemon, and an executor. It may die at any instant:
before a batch is in the journal, after that, or half-way through the effects.
"""

from dataclasses import dataclass, fields
from random import Random
from typing import Any

from simulation.debts import mind_debts
from simulation.executor import ScriptedExecutor
from simulation.parts import part_milli
from simulation.world import World

from hansa.market import sale_events
from hansa.market.effects import Send, domain_of, sealed
from hansa.market.funding import FundingWanted, SettlementWanted
from hansa.market.ledger import Entry, Post, fold
from hansa.market.ledger_records import File, Record
from hansa.market.pricing import ProviderTerms
from hansa.node.daemon.buyer_tasks import unwelcome
from hansa.node.engine import buying, events
from hansa.node.engine.engine import Engine
from hansa.node.engine.filing import records_of
from hansa.node.engine.journal import MemoryJournal
from hansa.node.engine.selling import DeliverRound
from hansa.node.engine.selling_runs import life_signs
from hansa.node.engine.state import snapshot
from hansa.proto.blob import blob_ref
from hansa.proto.codec import decode, encode
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import Device, Tender
from hansa.proto.messages import Direct, TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, SigningKey, check, checksum_address
from hansa.proto.typed_data import digest
from hansa.scheduler import job_events, rounds, run
from hansa.scheduler.mirror import FetchCopy

MESSAGE_BYTES = 1 << 18
LIFE_SIGN_MS = 3_000
FETCH_TRIES = 200


@dataclass(slots=True, kw_only=True)
class Letter:
    """One message in an outbox."""

    number: int
    to: bytes
    body: bytes
    keep_until_ms: int
    replaces: str
    tries: int = 0


class Crashed(Exception):
    """The daemon died."""


class MemoryLedger:
    """The ledger's store as far as the engine can tell: entries by id, and nothing is posted twice."""

    def __init__(self) -> None:
        """Empty books."""
        self.records: dict[bytes, Record] = {}

    @property
    def entries(self) -> dict[bytes, Entry]:
        """The entries among the records."""
        return {key: record for key, record in self.records.items() if isinstance(record, Entry)}

    def post(self, record: Record) -> None:
        """Append what is not there yet."""
        known = self.records.setdefault(record.id, record)
        if isinstance(record, Entry):
            assert known.legs == record.legs, "two entries of one id"


class SimNode:
    """One honest node."""

    honest = True

    def __init__(
        self,
        world: World,
        market: Any,
        *,
        key: SigningKey,
        terms: ProviderTerms | None,
        devices: tuple[Device, ...],
        skew_ms: int,
    ) -> None:
        """A node that has never run."""
        self.world, self.market, self.key, self.account = world, market, key, key.address
        self.terms, self.devices, self.skew_ms = terms, devices, skew_ms
        self.journal, self.ledger = MemoryJournal(), MemoryLedger()
        self.engine: Engine | None = None
        self.executor = ScriptedExecutor(world, self)
        self.life = 0
        self.crashes = 0
        self.strikes = 0
        self.refused_here: list[str] = []
        self._outbox: dict[int, Letter] = {}
        self._inbox: list[tuple[Any, Any]] = []
        self._letters = 0
        self._pumping = False
        self._wake_ms = 0
        self._cut = False

    # Life and death.

    def now_ms(self) -> int:
        """The time on this node's own clock."""
        return self.world.now_ms + self.skew_ms

    def boot(self) -> None:
        """The daemon begins: fold the journal, let the ledger catch up, and say what is outstanding."""
        self.engine = Engine(self.journal)
        self.executor = ScriptedExecutor(self.world, self)
        self.life += 1
        self._pumping, self._wake_ms = False, 0
        for record in records_of(self.engine.recovered, self.key):
            self.ledger.post(record)
        self.market.auditor.check_books(self, fold(self.ledger.entries.values()))
        started = events.Started(
            account=self.account,
            peer_id="p",
            terms=self.terms,
            devices=self.devices,
            at_ms=self.now_ms(),
            currency=self.market.currency,
        )
        self._inbox = [(started, None)]
        self.market.bank.say_all(self)
        self._schedule_pump()
        self.world.after(LIFE_SIGN_MS, self._say_life_signs, self.life)

    def _die(self) -> None:
        engine = self.engine
        assert engine is not None
        self.crashes += 1
        self.executor.dead = True
        self.engine, self._outbox, self._inbox = None, {}, []
        self.life += 1
        # What the journal says must be exactly what the dead daemon knew.
        again = Engine(self.journal)
        assert encode(snapshot(again.state)) == encode(snapshot(engine.state)), "a replay gave another state"
        self.world.after(self.world.random.randint(50, self.world.faults.downtime_ms), self.boot)

    # Events in.

    def hear(self, event: Any, acknowledge: Any = None) -> None:
        """An event for the next batch. ``acknowledge`` is called once it is in the journal."""
        if self.engine is not None:
            self._inbox.append((event, acknowledge))
            self._schedule_pump()

    def _schedule_pump(self) -> None:
        if not self._pumping:
            self._pumping = True
            self.world.after(self.world.random.randint(0, 5), self._pump, self.life)

    def _pump(self, life: int) -> None:
        if self.engine is None or life != self.life:
            return
        self._pumping = False
        inbox, self._inbox = self._inbox, []
        try:
            self._take(inbox)
        except Crashed:
            self._die()

    def _maybe_crash(self, where: str) -> None:
        if self.world.chance(self.world.faults.crash / 3):
            self._crash(where)

    def _crash(self, where: str) -> None:
        self.market.cuts[where] += 1
        raise Crashed

    def _take(self, inbox: list[tuple[Any, Any]]) -> None:
        assert self.engine is not None
        self._maybe_crash("before a batch is in the journal")
        effects = self.engine.take([event for event, _ in inbox])
        self.market.auditor.check_state(self)
        self._maybe_crash("after a batch is in the journal, before anything is done")
        for _, acknowledge in inbox:
            if acknowledge is not None:
                acknowledge()
        for effect in effects:
            if self.world.chance(self.world.faults.crash / 3 / len(effects)):
                self._crash(f"before {_name_of(effect)}")
            self._cut = self.world.chance(self.world.faults.crash / 3 / len(effects))
            self.perform(effect)
            if self._cut:
                self._crash(f"after {_name_of(effect)}")
        if self.world.chance(self.world.faults.snapshot):
            self.engine.write_snapshot_if_due(now=True)
        self._schedule_wake()

    def _schedule_wake(self) -> None:
        assert self.engine is not None
        deadline = self.engine.deadline_ms()
        if deadline is None or (self._wake_ms and self._wake_ms <= deadline):
            return
        self._wake_ms = deadline
        self.world.after(deadline - self.now_ms(), self._wake, self.life, deadline)

    def _wake(self, life: int, deadline: int) -> None:
        if self.engine is None or life != self.life or self._wake_ms != deadline:
            return
        self._wake_ms = 0
        due = self.engine.deadline_ms()
        if due is not None and due <= self.now_ms():
            self.hear(events.TimeCame(at_ms=self.now_ms()))
        else:
            self._schedule_wake()

    def _say_life_signs(self, life: int) -> None:
        if self.engine is None or life != self.life:
            return
        for sign in life_signs(self.engine.state, self.now_ms()):
            self.perform(sign)
        for effect in buying.reminders(self.engine.state, self.now_ms()):
            if isinstance(effect, FundingWanted):
                self.perform(effect)
        mind_debts(self)
        self.world.after(LIFE_SIGN_MS, self._say_life_signs, life)

    # Effects out.

    def is_training(self, lease: bytes) -> bool:
        """Whether the job of a lease has rounds."""
        return self._parameter(lease, "training") == "1"

    def _parameter(self, lease: bytes, name: str) -> str:
        assert self.engine is not None
        sold = self.engine.state.sale_on(lease)
        assert sold is not None
        assert sold.workload is not None
        return next(entry.value for entry in sold.workload.parameters if entry.name == name)

    def perform(self, effect: Any) -> None:
        """Do what the engine ordered."""
        match effect:
            case Send():
                self.send(effect)
            case Post() | File():
                for record in records_of([effect], self.key):
                    self.ledger.post(record)
            case FundingWanted():
                self.market.bank.want(self, effect)
            case SettlementWanted():
                self.market.bank.end(self, effect)
            case job_events.TenderWanted():
                self._later(self._prepare_tender, effect)
            case job_events.FetchWanted():
                self._fetch(effect, 0)
            case FetchCopy():
                self._fetch_copy(effect, 0)
            case rounds.ReductionWanted():
                self._later(self._reduce, effect)
            case DeliverRound():
                self._fetch_round(effect, 0)
            case run.StartRun(run=lease):
                assert self.engine is not None
                sold = self.engine.state.sale_on(lease)
                assert sold is not None
                current = self.engine.state.runs.get(lease)
                assert current is not None
                gone = self.engine.state.capacity.withheld.keys() & set(sold.bid.devices)
                assert not gone or current.phase != run.STAGING, "a run would start on devices that are taken back"
                assert sold.workload is not None
                steps, number = int(self._parameter(lease, "steps")), int(self._parameter(lease, "rounds"))
                self.executor.start(
                    effect,
                    devices=sold.bid.devices,
                    part_milli=part_milli(sold.bid),
                    rounds=number,
                    steps_a_round=steps,
                    keep_failed_ms=sold.workload.keep_failed_ms,
                )
            case run.LeaveRun():
                self.executor.leave(effect)
            case run.StopRun():
                self.executor.stop(effect)
            case sale_events.PauseWanted(lease=lease):
                self.executor.pause(lease)
            case sale_events.ResumeWanted(lease=lease):
                self.executor.resume(lease)
            case _:
                raise AssertionError(f"nobody performs {type(effect).__name__}")

    def _later(self, action: Any, *arguments: Any) -> None:
        life = self.life

        def act() -> None:
            if self.engine is not None and self.life == life:
                action(*arguments)

        self.world.after(self.world.random.randint(10, 400), act)

    def _prepare_tender(self, wanted: job_events.TenderWanted) -> None:
        assert self.engine is not None
        of = self.engine.state.jobs.get(wanted.job)
        assert of is not None
        tender = Tender(
            facts=(),
            lease=of.spec.lease,
            deadline_ms=0,
            signer=self.account,
            peer_id="p",
            job=wanted.job,
            shards=wanted.shards,
            requirements=of.spec.requirements,
            currency=of.spec.currency,
            price_ceiling_e18_per_device_ms=of.spec.price_ceiling_e18_per_device_ms,
            splits=of.spec.splits,
            meter_interval_ms=of.spec.meter_interval_ms,
            bids_close_ms=self.now_ms() + of.spec.bid_window_ms,
            expires_ms=self.now_ms() + 60_000,
            nonce=self.world.random.randbytes(32),
        )
        left_out = unwelcome(self.engine.state, wanted)
        invited = tuple(account for account in self.market.providers() if account not in left_out)
        self.hear(events.TenderPrepared(tender=tender, invited=invited, at_ms=self.now_ms()))

    def _fetch(self, wanted: job_events.FetchWanted, tries: int) -> None:
        if self.world.chance(self.world.faults.fetch_failure) or not self.market.has_blobs(wanted.provider):
            missed = events.BlobNotFetched(job=wanted.job, lease=wanted.lease, blob=wanted.blob, at_ms=self.now_ms())
            self._later(self.hear, missed)
            if tries < FETCH_TRIES:
                self._later(self._fetch, wanted, tries + 1)
            return
        fetched = events.BlobFetched(job=wanted.job, lease=wanted.lease, blob=wanted.blob, at_ms=self.now_ms())
        self._later(self.hear, fetched)

    def _fetch_copy(self, wanted: FetchCopy, tries: int) -> None:
        sources = (wanted.buyer, wanted.holder)
        if self.world.chance(self.world.faults.fetch_failure) or not any(map(self.market.has_blobs, sources)):
            if tries < FETCH_TRIES:
                self._later(self._fetch_copy, wanted, tries + 1)
            return
        copied = events.CopyFetched(lease=wanted.lease, checkpoint=wanted.checkpoint, at_ms=self.now_ms())
        self._later(self.hear, copied)

    def _fetch_round(self, wanted: DeliverRound, tries: int) -> None:
        if self.world.chance(self.world.faults.fetch_failure) or not self.market.has_blobs(wanted.buyer):
            if tries < FETCH_TRIES:
                self._later(self._fetch_round, wanted, tries + 1)
            return
        self._later(self.executor.deliver_round, wanted.lease, wanted.round)

    def _reduce(self, wanted: rounds.ReductionWanted) -> None:
        shards = tuple(entry.shard for entry in wanted.contributions)
        bad = tuple(
            rounds.Rejected(shard=entry.shard, reason="could not be had")
            for entry in wanted.contributions
            if not self.market.has_blobs(entry.provider)
        )
        good = tuple(shard for shard in shards if shard not in {entry.shard for entry in bad})
        if not good or self.world.chance(self.world.faults.reduction_failure):
            event: Any = events.RoundNotReduced(
                job=wanted.job, round=wanted.round, rejected=bad, unsound=False, at_ms=self.now_ms()
            )
        else:
            state = blob_ref(wanted.job + wanted.round.to_bytes(4, "big"))
            event = events.RoundReduced(
                job=wanted.job, round=wanted.round, state=state, accepted=good, rejected=bad, at_ms=self.now_ms()
            )
        self.hear(event)

    # The wire.

    def send(self, order: Send) -> None:
        """Put a message into the outbox and try to bring it."""
        message = sealed(order.message, self.key)
        if self._cut and self.world.chance(0.5):
            self._cut = False
            self._crash(f"between signing and sending {type(message).__name__}")
        self.market.auditor.note_message(self, message)
        self.post(order.to, encode(message), order.keep_until_ms, order.replaces)

    def post(self, to: bytes, body: bytes, keep_until_ms: int, replaces: str = "") -> None:
        """Bytes into the outbox."""
        if replaces:
            for number, letter in list(self._outbox.items()):
                if letter.to == to and letter.replaces == replaces:
                    del self._outbox[number]
        self._letters += 1
        letter = Letter(number=self._letters, to=to, body=body, keep_until_ms=keep_until_ms, replaces=replaces)
        self._outbox[letter.number] = letter
        self._try(letter.number, self.life)

    def letters(self) -> list[Letter]:
        """What waits to be brought."""
        return list(self._outbox.values())

    def _try(self, number: int, life: int) -> None:
        letter = self._outbox.get(number)
        if self.engine is None or life != self.life or letter is None:
            return
        if letter.keep_until_ms < self.now_ms():
            del self._outbox[number]
            # What liars send may be no message at all.
            message = decode(letter.body, Direct, limit_bytes=MESSAGE_BYTES) if self.honest else None
            if isinstance(message, TenderSent):
                called, why = digest(DOMAIN, message.tender.document), "its node could not be reached in time"
                self.hear(events.TenderUndelivered(tender=called, provider=letter.to, why=why, at_ms=self.now_ms()))
            return
        letter.tries += 1
        receiver = self.market.nodes[letter.to]

        def acknowledged() -> None:
            if self.life == life:
                self._outbox.pop(number, None)

        def acknowledge() -> None:
            self.world.carry(letter.to, self.account, acknowledged)

        self.world.carry(self.account, letter.to, receiver.deliver, self.account, letter.body, acknowledge)
        wait_ms = 2 * self.world.faults.delay_ms + min(10_000, 300 << min(letter.tries, 6))
        self.world.after(wait_ms, self._try, number, life)

    def deliver(self, sender: bytes, body: bytes, acknowledge: Any) -> None:
        """A packet: what is no message, or not signed by its sender, earns the sender a strike and no answer."""
        if self.engine is None:
            return
        fault, message = None, None
        try:
            message = _checked(body, sender)
        except ProtocolError as found:
            fault = found
        if fault is not None:
            self.strikes += 1
            assert not self.market.nodes[sender].honest, f"an honest node sent what is no message: {fault}"
            return
        if isinstance(message, TenderSent):
            self.market.auditor.called.add((message.tender.document.job, checksum_address(self.account)))
        self.hear(events.MessageArrived(sender=sender, message=message, at_ms=self.now_ms()), acknowledge)


def _checked(body: bytes, sender: bytes) -> Any:
    message = decode(body, Direct, limit_bytes=MESSAGE_BYTES)
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(value, Signed):
            check(domain_of(message), value, sender)
    return message


def _name_of(effect: Any) -> str:
    """What an effect is called in the count of crashes: a message by its own name."""
    return f"sending {type(effect.message).__name__}" if isinstance(effect, Send) else type(effect).__name__


def derived_key(random: Random) -> SigningKey:
    """A key from the seed."""
    return SigningKey(random.randbytes(32))
