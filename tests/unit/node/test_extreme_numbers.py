"""Sound documents with extreme numbers: strangers may sign any number that a field holds, and no engine falls by one.

A market trades; of each message that is said, each number is made as small and as large as its type allows, signed
anew, and brought to the node that the message was for, in the state in which that node heard it. What the market then
goes on to say is brought too, time passes, and each state can be written down and read again.
"""

import dataclasses
import typing
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from kit.small_market import SmallMarket, device
from kit.trading import BUYER, BUYER_KEY, JOB, NOW_MS, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, needs, spec, tender

from hansa.market.effects import Send, domain_of, sealed
from hansa.node.engine import events
from hansa.node.engine.gate import concerns
from hansa.node.engine.journal import _written, _written_whole
from hansa.node.engine.routing import advance, deadline_ms
from hansa.node.engine.state import Snapshot, restored, snapshot
from hansa.node.ledger.head_exchange import UNJOURNALED
from hansa.node.messaging.courier import check_signatures
from hansa.proto import messages
from hansa.proto.blob import blob_ref
from hansa.proto.codec import decode, encode
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import Advert, Clause, Fact
from hansa.proto.messages import Direct
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, SigningKey, sign
from hansa.proto.splits import Split
from hansa.proto.units import TwosComplement, Unsigned
from hansa.scheduler import run
from hansa.scheduler.advert_book import AdvertBook, Taken
from hansa.scheduler.advert_pace import LONGEST_LIFE_MS

MARKS = (0, 1, 1 << 31, 1 << 50, 1 << 53, (1 << 63) - 1, (1 << 64) - 1, (1 << 128) - 1)
KEYS = {key.address: key for key in (BUYER_KEY, PROVIDER_KEY, OTHER_KEY)}
BLOB = blob_ref(b"a state")
MOST_LETTERS = 64
Place = tuple[str | int, ...]


# Which numbers a value has, and what its types allow there.


def largest(hint: Any) -> int | None:
    """The largest number that an annotated type allows; None if it is no number."""
    bare, *rules = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    if bare is not int:
        return None
    for rule in rules:
        if isinstance(rule, Unsigned):
            return (1 << rule.bits) - 1
        assert not isinstance(rule, TwosComplement), "no message has one; its lowest would have to be tried"
    return (1 << 127) - 1


def numbers(value: Any, place: Place = ()) -> Iterator[tuple[Place, int]]:
    """Every number in a message, however deep: where it stands, and the largest that may stand there."""
    if isinstance(value, tuple):
        for index, item in enumerate(value[:1]):
            yield from numbers(item, (*place, index))
    if not dataclasses.is_dataclass(value):
        return
    hints = typing.get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        held, hint = getattr(value, field.name), hints[field.name]
        where = (*place, field.name)
        if (most := largest(hint)) is not None:
            yield where, most
        elif isinstance(held, tuple) and held and type(held[0]) is int:
            (element,) = [each for each in typing.get_args(hint) if each is not Ellipsis][:1]
            yield (*where, 0), largest(element) or (1 << 32) - 1
        else:
            yield from numbers(held, where)


def changed(value: Any, place: Place, number: int) -> Any:
    """The value with another number in a place."""
    if not place:
        return number
    first, rest = place[0], place[1:]
    if isinstance(value, tuple):
        assert type(first) is int
        return (*value[:first], changed(value[first], rest, number), *value[first + 1 :])
    assert isinstance(first, str)
    return replace(value, **{first: changed(getattr(value, first), rest, number)})


def extremes(value: Any) -> Iterator[tuple[str, Any]]:
    """The value with each of its numbers at each mark, and at the largest of its type."""
    for place, most in numbers(value):
        for number in sorted({*(mark for mark in MARKS if mark <= most), most}):
            yield f"{type(value).__name__}.{'.'.join(map(str, place))} = {number}", changed(value, place, number)


def signed_anew(message: Any, key: SigningKey) -> Any:
    """The message with its own documents signed by who brings it."""
    again = {
        field.name: sign(domain_of(message), getattr(message, field.name).document, key)
        for field in dataclasses.fields(message)
        if isinstance(getattr(message, field.name), Signed)
    }
    return replace(message, **again)


# A market at the moment at which something is said.


