"""Nothing that a peer says reaches the engine before it is decoded, proved and checked."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import trio
from kit.memory_net import MemoryHub
from kit.memory_party import Party, advert_of, bent, hello_of, key, now_ms, party
from kit.trading import CHANNEL, CHANNEL_ID, award, bid, decline, evidence, line, statement, tender, workload

from hansa.market.effects import unsigned
from hansa.node.engine.events import MessageArrived
from hansa.node.messaging.courier import Courier, check_signatures
from hansa.node.network.net import Refused, RemoteFault, TooBig
from hansa.proto import messages
from hansa.proto.codec import encode
from hansa.proto.documents import CooperativeClose, Voucher
from hansa.proto.errors import BadSignature
from hansa.proto.messages import Hello
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import MARKET, MAX_MARKET_BYTES, OLDER_MARKET, VERSION
from hansa.proto.signing import Signed, SigningKey, sign

pytestmark = pytest.mark.trio
SENDER = key(2)
LEASE = b"L" * 32


class Door:
    """A party with a courier, and what came through."""

    def __init__(self, who: Party) -> None:
        self.who = who
        self.taken: list[MessageArrived] = []
        self.logs: list[tuple[bytes, messages.RunLogSent]] = []
        Courier(who.net, who.directory, take=self._take, log=self._log, now_ms=now_ms).serve()

    async def _take(self, event: MessageArrived) -> None:
        await trio.lowlevel.checkpoint()
        self.taken.append(event)

    def _log(self, sender: bytes, message: messages.RunLogSent) -> None:
        self.logs.append((sender, message))


@asynccontextmanager
async def door_and_sender(
    hello: Callable[[SigningKey, SigningKey], Hello] = hello_of,
) -> AsyncIterator[tuple[Door, Party]]:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2, hello=hello) as sender:
        sender.knows(one)
        yield Door(one), sender


async def says(sender: Party, door: Door, data: bytes) -> bytes:
    return await sender.net.request(door.who.peer_id, MARKET, data, max_response_bytes=1)


def signed_messages(signer: SigningKey) -> dict[str, Any]:
    """Every message that carries a signature, soundly signed by this key."""
    called = tender(signer=signer.address)
    made = bid(called, key=signer)
    receipt = statement((line(1_000), evidence(1)))
    close = CooperativeClose(channel_id=CHANNEL_ID, cumulative=5)
    accepted = sign(DOMAIN, award(made.document, signer=signer.address), signer)
    return {
        "tender": messages.TenderSent(tender=sign(DOMAIN, called, signer)),
        "bid": messages.BidSent(bid=made),
        "decline": messages.DeclineSent(decline=decline(called, key=signer)),
        "award": messages.AwardSent(award=accepted, channel=CHANNEL, workload=workload()),
        "receipt": messages.ReceiptSent(
            receipt=sign(DOMAIN, receipt.receipt, signer), lines=receipt.lines, evidence=receipt.evidence
        ),
        "voucher": messages.VoucherSent(
            currency="USD",
            voucher=sign(DOMAIN, Voucher(channel_id=CHANNEL_ID, cumulative=5, statement=bytes(32)), signer),
        ),
        "close": messages.CloseProposed(currency="USD", close=sign(DOMAIN, close, signer)),
        "closed": messages.CloseAccepted(currency="USD", close=sign(DOMAIN, close, signer)),
    }


KINDS = tuple(signed_messages(SENDER))


def with_signature(message: Any, change: Callable[[Signed[Any]], Signed[Any]]) -> Any:
    (name,) = (name for name in message.__dataclass_fields__ if isinstance(getattr(message, name), Signed))
    return replace(message, **{name: change(getattr(message, name))})


@pytest.mark.parametrize("kind", KINDS)
async def test_what_its_bringer_signed_is_taken_with_its_account_and_the_time(kind: str) -> None:
    async with door_and_sender() as (door, sender):
        message = signed_messages(SENDER)[kind]
        assert await says(sender, door, encode(message)) == b""
        (event,) = door.taken
        assert (event.sender, event.message) == (SENDER.address, message)
        assert abs(event.at_ms - now_ms()) < 5_000
        assert door.who.strikes(sender) == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_what_somebody_else_signed_is_refused_with_a_strike(kind: str) -> None:
    async with door_and_sender() as (door, sender):
        with pytest.raises(RemoteFault):
            await says(sender, door, encode(signed_messages(key(3))[kind]))
        assert door.taken == []
        assert door.who.strikes(sender) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_signature_that_is_bent_or_missing_is_refused_with_a_strike(kind: str) -> None:
    async with door_and_sender() as (door, sender):
        for change in (
            lambda signed: replace(signed, signature=bent(signed.signature)),
            lambda signed: unsigned(signed.document),
        ):
            with pytest.raises(RemoteFault):
                await says(sender, door, encode(with_signature(signed_messages(SENDER)[kind], change)))
        assert door.taken == []
        assert door.who.strikes(sender) == 2


async def test_a_document_that_names_another_signer_is_refused_whoever_signed_it() -> None:
    called = tender(signer=key(3).address)
    forged = messages.TenderSent(tender=sign(DOMAIN, called, SENDER))
    with pytest.raises(BadSignature, match="somebody else"):
        check_signatures(forged, SENDER.address)
    check_signatures(messages.TenderSent(tender=sign(DOMAIN, called, key(3))), key(3).address)


def of_version(number: int) -> bytes:
    """A message of some other version."""
    whole = msgpack.unpackb(encode(messages.LeaseConfirmed(lease=LEASE)))
    assert whole[0] == VERSION, "the version comes first"
    return bytes(msgpack.packb([number, *whole[1:]]))


async def test_bytes_that_are_no_message_are_refused_with_a_strike_and_the_door_stays_open() -> None:
    sound = encode(messages.LeaseConfirmed(lease=LEASE))
    junk = (
        b"",
        b"\xff\xff",
        sound[:-1],
        sound + b"\x00",
        of_version(VERSION - 1),
        of_version(VERSION + 1),
        encode(messages.BookRequested(most=1)),
    )
    for data in junk:
        async with door_and_sender() as (door, sender):
            with pytest.raises(RemoteFault):
                await says(sender, door, data)
            assert door.taken == []
            assert door.who.strikes(sender) == 1
            await says(sender, door, sound)
            assert len(door.taken) == 1


async def test_an_advert_does_not_come_in_by_this_door() -> None:
    async with door_and_sender() as (door, sender):
        with pytest.raises(RemoteFault):
            await says(sender, door, encode(messages.AdvertPublished(advert=advert_of(sender))))
        assert door.who.strikes(sender) == 1


async def test_what_is_too_large_is_refused_with_a_strike_before_it_is_read() -> None:
    async with door_and_sender() as (door, sender):
        with pytest.raises(TooBig):
            await says(sender, door, bytes(MAX_MARKET_BYTES + 1))
        assert door.taken == []
        assert door.who.strikes(sender) == 1


async def test_five_wrongs_bar_the_peer() -> None:
    async with door_and_sender() as (door, sender):
        for _ in range(5):
            with pytest.raises(RemoteFault):
                await says(sender, door, b"junk")
        await trio.testing.wait_all_tasks_blocked()
        assert [peer.phase for peer in door.who.net.peers()] == ["barred"]


async def test_who_proves_no_account_is_refused_and_nothing_of_it_is_taken() -> None:
    def expired(account: SigningKey, node: SigningKey) -> Hello:
        return hello_of(account, node, not_after_ms=now_ms() - 1)

    async with door_and_sender(expired) as (door, sender):
        with pytest.raises(Refused, match="prove your account first"):
            await says(sender, door, encode(messages.LeaseConfirmed(lease=LEASE)))
        assert door.taken == []


async def test_logs_are_for_people_and_go_past_the_engine() -> None:
    async with door_and_sender() as (door, sender):
        log = messages.RunLogSent(lease=LEASE, text="epoch 1\n")
        await says(sender, door, encode(log))
        assert door.taken == []
        assert door.logs == [(SENDER.address, log)]


async def test_what_an_older_node_says_is_taken_and_counted(autojump_clock: trio.abc.Clock) -> None:
    async with door_and_sender() as (door, sender):
        refused = messages.LeaseRefused(lease=LEASE, kind="mismatch", reason="no")
        data = messages.as_of(refused, 1)
        assert data is not None
        assert await sender.net.request(door.who.peer_id, OLDER_MARKET, data, max_response_bytes=1) == b""
        assert [event.message for event in door.taken] == [replace(refused, kind="not-held")]
        assert door.who.net.counters()[f"serve.older {MARKET}"] == 1


async def test_the_answer_comes_only_after_the_engine_took_the_message(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as sender, trio.open_nursery() as nursery:
        sender.knows(one)
        journaled, answered = trio.Event(), trio.Event()

        async def take(_event: MessageArrived) -> None:
            await journaled.wait()

        Courier(one.net, one.directory, take=take, log=lambda *_: None, now_ms=now_ms).serve()

        async def bring() -> None:
            await sender.net.request(one.peer_id, MARKET, encode(messages.LeaseConfirmed(lease=LEASE)))
            answered.set()

        nursery.start_soon(bring)
        await trio.sleep(1)
        assert not answered.is_set()
        journaled.set()
        await answered.wait()
