"""Proofs of lies go from node to node: each checks them itself, hands them on once, and no flood carries far."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.trading import BUYER, BUYER_KEY, NOW_MS, OTHER, OTHER_KEY, PROVIDER_KEY

from hansa.market.effects import Send, unsigned
from hansa.market.equivocation import TwoHeads, in_words
from hansa.node.ledger import head_store, proof_exchange
from hansa.node.ledger.head_store import MOST_OF_ONE, HeadStore
from hansa.node.ledger.proof_exchange import (
    FOUND_AT_ONCE,
    HEARD_AT_ONCE,
    HEARD_EVERY_MS,
    MOST_PARTNERS,
    MOST_SHOWN,
    MOST_TOLD,
    PASSED_AT_ONCE,
    STRANGERS_AT_ONCE,
    ProofExchange,
)
from hansa.proto import messages
from hansa.proto.codec import encode
from hansa.proto.documents import Payment, TreeHead, log_id_of
from hansa.proto.errors import ProtocolError
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey, sign

PAID = messages.PaymentAcknowledged(
    payment=unsigned(
        Payment(creditor=BUYER, debtor=OTHER, unit=bytes(32), total=1, how="cash", nonce=1, paid_ms=NOW_MS)
    )
)


def key(number):
    return SigningKey((1_000 + number).to_bytes(32, "big"))


def lie(number, size=5, signer=None):
    """Two histories of one size, signed by an account that was made for it."""
    owner = key(number)
    heads = (
        TreeHead(log_id=log_id_of(owner.address), size=size, root=root * 32, timestamp_ms=1) for root in (b"a", b"b")
    )
    first, second = (sign(DOMAIN, head, signer or owner) for head in heads)
    return TwoHeads(first=first, second=second)


def told(number, **changes):
    return messages.ProofSent(proof=encode(lie(number, **changes)))


class Node:
    """One node's part, with a real store. Who its peers are is said by the test."""

    def __init__(self, town, own):
        self.town, self.key, self.account = town, own, own.address
        self.partners, self.connected, self.known, self.refused = set(), [], set(), set()
        self.heads = HeadStore(town.directory / f"{own.address.hex()}.sqlite")
        self.sent, self.proven = [], []
        self.begin()

    def begin(self):
        self.proofs = ProofExchange(
            self.heads,
            account=self.account,
            send=self.bring,
            tell=self.proven.append,
            now_ms=lambda: self.town.now_ms,
            partners=lambda: self.partners,
            connected=lambda: self.connected,
            deals_with=lambda peer: peer in self.partners,
            knows=lambda peer: peer in self.known,
            refuses=lambda peer: peer in self.refused,
        )

    def bring(self, send):
        self.sent.append(send)
        other = self.town.nodes.get(send.to)
        if other is not None:
            other.proofs.hear(self.account, send.message)

    def find(self, proof):
        """As if the receipts, or the heads, had come here."""
        assert self.heads.keep_proof(proof, self.town.now_ms)
        self.proofs.found(proof)

    def believes(self):
        return [event.account for event in self.proven]


class Town:
    def __init__(self, directory):
        self.directory, self.nodes, self.now_ms = directory, {}, NOW_MS

    def add(self, own):
        self.nodes[own.address] = Node(self, own)
        return self.nodes[own.address]

    def join(self, *nodes):
        """Each deals with the next."""
        for one, other in pairwise(nodes):
            one.partners.add(other.account)
            other.partners.add(one.account)


@pytest.fixture
def town(tmp_path):
    made = Town(tmp_path)
    yield made
    for node in made.nodes.values():
        node.heads.close()


def test_a_proof_goes_by_itself_to_everybody_who_deals_with_somebody_who_has_it(town):
    first, second, third = town.add(BUYER_KEY), town.add(PROVIDER_KEY), town.add(OTHER_KEY)
    town.join(first, second, third)
    first.find(lie(1))
    assert second.believes() == third.believes() == [key(1).address]
    (event,) = third.proven
    assert event.words == in_words(lie(1))
    assert [account for account, _, _ in third.heads.proofs()] == [key(1).address]
    assert first.believes() == [], "whoever found it has told its engine itself"


