"""Debts on the ledger: bounded by a signed line, taken off by payments and nettings, never by one's own word."""

from dataclasses import replace

import pytest
from kit.filed_ledger import ledger_file, records
from kit.small_market import SmallMarket, device
from kit.trading import BUYER, BUYER_KEY, JOB, NOW_MS, OTHER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market import mutual
from hansa.market.effects import sealed, unsigned
from hansa.market.funding import FundsKnown
from hansa.market.ledger import owed_by, owed_to
from hansa.market.ledger_check import check_ledger
from hansa.market.ledger_records import FiledClose, FiledCredit, FiledNetting, FiledPayment
from hansa.market.mutual import LATE_MS, LINE_LIFE_MS, Mutual
from hansa.market.sale_events import PauseWanted, ResumeWanted
from hansa.market.sale_funding import STARVING_MS, UNFUNDED, enough_to_start
from hansa.node.api.views import balance_view, money_warning
from hansa.node.engine import buying_turns, mutual_credit, selling_turns
from hansa.node.engine.events import (
    CreditDecided,
    EquivocationProven,
    JobCancelled,
    MessageArrived,
    NettingDue,
    PaymentReceived,
)
from hansa.node.engine.gate import concerns
from hansa.node.engine.state import restored, snapshot
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.proto import messages
from hansa.proto.currency import unit_of
from hansa.proto.documents import CreditLine, Netting, Payment
from hansa.proto.network import DOMAIN
from hansa.proto.signing import check, sign
from hansa.proto.units import format_amount
from hansa.scheduler import run
from hansa.scheduler.job_events import TenderWanted
from hansa.scheduler.job_state import with_shards

UNIT = unit_of("USD")
DAY_MS = 24 * 3_600_000


def market(*, credit_limit=10**9, both=False, **rules):
    """A buyer and a provider; with ``both`` each of them provides."""
    made = SmallMarket()
    made.add(BUYER_KEY, devices=int(both), credit_limit=credit_limit, **rules)
    made.add(PROVIDER_KEY, devices=1, credit_limit=credit_limit, **rules)
    return made


def begin(made, buyer=BUYER, provider=PROVIDER, *, job=b"j" * 32, **changes):
    """A job of one shard, leased and started. Answers the lease."""
    before = set(made.engines[provider].state.sale_of)
    made.submit(buyer, job=job, of=spec(shards=1, **changes))
    made.tender(buyer, (provider,), job=job, nonce=job)
    (lease,) = set(made.engines[provider].state.sale_of) - before
    made.take(provider, run.RunStarted(run=lease, at_ms=made.now_ms))
    return lease


def work(made, lease, steps=1, provider=PROVIDER, step_ms=2_000):
    """The run goes on for so many steps, each of them metered."""
    for _ in range(steps):
        made.now_ms += step_ms
        step = made.engines[provider].state.runs.live[lease].step + 1
        made.take(provider, run.RunProgressed(run=lease, step=step, metrics=(), at_ms=made.now_ms))


def finish(made, lease, provider=PROVIDER):
    made.now_ms += 1_000
    made.take(provider, run.RunFinished(run=lease, at_ms=made.now_ms))


def owes(made):
    """What the buyer owes the provider, by the provider's books; both sides' books agree."""
    due = owed_by(made.engines[PROVIDER].state.ledger, BUYER)
    assert due == owed_to(made.engines[BUYER].state.ledger, PROVIDER)
    return due


def pay(made, amount, how="bank transfer 17"):
    made.now_ms += 10
    made.take(PROVIDER, PaymentReceived(debtor=BUYER, amount=amount, how=how, at_ms=made.now_ms))


def verified(made, tmp_path):
    """Both ledgers, replayed from their signatures."""
    for key in (BUYER_KEY, PROVIDER_KEY):
        path = ledger_file(tmp_path / f"{key.address.hex()}.sqlite", key, records(made, key))
        store = LedgerStore(path, read_only=True)
        report = check_ledger(store.rows(), heads=store.heads(), nodes=store.nodes())
        store.close()
        assert report.holds, report.first_fault


def test_a_lease_brings_a_signed_credit_line_that_both_file_and_both_sides_know_their_funds(tmp_path):
    made = market(credit_limit=50_000)
    begin(made)
    line = made.engines[BUYER].state.mutual[PROVIDER].taken
    assert line == made.engines[PROVIDER].state.mutual[BUYER].given
    assert (line.creditor, line.debtor, line.unit, line.limit, line.nonce) == (PROVIDER, BUYER, UNIT, 50_000, 1)
    for key in (BUYER_KEY, PROVIDER_KEY):
        (filed,) = [record for record in records(made, key) if isinstance(record, FiledCredit)]
        check(DOMAIN, filed.line, PROVIDER)
    (earning,) = made.engines[PROVIDER].state.earning.live.values()
    (paying,) = made.engines[BUYER].state.paying.live.values()
    assert earning.funds == paying.funds == 50_000
    verified(made, tmp_path)


