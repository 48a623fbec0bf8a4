"""Signed histories meet: what continues what was known is kept, what contradicts it becomes a proof."""

from dataclasses import replace

import pytest
from kit.filed_ledger import head_signer, records, traded
from kit.trading import BUYER, BUYER_KEY, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY

from hansa.market.effects import Send
from hansa.market.equivocation import TwoHeads, TwoReceipts, accused
from hansa.market.ledger import netted
from hansa.node.engine.events import MessageArrived
from hansa.node.faults import OperatorError
from hansa.node.ledger.head_exchange import HeadExchange, refuse_rolled_back
from hansa.node.ledger.head_store import MOST_UNPROVED, HeadStore
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.proto import messages
from hansa.proto.documents import log_id_of
from hansa.proto.network import DOMAIN
from hansa.proto.signing import sign

MARKET = traded(steps=4)
RECORDS = list({record.id: record for record in records(MARKET, PROVIDER_KEY)}.values())
VOUCHER = next(message for _, _, message in MARKET.said if isinstance(message, messages.VoucherSent))


class Town:
    """Nodes with real stores; what one sends to another arrives at once, unless it is kept back."""

    def __init__(self, directory):
        self.directory, self.nodes, self.kept_back, self.proven = directory, {}, [], []
        self.now_ms = 1_000_000

    def add(self, key, name=""):
        """A node; with a name, another daemon of the same account, at which nothing arrives."""
        place = self.directory / (name or key.address.hex())
        place.mkdir()
        ledger, heads = LedgerStore(place / "ledger.sqlite"), HeadStore(place / "heads.sqlite")
        node = HeadExchange(
            ledger,
            heads,
            account=key.address,
            send=lambda send: self.bring(key.address, send),
            tell=lambda proven: self.proven.append((key.address, proven)),
            now_ms=lambda: self.now_ms,
        )
        node.key, node.ledger, node.heads = key, ledger, heads
        if not name:
            self.nodes[key.address] = node
        return node

    def bring(self, sender, send):
        if any(isinstance(send.message, kind) for kind in self.kept_back) or send.to not in self.nodes:
            return
        self.nodes[send.to].hear(sender, send.message)

    def close(self):
        for node in self.nodes.values():
            node.ledger.close()
            node.heads.close()


@pytest.fixture
def town(tmp_path):
    made = Town(tmp_path)
    yield made
    made.close()


def post(node, some):
    node.ledger.post(some, head_signer(node.key))


def show(node, to):
    """A voucher goes to somebody, and the newest head with it."""
    node.show(Send(to=to, message=VOUCHER, keep_until_ms=1))


def newest(node, of):
    return node.heads.newest_proved(log_id_of(of)).head.document


def test_a_head_goes_along_with_what_moves_money_and_only_when_it_is_new(town):
    provider, buyer = town.add(PROVIDER_KEY), town.add(BUYER_KEY)
    sent = []
    town.bring = lambda _sender, send: sent.append(send.message)
    show(provider, BUYER)
    assert sent == [], "an empty ledger has nothing to show"
    post(provider, RECORDS[:3])
    show(provider, BUYER)
    show(provider, BUYER)
    provider.show(Send(to=BUYER, message=messages.LeaseConfirmed(lease=bytes(32)), keep_until_ms=1))
    (message,) = sent
    assert (message.own, message.seen) == (provider.ledger.newest_head(), ())
    assert list(buyer.heads.heads()) == []


def test_a_history_that_goes_on_is_shown_to_and_only_the_newest_head_is_kept(town):
    provider, buyer = town.add(PROVIDER_KEY), town.add(BUYER_KEY)
    for end in range(1, len(RECORDS)):
        post(provider, RECORDS[end - 1 : end])
        show(provider, BUYER)
        assert newest(buyer, PROVIDER).size == end
    assert [kept.proved for kept in buyer.heads.heads()] == [True]
    assert not town.proven


def test_as_long_as_no_proof_comes_the_old_head_stays_and_few_new_ones_wait(town):
    provider, buyer = town.add(PROVIDER_KEY), town.add(BUYER_KEY)
    town.kept_back = [messages.ConsistencySent]
    post(provider, RECORDS[:1])
    show(provider, BUYER)
    for number in range(1, 40):
        post(provider, [netted(peer=OTHER, unit=bytes(32), nonce=number, amount=1, at_ms=1)])
        show(provider, BUYER)
    assert newest(buyer, PROVIDER).size == 1
    assert len(list(buyer.heads.heads())) <= MOST_UNPROVED + 1
    town.kept_back = []
    post(provider, [netted(peer=OTHER, unit=bytes(32), nonce=99, amount=1, at_ms=1)])
    show(provider, BUYER)
    assert newest(buyer, PROVIDER).size == provider.ledger.size