def test_it_goes_once_along_every_line_and_not_back_to_whoever_brought_it(town):
    nodes = [town.add(key(900 + number)) for number in range(5)]
    for one in nodes:
        one.connected = [other.account for other in nodes if other is not one]
    nodes[0].find(lie(1))
    sent = Counter((node.account, send.to) for node in nodes for send in node.sent)
    assert max(sent.values()) == 1
    assert all(node.believes() == [key(1).address] for node in nodes[1:])
    bringers = {node.sent[0].to for node in nodes if node.sent}
    assert bringers
    again = sum(len(node.sent) for node in nodes)
    for node in nodes:
        node.proofs.hear(nodes[0].account, told(1))
        node.proofs.hear(nodes[0].account, told(1, size=6))
    assert sum(len(node.sent) for node in nodes) == again, "of one liar one proof is enough"
    assert all(len(list(node.heads.proofs())) == 1 for node in nodes)


def test_the_liar_and_whoever_is_refused_are_not_told(town):
    node = town.add(BUYER_KEY)
    node.partners, node.connected, node.refused = {key(1).address, key(2).address}, [key(3).address], {key(2).address}
    node.find(lie(1))
    assert [send.to for send in node.sent] == [key(3).address]
    node.find(lie(1, size=9))
    assert len(node.sent) == 1, "of one liar one proof is enough"


def test_whoever_brought_it_is_not_told(town):
    node = town.add(BUYER_KEY)
    node.connected = [key(3).address, key(4).address]
    node.proofs.hear(key(3).address, told(1))
    assert [send.to for send in node.sent] == [key(4).address]


FORGED = {
    "signed by somebody else": told(1, signer=key(2)),
    "one and the same head": messages.ProofSent(proof=encode(TwoHeads(first=lie(1).first, second=lie(1).first))),
    "heads of two ledgers": messages.ProofSent(proof=encode(TwoHeads(first=lie(1).first, second=lie(2).second))),
    "heads of two sizes": messages.ProofSent(proof=encode(TwoHeads(first=lie(1).first, second=lie(1, size=6).second))),
    "no proof at all": messages.ProofSent(proof=b"nonsense"),
    "nothing": messages.ProofSent(proof=b""),
    "another document": messages.ProofSent(proof=encode(lie(1).first)),
}


@pytest.mark.parametrize("message", FORGED.values(), ids=FORGED)
def test_what_proves_nothing_is_its_bringers_fault_and_is_neither_kept_nor_handed_on(town, message):
    node = town.add(BUYER_KEY)
    node.connected = [key(3).address]
    with pytest.raises(ProtocolError):
        node.proofs.hear(key(2).address, message)
    assert (list(node.heads.proofs()), node.sent, node.proven) == ([], [], [])


GENUINE = encode(lie(1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(GENUINE) - 1), byte=st.integers(1, 255), cut=st.integers(0, len(GENUINE)))
def test_no_change_of_a_proof_accuses_anybody_else(tmp_path_factory, place, byte, cut):
    heads = HeadStore(tmp_path_factory.mktemp("heads") / "heads.sqlite")
    told_of = []
    node = ProofExchange(
        heads,
        account=BUYER_KEY.address,
        send=lambda _send: None,
        tell=told_of.append,
        now_ms=lambda: NOW_MS,
        partners=list,
        connected=list,
        deals_with=lambda _peer: True,
        knows=lambda _peer: True,
        refuses=lambda _peer: False,
    )
    changed = bytearray(GENUINE)
    changed[place] ^= byte
    for data in (bytes(changed), GENUINE[:cut]):
        try:
            node.hear(PROVIDER_KEY.address, messages.ProofSent(proof=data))
        except ProtocolError:
            continue
    heads.close()
    assert {event.account for event in told_of} <= {key(1).address}