def test_a_balance_takes_off_what_was_paid_outside_whether_the_channel_lives_or_has_ended():
    made = market(credit_limit=50_000)
    lease = begin(made)
    work(made, lease, steps=2)
    pay(made, 400)

    def still(account, names):
        view = balance_view(made.engines[account].state, "USD", 0)
        return tuple(view[name] for name in names)

    for _ in range(2):
        shown = format_amount(owes(made))
        assert owes(made) > 0
        assert still(BUYER, ("remitted", "open_out", "open_in")) == ("0.000400", shown, "0.000000")
        assert still(PROVIDER, ("received", "open_in", "open_out")) == ("0.000400", shown, "0.000000")
        finish(made, lease)
    assert still(PROVIDER, ("due",)) == ("0.000000",), "it is closed"
    pay(made, owes(made))
    assert still(BUYER, ("open_out",)) == still(PROVIDER, ("open_in",)) == ("0.000000",)


def test_a_line_is_heard_as_soon_as_a_lease_is_awarded_though_the_gang_is_not_complete():
    made = market()
    made.lost = lambda _to, message: isinstance(message, messages.LeaseConfirmed)
    made.submit(BUYER, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,))
    made.pass_time(2_000, BUYER)
    state = made.engines[BUYER].state
    assert not state.paying.live
    (line,) = made.heard(messages.CreditGranted)
    assert concerns(replaced(state), PROVIDER, line)
    assert not concerns(replaced(state), OTHER_KEY.address, line)


def replaced(state):
    """The same, as it was before the line was heard."""
    state.mutual.clear()
    return state


def test_a_run_pauses_at_the_limit_and_goes_on_after_a_payment(tmp_path):
    made = market(credit_limit=20_000, max_unpaid=4_000)
    lease = begin(made)
    work(made, lease, steps=9)
    made.pass_time(2_000, PROVIDER)
    assert (PROVIDER, PauseWanted(lease=lease)) in made.effects
    assert owes(made) <= 20_000
    made.effects.clear()
    pay(made, 15_000)
    assert (PROVIDER, ResumeWanted(lease=lease)) in made.effects
    assert owes(made) <= 5_000
    (earning,) = made.engines[PROVIDER].state.earning.live.values()
    assert earning.funds == earning.cumulative + 20_000 - owes(made)
    verified(made, tmp_path)


def test_the_limit_counts_what_is_outstanding_and_not_what_was_ever_vouched():
    made = market(credit_limit=30_000)
    lease = begin(made)
    for _ in range(6):
        work(made, lease, steps=4)
        pay(made, owes(made))
    (earning,) = made.engines[PROVIDER].state.earning.live.values()
    assert earning.cumulative > 30_000
    assert earning.funds == earning.cumulative + 30_000


@pytest.mark.parametrize("turns", [selling_turns, buying_turns], ids=["provider", "buyer"])
def test_a_channel_hears_of_its_funds_only_when_they_change(monkeypatch, turns):
    made, heard = market(), []
    lease, advance = begin(made), turns.advance_channel

    def listened(state, key, event):
        heard.append(event)
        return advance(state, key, event)

    monkeypatch.setattr(turns, "advance_channel", listened)
    work(made, lease, steps=3)
    pay(made, owes(made))
    assert [event.most for event in heard if isinstance(event, FundsKnown)] == [10**9 + 6_000]


def test_who_owes_as_much_as_it_may_gets_no_bid_until_it_has_paid():
    made = market(credit_limit=20_000, max_unpaid=4_000)
    lease = begin(made)
    work(made, lease, steps=10)
    finish(made, lease)
    assert owes(made) == 20_000
    begun = len(made.engines[PROVIDER].state.sales)
    made.submit(BUYER, job=b"k" * 32, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,), job=b"k" * 32, nonce=b"k" * 32)
    assert len(made.engines[PROVIDER].state.sales) == begun
    pay(made, owes(made))
    made.submit(BUYER, job=b"l" * 32, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,), job=b"l" * 32, nonce=b"l" * 32)
    assert len(made.engines[PROVIDER].state.sales) == begun + 1


