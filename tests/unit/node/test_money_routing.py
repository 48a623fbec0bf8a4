"""Money between two nodes: who is told of a channel's funds, when runs start, and whose word counts about it."""

import pytest
from kit.small_market import SmallMarket
from kit.trading import (
    BUYER,
    BUYER_KEY,
    JOB,
    NOW_MS,
    PROVIDER,
    PROVIDER_KEY,
    award,
    channel,
    spec,
    tender,
    workload,
)

from hansa.market.effects import channel_salt, sealed, unsigned
from hansa.market.funding import ChannelSettled, FundingWanted, FundsKnown
from hansa.market.receipts import receipt_digest
from hansa.market.sale_funding import UNFUNDED
from hansa.node.api.views import job_view
from hansa.node.engine import events
from hansa.node.engine.buying_turns import funds_left
from hansa.node.engine.engine import Engine
from hansa.node.engine.selling_runs import life_signs
from hansa.node.engine.state import restored, snapshot
from hansa.proto import messages
from hansa.proto.codec import encode
from hansa.proto.currency import escrow_currency
from hansa.proto.documents import CooperativeClose, Voucher, channel_id
from hansa.proto.network import DOMAIN
from hansa.proto.signing import sign
from hansa.proto.typed_data import digest
from hansa.scheduler import run

CHAIN = escrow_currency(31_337, b"\xee" * 20, b"\x70" * 20)
MOST = 600_001


def leased(currency=CHAIN, shards=1, changes=None, **rules):
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=shards, currency=currency, **rules)
    of = spec(shards=shards, currency=currency, **(changes or {}))
    made.submit(BUYER, of=of)
    made.tender(BUYER, (PROVIDER,), shards=tuple(range(shards)), currency=currency)
    return made


def state_of(made, account):
    return made.engines[account].state


def channel_key(made):
    return next(iter(state_of(made, BUYER).paying.live))


def fund(made, account, most):
    made.take(account, FundsKnown(channel_id=channel_key(made), most=most, at_ms=made.now_ms))


def phases(made):
    return [sold.phase for _, sold in state_of(made, PROVIDER).sales.all()]


def test_a_gang_on_a_chain_is_ordered_to_start_when_its_buyer_sees_all_its_money_and_starts_when_the_provider_does():
    made = leased(shards=2)
    wanted = [effect.amount for _, effect in made.effects if isinstance(effect, FundingWanted)]
    assert wanted == [MOST, 2 * MOST], "totals, the second with the first in it"
    fund(made, BUYER, 2 * MOST - 1)
    assert not made.heard(messages.RunOrdered)
    assert phases(made) == ["leased", "leased"]
    assert len(list(life_signs(state_of(made, PROVIDER), made.now_ms))) == 2, "who waits for money lives"
    fund(made, BUYER, 2 * MOST)
    assert len(made.heard(messages.RunOrdered)) == 2
    assert phases(made) == ["funding", "funding"]
    fund(made, PROVIDER, 2 * MOST)
    assert phases(made) == ["running", "running"]


def test_on_the_ledger_a_run_starts_at_once_within_what_its_buyer_may_owe():
    made = leased("USD", credit_limit=10**9)
    assert phases(made) == ["running"]
    assert state_of(made, PROVIDER).earning.live[channel_key(made)].limit in (None, 10**9)


def test_a_job_is_told_that_money_runs_low_and_by_how_much():
    made = leased()
    job = state_of(made, BUYER).jobs.get(JOB)
    assert job_view(state_of(made, BUYER), job)["warning"] == (
        "a channel's deposit of 0.600001 is not final yet: a run starts when it is"
    ), "nothing runs low at a beginning"
    fund(made, BUYER, 400_000)
    job = state_of(made, BUYER).jobs.get(JOB)
    warning = job_view(state_of(made, BUYER), job)["warning"]
    assert warning == "money runs low: a channel can pay 0.400000 in all, and may need 0.600001"