def test_a_proof_against_this_node_itself_is_counted_and_changes_nothing(town):
    node = town.add(key(1))
    node.connected = [key(3).address]
    node.proofs.hear(key(2).address, told(1))
    assert node.proofs.counters["proofs: A PROOF AGAINST OURSELVES"] == 1
    assert (list(node.heads.proofs()), node.sent, node.proven) == ([], [], [])


def test_one_bringer_is_heard_so_often_and_another_all_the_same(town):
    node = town.add(BUYER_KEY)
    node.partners = {key(901).address, key(902).address}
    for number in range(HEARD_AT_ONCE + 5):
        node.proofs.hear(key(901).address, told(number))
    assert len(node.proven) == HEARD_AT_ONCE
    node.proofs.hear(key(902).address, told(100))
    town.now_ms += HEARD_EVERY_MS
    node.proofs.hear(key(901).address, told(101))
    assert node.believes()[-2:] == [key(100).address, key(101).address]


def test_strangers_together_are_heard_so_often_and_a_partner_all_the_same(town):
    node = town.add(BUYER_KEY)
    node.partners = {key(901).address}
    for number in range(STRANGERS_AT_ONCE + 5):
        node.proofs.hear(key(2_000 + number).address, told(number % 3))
    assert node.proofs.counters["proofs: more than strangers may bring"] == 5
    node.proofs.hear(key(901).address, told(7))
    assert node.believes()[-1] == key(7).address


def test_of_ever_new_liars_few_go_on_and_what_is_found_here_goes_on_all_the_same(town):
    node = town.add(BUYER_KEY)
    peers = [key(800).address, key(801).address]
    node.connected, node.partners = peers[:1], set(peers[1:])
    for number in range(40):
        node.proofs.hear(key(2_000 + number).address, told(number))
    assert len(node.proven) == 40
    assert Counter(send.to for send in node.sent) == {
        key(800).address: PASSED_AT_ONCE,
        key(801).address: PASSED_AT_ONCE,
    }
    node.sent.clear()
    for number in range(100, 120):
        node.find(lie(number))
    assert Counter(send.to for send in node.sent) == dict.fromkeys(peers, FOUND_AT_ONCE)


def test_what_an_honest_node_hands_on_is_within_what_another_hears_of_it():
    assert FOUND_AT_ONCE + PASSED_AT_ONCE <= HEARD_AT_ONCE
    assert proof_exchange.HAND_ON_EVERY_MS >= 2 * HEARD_EVERY_MS


def test_a_proof_goes_to_few_peers_first_to_those_with_whom_money_moves(town):
    node = town.add(BUYER_KEY)
    node.partners = {key(number).address for number in range(100, 130)}
    node.connected = [key(number).address for number in range(125, 300)]
    node.find(lie(1))
    names = [send.to for send in node.sent]
    assert len(set(names)) == len(names) == MOST_TOLD
    assert set(names[:5]) == node.partners & set(node.connected), "those of them that are here come first"
    assert set(names[:MOST_PARTNERS]) <= node.partners
    assert len(node.partners & set(names)) == MOST_PARTNERS


def test_liars_of_whom_nobody_here_ever_heard_take_no_room_from_others(town, monkeypatch):
    node = town.add(BUYER_KEY)
    monkeypatch.setattr(proof_exchange, "MOST_OF_STRANGERS", 3)
    monkeypatch.setattr(proof_exchange, "MOST_KEPT", 5)
    node.known = {key(number).address for number in range(10, 20)}
    for number in (0, 1, 2, 3, 10, 11, 12):
        node.proofs.hear(key(901).address, told(number))
    assert node.believes() == [key(number).address for number in (0, 1, 2, 10, 11, 12)]
    assert node.proofs.counters["proofs: no room for more of others"] == 1
    assert next(account for account, _, _ in node.heads.proofs()) == key(1).address, "the oldest gave way"
    node.find(lie(99))
    assert len(list(node.heads.proofs())) == 6, "what is found here is always kept"