def ended_for_want_of_credit(devices=1):
    """A lease whose buyer owes all that it may, for too long. Answers the market."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=devices, credit_limit=20_000, max_unpaid=4_000)
    lease = begin(made)
    work(made, lease, steps=9)
    made.pass_time(2_000, PROVIDER)
    assert (PROVIDER, PauseWanted(lease=lease)) in made.effects
    made.pass_time(STARVING_MS, PROVIDER)
    made.take(PROVIDER, run.RunStopped(run=lease, at_ms=made.now_ms))
    return made


def test_a_lease_that_ends_for_want_of_credit_marks_nobody_costs_no_retry_and_brings_the_line_that_shows_why(tmp_path):
    made = ended_for_want_of_credit()
    state = made.engines[BUYER].state
    shard = state.jobs.get(JOB).shards[0]
    assert (shard.short, shard.losses, shard.kind) == (True, 0, UNFUNDED)
    assert all(not record.bad for record in state.records.values())
    made.restart(PROVIDER, devices=1)
    end = made.heard(messages.RunEnded)[-1]
    assert end.line.document.limit == 20_000, "the same words after a restart"
    verified(made, tmp_path)


def test_a_shard_that_waits_for_credit_is_tendered_again_as_soon_as_its_provider_lends_more():
    made = ended_for_want_of_credit()
    made.effects.clear()
    made.take(PROVIDER, CreditDecided(debtor=BUYER, limit=10**9, at_ms=made.now_ms))
    wanted = [effect for account, effect in made.effects if account == BUYER and isinstance(effect, TenderWanted)]
    assert [effect.shards for effect in wanted] == [(0,)]


def test_a_shard_that_waits_for_credit_is_not_tendered_again_before_a_lease_could_start_with_it():
    """Its provider would decline, and after some such tenders the job were lost."""
    made = ended_for_want_of_credit()
    (bid,) = (
        placed.bids[entry.bid] for _, placed in made.engines[BUYER].state.purchases.all() for entry in placed.placements
    )
    start = enough_to_start(bid)
    lacking = start - (20_000 - owes(made))
    assert lacking > 1
    for amount, tenders in ((lacking - 1, []), (1, [(0,)])):
        made.effects.clear()
        pay(made, amount)
        wanted = [effect for account, effect in made.effects if account == BUYER and isinstance(effect, TenderWanted)]
        assert [effect.shards for effect in wanted] == tenders


def look(made, again_ms=30_000, times=60):
    """The buyer's tenders reach the provider for a while. Answers which shards they were for."""
    begun = []
    for _ in range(times):
        tenders = [effect for account, effect in made.effects if account == BUYER and isinstance(effect, TenderWanted)]
        wanted = [effect for effect in tenders if effect.job == JOB]
        made.effects.clear()
        for effect in wanted:
            begun.append(effect.shards)
            nonce = (1_000 + made.now_ms + len(begun)).to_bytes(32, "big")
            made.tender(BUYER, (PROVIDER,), job=JOB, shards=effect.shards, nonce=nonce)
        made.pass_time(again_ms, BUYER, PROVIDER)
        if made.engines[BUYER].state.jobs.get(JOB).phase != "running":
            break
    return begun


def test_a_gang_that_starves_on_one_line_waits_for_its_money_and_is_not_lost():
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=2, credit_limit=40_000, max_unpaid=4_000)
    made.submit(BUYER, job=JOB, of=spec(shards=2))
    made.tender(BUYER, (PROVIDER,), job=JOB, shards=(0, 1))
    runs = made.engines[PROVIDER].state.runs.live
    leases = list(made.engines[PROVIDER].state.sale_of)
    for lease in leases:
        made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    for _ in range(14):
        made.now_ms += 2_000
        for lease in leases:
            step = runs[lease].step + 1
            made.take(PROVIDER, run.RunProgressed(run=lease, step=step, metrics=(), at_ms=made.now_ms))
    made.effects.clear()
    made.pass_time(2_000, PROVIDER)
    made.pass_time(STARVING_MS, PROVIDER)
    for lease in leases:
        made.take(PROVIDER, run.RunStopped(run=lease, at_ms=made.now_ms))
    jobs = made.engines[BUYER].state.jobs
    assert [shard.short for shard in jobs.get(JOB).shards] == [True, True]
    assert look(made) == []
    (start,) = {
        enough_to_start(bid) for _, bought in made.engines[BUYER].state.purchases.all() for bid in bought.bids.values()
    }
    pay(made, start)
    begun = look(made, again_ms=1_000, times=1)
    assert begun == [(0,), (1,)]
    (lease,) = runs
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    work(made, lease)
    # There is credit for one of them: the other looks for as long as it may, and waits then, with the reason said.
    for _ in range(60):
        work(made, lease, step_ms=1)
        look(made, again_ms=2_000, times=1)
    state = jobs.get(JOB)
    assert state.phase == "running", state.reason
    assert (state.phase, [shard.short for shard in state.shards]) == ("running", [False, True])
    told = money_warning(made.engines[BUYER].state, state)
    assert "when it last looked for a provider: it takes 1 bid, and none could win" in told
    finish(made, lease)
    assert look(made, times=1), "it may have left enough"
    assert look(made), "it did not"
    assert jobs.get(JOB).waits_for_money
    pay(made, start)
    assert look(made, times=1) == [(1,)]


