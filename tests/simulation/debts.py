"""Owners who mind what they are owed on the ledger, and the replay of every honest ledger at the end of a world."""

from typing import Any

from hansa.market.ledger import owed_by, owed_to
from hansa.market.ledger_check import check_ledger
from hansa.node.engine.events import NettingDue, PaymentReceived
from hansa.node.engine.mutual_credit import could_net
from hansa.proto.codec import encode
from hansa.proto.currency import currency_of
from hansa.proto.keccak import keccak256

PAYS = 0.3
CREDIT_LIMITS = (10**12, 10**12, 600_000, 200_000)
"""Most markets never reach the first; the others are reached by a job or two."""


def mind_debts(node: Any) -> None:
    """Now and then a debtor pays a part, outside, and its creditor says so; what both owe cancels out."""
    state, chance = node.engine.state, node.world.random
    if currency_of(node.market.currency).is_on_chain:
        return
    for peer in sorted(node.market.nodes):
        owed = owed_by(state.ledger, peer)
        if owed > 0 and state.terms is not None and chance.random() < PAYS:
            amount = chance.randint(1, owed)
            node.market.auditor.moves["payments acknowledged"] += 1
            node.hear(PaymentReceived(debtor=peer, amount=amount, how="by hand", at_ms=node.now_ms()))
    if any(could_net(state)):
        node.market.auditor.moves["nettings proposed"] += 1
        node.hear(NettingDue(at_ms=node.now_ms()))


def check_ledgers(market: Any) -> None:
    """Every honest node's ledger holds by its signatures alone, and says that nobody owes more than its line.

    What two honest nodes owe each other stands alike in both their books, once everything has arrived.
    """
    if currency_of(market.currency).is_on_chain:
        return
    for node in market.nodes.values():
        if not node.honest:
            continue
        chain, rows = bytes(32), []
        for position, record in enumerate(node.ledger.records.values(), start=1):
            body = encode(record)
            chain = keccak256(chain + body)
            rows.append((position, record.id, body, chain))
        report = check_ledger(rows, owner=node.account)
        assert report.holds, f"a ledger does not hold: {report.first_fault}"
        for peer, other in market.nodes.items():
            due = owed_by(report.books, peer)
            if other.honest and other.engine is not None and node.engine is not None and other is not node:
                owes = owed_to(other.engine.state.ledger, node.account)
                market.auditor.moves["debts that stand alike in both books" if due == owes else "debts apart"] += 1
