"""The engine: what is on disk is what is known, and money lost half-way through the effects is found again."""

import pytest
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market.ledger import Post, fold
from hansa.market.ledger_records import File
from hansa.node.engine import engine as engine_module
from hansa.node.engine.engine import EVENTS_PER_SNAPSHOT, Engine
from hansa.node.engine.events import MessageArrived, TimeCame
from hansa.node.engine.routing import advance
from hansa.node.engine.state import snapshot
from hansa.proto.messages import LeaseConfirmed
from hansa.scheduler import run


@pytest.fixture
def market():
    """A job that was bought, run and paid."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1)
    made.submit(BUYER, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,))
    (lease,) = made.engines[PROVIDER].state.sale_of
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    made.now_ms += 1_000
    made.take(PROVIDER, run.RunFinished(run=lease, at_ms=made.now_ms))
    return made


def posted(market, account):
    return [effect.entry for of, effect in market.effects if of == account and isinstance(effect, Post)]


@pytest.mark.parametrize("account", [BUYER, PROVIDER])
def test_a_replay_knows_exactly_what_the_dead_daemon_knew(market, account):
    again = Engine(market.journals[account])
    assert snapshot(again.state) == snapshot(market.engines[account].state)
    assert again.events == market.engines[account].events


@pytest.mark.parametrize("account", [BUYER, PROVIDER])
def test_a_replay_posts_again_what_the_store_may_not_have(market, account):
    again = Engine(market.journals[account])
    entries = [effect.entry for effect in again.recovered if isinstance(effect, Post)]
    assert entries == posted(market, account)
    assert fold(entries).balances == again.state.ledger.balances
    booked = [effect for of, effect in market.booked if of == account]
    assert any(isinstance(effect, File) for effect in booked)
    assert again.recovered == booked


@pytest.mark.parametrize("account", [BUYER, PROVIDER])
def test_after_a_snapshot_the_books_stand_and_nothing_is_posted_again(market, account):
    before = market.engines[account].state.ledger
    assert market.engines[account].write_snapshot_if_due(now=True)
    again = Engine(market.journals[account])
    assert (again.recovered, again.state.ledger, again.events) == ([], before, 0)
    assert snapshot(again.state) == snapshot(market.engines[account].state)


def test_a_snapshot_is_written_when_enough_has_happened_and_counted_over_restarts(market):
    engine = market.engines[BUYER]
    assert not engine.write_snapshot_if_due()
    engine.take([TimeCame(at_ms=market.now_ms)] * (EVENTS_PER_SNAPSHOT - 5))
    engine = Engine(market.journals[BUYER])
    assert engine.write_snapshot_if_due()
    assert not engine.write_snapshot_if_due()


def test_an_empty_batch_writes_nothing(market):
    before = market.engines[BUYER].events
    assert market.engines[BUYER].take([]) == []
    assert market.engines[BUYER].events == before


def test_what_cannot_be_written_does_not_happen(market):
    class FullDisk:
        def append(self, _):
            raise OSError("no space left")

    engine = market.engines[BUYER]
    before = snapshot(engine.state)
    engine._journal = FullDisk()
    with pytest.raises(OSError, match="no space left"):
        engine.take([TimeCame(at_ms=market.now_ms + 10**6)])
    assert snapshot(Engine(market.journals[BUYER]).state) == before


def test_a_word_that_meets_a_fault_of_ours_does_not_lock_the_node_out(market, monkeypatch):
    """It ends the daemon, which is as if it had been killed before it heard of any of these."""
    engine, journal = market.engines[PROVIDER], market.journals[PROVIDER]
    before, written = snapshot(engine.state), len(list(journal.read()[1]))
    word = MessageArrived(sender=BUYER, message=LeaseConfirmed(lease=b"l" * 32), at_ms=market.now_ms)

    def faulty(state, event):
        assert event != word, "a fault of ours"
        return advance(state, event)

    monkeypatch.setattr(engine_module, "advance", faulty)
    with pytest.raises(AssertionError, match="a fault of ours"):
        engine.take([TimeCame(at_ms=market.now_ms + 1), word, TimeCame(at_ms=market.now_ms + 2)])
    assert len(list(journal.read()[1])) == written
    assert snapshot(Engine(journal).state) == before
    assert journal.ones_set_aside() == [word]


def test_a_snapshot_forgets_the_leases_of_machines_that_were_forgotten(market):
    engine = market.engines[PROVIDER]
    known = set(engine.state.sale_of)
    engine.state.sale_of[b"x" * 32] = b"y" * 32
    market.engines[BUYER].state.placed[b"x" * 32] = b"y" * 32
    for account in (BUYER, PROVIDER):
        market.engines[account].write_snapshot_if_due(now=True)
    assert set(engine.state.sale_of) == known
    assert set(market.engines[BUYER].state.placed) == known