def test_what_a_lease_of_another_job_left_of_a_line_is_there_for_one_that_waits_for_it():
    made = ended_for_want_of_credit(devices=2)
    made.effects.clear()
    pay(made, 15_000)
    lease = begin(made, job=b"k" * 32)
    state = made.engines[BUYER].state
    assert look(made, again_ms=1_000, times=1) == [(0,)]
    assert "you may owe this provider" in made.heard(messages.DeclineSent)[-1].decline.document.reason
    # It looked for as long as it may meanwhile.
    looked = state.jobs.get(JOB)
    state.jobs[JOB] = with_shards(looked, replace(looked.shards[0], short=True, retry_ms=0))
    finish(made, lease)
    assert look(made, again_ms=1_000, times=1) == [(0,)]
    assert made.engines[BUYER].state.jobs.get(JOB).shards[0].phase == "starting"


def test_what_another_account_lends_wakes_no_job_that_waits_for_its_provider():
    """Anybody ever dealt with could else have it look for providers that decline, again and again."""
    made = ended_for_want_of_credit()
    state, other = made.engines[BUYER].state, OTHER_KEY.address
    state.mutual[other] = Mutual()
    line = CreditLine(creditor=other, debtor=BUYER, unit=UNIT, limit=10**9, not_after=made.now_ms + DAY_MS, nonce=1)
    granted = messages.CreditGranted(line=sign(DOMAIN, line, OTHER_KEY))
    assert concerns(state, other, granted)
    made.effects.clear()
    made.take(BUYER, MessageArrived(sender=other, message=granted, at_ms=made.now_ms))
    assert state.mutual[other].taken.limit == 10**9
    assert look(made, times=5) == []
    assert state.jobs.get(JOB).waits_for_money


@pytest.mark.parametrize("lends", [30_000, 10**9])
def test_where_what_a_start_took_is_forgotten_a_job_waits_for_the_most_that_it_may_take(lends):
    made = ended_for_want_of_credit()
    state = made.engines[BUYER].state
    state.placed.clear()
    made.effects.clear()
    made.take(PROVIDER, CreditDecided(debtor=BUYER, limit=lends, at_ms=made.now_ms))
    wanted = [effect for account, effect in made.effects if account == BUYER and isinstance(effect, TenderWanted)]
    assert bool(wanted) is (lends == 10**9)


@pytest.mark.parametrize("lends", [0, 100])
def test_a_job_whose_provider_lends_less_after_the_award_is_told_of_its_credit_and_of_no_deposit(lends):
    made = market()
    begin(made)
    made.take(PROVIDER, CreditDecided(debtor=BUYER, limit=lends, at_ms=made.now_ms))
    state = made.engines[BUYER].state
    assert [channel.limit for channel in state.paying.live.values()] == [lends]
    assert money_warning(state, state.jobs.get(JOB)) == (
        f"money runs low: by its provider's credit line a channel can pay {format_amount(lends)} in all, and may need"
        " 0.600001; pay what you owe its provider, or have it lend more"
    )


def lowered_after_the_award(made):
    """A lease whose provider lends less from now on, and says so only when it ends. Answers the shard of the job."""
    made.lost = lambda _to, message: isinstance(message, messages.LeaseConfirmed)
    made.submit(BUYER, job=b"j" * 32, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,), job=b"j" * 32)
    made.lost = lambda _to, message: isinstance(message, messages.CreditGranted)
    made.take(PROVIDER, CreditDecided(debtor=BUYER, limit=100, at_ms=made.now_ms))
    (confirmed,) = made.heard(messages.LeaseConfirmed)
    made.tell(PROVIDER, BUYER, confirmed)
    (sold,) = made.engines[PROVIDER].state.sales.live.values()
    assert (sold.phase, sold.ceiling) == ("funding", 100)
    assert made.engines[BUYER].state.mutual[PROVIDER].taken.limit == 10**9, "it does not know better yet"
    made.pass_time(60_000, PROVIDER)
    return made.engines[BUYER].state.jobs.get(b"j" * 32).shards[0]


def test_a_provider_that_lends_less_after_the_award_has_lost_the_shard_whatever_line_it_shows():
    made = market()
    shard = lowered_after_the_award(made)
    assert (shard.short, shard.losses, shard.kind) == (False, 1, "refused")
    state = made.engines[BUYER].state
    assert state.records[PROVIDER].bad == 1
    assert state.mutual[PROVIDER].taken.limit == 100
    assert restored(snapshot(state)).mutual == state.mutual