def test_nobody_fills_the_room_up_for_ever_and_who_was_dealt_with_gives_way_to_nobody(town, monkeypatch):
    node = town.add(BUYER_KEY)
    monkeypatch.setattr(proof_exchange, "MOST_KEPT", 5)
    monkeypatch.setattr(head_store, "MOST_LOOKED_AT", 2)
    node.known = {key(number).address for number in range(100)}
    node.partners = {key(number).address for number in (0, 1, 2, 3)}
    for number in range(30):
        town.now_ms += HEARD_EVERY_MS
        node.proofs.hear(key(901).address, told(number))
    kept = {account for account, _, _ in node.heads.proofs()}
    assert node.partners <= kept, "proofs against those who were dealt with stay"
    assert len(kept) == 5
    # Few are looked at for each, so of those that come while the search passes by those that stay, some find no room.
    refused = node.proofs.counters["proofs: no room for more of others"]
    assert refused > 0
    assert len(node.believes()) == 30 - refused > 10


def test_the_search_for_one_that_gives_way_begins_anew_at_its_end(town):
    node = town.add(BUYER_KEY)
    for number in range(3):
        node.heads.keep_proof(lie(number), NOW_MS)
    assert node.heads.drop_oldest_proof(lambda _: True) is None
    assert node.heads.drop_oldest_proof(lambda _: False) == key(0).address


def test_where_all_kept_proofs_are_about_accounts_that_were_dealt_with_none_gives_way(town, monkeypatch):
    node = town.add(BUYER_KEY)
    monkeypatch.setattr(proof_exchange, "MOST_KEPT", 3)
    node.known = {key(number).address for number in range(100)}
    node.partners = {key(number).address for number in range(3)}
    for number in range(6):
        node.proofs.hear(key(901).address, told(number))
    assert node.believes() == [key(number).address for number in range(3)]


def test_no_more_bytes_of_others_are_kept_than_there_is_room_for(town, monkeypatch):
    node = town.add(BUYER_KEY)
    monkeypatch.setattr(proof_exchange, "MOST_KEPT_BYTES", len(GENUINE))
    node.proofs.hear(key(901).address, told(1))
    node.proofs.hear(key(901).address, told(2))
    assert node.believes() == [key(1).address]


def test_who_lies_without_end_fills_no_disk_with_it(town):
    node = town.add(BUYER_KEY)
    kept = [node.heads.keep_proof(lie(1, size=size), NOW_MS) for size in range(1, 40)]
    assert len([account for account in kept if account is not None]) == MOST_OF_ONE


def test_who_is_dealt_with_for_the_first_time_is_shown_the_newest_proofs_once(town):
    node = town.add(BUYER_KEY)
    for number in range(6):
        node.find(lie(number))
    deal = Send(to=OTHER, message=PAID, keep_until_ms=1)
    node.proofs.show(deal)
    node.proofs.show(deal)
    assert [send.replaces for send in node.sent] == [f"proof {key(5 - n).address.hex()}" for n in range(MOST_SHOWN)]
    node.sent.clear()
    node.proofs.show(Send(to=key(5).address, message=PAID, keep_until_ms=1))
    assert len(node.sent) == MOST_SHOWN
    assert f"proof {key(5).address.hex()}" not in {send.replaces for send in node.sent}, "its own lie is no news to it"
    node.proofs.show(Send(to=key(77).address, message=messages.LeaseConfirmed(lease=bytes(32)), keep_until_ms=1))
    assert len(node.sent) == MOST_SHOWN


def test_a_proof_that_was_kept_right_before_the_daemon_died_is_told_after_the_start(town):
    node = town.add(BUYER_KEY)
    node.heads.keep_proof(lie(1), NOW_MS)
    node.heads.keep_proof(lie(1, size=9), NOW_MS)
    node.heads.keep_proof(lie(2), NOW_MS)
    node.proofs.tell_again((key(2).address,))
    assert node.believes() == [key(1).address]


def test_a_proof_too_large_for_a_message_stays_where_it_was_found(town, monkeypatch):
    node = town.add(BUYER_KEY)
    node.partners = {key(3).address}
    monkeypatch.setattr(proof_exchange, "MOST_BYTES", len(GENUINE) - 1)
    node.find(lie(1))
    assert not node.sent
    assert node.proofs.counters["proofs: one that is too large to be handed on"] == 1