@dataclasses.dataclass(frozen=True)
class Moment:
    """What everybody knew when a message arrived."""

    known: dict[bytes, Snapshot]
    sender: bytes
    to: bytes
    message: Any
    now_ms: int


class Recorded(SmallMarket):
    """A market that remembers each moment at which it heard a message of a kind for the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: dict[tuple[type, str], Moment] = {}
        self.part = ""

    def tell(self, sender: bytes, to: bytes, message: Any) -> None:
        """Remember it, and let it arrive."""
        key = (type(message), self.part)
        if key not in self.moments:
            known = {account: snapshot(engine.state) for account, engine in self.engines.items()}
            self.moments[key] = Moment(known=known, sender=sender, to=to, message=message, now_ms=self.now_ms)
        super().tell(sender, to, message)


class Play:
    """The market from a moment on."""

    def __init__(self, moment: Moment) -> None:
        self.states = {account: restored(known) for account, known in moment.known.items()}
        self.now_ms = moment.now_ms
        self.letters = deque([(moment.sender, moment.to, moment.message)])
        self.brought, self.touched = 0, {moment.to}

    def happen(self, account: bytes, event: Any) -> None:
        """One event, written down as an engine does, and what follows from it."""
        _written(event)
        self.touched.add(account)
        for effect in advance(self.states[account], event):
            if isinstance(effect, Send) and effect.to in self.states:
                self.letters.append((account, effect.to, sealed(effect.message, KEYS[account])))

    def bring(self) -> None:
        """Everything that is on its way arrives, as at a daemon's door."""
        while self.letters and self.brought < MOST_LETTERS:
            sender, to, message = self.letters.popleft()
            self.brought += 1
            if isinstance(message, UNJOURNALED):
                continue
            try:
                read: Any = decode(encode(message), Direct, limit_bytes=1 << 18)
                check_signatures(read, sender)
            except ProtocolError:
                continue
            if concerns(self.states[to], sender, read):
                self.happen(to, events.MessageArrived(sender=sender, message=read, at_ms=self.now_ms))

    def go_on(self) -> None:
        """All that was said arrives, deadlines come, and each state is one that can be read back."""
        self.bring()
        for _ in range(2):
            due_ms = [at_ms for state in self.states.values() if (at_ms := deadline_ms(state)) is not None]
            if not due_ms or min(due_ms) >= 1 << 62:
                break
            self.now_ms = max(self.now_ms, min(due_ms))
            for account, state in self.states.items():
                if (at_ms := deadline_ms(state)) is not None and at_ms <= self.now_ms:
                    self.happen(account, events.TimeCame(at_ms=self.now_ms))
            self.bring()
        for account in self.touched:
            _written_whole(snapshot(self.states[account]))


def a_market() -> Recorded:
    """Two providers, one of which buys too; both mirror, lend firm leases and want to be paid ahead by strangers."""
    made = Recorded()
    made.add(BUYER_KEY, devices=1)
    for key in (PROVIDER_KEY, OTHER_KEY):
        made.add(
            key,
            devices=1,
            mirror_bytes=1 << 20,
            leases=("firm", "spot"),
            penalty_ms=700,
            prepay_ms=1_000,
            max_splits_bps=10_000,
            facts=(Fact(name="disk", value="1 TiB"), Fact(name="ram", value="64 GiB")),
        )
    return made


SPLITS = (Split(account=b"\x11" * 20, bps=500),)