def test_a_lower_line_that_came_before_the_end_is_no_better_excuse():
    made = market(max_unpaid=4_000)
    lease = begin(made)
    work(made, lease, steps=2)
    made.take(PROVIDER, CreditDecided(debtor=BUYER, limit=20_000, at_ms=made.now_ms))
    state = made.engines[BUYER].state
    assert (state.mutual[PROVIDER].taken.limit, state.mutual[PROVIDER].before[0].limit) == (20_000, 10**9)
    work(made, lease, steps=7)
    made.pass_time(2_000, PROVIDER)
    made.pass_time(STARVING_MS, PROVIDER)
    made.take(PROVIDER, run.RunStopped(run=lease, at_ms=made.now_ms))
    assert made.heard(messages.RunEnded)[-1].kind == UNFUNDED
    assert (state.jobs.get(JOB).shards[0].kind, state.records[PROVIDER].bad) == ("refused", 1)


@pytest.mark.parametrize(("ahead_ms", "taken"), [(LATE_MS, True), (LATE_MS + 1, False)])
def test_a_line_that_is_dated_ahead_is_not_taken_for_one_that_was_signed_later(ahead_ms, taken):
    made = market()
    state = made.engines[BUYER].state
    dated = CreditLine(
        creditor=PROVIDER,
        debtor=BUYER,
        unit=unit_of(state.currency),
        limit=5,
        not_after=made.now_ms + LINE_LIFE_MS + ahead_ms,
        nonce=99,
    )
    made.tell(PROVIDER, BUYER, messages.CreditGranted(line=sign(DOMAIN, dated, PROVIDER_KEY)))
    known = state.mutual.get(PROVIDER)
    assert (known is not None and known.taken is not None and known.taken.limit == 5) is taken


def test_who_awards_in_view_of_a_lower_line_goes_by_it_and_nothing_of_older_ones_is_kept():
    made = market(max_unpaid=4_000)
    finish(made, begin(made))
    made.now_ms += 120_000
    made.take(PROVIDER, CreditDecided(debtor=BUYER, limit=20_000, at_ms=made.now_ms))
    made.now_ms += 120_000
    lease = begin(made, job=b"k" * 32)
    state = made.engines[BUYER].state
    assert (state.mutual[PROVIDER].taken.limit, state.mutual[PROVIDER].before) == (20_000, ())
    work(made, lease, steps=9)
    made.pass_time(2_000, PROVIDER)
    made.pass_time(STARVING_MS, PROVIDER)
    made.take(PROVIDER, run.RunStopped(run=lease, at_ms=made.now_ms))
    shard = state.jobs.get(b"k" * 32).shards[0]
    assert (shard.kind, shard.losses, state.records[PROVIDER].bad) == (UNFUNDED, 0, 0)


def test_what_a_new_channel_can_pay_is_known_when_it_opens_if_its_providers_line_is():
    made = market(credit_limit=50_000)
    lease = begin(made)
    work(made, lease)
    finish(made, lease)
    assert not made.engines[BUYER].state.paying.live
    begin(made, job=b"k" * 32)
    (paying,) = made.engines[BUYER].state.paying.live.values()
    assert paying.funds == 50_000 - owes(made)


def test_no_bid_is_made_that_could_not_start_within_what_its_buyer_may_still_owe():
    # A start takes what may be unpaid and six intervals: 9,000.
    made = market(credit_limit=17_999)
    made.engines[PROVIDER].state.capacity = replace(
        made.engines[PROVIDER].state.capacity, devices=(device(1), device(2), device(3))
    )
    begin(made)
    made.submit(BUYER, job=b"k" * 32, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,), job=b"k" * 32, nonce=b"k" * 32)
    assert len(made.engines[PROVIDER].state.sales) == 1
    (decline,) = made.heard(messages.DeclineSent)
    assert decline.decline.document.reason == "you may owe this provider 0.008999 more, and a start takes 0.009000"
    made.take(PROVIDER, CreditDecided(debtor=BUYER, limit=18_000, at_ms=made.now_ms))
    made.submit(BUYER, job=b"l" * 32, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,), job=b"l" * 32, nonce=b"l" * 32)
    assert len(made.engines[PROVIDER].state.sales) == 2


def test_a_payment_is_booked_once_on_both_sides_whatever_is_lost_or_repeated(tmp_path):
    made = market()
    lease = begin(made)
    work(made, lease, steps=5)
    before = owes(made)
    lost = made.lost
    made.lost = lambda _to, message: isinstance(message, messages.PaymentAcknowledged)
    pay(made, 1_000)
    assert owed_to(made.engines[BUYER].state.ledger, PROVIDER) == before
    made.lost = lost
    pay(made, 500)
    # The second says what was paid in all, so the lost one is made good.
    assert owes(made) == before - 1_500
    again = [message for of, _, message in made.said if isinstance(message, messages.PaymentAcknowledged)]
    for message in again * 2:
        made.tell(PROVIDER, BUYER, message)
    assert owes(made) == before - 1_500
    made.restart(PROVIDER, devices=1)
    assert owes(made) == before - 1_500
    balances = made.engines[BUYER].state.ledger.balances
    assert balances[f"remitted:{PROVIDER.hex()}"] == -1_500
    assert made.engines[PROVIDER].state.ledger.balances[f"received:{BUYER.hex()}"] == 1_500
    verified(made, tmp_path)