def test_split_view_of_the_log_is_proven_when_those_who_were_shown_it_meet(town):
    """The provider keeps two ledgers and shows one to each buyer; the two deal with each other once."""
    provider, buyer, other = town.add(PROVIDER_KEY), town.add(BUYER_KEY), town.add(OTHER_KEY)
    second = town.add(PROVIDER_KEY, "second set of books")
    post(provider, RECORDS[:5])
    post(second, [*RECORDS[:3], *RECORDS[4:6]])
    show(provider, BUYER)
    show(second, OTHER)
    assert newest(buyer, PROVIDER).root != newest(other, PROVIDER).root
    assert not town.proven
    post(buyer, RECORDS[:1])
    show(buyer, OTHER)
    ((finder, proven),) = town.proven
    assert (finder, proven.account) == (OTHER, PROVIDER)
    ((account, proof, _),) = other.heads.proofs()
    assert isinstance(proof, TwoHeads)
    assert accused(proof) == account == PROVIDER
    second.ledger.close()
    second.heads.close()


def test_a_second_set_of_books_of_another_size_never_gets_its_proof(town):
    provider, buyer = town.add(PROVIDER_KEY), town.add(BUYER_KEY)
    second = town.add(PROVIDER_KEY, "second set of books")
    post(provider, RECORDS[:5])
    show(provider, BUYER)
    post(second, [RECORDS[0], *RECORDS[2:9]])
    head = second.ledger.newest_head()
    buyer.hear(PROVIDER, messages.TreeHeadsSent(own=head, seen=()))
    forged = second.ledger.consistency(5, 8)
    buyer.hear(PROVIDER, messages.ConsistencySent(first=5, second=8, proof=forged))
    assert newest(buyer, PROVIDER).size == 5
    assert [kept.head.document.size for kept in buyer.heads.unproved(log_id_of(PROVIDER))] == [8]
    assert buyer.counters["ledger: a proof of consistency that is none"] == 1
    second.ledger.close()
    second.heads.close()


def test_heads_of_others_count_by_their_owners_signature_alone(town):
    provider, buyer = town.add(PROVIDER_KEY), town.add(BUYER_KEY)
    post(provider, RECORDS[:5])
    show(provider, BUYER)
    own = head_signer(OTHER_KEY)(1, bytes(32))
    said = replace(provider.ledger.newest_head().document, root=bytes(32))
    buyer.hear(OTHER, messages.TreeHeadsSent(own=own, seen=(sign(DOMAIN, said, OTHER_KEY),)))
    assert not town.proven
    assert buyer.counters["ledger: a head that its owner did not sign"] == 1
    # And nobody brings a head of another's ledger as its own.
    buyer.hear(OTHER, messages.TreeHeadsSent(own=sign(DOMAIN, said, OTHER_KEY), seen=()))
    bigger = replace(said, size=9)
    buyer.hear(OTHER, messages.TreeHeadsSent(own=sign(DOMAIN, bigger, OTHER_KEY), seen=()))
    assert not town.proven
    assert not buyer.heads.unproved(log_id_of(PROVIDER))
    assert buyer.counters["ledger: a head of another ledger than its sender's"] == 2
    assert newest(buyer, PROVIDER).size == 5


def test_a_head_of_our_own_that_is_not_of_our_ledger_is_noticed(town):
    buyer = town.add(BUYER_KEY)
    post(buyer, RECORDS[:2])
    own = head_signer(OTHER_KEY)(1, bytes(32))
    for ours, strange in ((buyer.ledger.newest_head(), 0), (head_signer(BUYER_KEY)(2, bytes(32)), 1)):
        buyer.hear(OTHER, messages.TreeHeadsSent(own=own, seen=(ours,)))
        assert buyer.counters["ledger: A HEAD OF OURS IS NOT OF OUR LEDGER"] == strange


