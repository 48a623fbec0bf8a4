"""What is let in to be journaled."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import (
    BLOB,
    BUYER,
    CHANNEL,
    CHANNEL_ID,
    NOW_MS,
    OTHER,
    PROVIDER,
    award,
    bid,
    decline,
    evidence,
    line,
    statement,
    tender,
    workload,
)

from hansa.market.earning_channel import EarningChannel
from hansa.market.effects import unsigned
from hansa.market.ledger import Ledger
from hansa.market.mutual import Mutual
from hansa.market.paying_channel import PayingChannel
from hansa.market.pricing import ProviderTerms
from hansa.market.purchase_state import Placement, Purchase
from hansa.market.sale_state import Sale
from hansa.node.engine.gate import TENDER_EVERY_MS, TENDERS_AT_ONCE, TenderRate, concerns, partners
from hansa.node.engine.state import NodeState
from hansa.proto import messages
from hansa.proto.documents import CooperativeClose, CreditLine, Netting, Payment, TreeHead, Voucher
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

TENDER = tender()
TENDER_DIGEST = digest(DOMAIN, TENDER)
BID = bid(TENDER).document
BID_DIGEST = digest(DOMAIN, BID)
AWARD = award(BID)
LEASE = digest(DOMAIN, AWARD)
TERMS = ProviderTerms(
    account=PROVIDER,
    currency="USD",
    tier="sandbox",
    price_e18_per_device_ms=1,
    voucher_timeout_ms=1,
    max_unpaid=1,
    grace_ms=1,
    credit_limit=1,
    bid_ms=1,
    reclaim_notice_ms=1,
)
VOUCHER = Voucher(channel_id=CHANNEL_ID, cumulative=1, statement=bytes(32))
CLOSE = CooperativeClose(channel_id=CHANNEL_ID, cumulative=1)


def buyer() -> NodeState:
    state = NodeState(account=BUYER)
    placement = Placement(
        shard=0, bid=BID_DIGEST, provider=PROVIDER, award=AWARD, lease=LEASE, channel=CHANNEL, phase="confirmed"
    )
    state.purchases[TENDER_DIGEST] = Purchase(
        phase="running",
        tender=TENDER,
        tender_digest=TENDER_DIGEST,
        workload=workload(),
        funds=1,
        invited=(PROVIDER,),
        bids={BID_DIGEST: BID},
        placements=(placement,),
    )
    state.placed[LEASE] = TENDER_DIGEST
    state.paying[CHANNEL_ID] = PayingChannel(config=CHANNEL, channel_id=CHANNEL_ID, currency="USD")
    return state


def provider() -> NodeState:
    state = NodeState(account=PROVIDER, terms=TERMS)
    state.sales[BID_DIGEST] = Sale(tender=TENDER, bid=BID, bid_digest=BID_DIGEST, grace_ms=1, lease=LEASE)
    state.sale_of[LEASE] = BID_DIGEST
    state.earning[CHANNEL_ID] = EarningChannel(config=CHANNEL, channel_id=CHANNEL_ID, currency="USD")
    return state


FOR_BUYERS = [
    messages.BidSent(bid=bid(TENDER)),
    messages.DeclineSent(decline=decline(TENDER)),
    messages.LeaseConfirmed(lease=LEASE),
    messages.LeaseRefused(lease=LEASE, kind="mismatch", reason=""),
    messages.RunReported(lease=LEASE, step=1, metrics=(), started=True),
    messages.RunEnded(lease=LEASE, outcome="succeeded", kind="", reason="", outputs=0, line=None, paid=0, vouched=0),
    messages.RunKept(lease=LEASE, kind="user-exception", reason="", until_ms=1),
    messages.LeaseReclaimed(lease=LEASE, by_ms=1, reason=""),
    messages.MirrorHeld(lease=LEASE, shard=1, checkpoint=BLOB),
    messages.MirrorRefused(lease=LEASE, shard=1, checkpoint=BLOB, reason=""),
    messages.CloseAccepted(currency="USD", close=unsigned(CLOSE)),
]
FOR_PROVIDERS = [
    messages.AwardSent(award=unsigned(AWARD), channel=CHANNEL, workload=workload()),
    messages.BidReleased(bid=BID_DIGEST, reason=""),
    messages.LeaseCancelled(lease=LEASE, reason=""),
    messages.RunOrdered(lease=LEASE, round=0, checkpoint=None, mirrors=()),
    messages.RunStopOrdered(lease=LEASE, reason=""),
    messages.MirrorWanted(lease=LEASE, shard=1, checkpoint=BLOB, holder=OTHER),
    messages.MirrorReleased(lease=LEASE, shard=1),
    messages.CheckpointGranted(lease=LEASE, checkpoint=BLOB, account=OTHER),
    messages.DeliveryAccepted(lease=LEASE),
    messages.PenaltyReleased(lease=LEASE),
    messages.VoucherSent(currency="USD", voucher=unsigned(VOUCHER)),
    messages.ReceiptRefused(channel_id=CHANNEL_ID, seq=1, reason=""),
    messages.ReceiptDisputed(channel_id=CHANNEL_ID, seq=1, payable=(), reason=""),
    messages.CloseProposed(currency="USD", close=unsigned(CLOSE)),
]
HEAD = TreeHead(log_id=bytes(32), size=1, root=bytes(32), timestamp_ms=1)
NETTING = Netting(lower=min(BUYER, PROVIDER), higher=max(BUYER, PROVIDER), unit=bytes(32), total=1, nonce=1)
LINE = CreditLine(creditor=PROVIDER, debtor=BUYER, unit=bytes(32), limit=1, not_after=1, nonce=1)
PAYMENT = Payment(creditor=PROVIDER, debtor=BUYER, unit=bytes(32), total=1, how="", nonce=1, paid_ms=1)
FOR_BOTH = [
    messages.CreditGranted(line=unsigned(LINE)),
    messages.PaymentAcknowledged(payment=unsigned(PAYMENT)),
    messages.NettingProposed(netting=unsigned(NETTING)),
    messages.NettingAccepted(netting=unsigned(NETTING)),
    messages.TreeHeadsSent(own=unsigned(HEAD), seen=()),
    messages.ConsistencyWanted(first=1, second=2),
    messages.ConsistencySent(first=1, second=2, proof=()),
]

FROM_ANYBODY = [messages.ProofSent(proof=b"")]


def name(message: object) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", FOR_BUYERS, ids=name)
def test_a_buyer_hears_its_provider_about_what_they_share_and_nobody_else(message: object) -> None:
    assert concerns(buyer(), PROVIDER, message)
    assert not concerns(buyer(), OTHER, message)
    assert not concerns(NodeState(account=BUYER), PROVIDER, message)


@pytest.mark.parametrize("message", FOR_PROVIDERS, ids=name)
def test_a_provider_hears_its_buyer_about_what_they_share_and_nobody_else(message: object) -> None:
    assert concerns(provider(), BUYER, message)
    assert not concerns(provider(), OTHER, message)
    assert not concerns(NodeState(account=PROVIDER, terms=TERMS), BUYER, message)


@pytest.mark.parametrize("message", FOR_BOTH, ids=name)
def test_words_about_debts_and_histories_are_heard_of_those_with_whom_money_moves(message: object) -> None:
    for state, peer in ((buyer(), PROVIDER), (provider(), BUYER)):
        assert concerns(state, peer, message)
        assert not concerns(state, OTHER, message)
        assert not concerns(NodeState(account=state.account, terms=TERMS), peer, message)
        state.proven[peer] = "signed two histories"
        assert not concerns(state, peer, message)


@pytest.mark.parametrize("message", FROM_ANYBODY, ids=name)
def test_what_proves_itself_is_heard_of_anybody_who_is_not_refused(message: object) -> None:
    state = NodeState(account=BUYER)
    assert concerns(state, OTHER, message)
    state.blocked[OTHER] = "never again"
    assert not concerns(state, OTHER, message)
    state.proven[PROVIDER] = "signed two histories"
    assert not concerns(state, PROVIDER, message)


def test_partners_are_all_with_whom_money_moves_or_moved() -> None:
    assert (partners(buyer()), partners(provider())) == ({PROVIDER}, {BUYER})
    assert partners(NodeState(account=BUYER)) == set()
    owing = NodeState(account=BUYER)
    owing.ledger = Ledger(balances={f"owed:{PROVIDER.hex()}": -1, f"due:{OTHER.hex()}": 1, "spend:00": 1})
    owing.mutual[BUYER] = Mutual()
    assert partners(owing) == {PROVIDER, OTHER, BUYER}


@pytest.mark.parametrize("message", FOR_BOTH, ids=name)
def test_who_signs_for_a_colder_account_is_a_partner_after_its_channels_ended_too(message: object) -> None:
    """The books know the account that paid or was paid, for which no node speaks."""
    key, cold = b"k" * 32, b"\x0e" * 20
    sold, bought = NodeState(account=PROVIDER), NodeState(account=BUYER)
    for paid in (0, 5):
        voucher = unsigned(replace(VOUCHER, cumulative=paid)) if paid else None
        sold.earning[key] = EarningChannel(
            config=replace(CHANNEL, payer=cold), channel_id=key, currency="USD", phase="closed", voucher=voucher
        )
        bought.paying[key] = PayingChannel(
            config=replace(CHANNEL, payee=cold), channel_id=key, currency="USD", phase="closed", cumulative=paid
        )
        assert sold.earning.ended
        assert bought.paying.ended
        for state, peer in ((sold, BUYER), (bought, PROVIDER)):
            assert concerns(state, peer, message) == (peer in partners(state)) == bool(paid)
            assert not concerns(state, OTHER, message)


@pytest.mark.parametrize("message", [m for m in FOR_BUYERS + FOR_PROVIDERS if hasattr(m, "currency")], ids=name)
def test_what_moves_money_counts_only_in_the_currency_of_its_channel(message: Any) -> None:
    node, sender = (buyer(), PROVIDER) if message in FOR_BUYERS else (provider(), BUYER)
    assert concerns(node, sender, message)
    assert not concerns(node, sender, replace(message, currency="EUR"))


def test_a_receipt_is_heard_on_the_payees_own_channel_only() -> None:
    receipt = statement((line(1_000), evidence(1))).receipt
    message = messages.ReceiptSent(receipt=unsigned(receipt), lines=(), evidence=())
    assert concerns(buyer(), PROVIDER, message)
    assert not concerns(buyer(), OTHER, message)
    foreign = messages.ReceiptSent(receipt=unsigned(replace(receipt, channel_id=b"x" * 32)), lines=(), evidence=())
    assert not concerns(buyer(), PROVIDER, foreign)


def test_tenders_are_heard_where_something_is_lent() -> None:
    message = messages.TenderSent(tender=unsigned(TENDER))
    assert concerns(provider(), OTHER, message)
    assert not concerns(buyer(), OTHER, message)


def test_every_direct_message_is_known_at_the_gate() -> None:
    tried = {type(message) for message in FOR_BUYERS + FOR_PROVIDERS + FOR_BOTH + FROM_ANYBODY}
    # These carry a lease like those that were tried.
    alike = {messages.RoundContributed, messages.RoundPublished, messages.CheckpointStored, messages.OutputStored}
    rest = {messages.TenderSent, messages.ReceiptSent, messages.RunLogSent}
    assert tried | alike | rest == set(messages.Direct.__args__)


def test_one_buyers_tenders_run_dry_and_come_back_with_time_and_anothers_do_not() -> None:
    rate = TenderRate()
    assert all(rate.admits(BUYER, NOW_MS) for _ in range(TENDERS_AT_ONCE))
    assert not rate.admits(BUYER, NOW_MS)
    assert rate.admits(OTHER, NOW_MS)
    assert rate.admits(BUYER, NOW_MS + TENDER_EVERY_MS)
    assert not rate.admits(BUYER, NOW_MS + TENDER_EVERY_MS)


def test_patience_saves_nothing_up_beyond_the_bucket() -> None:
    rate = TenderRate()
    assert rate.admits(BUYER, NOW_MS)
    later_ms = NOW_MS + 1_000 * TENDER_EVERY_MS
    assert sum(rate.admits(BUYER, later_ms) for _ in range(100)) == TENDERS_AT_ONCE


@given(st.lists(st.integers(0, 10_000), max_size=200))
def test_no_timing_gets_more_tenders_in_than_a_bucket_and_one_an_interval(pauses_ms: list[int]) -> None:
    rate, now_ms, admitted = TenderRate(), NOW_MS, 0
    for pause_ms in pauses_ms:
        now_ms += pause_ms
        admitted += rate.admits(BUYER, now_ms)
    assert admitted <= TENDERS_AT_ONCE + (now_ms - NOW_MS) // TENDER_EVERY_MS