def test_a_channel_that_closes_before_anything_moved_is_filed_whole(tmp_path):
    made = market()
    lease = begin(made)
    made.take(BUYER, JobCancelled(job=b"j" * 32, reason="no longer wanted", at_ms=made.now_ms))
    made.take(PROVIDER, run.RunStopped(run=lease, at_ms=made.now_ms))
    for _ in range(20):
        made.pass_time(5_000)
    closes = [record for record in records(made, PROVIDER_KEY) if isinstance(record, FiledClose)]
    assert [close.by_payer.document.cumulative for close in closes] == [0]
    verified(made, tmp_path)


def test_nobody_else_can_say_that_a_debt_is_paid_and_no_debtor_by_itself():
    made = market()
    lease = begin(made)
    work(made, lease, steps=5)
    before = owes(made)
    books = [made.engines[account].state.ledger for account in (BUYER, PROVIDER)]
    forged = Payment(creditor=PROVIDER, debtor=BUYER, unit=UNIT, total=before, how="", nonce=1, paid_ms=NOW_MS)
    for claimed in (
        forged,
        replace(forged, creditor=OTHER_KEY.address, debtor=PROVIDER),
        replace(forged, creditor=BUYER, debtor=PROVIDER, unit=bytes(32)),
    ):
        message = messages.PaymentAcknowledged(payment=sign(DOMAIN, claimed, BUYER_KEY))
        made.tell(BUYER, PROVIDER, message)
    made.tell(OTHER_KEY.address, BUYER, messages.PaymentAcknowledged(payment=sign(DOMAIN, forged, OTHER_KEY)))
    assert owes(made) == before
    assert [made.engines[account].state.ledger for account in (BUYER, PROVIDER)] == books


def test_inflated_last_cumulative_at_resync_moves_nothing():
    """After a loss the other side says again where it stands; a total that was never signed here is not taken over."""
    made = market()
    lease = begin(made)
    work(made, lease, steps=3)
    before = owes(made)
    said = [message for of, _, message in made.said if isinstance(message, messages.VoucherSent)][-1]
    receipt = [message for of, _, message in made.said if isinstance(message, messages.ReceiptSent)][-1]
    high = replace(said.voucher.document, cumulative=said.voucher.document.cumulative + 10**9)
    inflated = replace(receipt.receipt.document, amount_total=receipt.receipt.document.amount_total + 10**9)
    further = replace(inflated, seq=inflated.seq + 7)
    made.restart(BUYER)
    for document in (inflated, further):
        made.tell(PROVIDER, BUYER, replace(receipt, receipt=sign(DOMAIN, document, PROVIDER_KEY)))
    # Signed by the provider itself, who would like it to be the buyer's word; at the gate the signature fails as well.
    made.tell(BUYER, PROVIDER, replace(said, voucher=sign(DOMAIN, high, PROVIDER_KEY)))
    assert owes(made) == before
    assert made.engines[PROVIDER].state.earning.live.popitem()[1].cumulative == before
    assert made.engines[BUYER].state.paying.live.popitem()[1].cumulative == before


def test_two_vouchers_for_one_seq_are_never_signed_and_the_second_is_not_taken():
    made = market()
    lease = begin(made)
    work(made, lease, steps=3)
    before = owes(made)
    receipts = [message for of, _, message in made.said if isinstance(message, messages.ReceiptSent)]
    made.said.clear()
    last = receipts[-1].receipt.document
    other = replace(last, amount_total=last.amount_total + 1)
    made.tell(PROVIDER, BUYER, replace(receipts[-1], receipt=sign(DOMAIN, other, PROVIDER_KEY)))
    made.tell(PROVIDER, BUYER, receipts[-1])
    vouchers = {message.voucher.document for of, _, message in made.said if isinstance(message, messages.VoucherSent)}
    assert {voucher.cumulative for voucher in vouchers} == {before}
    assert len(vouchers) == 1
    (voucher,) = vouchers
    higher = sign(DOMAIN, replace(voucher, cumulative=voucher.cumulative + 1), BUYER_KEY)
    made.tell(BUYER, PROVIDER, messages.VoucherSent(currency="USD", voucher=higher))
    assert owes(made) == before
    (earning,) = made.engines[PROVIDER].state.earning.live.values()
    assert earning.cumulative == before