def test_a_daemon_does_not_go_on_from_a_ledger_that_was_rolled_back(town, tmp_path):
    node = town.add(PROVIDER_KEY)
    post(node, RECORDS[:9])
    node.keep_own()
    refuse_rolled_back(node.ledger, node.heads, PROVIDER)
    old = LedgerStore(tmp_path / "old.sqlite")
    old.post(RECORDS[:4], head_signer(PROVIDER_KEY))
    with pytest.raises(OperatorError, match="is not the one of which 9 were signed for"):
        refuse_rolled_back(old, node.heads, PROVIDER)
    old.post(list(reversed(RECORDS[4:12])), head_signer(PROVIDER_KEY))
    with pytest.raises(OperatorError, match="is not the one"):
        refuse_rolled_back(old, node.heads, PROVIDER)
    old.close()


def test_forked_receipt_chain_is_proven_by_two_receipts_of_one_number(town):
    buyer = town.add(BUYER_KEY)
    post(buyer, records(MARKET, BUYER_KEY))
    state = MARKET.engines[BUYER].state
    sent = [message for _, _, message in MARKET.said if isinstance(message, messages.ReceiptSent)]
    for message in sent:
        buyer.watch(state, MessageArrived(sender=PROVIDER, message=message, at_ms=1))
    assert not town.proven
    second = sign(DOMAIN, replace(sent[1].receipt.document, amount_total=10**6), PROVIDER_KEY)
    stranger = MessageArrived(sender=OTHER, message=replace(sent[1], receipt=second), at_ms=1)
    buyer.watch(state, stranger)
    assert not town.proven
    for _ in range(2):
        buyer.watch(state, MessageArrived(sender=PROVIDER, message=replace(sent[1], receipt=second), at_ms=1))
    ((finder, proven),) = town.proven
    assert (finder, proven.account) == (BUYER, PROVIDER)
    ((account, proof, _),) = buyer.heads.proofs()
    assert isinstance(proof, TwoReceipts)
    assert accused(proof) == account == PROVIDER


def test_two_receipts_that_were_both_refused_prove_it_too(town):
    buyer = town.add(BUYER_KEY)
    state = MARKET.engines[BUYER].state
    sent = next(message for _, _, message in MARKET.said if isinstance(message, messages.ReceiptSent))
    for total in (10**6, 10**7):
        refused = sign(DOMAIN, replace(sent.receipt.document, seq=50, amount_total=total), PROVIDER_KEY)
        buyer.watch(state, MessageArrived(sender=PROVIDER, message=replace(sent, receipt=refused), at_ms=1))
    assert [proven.account for _, proven in town.proven] == [PROVIDER]


def test_ever_new_heads_of_a_silent_peer_leave_one_question_waiting(town):
    provider, buyer = town.add(PROVIDER_KEY), town.add(BUYER_KEY)
    post(provider, RECORDS[:1])
    show(provider, BUYER)
    asked = []
    town.bring = lambda _sender, send: asked.append(send)
    for size in range(2, 40):
        made = head_signer(PROVIDER_KEY)(size, bytes([size]) * 32)
        buyer.hear(PROVIDER, messages.TreeHeadsSent(own=made, seen=()))
    assert len(asked) == 38, "one question for each head that was heard"
    assert {send.replaces for send in asked} == {"consistency"}, "and each takes the place of the one before"
    assert asked[-1].message == messages.ConsistencyWanted(first=1, second=39)


def test_answers_to_ever_new_questions_take_each_other_s_place(town):
    provider = town.add(PROVIDER_KEY)
    post(provider, RECORDS[:9])
    sent = []
    town.bring = lambda _sender, send: sent.append(send)
    for first in range(1, 9):
        provider.hear(BUYER, messages.ConsistencyWanted(first=first, second=9))
    assert len(sent) == 8
    assert len({send.replaces for send in sent}) == 1


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1])
def test_sizes_that_no_ledger_reaches_are_dropped_and_counted(town, size):
    provider, buyer = town.add(PROVIDER_KEY), town.add(BUYER_KEY)
    post(provider, RECORDS[:1])
    show(provider, BUYER)
    absurd = head_signer(PROVIDER_KEY)(size, bytes(32))
    buyer.hear(PROVIDER, messages.TreeHeadsSent(own=absurd, seen=(absurd,)))
    buyer.hear(PROVIDER, messages.ConsistencySent(first=1, second=size, proof=()))
    buyer.hear(PROVIDER, messages.ConsistencyWanted(first=1, second=size))
    assert buyer.counters["ledger: a head of a size that no ledger reaches"] == 2
    assert newest(buyer, PROVIDER).size == 1
