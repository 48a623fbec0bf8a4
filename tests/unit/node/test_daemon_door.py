"""The daemon stands its gate before its journal: what means nothing here is answered, counted and not written down."""

from pathlib import Path

import pytest
import trio
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.trading import BUYER_KEY, tender

from hansa.market.effects import Send, unsigned
from hansa.node.engine.events import MessageArrived
from hansa.node.engine.gate import TENDERS_AT_ONCE
from hansa.proto.messages import LeaseCancelled, TenderSent

pytestmark = pytest.mark.trio


async def test_a_strangers_message_about_no_lease_is_acknowledged_and_never_journaled(tmp_path: Path) -> None:
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as daemon, a_daemon(tmp_path, hub, 2) as stranger:
        stranger.directory.hint(daemon.account.address, daemon.net.peer_id)
        stranger.net.learn(daemon.net.peer_id, daemon.net.addrs())
        before = daemon.engine.events
        message = LeaseCancelled(lease=b"n" * 32, reason="noise")
        send = Send(to=daemon.account.address, message=message, keep_until_ms=daemon.now_ms() + 60_000)
        stranger.outbox.put(send)
        with trio.fail_after(5):
            while not stranger.outbox.delivered:  # noqa: ASYNC110 - no event tells it
                await trio.sleep(0.01)
        assert daemon.engine.events == before
        assert daemon.counters()["gate: LeaseCancelled about nothing of the sender's"] == 1


async def test_a_buyer_that_tenders_without_end_fills_no_journal(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1, lends=True) as daemon:
        before, at_ms = daemon.engine.events, daemon.now_ms()
        for number in range(TENDERS_AT_ONCE + 5):
            message = TenderSent(tender=unsigned(tender(nonce=bytes([number]) * 32)))
            await daemon.doorkeeper.take(MessageArrived(sender=BUYER_KEY.address, message=message, at_ms=at_ms))
        assert daemon.engine.events == before + TENDERS_AT_ONCE
        assert daemon.counters()["gate: more tenders than one buyer may send"] == 5