def test_a_line_is_renewed_at_half_its_life_and_when_the_owner_changes_it():
    line = mutual.next_line(Mutual(), creditor=PROVIDER, debtor=BUYER, unit=UNIT, limit=5, at_ms=NOW_MS)
    known = Mutual(given=line)
    about = {"creditor": PROVIDER, "debtor": BUYER, "unit": UNIT}
    assert mutual.next_line(known, limit=5, at_ms=NOW_MS + 14 * DAY_MS, **about) is None
    renewed = mutual.next_line(known, limit=5, at_ms=NOW_MS + 16 * DAY_MS, **about)
    assert (renewed.nonce, renewed.not_after > line.not_after) == (2, True)
    assert mutual.next_line(known, limit=6, at_ms=NOW_MS, **about).nonce == 2
    assert mutual.room(line, owed=3, at_ms=NOW_MS) == 2
    assert mutual.room(line, owed=9, at_ms=NOW_MS) == 0
    assert mutual.room(line, owed=0, at_ms=line.not_after + 1) == 0
    assert mutual.room(None, owed=0, at_ms=NOW_MS) == 0
    assert not mutual.is_newer_line(Mutual(taken=line), line)


def test_only_the_account_whose_bytes_come_first_proposes_and_one_proposal_at_a_time():
    lower, higher = sorted((BUYER, PROVIDER))
    proposed = mutual.next_netting(Mutual(), own=lower, peer=higher, unit=UNIT, owes=7, owed=5)
    assert (proposed.proposed.total, proposed.proposed.nonce) == (5, 1)
    assert mutual.next_netting(proposed, own=lower, peer=higher, unit=UNIT, owes=9, owed=9) is None
    assert mutual.next_netting(Mutual(), own=higher, peer=lower, unit=UNIT, owes=7, owed=5) is None
    assert mutual.next_netting(Mutual(), own=lower, peer=higher, unit=UNIT, owes=0, owed=5) is None


def test_the_owner_may_trust_one_buyer_more_and_another_less():
    made = market(credit_limit=20_000)
    begin(made)
    made.take(PROVIDER, CreditDecided(debtor=BUYER, limit=70_000, at_ms=made.now_ms))
    assert made.engines[BUYER].state.mutual[PROVIDER].taken.limit == 70_000
    (earning,) = made.engines[PROVIDER].state.earning.live.values()
    assert earning.funds == 70_000
    made.take(PROVIDER, CreditDecided(debtor=BUYER, limit=None, at_ms=made.now_ms))
    assert made.engines[BUYER].state.mutual[PROVIDER].taken.limit == 20_000
    assert mutual_credit.limit_for(made.engines[PROVIDER].state, OTHER_KEY.address) == 20_000


def test_whom_the_owner_trusts_with_nothing_gets_no_bid():
    made = market()
    made.take(PROVIDER, CreditDecided(debtor=BUYER, limit=0, at_ms=made.now_ms))
    made.submit(BUYER, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,))
    assert not made.engines[PROVIDER].state.sales


def both_owe():
    """Each bought of the other. Answers the market, the lower account and the higher one."""
    made = market(both=True)
    for buyer, provider, steps, job in ((BUYER, PROVIDER, 5, b"a" * 32), (PROVIDER, BUYER, 2, b"b" * 32)):
        lease = begin(made, buyer, provider, job=job)
        work(made, lease, steps=steps, provider=provider)
    lower, higher = sorted((BUYER, PROVIDER))
    return made, lower, higher


def debts(made):
    """What each owes the other, on the debtor's own books and on the creditor's."""
    books = {account: made.engines[account].state.ledger for account in (BUYER, PROVIDER)}
    return (
        (owed_to(books[BUYER], PROVIDER), owed_by(books[PROVIDER], BUYER)),
        (owed_to(books[PROVIDER], BUYER), owed_by(books[BUYER], PROVIDER)),
    )


def test_mutual_debts_cancel_out_when_both_sign(tmp_path):
    made, lower, higher = both_owe()
    (buyer_owes, _), (provider_owes, _) = debts(made)
    least = min(buyer_owes, provider_owes)
    assert least > 0
    assert list(mutual_credit.could_net(made.engines[higher].state)) == []
    assert list(mutual_credit.could_net(made.engines[lower].state)) == [higher]
    made.take(lower, NettingDue(at_ms=made.now_ms))
    assert debts(made) == ((buyer_owes - least,) * 2, (provider_owes - least,) * 2)
    for key in (BUYER_KEY, PROVIDER_KEY):
        (filed,) = [record for record in records(made, key) if isinstance(record, FiledNetting)]
        check(DOMAIN, filed.by_lower, lower)
        check(DOMAIN, filed.by_higher, higher)
    made.take(lower, NettingDue(at_ms=made.now_ms))
    assert debts(made) == ((buyer_owes - least,) * 2, (provider_owes - least,) * 2)
    verified(made, tmp_path)


