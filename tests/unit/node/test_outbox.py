"""Every message arrives, in order, once its account is there; and nobody waits for somebody else."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from kit.memory_net import MemoryHub
from kit.memory_party import Party, key, now_ms, party
from kit.older_peer import LeaseRefused as OlderRefusal
from kit.older_peer import OlderPeer

from hansa.market.effects import Send, unsigned
from hansa.node.messaging import outbox as outbox_module
from hansa.node.messaging.outbox import MOST_FAULTS, MOST_REFUSALS, UNREACHED, Outbox
from hansa.node.network.net import Context, Refused
from hansa.proto.codec import decode
from hansa.proto.documents import Payment, Voucher
from hansa.proto.messages import (
    DeliveryAccepted,
    Direct,
    LeaseConfirmed,
    LeaseRefused,
    PaymentAcknowledged,
    ProofSent,
    RunLogSent,
    RunReported,
    VoucherSent,
)
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import MARKET
from hansa.proto.signing import check

pytestmark = pytest.mark.trio
LONG_MS = 3_600_000
Answer = Callable[[Context, Any], Any]


@dataclass
class Receiver:
    """A party that hears the market, and what it heard. ``answer`` may raise."""

    who: Party
    heard: list[Any] = field(default_factory=list)
    answer: Answer = lambda _context, _message: None

    def serve(self) -> None:
        async def take(context: Context, data: bytes) -> bytes:
            message: Any = decode(data, Direct, limit_bytes=1 << 20)
            self.answer(context, message)
            self.heard.append(message)
            return b""

        self.who.net.serve(MARKET, take)

    @property
    def leases(self) -> list[int]:
        return [message.lease[0] for message in self.heard]


@asynccontextmanager
async def receiver(hub: MemoryHub, number: int) -> AsyncIterator[Receiver]:
    async with party(hub, number) as who:
        made = Receiver(who)
        made.serve()
        yield made


@asynccontextmanager
async def sender(hub: MemoryHub, *receivers: Receiver) -> AsyncIterator[Outbox]:
    async with party(hub, 1) as who, trio.open_nursery() as nursery:
        for each in receivers:
            who.knows(each.who)
            who.directory.hint(each.who.account.address, each.who.peer_id)
        made = Outbox(who.net, who.directory, who.account, now_ms, lambda send, why: LOST.append((send, why)))
        LOST.clear()
        await nursery.start(made.serve)
        yield made
        nursery.cancel_scope.cancel()


LOST: list[tuple[Send, str]] = []


def send(to: Receiver, number: int, *, keep_ms: int = LONG_MS, replaces: str = "", step: int | None = None) -> Send:
    lease = bytes([number]) * 32
    message: Any = LeaseConfirmed(lease=lease)
    if step is not None:
        message = RunReported(lease=lease, step=step, metrics=(), started=True)
    account = to.who.account.address
    return Send(to=account, message=message, keep_until_ms=now_ms() + keep_ms, replaces=replaces)


def refuse(why: str, times: int = 10**9, of: Callable[[Any], bool] = lambda _: True) -> Answer:
    left = [times]

    def answer(_context: Context, message: Any) -> None:
        if left[0] > 0 and of(message):
            left[0] -= 1
            raise Refused(why)

    return answer


async def test_messages_arrive_in_the_order_in_which_they_were_given(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub(delay_s=0.01)
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        for number in range(50):
            outbox.put(send(two, number))
        await trio.sleep(10)
        assert two.leases == list(range(50))
        assert outbox.delivered == 50
        assert not outbox.counters, "what went well is no drop"
        assert not outbox._queues, "nothing stays behind"


async def test_a_message_is_said_again_until_it_is_taken_and_the_others_wait_for_it(
    autojump_clock: trio.abc.Clock,
) -> None:
    hub = MemoryHub()
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        two.answer = refuse("busy: too many requests at once", times=12)
        for number in (1, 2, 3):
            outbox.put(send(two, number))
        await trio.sleep(120)
        assert two.leases == [1, 2, 3], "who is only busy is asked for as long as it takes"
        assert outbox.counters["outbox: refused"] == 12


async def test_what_is_refused_again_and_again_is_dropped_and_the_next_goes_on(
    autojump_clock: trio.abc.Clock,
) -> None:
    hub = MemoryHub()
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        two.answer = refuse("no", of=lambda message: message.lease[0] == 1)
        outbox.put(send(two, 1))
        outbox.put(send(two, 2))
        await trio.sleep(60)
        assert two.leases == [2]
        assert outbox.counters["outbox: refused"] == MOST_REFUSALS
        assert outbox.delivered == 1
        assert [(lost.message.lease[0], why) for lost, why in LOST] == [(1, "its node refused to take it: no")]


async def test_what_the_other_side_cannot_take_does_not_stand_before_the_rest_for_ever(
    autojump_clock: trio.abc.Clock,
) -> None:
    hub = MemoryHub()

    def fail(_context: Context, message: Any) -> None:
        if message.lease[0] == 1:
            raise ZeroDivisionError

    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        two.answer = fail
        outbox.put(send(two, 1, keep_ms=7 * 24 * LONG_MS))
        outbox.put(send(two, 2))
        await trio.sleep(120)
        assert two.leases == [2]
        assert outbox.counters["outbox: not taken"] == MOST_FAULTS
        assert [(lost.message.lease[0], why) for lost, why in LOST] == [(1, "its node failed over it")]


async def test_a_message_that_is_out_of_date_is_not_brought(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        hub.link_cut(two.who.peer_id, outbox._market._net.peer_id)
        outbox.put(send(two, 1, keep_ms=5_000))
        outbox.put(send(two, 2, keep_ms=5_000))
        outbox.put(send(two, 3, keep_ms=60_000))
        await trio.sleep(20)
        hub.link_healed(two.who.peer_id, outbox._market._net.peer_id)
        await trio.sleep(20)
        assert two.leases == [3]
        assert outbox.counters["outbox: out of date"] == 2
        assert [(lost.message.lease[0], why) for lost, why in LOST] == [(1, UNREACHED), (2, UNREACHED)]


async def test_a_newer_message_takes_the_place_of_the_one_that_waits(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        hub.link_cut(two.who.peer_id, outbox._market._net.peer_id)
        outbox.put(send(two, 9))
        await trio.sleep(1)
        for step in range(1, 6):
            outbox.put(send(two, 1, step=step, replaces="report"))
            outbox.put(send(two, 2, step=step, replaces="other report"))
            outbox.put(send(two, step))
        hub.link_healed(two.who.peer_id, outbox._market._net.peer_id)
        await trio.sleep(20)
        reports = [message.step for message in two.heard if isinstance(message, RunReported)]
        assert reports == [5, 5], "only the newest of each"
        assert two.leases == [9, 1, 2, 1, 2, 3, 4, 5], "in the place of the one it replaces"


async def test_what_is_on_its_way_is_not_replaced_under_its_feet(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub(delay_s=0.5)
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        outbox.put(send(two, 1, step=1, replaces="report"))
        await trio.sleep(0.1)
        outbox.put(send(two, 1, step=2, replaces="report"))
        outbox.put(send(two, 1, step=3, replaces="report"))
        await trio.sleep(20)
        assert [message.step for message in two.heard] == [1, 3]


async def test_one_that_is_away_delays_nobody_else(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with receiver(hub, 2) as two, receiver(hub, 3) as three, sender(hub, two, three) as outbox:
        hub.link_cut(two.who.peer_id, outbox._market._net.peer_id)
        for number in range(5):
            outbox.put(send(two, number))
            outbox.put(send(three, number))
        nobody = Send(to=key(99).address, message=LeaseConfirmed(lease=bytes(32)), keep_until_ms=now_ms() + LONG_MS)
        outbox.put(nobody)
        await trio.sleep(0.1)
        assert three.leases == [0, 1, 2, 3, 4]
        assert two.leases == []


async def test_who_comes_back_is_brought_what_waits_at_once(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        hub.link_cut(two.who.peer_id, outbox._market._net.peer_id)
        outbox.put(send(two, 1))
        outbox.put(
            Send(
                to=two.who.account.address,
                message=RunLogSent(lease=b"\x02" * 32, text="hello"),
                keep_until_ms=now_ms() + LONG_MS,
            )
        )
        await trio.sleep(60)
        hub.link_healed(two.who.peer_id, outbox._market._net.peer_id)
        outbox.kick(two.who.account.address)
        outbox.kick(key(99).address)
        await trio.sleep(0.01)
        assert sorted(two.leases) == [1, 2]


async def test_documents_that_machines_left_unsigned_are_signed_on_their_way_out(
    autojump_clock: trio.abc.Clock,
) -> None:
    hub = MemoryHub()
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        voucher = Voucher(channel_id=b"c" * 32, cumulative=7, statement=b"s" * 32)
        message = VoucherSent(currency="USD", voucher=unsigned(voucher))
        outbox.put(Send(to=two.who.account.address, message=message, keep_until_ms=now_ms() + LONG_MS))
        await trio.sleep(1)
        (heard,) = two.heard
        check(DOMAIN, heard.voucher, key(1).address)


async def test_what_a_job_prints_delays_nothing_that_matters(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub(delay_s=0.1)
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        for _ in range(200):
            log = RunLogSent(lease=bytes(32), text="chatter")
            outbox.put(Send(to=two.who.account.address, message=log, keep_until_ms=now_ms() + 30_000))
        outbox.put(send(two, 7))
        await trio.sleep(3)
        assert 7 in two.leases


async def test_payments_that_the_other_side_takes_slowly_delay_no_voucher_and_no_stop(
    autojump_clock: trio.abc.Clock,
) -> None:
    hub = MemoryHub(delay_s=0.1)
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        for number in range(1, 200):
            payment = Payment(
                creditor=key(1).address,
                debtor=two.who.account.address,
                unit=bytes(32),
                total=number,
                how="cash",
                nonce=number,
                paid_ms=1,
            )
            message = PaymentAcknowledged(payment=unsigned(payment))
            outbox.put(Send(to=two.who.account.address, message=message, keep_until_ms=now_ms() + 30_000))
        outbox.put(send(two, 7))
        await trio.sleep(3)
        assert any(isinstance(message, LeaseConfirmed) and message.lease[0] == 7 for message in two.heard)


async def test_a_queue_has_an_end_and_gives_up_what_would_be_pointless_soonest(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MOST_WAITING", 5)
    hub = MemoryHub()
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:
        hub.link_cut(two.who.peer_id, outbox._market._net.peer_id)
        for number in range(1, 4):
            outbox.put(send(two, number))
        for number in range(10, 20):
            outbox.put(send(two, number, keep_ms=60_000 + number))
        hub.link_healed(two.who.peer_id, outbox._market._net.peer_id)
        await trio.sleep(30)
        assert two.leases == [1, 2, 3, 18, 19]
        assert outbox.counters["outbox: queue over its limit"] == 8


async def test_an_older_node_is_told_in_its_own_words_and_has_nothing_to_strike_for(
    autojump_clock: trio.abc.Clock,
) -> None:
    hub = MemoryHub()
    async with party(hub, 2) as two, sender(hub, Receiver(two)) as outbox:
        older = OlderPeer(two.net)
        said = (
            LeaseRefused(lease=b"\x01" * 32, kind="mismatch", reason="another workload"),
            ProofSent(proof=b"lies"),
            LeaseConfirmed(lease=b"\x02" * 32),
        )
        for message in said:
            outbox.put(Send(to=two.account.address, message=message, keep_until_ms=now_ms() + LONG_MS))
        await trio.sleep(5)
        refused, confirmed = older.heard
        assert (refused, confirmed) == (OlderRefusal(lease=b"\x01" * 32, reason="another workload"), said[2])
        assert older.strikes_against(outbox._market._net.peer_id) == 0
        assert outbox.counters == {"outbox: an older node knows no ProofSent": 1}
        assert outbox.delivered == 2


async def test_a_message_over_the_receivers_limit_is_dropped(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with receiver(hub, 2) as two, sender(hub, two) as outbox:

        async def never(_context: Context, _data: bytes) -> bytes:
            raise AssertionError("it was cut off before")

        two.who.net.serve(MARKET, never, max_request_bytes=8)
        accepted = DeliveryAccepted(lease=bytes(32))
        outbox.put(Send(to=two.who.account.address, message=accepted, keep_until_ms=now_ms() + LONG_MS))
        await trio.sleep(5)
        assert outbox.counters == {"outbox: message over its limit": 1}
        assert outbox.delivered == 0