def test_strangers_with_lies_of_their_own_do_not_hide_what_a_partner_did(town):
    node = town.add(BUYER_KEY)
    node.partners = {key(1).address}
    node.find(lie(1))
    node.refused = {key(1).address}
    for number in range(100, 180):
        node.proofs.hear(key(2_000 + number).address, told(number))
    node.proofs.show(Send(to=OTHER, message=PAID, keep_until_ms=1))
    shown = [send.replaces for send in node.sent if send.to == OTHER]
    assert len(shown) == MOST_SHOWN
    assert f"proof {key(1).address.hex()}" in shown


def test_one_who_lies_often_does_not_hide_another(town):
    node = town.add(BUYER_KEY)
    node.partners = {key(1).address, key(2).address}
    node.find(lie(2))
    for size in range(1, 9):
        node.find(lie(1, size=size))
    node.refused = node.partners
    node.proofs.show(Send(to=OTHER, message=PAID, keep_until_ms=1))
    shown = {send.replaces for send in node.sent if send.to == OTHER}
    assert shown == {f"proof {key(number).address.hex()}" for number in (1, 2)}


def test_who_lies_in_a_proof_too_large_to_be_handed_on_is_told_of_by_its_next_lie(town, monkeypatch):
    node = town.add(BUYER_KEY)
    node.partners = {key(3).address}
    monkeypatch.setattr(proof_exchange, "MOST_BYTES", len(encode(lie(1))))
    large = lie(1, size=1 << 40)
    assert len(encode(large)) > proof_exchange.MOST_BYTES
    node.find(large)
    assert not node.sent
    node.find(lie(1))
    assert [send.message for send in node.sent] == [told(1)]
    node.find(lie(1, size=6))
    node.find(lie(1, size=1 << 41))
    assert len(node.sent) == 1, "of one liar one proof is enough"
    node.proofs.show(Send(to=OTHER, message=PAID, keep_until_ms=1))
    assert [(send.to, send.message) for send in node.sent[1:]] == [(OTHER, told(1, size=6))], "the newest that fits"


def test_a_proof_that_fits_is_taken_from_others_though_a_larger_one_was_found_here(town, monkeypatch):
    node = town.add(BUYER_KEY)
    node.partners = {key(3).address, key(4).address}
    monkeypatch.setattr(proof_exchange, "MOST_BYTES", len(encode(lie(1))))
    for size in range(MOST_OF_ONE):
        node.heads.keep_proof(lie(1, size=(1 << 40) + size), NOW_MS)
    node.proofs.hear(key(3).address, told(1))
    assert not node.sent, "so many of one are kept, and no more"
    node.heads.drop_oldest_proof(lambda _: False)
    for _ in range(2):
        node.proofs.hear(key(3).address, told(1))
    assert [send.to for send in node.sent] == [key(4).address]
    assert not node.proven, "the engine knows it since the first"


def test_what_may_not_be_handed_on_now_costs_no_search_for_whom_to_tell(town):
    node = town.add(BUYER_KEY)
    asked = []
    node.connected = [key(3).address]
    node.proofs._partners = lambda: asked.append(1) or ()
    for number in range(PASSED_AT_ONCE + 20):
        node.proofs.hear(key(2_000 + number).address, told(number))
    assert len(asked) == PASSED_AT_ONCE


def test_a_start_reads_the_proofs_of_those_alone_that_the_engine_does_not_know(town, monkeypatch):
    node = town.add(BUYER_KEY)
    for number in range(20):
        node.heads.keep_proof(lie(number), NOW_MS)
    read = []
    decode = head_store.decode
    monkeypatch.setattr(head_store, "decode", lambda *args, **limits: read.append(1) or decode(*args, **limits))
    node.proofs.tell_again([key(number).address for number in range(19)])
    assert node.believes() == [key(19).address]
    assert len(read) == 1
