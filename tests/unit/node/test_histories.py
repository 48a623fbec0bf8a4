"""Showing one's dealings to others, and asking for theirs."""

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from kit.memory_net import MemoryHub
from kit.memory_party import Party, now_ms, party
from kit.small_market import SmallMarket
from kit.trading import CHANNEL, spec

from hansa.market.effects import unsigned
from hansa.node.engine import events
from hansa.node.messaging.histories import ASK_AGAIN_MS, MOST_ASKED_ABOUT, Histories
from hansa.node.network.net import Refused
from hansa.proto.codec import decode, encode
from hansa.proto.documents import Receipt, Voucher
from hansa.proto.history import HISTORY, MAX_DEALINGS, MAX_HISTORY_BYTES, Dealing, HistoryRequested, HistorySent
from hansa.scheduler import run

pytestmark = pytest.mark.trio


class Talker:
    """A party that shows and asks."""

    def __init__(self, who: Party, state: Any, *, share: bool = True) -> None:
        self.who = who
        self.heard: list[events.DealingsHeard] = []
        self.histories = Histories(
            who.net,
            who.directory,
            state=state,
            account_key=who.account,
            share=share,
            now_ms=now_ms,
            take=self._take,
        )
        self.histories.serve()

    async def _take(self, event: events.DealingsHeard) -> None:
        self.heard.append(event)


def traded(buyer: Party, *providers: Party) -> SmallMarket:
    """One job of the buyer at each of the providers."""
    made = SmallMarket()
    made.add(buyer.account)
    for number, provider in enumerate(providers):
        made.add(provider.account, devices=1)
        job = bytes([number + 1]) * 32
        made.submit(buyer.account.address, of=spec(shards=1), job=job)
        made.tender(buyer.account.address, (provider.account.address,), shards=(0,), job=job, nonce=job)
        (lease,) = made.engines[provider.account.address].state.sale_of
        made.take(provider.account.address, run.RunStarted(run=lease, at_ms=made.now_ms))
        made.now_ms += 1_000
        news = run.RunProgressed(run=lease, step=1, metrics=(), at_ms=made.now_ms)
        made.take(provider.account.address, news)
        made.take(provider.account.address, run.RunFinished(run=lease, at_ms=made.now_ms))
    return made


@asynccontextmanager
async def three(hub: MemoryHub | None = None, *, share: bool = True):
    """A buyer that dealt with two providers who do not know each other."""
    hub = hub or MemoryHub()
    async with party(hub, 1) as buyer, party(hub, 2) as one, party(hub, 3) as two:
        made = traded(buyer, one, two)
        talkers = [Talker(who, made.engines[who.account.address].state, share=share) for who in (buyer, one, two)]
        for who in (buyer, one, two):
            for other in (buyer, one, two):
                if other is not who:
                    who.knows(other)
                    who.directory.hint(other.account.address, other.peer_id)
        yield talkers


async def test_a_provider_learns_from_its_buyer_what_that_had_with_another(autojump_clock: trio.abc.Clock) -> None:
    async with three() as (buyer, one, two):
        assert await one.histories.ask(buyer.who.account.address, two.who.account.address) == 1
        ((heard,),) = [event.heard for event in one.heard]
        assert (heard.dealt.provider, heard.dealt.value) == (two.who.account.address, 1_000)