def a_trade() -> Recorded:
    """A job of two shards with rounds, checkpoints, copies, outputs and receipts, from its tender to its settlement."""
    made = a_market()
    made.submit(BUYER, of=spec(mirror=True, max_prepay_ms=60_000, splits=SPLITS))
    made.tender(BUYER, (PROVIDER, OTHER), shards=(0, 1), splits=SPLITS)
    made.pass_time(2_000, BUYER)
    leases = {shard.provider: shard.lease for shard in made.engines[BUYER].state.jobs.live[JOB].shards}
    assert set(leases) == {PROVIDER, OTHER}
    for account, lease in leases.items():
        made.take(account, run.RunStarted(run=lease, at_ms=made.now_ms))
    for number in (1, 2):
        made.now_ms += 1_500
        for account, lease in leases.items():
            made.take(account, run.RunProgressed(run=lease, step=number, metrics=(("loss", 1.0),), at_ms=made.now_ms))
            stored = run.RunCheckpointed(run=lease, round=0, step=number, checkpoint=BLOB, at_ms=made.now_ms)
            made.take(account, stored)
            made.take(BUYER, events.BlobFetched(job=JOB, lease=lease, blob=BLOB, at_ms=made.now_ms))
            synced = run.RunSynced(run=lease, round=0, weight_ppm=10**6, state=BLOB, at_ms=made.now_ms)
            made.take(account, synced)
        made.part = "later"
    held = events.CopyFetched(lease=leases[OTHER], checkpoint=BLOB, at_ms=made.now_ms)
    made.take(OTHER, held)
    reduced = events.RoundReduced(job=JOB, round=1, state=BLOB, accepted=(), rejected=(), at_ms=made.now_ms)
    made.take(BUYER, reduced)
    for account, lease in leases.items():
        made.take(account, run.RunOutput(run=lease, path="a", blob=BLOB, at_ms=made.now_ms))
        made.take(account, run.RunFinished(run=lease, at_ms=made.now_ms))
        fetched = events.BlobFetched(job=JOB, lease=lease, blob=BLOB, at_ms=made.now_ms)
        made.take(BUYER, fetched)
    return made


def a_failure() -> Recorded:
    """A lease whose run is kept, another whose devices are taken back, a tender that nobody answers, and debts."""
    made = a_market()
    made.submit(BUYER, of=spec(shards=1, keep_failed_ms=60_000, max_prepay_ms=60_000))
    made.tender(BUYER, (PROVIDER,))
    made.pass_time(2_000, BUYER)
    (lease,) = made.engines[PROVIDER].state.sale_of
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    made.now_ms += 1_500
    made.take(PROVIDER, run.RunProgressed(run=lease, step=1, metrics=(), at_ms=made.now_ms))
    made.now_ms += 1_500
    made.take(PROVIDER, run.RunProgressed(run=lease, step=2, metrics=(), at_ms=made.now_ms))
    (devices,) = [sold.bid.devices for _, sold in made.engines[PROVIDER].state.sales.all()]
    withdrawn = events.DevicesWithdrawn(devices=devices, notice_ms=60_000, why="mine", at_ms=made.now_ms)
    made.take(PROVIDER, withdrawn)
    kept = run.RunKept(run=lease, kind="user-exception", reason="no", until_ms=made.now_ms + 30_000, at_ms=made.now_ms)
    made.take(PROVIDER, kept)
    made.take(PROVIDER, events.PaymentReceived(debtor=BUYER, amount=100, how="bank", at_ms=made.now_ms))
    made.tender(BUYER, (OTHER,), nonce=b"u" * 32, requirements=needs(devices=9))
    # What each could owe the other cancels out.
    made.submit(PROVIDER, job=b"k" * 32, of=spec(shards=1, max_prepay_ms=60_000))
    made.tender(PROVIDER, (BUYER,), job=b"k" * 32, nonce=b"k" * 32)
    made.pass_time(2_000, PROVIDER)
    (other,) = made.engines[BUYER].state.sale_of
    made.take(BUYER, run.RunStarted(run=other, at_ms=made.now_ms))
    made.now_ms += 1_500
    made.take(BUYER, run.RunProgressed(run=other, step=1, metrics=(), at_ms=made.now_ms))
    for account in (BUYER, PROVIDER):
        made.take(account, events.NettingDue(at_ms=made.now_ms))
    made.now_ms += 500
    made.take(PROVIDER, run.RunFailed(run=lease, kind="user-exception", reason="no", at_ms=made.now_ms))
    return made


@pytest.fixture(scope="module")
def moments() -> list[Moment]:
    """One of each kind of message, and of most of them more: early and late in a job."""
    found = [moment for made in (a_trade(), a_failure()) for moment in made.moments.values()]
    last = found[-1]
    lease = next(iter(restored(last.known[PROVIDER]).sale_of))
    (channel,) = [key for key, _ in restored(last.known[PROVIDER]).earning.all()][:1]
    spoken = {type(moment.message) for moment in found}
    beside: dict[type, tuple[bytes, bytes, Any]] = {
        messages.MirrorRefused: (
            PROVIDER,
            BUYER,
            messages.MirrorRefused(lease=lease, shard=0, checkpoint=BLOB, reason="full"),
        ),
        messages.ReceiptRefused: (BUYER, PROVIDER, messages.ReceiptRefused(channel_id=channel, seq=1, reason="no")),
    }
    for kind, (sender, to, message) in beside.items():
        if kind not in spoken:
            found.append(replace(last, sender=sender, to=to, message=message))
    # A receipt that is out, and its buyer's word of what it would pay for instead.
    out, earning = next(
        (moment, earning)
        for moment in found
        if isinstance(moment.message, messages.VoucherSent)
        for _, earning in restored(moment.known[moment.to]).earning.all()
        if earning.out is not None and earning.config.payer_signer == moment.sender
    )
    word = messages.ReceiptDisputed(
        channel_id=earning.channel_id, seq=earning.out.receipt.seq, payable=earning.out.lines, reason="clocks"
    )
    found.append(replace(out, message=word))
    return found


