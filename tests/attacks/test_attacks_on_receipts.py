"""Attacks on receipts, vouchers and the time behind them, and floods: each test has its attack's name."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from kit.memory_net import MemoryHub
from kit.memory_party import hello_of, key, now_ms, party
from kit.trading import (
    CHANNEL,
    CHANNEL_ID,
    LEASE,
    NOW_MS,
    award,
    bid,
    evidence,
    line,
    statement,
    tender,
    terms,
    workload,
)

from hansa.market import sale
from hansa.market.receipts import AHEAD_OF_TIME, CLOCK_SKEW_MS, Statement, fault_in, root_of
from hansa.market.sale_events import (
    AwardArrived,
    PauseWanted,
    ProgressMade,
    RunBegan,
    RunUnwanted,
    StartOrdered,
    TimePassed,
)
from hansa.market.sale_state import Sale
from hansa.node.engine.gate import DEBT_EVERY_MS, DEBTS_AT_ONCE, HELLOS_AT_ONCE, SIGNATURES_AT_ONCE
from hansa.node.messaging.courier import Courier
from hansa.node.messaging.directory import Stranger
from hansa.node.network.net import Refused
from hansa.proto import messages, signing
from hansa.proto.codec import encode
from hansa.proto.documents import CreditLine, Voucher
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import HELLO, MARKET
from hansa.proto.signing import sign
from hansa.proto.typed_data import digest

FIRST = statement((line(1_000), evidence(1)))


def fault(of: Statement, last: Statement | None = None, now: int = NOW_MS + 60_000) -> str | None:
    return fault_in(of, last=last, terms={LEASE: terms()}, now_ms=now)


def claimed(last: Statement | None = FIRST, steps: int = 2, **changes) -> Statement:
    """A receipt that commits to a line with these changes, sound in everything else."""
    changed = replace(line(2_000), **changes)
    made = statement((changed, evidence(steps)), last=last)
    receipt = replace(
        made.receipt,
        lines_root=root_of((changed,)),
        amount_total=changed.amount,
        period_end_ms=max(made.receipt.period_end_ms, changed.end_ms),
    )
    return replace(made, receipt=receipt)


def test_an_honest_receipt_is_paid():
    assert fault(FIRST) is None
    assert fault(claimed(), FIRST) is None


@pytest.mark.parametrize("device_ms", [2_001, 4_000, (1 << 128) - 1])
def test_inflated_device_ms(device_ms):
    amount = min(device_ms, 600_001)
    found = fault(claimed(device_ms=device_ms, amount=amount), FIRST)
    assert found == "a line counts more device time than has passed"


@pytest.mark.parametrize("shift_ms", [-CLOCK_SKEW_MS - 1, -1_000_000])
def test_moved_periods_before_the_lease(shift_ms):
    moved = claimed(last=None, steps=1, start_ms=NOW_MS + shift_ms, end_ms=NOW_MS + 2_000)
    assert fault(moved) == "a line is outside the lease's time"


def test_moved_periods_of_a_line_that_was_paid():
    for changes in ({"start_ms": NOW_MS - 10_000}, {"start_ms": NOW_MS + 500}, {"end_ms": NOW_MS + 999}):
        assert fault(claimed(**changes), FIRST) is not None
    moved = statement((line(2_000), evidence(2)), last=FIRST, period_start_ms=NOW_MS)
    assert fault(moved, FIRST) == "the period does not begin where the last one ended"


def test_clock_skew():
    """Half a minute between two honest clocks costs nothing; a period in the future is not paid."""
    before = {LEASE: terms(begins_ms=NOW_MS - CLOCK_SKEW_MS)}
    ahead = statement((line(1_000), evidence(1)))
    assert fault_in(ahead, last=None, terms=before, now_ms=NOW_MS + 1_000 - 29_000) is None
    assert "in the future" in str(fault(ahead, now=NOW_MS + 999 - CLOCK_SKEW_MS))


def test_clock_skew_that_is_charged_for():
    """A line may begin half a minute before the start and end half a minute from now: a minute that never passed."""
    start_ms, end_ms, now = NOW_MS - CLOCK_SKEW_MS, NOW_MS + 10_000 + CLOCK_SKEW_MS, NOW_MS + 10_000
    for device_ms, why in ((70_000, AHEAD_OF_TIME), (13_000, AHEAD_OF_TIME), (10_000, None)):
        made = statement((line(device_ms, start_ms=start_ms, at_ms=end_ms), evidence(1)))
        assert fault(made, now=now) == why


def test_work_without_evidence_earns_nothing():
    assert fault(claimed(steps=1), FIRST) == "device time is charged without evidence of progress"


def test_two_vouchers_for_one_seq_and_a_forked_receipt_chain():
    """Of two receipts of one number only the first is ever vouched for; the fork follows nothing."""
    fork = statement((line(1_500), evidence(2)))
    assert fault(fork, FIRST) == "the receipt does not follow the last one that was vouched for"
    assert fault(statement((line(2_000), evidence(2)), last=fork), FIRST) is not None


# A buyer that never vouches.

TENDER = tender()
BID = bid(TENDER).document
START = Sale(tender=TENDER, bid=BID, bid_digest=digest(DOMAIN, BID), grace_ms=10_000)
BEGAN_MS = NOW_MS + 10_000


def running() -> Sale:
    state = START
    for event in (
        AwardArrived(award=award(BID), channel=CHANNEL, workload=workload(), at_ms=NOW_MS + 3_000),
        StartOrdered(round=0, checkpoint=None, at_ms=NOW_MS + 9_000),
        RunBegan(at_ms=BEGAN_MS),
    ):
        state = sale.advance(state, event).state
    assert state.phase == "running"
    return state


def test_a_buyer_that_never_vouches():
    """The run is paused at ``max_unpaid`` and stopped after the grace; nothing more runs up."""
    state, at_ms, paused = running(), BEGAN_MS, False
    for number in range(1, 100):
        at_ms += 500
        step = ProgressMade(running_ms=at_ms - BEGAN_MS, steps=number, rounds=0, checkpoint=bytes(32), at_ms=at_ms)
        for event in (step, TimePassed(at_ms=at_ms)):
            taken = sale.advance(state, event)
            state, paused = taken.state, paused or any(isinstance(each, PauseWanted) for each in taken.effects)
        if paused:
            break
    assert paused, "nothing stops it"
    assert 0 < state.accrued - state.vouched <= BID.max_unpaid + 500 + 1
    after = sale.advance(state, TimePassed(at_ms=at_ms + START.grace_ms + 1))
    assert any(isinstance(effect, RunUnwanted) for effect in after.effects)


# Signature floods.


@asynccontextmanager
async def door(matters):
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as flooder:
        flooder.knows(one)

        async def take(_event):
            await trio.lowlevel.checkpoint()

        Courier(one.net, one.directory, take=take, log=lambda *_: None, now_ms=now_ms, matters=matters).serve()
        yield one, flooder


def voucher(number: int, signer) -> bytes:
    said = Voucher(channel_id=CHANNEL_ID, cumulative=number, statement=bytes(32))
    return encode(messages.VoucherSent(currency="USD", voucher=sign(DOMAIN, said, signer)))


@pytest.fixture
def recovered(monkeypatch):
    """Counts how often a signer is really recovered."""
    counted = []
    real = signing.coincurve.PublicKey.from_signature_and_message
    monkeypatch.setattr(
        signing.coincurve.PublicKey,
        "from_signature_and_message",
        lambda *arguments, **more: counted.append(1) or real(*arguments, **more),
    )
    return counted


@pytest.mark.trio
async def test_signature_floods_are_limited_for_each_peer(recovered, autojump_clock):
    async with door(lambda _sender, _message: True) as (one, flooder):
        await flooder.net.request(one.peer_id, MARKET, voucher(0, flooder.account), max_response_bytes=1)
        before, refused = len(recovered), 0
        for number in range(SIGNATURES_AT_ONCE + 100):
            try:
                data = voucher(number, flooder.account)
                await flooder.net.request(one.peer_id, MARKET, data, max_response_bytes=1)
            except Refused as fault:
                refused += fault.why.startswith("busy")  # an honest peer tries again
        assert len(recovered) - before <= SIGNATURES_AT_ONCE
        assert refused >= 100
        await trio.sleep(1)
        assert await flooder.net.request(one.peer_id, MARKET, voucher(1, flooder.account), max_response_bytes=1) == b""


@pytest.mark.trio
async def test_a_flood_of_credit_lines_does_not_swell_the_ledger_that_keeps_them_all(autojump_clock):
    def granted(number, signer):
        line = CreditLine(
            creditor=signer.address,
            debtor=key(1).address,
            unit=bytes(32),
            limit=number,
            not_after=now_ms(),
            nonce=number + 1,
        )
        return encode(messages.CreditGranted(line=sign(DOMAIN, line, signer)))

    async with door(lambda _sender, _message: True) as (one, flooder):
        refused = 0
        for number in range(DEBTS_AT_ONCE + 10):
            try:
                await flooder.net.request(one.peer_id, MARKET, granted(number, flooder.account), max_response_bytes=1)
            except Refused as fault:
                refused += fault.why.startswith("busy")  # an honest peer tries again
        assert refused >= 9
        await trio.sleep(2 * DEBT_EVERY_MS / 1000)
        last = granted(99, flooder.account)
        assert await flooder.net.request(one.peer_id, MARKET, last, max_response_bytes=1) == b""


@pytest.mark.trio
async def test_signature_floods_about_nothing_are_answered_before_any_recover(recovered):
    async with door(lambda _sender, _message: False) as (one, flooder):
        await flooder.net.request(one.peer_id, MARKET, voucher(0, flooder.account), max_response_bytes=1)
        before = len(recovered)
        for number in range(50):
            await flooder.net.request(one.peer_id, MARKET, voucher(number, key(9)), max_response_bytes=1)
        assert len(recovered) == before


@pytest.mark.trio
async def test_signature_floods_of_hellos_are_limited(recovered, autojump_clock):
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as flooder:
        one.directory.serve()
        flooder.knows(one)
        refused = 0
        for epoch in range(2, HELLOS_AT_ONCE + 30):
            hello = encode(hello_of(flooder.account, flooder.node, epoch=epoch))
            try:
                await flooder.net.request(one.peer_id, HELLO, hello, max_response_bytes=4096)
            except Refused:
                refused += 1
        assert refused >= 8
        assert len(recovered) <= 2 * (HELLOS_AT_ONCE + 1)


@pytest.mark.trio
async def test_peer_id_account_binding_theft_over_the_network():
    """A thief's node with somebody else's hello is a stranger, and is struck for it."""
    hub = MemoryHub()
    stolen = hello_of
    async with (
        party(hub, 1) as victim,
        party(hub, 3, hello=lambda _account, _node: victim.hello) as thief,
        party(hub, 4, hello=stolen) as one,
    ):
        thief.directory.serve()
        one.knows(thief)
        with pytest.raises(Stranger):
            await one.directory.meet(thief.peer_id)
        assert one.directory.account_of(thief.peer_id) is None
        assert one.strikes(thief) > 0


def test_malformed_signatures_are_refused_before_any_recover(recovered):
    good = key(2).sign_digest(bytes(32))
    for bad in (
        good[:-1],
        good[:64] + b"\0",
        good[:64] + b"\x1d",
        bytes(64) + b"\x1b",
        good[:32] + b"\xff" * 32 + b"\x1b",
    ):
        with pytest.raises(signing.BadSignature):
            signing.recover(bytes(32), bad)
    assert recovered == []