def test_a_netting_whose_acceptance_is_lost_is_made_good_and_booked_once(tmp_path):
    made, lower, _ = both_owe()
    (buyer_owes, _), (provider_owes, _) = debts(made)
    least = min(buyer_owes, provider_owes)
    lost = made.lost
    made.lost = lambda _to, message: isinstance(message, messages.NettingAccepted)
    made.take(lower, NettingDue(at_ms=made.now_ms))
    made.restart(lower, devices=1)
    made.lost = lost
    made.take(lower, NettingDue(at_ms=made.now_ms))
    assert debts(made) == ((buyer_owes - least,) * 2, (provider_owes - least,) * 2)
    verified(made, tmp_path)


def test_a_netting_of_more_than_is_owed_is_not_signed_and_an_acceptance_of_what_was_never_proposed_counts_nothing():
    made, lower, higher = both_owe()
    keys = {key.address: key for key in (BUYER_KEY, PROVIDER_KEY)}
    before = debts(made)
    greedy = Netting(lower=lower, higher=higher, unit=UNIT, total=10**9, nonce=1)
    made.tell(lower, higher, messages.NettingProposed(netting=sign(DOMAIN, greedy, keys[lower])))
    made.tell(higher, lower, messages.NettingAccepted(netting=sign(DOMAIN, greedy, keys[higher])))
    small = replace(greedy, total=1)
    made.tell(higher, lower, messages.NettingAccepted(netting=sign(DOMAIN, small, keys[higher])))
    made.tell(lower, higher, messages.NettingProposed(netting=sign(DOMAIN, replace(small, nonce=9), keys[lower])))
    assert debts(made) == before


def test_who_is_proven_to_have_lied_is_refused_from_then_on():
    made = market()
    made.take(PROVIDER, EquivocationProven(account=BUYER, words="signed two histories", at_ms=made.now_ms))
    made.submit(BUYER, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,))
    assert not made.engines[PROVIDER].state.sales
    made.restart(PROVIDER, devices=1)
    assert made.engines[PROVIDER].state.proven == {BUYER: "signed two histories"}


@pytest.mark.parametrize("kind", [FiledPayment, FiledCredit])
def test_what_the_owner_signs_is_filed_and_a_replay_files_it_again(kind):
    made = market()
    lease = begin(made)
    work(made, lease)
    pay(made, 100)
    engine = made.restart(PROVIDER, devices=1)
    assert any(isinstance(getattr(effect, "filed", None), kind) for effect in engine.recovered)


def test_the_longest_line_there_is_and_a_payment_leave_a_state_that_can_be_written_and_read():
    made = market()
    begin(made)
    line = CreditLine(creditor=PROVIDER, debtor=BUYER, unit=UNIT, limit=2**128 - 1, not_after=NOW_MS + 10**9, nonce=7)
    made.tell(PROVIDER, BUYER, sealed(messages.CreditGranted(line=unsigned(line)), PROVIDER_KEY))
    paid = Payment(creditor=PROVIDER, debtor=BUYER, unit=UNIT, total=1, how="x", nonce=1, paid_ms=made.now_ms)
    made.tell(PROVIDER, BUYER, sealed(messages.PaymentAcknowledged(payment=unsigned(paid)), PROVIDER_KEY))
    (paying,) = made.engines[BUYER].state.paying.live.values()
    assert paying.funds == 2**128 - 1
    made.engines[BUYER].write_snapshot_if_due(now=True)
    assert made.restart(BUYER).state.paying.live


def test_a_line_or_a_payment_with_number_nothing_is_none(tmp_path):
    """Numbers begin at 1: the ledger's check would find one that is not above the last."""
    line = CreditLine(creditor=PROVIDER, debtor=BUYER, unit=UNIT, limit=5, not_after=NOW_MS + 10**9, nonce=0)
    assert not mutual.is_newer_line(Mutual(), line)
    assert mutual.is_newer_line(Mutual(), replace(line, nonce=1))
    paid = Payment(creditor=PROVIDER, debtor=BUYER, unit=UNIT, total=1, how="x", nonce=0, paid_ms=NOW_MS)
    assert mutual.newly_paid(None, paid) == 0
    assert mutual.newly_paid(None, replace(paid, nonce=1)) == 1


def test_what_is_paid_ahead_makes_no_room_for_more_credit():
    made = market(credit_limit=20_000, prepay_ms=4_000, prepay_everybody=True, max_unpaid=4_000)
    lease = begin(made, max_prepay_ms=10_000)
    (earning,) = made.engines[PROVIDER].state.earning.live.values()
    assert (earning.cumulative, earning.earned) == (4_000, 0)
    assert earning.funds == 20_000
    (paying,) = made.engines[BUYER].state.paying.live.values()
    assert paying.funds == 20_000
    work(made, lease, steps=2)
    (earning,) = made.engines[PROVIDER].state.earning.live.values()
    assert earning.funds == 20_000 + earning.earned - owes(made) == 20_000
