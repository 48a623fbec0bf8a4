"""Accounts of one's own lie cost nothing, so a node knows so many liars and no more."""

from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.node.engine import mutual_credit
from hansa.node.engine.events import AccountBlocked, EquivocationProven


def market():
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1)
    return made


def test_of_ever_new_liars_the_oldest_are_forgotten_but_for_those_that_were_dealt_with(monkeypatch):
    monkeypatch.setattr(mutual_credit, "MOST_PROVEN", 3)
    made = market()
    made.submit(BUYER, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,))
    assert made.engines[PROVIDER].state.earning.live, "money moves between them"
    names = [BUYER, *(bytes([number]) * 20 for number in range(1, 7))]
    for name in names:
        made.take(PROVIDER, EquivocationProven(account=name, words="signed two", at_ms=made.now_ms))
    state = made.engines[PROVIDER].state
    assert set(state.proven) == set(state.blocked) == {BUYER, *names[-2:]}
    made.engines[PROVIDER].write_snapshot_if_due(now=True)
    again = made.restart(PROVIDER, devices=1).state
    assert list(again.proven) == list(state.proven), "the next to be forgotten is the same one after a restart"


def test_the_owners_own_word_against_a_liar_stays_when_its_lie_is_forgotten(monkeypatch):
    monkeypatch.setattr(mutual_credit, "MOST_PROVEN", 1)
    made = market()
    made.take(PROVIDER, AccountBlocked(account=BUYER, reason="rude", at_ms=made.now_ms))
    for name in (BUYER, b"x" * 20):
        made.take(PROVIDER, EquivocationProven(account=name, words="signed two", at_ms=made.now_ms))
    state = made.engines[PROVIDER].state
    assert (state.proven, state.blocked[BUYER]) == ({b"x" * 20: "signed two"}, "rude")