def test_a_budget_that_does_not_suffice_waits_and_goes_on_after_a_top_up():
    made = leased("USD", changes={"budget": MOST - 1})
    state = state_of(made, BUYER)
    view = job_view(state, state.jobs.get(JOB))
    assert (view["phase"], view["missing"]) == ("gathering", "0.000001")
    assert view["warning"].endswith(f"hansa top-up {JOB.hex()[:12]} 0.000001")
    made.take(BUYER, events.JobToppedUp(job=JOB, amount=1, at_ms=made.now_ms))
    made.tender(BUYER, (PROVIDER,), nonce=b"2" * 32)
    assert phases(made)[-1] == "running"
    again = Engine(made.journals[BUYER]).state
    assert encode(snapshot(again)) == encode(snapshot(state_of(made, BUYER)))
    assert encode(snapshot(restored(snapshot(again)))) == encode(snapshot(again))


def test_a_restart_tenders_nothing_that_waits_for_money():
    made = leased("USD", changes={"budget": 1})
    made.effects.clear()
    made.restart(BUYER)
    assert [type(effect).__name__ for account, effect in made.effects if account == BUYER] == []


def ended(lease, kind, *, line=None, paid=0, vouched=0):
    signed = line and sign(DOMAIN, line, PROVIDER_KEY)
    return messages.RunEnded(
        lease=lease, outcome="failed", kind=kind, reason="no money", outputs=0, line=signed, paid=paid, vouched=vouched
    )


def ends_unfunded(made, **words):
    lease = next(iter(state_of(made, PROVIDER).sale_of))
    made.tell(PROVIDER, BUYER, ended(lease, UNFUNDED, **words))
    return state_of(made, BUYER).jobs.get(JOB).shards[0]


@pytest.mark.parametrize("shows_its_line", [False, True])
def test_a_provider_that_says_unfunded_of_a_channel_that_can_pay_has_lost_the_shard(shows_its_line):
    made = leased("USD")
    line = state_of(made, PROVIDER).mutual[BUYER].given if shows_its_line else None
    shard = ends_unfunded(made, line=line)
    assert (shard.short, shard.losses, shard.kind) == (False, 1, "refused")
    assert state_of(made, BUYER).records[PROVIDER].bad == 1


def test_a_provider_that_says_so_of_one_that_cannot_costs_no_retry():
    made = leased()
    fund(made, BUYER, MOST)
    fund(made, BUYER, 1_000)
    shard = ends_unfunded(made)
    assert (shard.short, shard.losses) == (True, 0)
    warning = job_view(state_of(made, BUYER), state_of(made, BUYER).jobs.get(JOB))["warning"]
    assert warning.endswith(f"fill the wallet, then hansa top-up {JOB.hex()[:12]} 0")
    state_of(made, BUYER).payer = b"\x0c" * 20
    warning = job_view(state_of(made, BUYER), state_of(made, BUYER).jobs.get(JOB))["warning"]
    assert warning.endswith("hansa wallet deposit has it go on")
    assert state_of(made, BUYER).records == {}


@pytest.mark.parametrize(("minutes", "true"), [(10, True), (12, False)])
def test_a_run_that_went_on_long_after_its_deposit_was_there_has_not_ended_for_want_of_it(minutes, true):
    made = leased(changes={"silence_ms": 3_600_000})
    fund(made, BUYER, MOST)
    fund(made, BUYER, 1_000)
    lease = next(iter(state_of(made, PROVIDER).sale_of))
    made.now_ms += 40 * 60_000
    fund(made, BUYER, MOST)
    made.now_ms += minutes * 60_000
    made.tell(PROVIDER, BUYER, messages.RunReported(lease=lease, step=1, metrics=(), started=True))
    made.now_ms += 30 * 60_000
    shard = ends_unfunded(made)
    assert (shard.kind == UNFUNDED) is true, "and how long its word was on its way is nobody's fault"


def test_who_cancels_a_job_notes_nothing_about_its_provider():
    made = leased("USD")
    made.take(BUYER, events.JobCancelled(job=JOB, reason="no longer wanted", at_ms=made.now_ms))
    assert state_of(made, BUYER).records == {}