async def test_who_is_asked_about_is_asked_itself_and_those_whom_the_asker_knows(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with three() as (buyer, one, two):
        await one.histories.ask_about(two.who.account.address)
        tellers = [{heard.dealt.buyer for heard in event.heard} for event in one.heard]
        assert tellers == [{buyer.who.account.address}] * 2


async def test_nobody_is_asked_before_this_node_has_dealt_with_anybody(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with three(hub) as (_, one, _), party(hub, 9) as stranger:
        fresh = SmallMarket()
        fresh.add(stranger.account)
        stranger.knows(one.who)
        stranger.directory.hint(one.who.account.address, one.who.peer_id)
        nobody = Talker(stranger, fresh.engines[stranger.account.address].state)
        await nobody.histories.ask_about(one.who.account.address)
        assert nobody.heard == []


async def test_what_can_never_count_and_what_is_known_is_not_even_journaled(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with three(hub) as (buyer, one, two), party(hub, 4) as third, party(hub, 5) as fourth:
        strangers = traded(third, fourth)
        teller = Talker(third, strangers.engines[third.account.address].state)
        one.who.knows(third)
        one.who.directory.hint(third.account.address, third.peer_id)
        third.knows(one.who)
        assert await one.histories.ask(third.account.address, third.account.address) == 0
        assert (one.heard, teller.heard) == ([], [])
        assert await one.histories.ask(buyer.who.account.address, two.who.account.address) == 1
        one.histories._state.heard[one.heard[0].heard[0].dealt.channel_id] = one.heard[0].heard[0]
        assert await one.histories.ask(buyer.who.account.address, two.who.account.address) == 0
        assert len(one.heard) == 1


async def test_a_node_that_shows_nothing_says_so(autojump_clock: trio.abc.Clock) -> None:
    async with three(share=False) as (buyer, one, two):
        assert await one.histories.ask(buyer.who.account.address, two.who.account.address) == 0
        request = encode(HistoryRequested(account=bytes(20)))
        with pytest.raises(Refused):
            await one.who.net.request(buyer.who.peer_id, HISTORY, request, max_response_bytes=MAX_HISTORY_BYTES)


@pytest.mark.parametrize("junk", ["bytes", "forged"])
async def test_a_history_that_is_not_what_was_signed_is_a_strike_and_changes_nothing(
    autojump_clock: trio.abc.Clock, junk: str
) -> None:
    async with three() as (buyer, one, two):
        real = buyer.histories._answer

        async def answer(context: Any, data: bytes) -> bytes:
            if junk == "bytes":
                return b"\xff"
            sent: HistorySent = decode(await real(context, data), HistorySent, limit_bytes=MAX_HISTORY_BYTES)
            (dealing,) = sent.dealings
            assert dealing.receipt is not None
            more = replace(dealing.receipt.document, amount_total=10**12)
            forged = replace(dealing, receipt=replace(dealing.receipt, document=more))
            return encode(HistorySent(dealings=(forged,)))

        buyer.who.net.serve(HISTORY, answer, max_request_bytes=256)
        assert await one.histories.ask(buyer.who.account.address, two.who.account.address) == 0
        assert one.heard == []
        assert one.who.strikes(buyer.who) == 1


async def test_everybody_is_asked_about_now_and_then_and_in_turn(autojump_clock: trio.abc.Clock) -> None:
    async with three() as (buyer, one, _):
        own = one.who.account.address
        many = [own, *(number.to_bytes(20, "big") for number in range(1, MOST_ASKED_ABOUT + 4))]
        first = one.histories.due([*many, *many])
        assert first == many[1 : MOST_ASKED_ABOUT + 1]
        assert one.histories.due(many) == many[MOST_ASKED_ABOUT + 1 :]
        assert one.histories.due(many) == []
        await trio.sleep(ASK_AGAIN_MS / 1000 + 1)
        assert one.histories.due(many) == first
        assert buyer.heard == []


async def test_the_largest_answer_fits_into_its_limit() -> None:
    receipt = Receipt(
        channel_id=bytes(32),
        seq=(1 << 64) - 1,
        prev=bytes(32),
        period_start_ms=(1 << 64) - 1,
        period_end_ms=(1 << 64) - 1,
        amount_total=(1 << 128) - 1,
        lines=(1 << 32) - 1,
        lines_root=bytes(32),
        evidence=bytes(32),
    )
    dealing = Dealing(
        currency="x" * 256,
        config=CHANNEL,
        receipt=unsigned(receipt),
        voucher=unsigned(Voucher(channel_id=bytes(32), cumulative=(1 << 128) - 1, statement=bytes(32))),
        unpaid=unsigned(receipt),
    )
    assert len(encode(HistorySent(dealings=(dealing,) * MAX_DEALINGS))) <= MAX_HISTORY_BYTES