def test_the_moments_are_of_every_message_with_a_number_that_an_engine_hears(moments: list[Moment]) -> None:
    heard = {type(moment.message) for moment in moments}
    wanted = set(typing.get_args(Direct)) - set(typing.get_args(UNJOURNALED)) - {messages.RunLogSent}
    without = {kind for kind in wanted - heard if not has_number(kind)}
    assert wanted - heard - without == set()


def has_number(kind: Any) -> bool:
    hints = typing.get_type_hints(kind, include_extras=True).values()
    return any("int" in str(hint) or "Blob" in str(hint) or "Signed" in str(hint) for hint in hints)


def test_no_number_in_a_sound_message_ends_a_node(moments: list[Moment]) -> None:
    tried, faults = 0, []
    for moment in moments:
        for name, message in extremes(moment.message):
            tried += 1
            play = Play(replace(moment, message=signed_anew(message, KEYS[moment.sender])))
            try:
                play.go_on()
            except Exception as fault:  # noqa: BLE001 - all of them are shown at once
                faults.append((name, repr(fault)[:200]))
    assert faults == []
    assert tried > 1_000


@pytest.mark.parametrize("name", ["device_memory_bytes", "memory_bytes", "scratch_bytes"])
@pytest.mark.parametrize("size_bytes", [1 << 50, 1 << 53, (1 << 64) - 1])
def test_what_no_machine_has_gets_no_bid_though_its_provider_says_nothing_of_it(name: str, size_bytes: int) -> None:
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1)
    asked = tender(requirements=needs(**{name: size_bytes}))
    made.tell(BUYER, PROVIDER, messages.TenderSent(tender=sign(DOMAIN, asked, BUYER_KEY)))
    (no,) = made.heard(messages.DeclineSent)
    assert made.heard(messages.BidSent) == []
    assert "1024 TiB" in no.decline.document.reason or name == "device_memory_bytes"


# The book of adverts.


def advert() -> Advert:
    return Advert(
        signer=PROVIDER,
        peer_id="p",
        addresses=(),
        devices=(replace(device(1), facts=()),),
        free=1,
        tier="sandbox",
        features=(),
        region="se",
        facts=(),
        currency="USD",
        price_e18_per_device_ms=10**18,
        sequence=1,
        expires_ms=NOW_MS + LONGEST_LIFE_MS,
    )


WISHES = [
    (wish.requirements, wish.price_ceiling_e18_per_device_ms)
    for _, wish in extremes(replace(tender(), requirements=needs(clauses=(), device_memory_bytes=1)))
]
SOME = needs(clauses=(Clause(name="vram", operator=">=", values=("1 GiB",)),))


def test_no_number_in_an_advert_or_in_what_is_looked_for_breaks_a_search() -> None:
    asked = [*WISHES, (SOME, 2 * 10**18), (replace(SOME, kind="any"), 2 * 10**18)]
    taken = 0
    for name, said in extremes(advert()):
        book = AdvertBook()
        result = book.take(sign(DOMAIN, said, PROVIDER_KEY), NOW_MS)
        taken += result is Taken.NEW
        assert result in (Taken.NEW, Taken.LATE), name
        for wanted, ceiling_e18 in asked if "memory_bytes" in name or "free" in name else asked[-2:]:
            found = book.matching(wanted, "USD", ceiling_e18, now_ms=NOW_MS)
            assert found == tuple(one.signer for one in book.serving(wanted, "USD", ceiling_e18, NOW_MS)), (
                f"{name}: {wanted}"
            )
    assert taken >= 30