def test_strangers_pay_ahead_and_who_has_settled_here_does_not():
    rules = {"prepay_ms": 2_000}
    made = leased("USD", changes={"max_prepay_ms": 60_000}, **rules)
    (sold,) = (sold for _, sold in state_of(made, PROVIDER).sales.all())
    assert (sold.bid.prepay, sold.ahead, sold.phase) == (2_000, 2_000, "running")
    lease = sold.lease
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    made.now_ms += 1_000
    made.take(PROVIDER, run.RunProgressed(run=lease, step=1, metrics=(), at_ms=made.now_ms))
    made.take(PROVIDER, run.RunFinished(run=lease, at_ms=made.now_ms))
    assert made.heard(messages.CloseAccepted), "it is over, and closed at what was received"
    assert state_of(made, BUYER).ledger.total("paid:") == -1_000
    made.submit(BUYER, job=b"2" * 32, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,), job=b"2" * 32, nonce=b"2" * 32)
    assert [sold.bid.prepay for _, sold in state_of(made, PROVIDER).sales.all()] == [2_000, 0]


def test_what_was_paid_ahead_in_vain_counts_against_the_budget_until_it_comes_back():
    made = leased("USD", changes={"max_prepay_ms": 600_000, "retries": 3}, prepay_ms=400_000)
    before = state_of(made, BUYER)
    of = before.jobs.get(JOB)
    made.lost = lambda _, message: isinstance(message, messages.CloseProposed)
    lease = next(iter(state_of(made, PROVIDER).sale_of))
    made.tell(PROVIDER, BUYER, ended(lease, "lost"))
    assert funds_left(state_of(made, BUYER), of) <= of.spec.budget - 400_000


def test_a_channel_that_its_backend_ended_pays_nothing_more_and_lets_its_leases_end():
    made = leased()
    fund(made, BUYER, MOST)
    made.take(BUYER, ChannelSettled(channel_id=channel_key(made), paid=0, at_ms=NOW_MS + 60_000))
    assert not state_of(made, BUYER).paying.live
    shard = ends_unfunded(made)
    assert shard.phase == "waiting"


def test_what_a_run_worked_and_has_not_written_down_yet_is_nobody_elses_to_use():
    made = leased(shards=2)
    fund(made, BUYER, 2 * MOST)
    fund(made, PROVIDER, 18_000)
    first, _ = state_of(made, PROVIDER).sale_of
    made.take(PROVIDER, run.RunStarted(run=first, at_ms=made.now_ms))
    made.now_ms += 500
    made.take(PROVIDER, run.RunProgressed(run=first, step=1, metrics=(), at_ms=made.now_ms))
    fund(made, PROVIDER, 600)
    sold = [entry for _, entry in state_of(made, PROVIDER).sales.all()]
    assert sorted(entry.accrued for entry in sold) == [0, 500]
    assert sum(max(entry.accrued, entry.ceiling) for entry in sold) == 600


def sale_on_a_channel(made, number, config=None, failed=0):
    """A tender and an award of a buyer that is nobody's engine. Answers the lease and the channel."""
    of = tender(nonce=bytes([number]) * 32, bids_close_ms=made.now_ms + 2_000, expires_ms=made.now_ms + 60_000)
    made.tell(BUYER, PROVIDER, sealed(messages.TenderSent(tender=unsigned(of)), BUYER_KEY))
    answer = made.heard(messages.BidSent)[-1].bid.document
    config = config or channel(salt=channel_salt(digest(DOMAIN, of), PROVIDER, failed))
    accepted = award(
        answer,
        channel_id=channel_id(DOMAIN, config),
        confirm_by_ms=made.now_ms + 4_000,
        start_by_ms=made.now_ms + 34_000,
        ends_ms=made.now_ms + 634_000,
    )
    sent = messages.AwardSent(award=unsigned(accepted), channel=config, workload=workload())
    made.tell(BUYER, PROVIDER, sealed(sent, BUYER_KEY))
    return digest(DOMAIN, accepted), config


def test_a_channel_that_was_closed_at_nothing_never_opens_again():
    """Its provider would number receipts anew, and sign two that contradict each other."""
    made = SmallMarket()
    made.add(PROVIDER_KEY, devices=2)
    lease, config = sale_on_a_channel(made, 1)
    key = channel_id(DOMAIN, config)
    made.tell(BUYER, PROVIDER, messages.LeaseCancelled(lease=lease, reason="x"))
    close = messages.CloseProposed(currency="USD", close=unsigned(CooperativeClose(channel_id=key, cumulative=0)))
    made.tell(BUYER, PROVIDER, sealed(close, BUYER_KEY))
    assert state_of(made, PROVIDER).earning.get(key).phase == "closed"
    sale_on_a_channel(made, 2, config)
    assert made.heard(messages.LeaseRefused)[-1].reason == "the channel is closed"
    assert state_of(made, PROVIDER).earning.get(key).phase == "closed"
    sale_on_a_channel(made, 3, failed=1)
    assert phases(made)[-1] == "leased"


def test_a_lease_is_told_that_what_was_paid_ahead_for_it_went_to_another():
    made = SmallMarket()
    made.add(PROVIDER_KEY, devices=2, prepay_ms=2_000, prepay_everybody=True)
    first, config = sale_on_a_channel(made, 1)
    second, _ = sale_on_a_channel(made, 2, config)
    key = channel_id(DOMAIN, config)

    def vouch(total, named):
        voucher = Voucher(channel_id=key, cumulative=total, statement=named)
        made.tell(BUYER, PROVIDER, sealed(messages.VoucherSent(currency="USD", voucher=unsigned(voucher)), BUYER_KEY))

    vouch(4_000, bytes(32))
    state = state_of(made, PROVIDER)
    assert (state.sale_on(first).ahead, state.sale_on(second).ahead) == (2_000, 2_000)
    made.tell(BUYER, PROVIDER, messages.RunOrdered(lease=first, round=0, checkpoint=None, mirrors=()))
    made.take(PROVIDER, run.RunStarted(run=first, at_ms=made.now_ms))
    for step in (1, 2):
        made.now_ms += 2_000
        made.take(PROVIDER, run.RunProgressed(run=first, step=step, metrics=(), at_ms=made.now_ms))
        vouch(4_000, receipt_digest(state.earning.live[key].out.receipt))
    assert state.earning.live[key].ahead == {}
    assert (state.sale_on(first).ahead, state.sale_on(second).ahead) == (0, 0)


def test_awards_that_are_called_off_leave_no_channel_behind_and_the_end_is_told_when_asked():
    made = SmallMarket()
    made.add(PROVIDER_KEY, devices=1)
    for number in range(1, 5):
        lease, config = sale_on_a_channel(made, number)
        made.tell(BUYER, PROVIDER, messages.LeaseCancelled(lease=lease, reason="x"))
        made.now_ms += 3_000
    assert not state_of(made, PROVIDER).earning.live
    made.said.clear()
    wanted = CooperativeClose(channel_id=channel_id(DOMAIN, config), cumulative=0)
    for _ in range(2):
        made.tell(BUYER, PROVIDER, sealed(messages.CloseProposed(currency="USD", close=unsigned(wanted)), BUYER_KEY))
    assert [said.close.document for said in made.heard(messages.CloseAccepted)] == [wanted, wanted]


def test_a_buyer_hears_that_an_unused_channel_ended_and_names_another_next_time():
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1)
    made.submit(BUYER, of=spec(shards=1))
    made.lost = lambda _to, message: isinstance(message, messages.RunOrdered)
    made.tender(BUYER, (PROVIDER,))
    key = channel_key(made)
    made.lost = lambda _to, message: isinstance(message, messages.RunEnded)
    made.pass_time(60_000, PROVIDER)
    assert not state_of(made, PROVIDER).earning.live
    assert state_of(made, BUYER).paying.get(key).phase == "closed"


def test_a_channel_on_which_something_was_paid_is_ended_by_no_word_that_nobody_asked_for():
    made = leased("USD", prepay_ms=1_000, prepay_everybody=True, changes={"max_prepay_ms": 1_000})
    key = channel_key(made)
    assert state_of(made, BUYER).paying.live[key].cumulative
    wanted = CooperativeClose(channel_id=key, cumulative=0)
    made.tell(PROVIDER, BUYER, sealed(messages.CloseAccepted(currency="USD", close=unsigned(wanted)), PROVIDER_KEY))
    assert state_of(made, BUYER).paying.live[key].phase == "open"


def test_what_a_settled_channel_paid_beyond_its_receipts_is_gone_from_the_budget():
    made = leased()
    state, key = state_of(made, BUYER), channel_key(made)
    made.take(BUYER, ChannelSettled(channel_id=key, paid=1_000, at_ms=made.now_ms))
    of = state.jobs.get(JOB)
    assert funds_left(state, of) == of.spec.budget - 1_000
