"""A provider whose clock jumped in a lease loses the time that did not pass, and nothing else on that channel."""

from dataclasses import replace

import pytest
from kit.filed_ledger import ledger_file, records
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market.effects import unsigned
from hansa.market.ledger_check import check_ledger
from hansa.market.receipts import Statement, next_statement
from hansa.node.engine.standings import own_dealings
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.proto import messages
from hansa.proto.documents import MeterLine
from hansa.scheduler import run

JUMP_MS = 600_000
STEP_MS = 2_000


def market(*, shards=2, **rules):
    """Runs of one job on one provider, all on one channel. Answers their leases."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=shards, **{"max_unpaid": 10**9, "voucher_timeout_ms": 10**8, **rules})
    made.submit(BUYER, of=spec(shards=shards, budget=10**8, retries=0))
    made.tender(BUYER, (PROVIDER,), shards=tuple(range(shards)))
    leases = list(made.engines[PROVIDER].state.sale_of)
    for lease in leases:
        made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    assert len(made.engines[PROVIDER].state.earning.live) == 1
    return made, leases


def work(made, lease, step, *, jump_ms=0):
    made.now_ms += STEP_MS
    made.take(PROVIDER, run.RunProgressed(run=lease, step=step, metrics=(), at_ms=made.now_ms + jump_ms))


def end(made, lease, kind=run.RunFinished, *, jump_ms=0):
    made.take(PROVIDER, kind(run=lease, at_ms=made.now_ms + jump_ms))


def sale(made, lease):
    return made.engines[PROVIDER].state.sale_on(lease)


def paid(made):
    """What was vouched for on the one channel; both books say the same."""
    buyer, provider = made.engines[BUYER].state.ledger, made.engines[PROVIDER].state.ledger
    owed = -buyer.balance(f"owed:{PROVIDER.hex()}") - buyer.balance(f"paid:{PROVIDER.hex()}")
    assert owed == -provider.total("earned:")
    return owed


def written_off(made):
    return made.engines[PROVIDER].state.ledger.balance(f"unpaid:{BUYER.hex()}")


def verified(made, tmp_path):
    for key in (BUYER_KEY, PROVIDER_KEY):
        store = LedgerStore(ledger_file(tmp_path / key.address.hex(), key, records(made, key)), read_only=True)
        report = check_ledger(store.rows(), heads=store.heads(), nodes=store.nodes())
        store.close()
        assert report.holds, report.first_fault


def jump_and_end(made, lease, step):
    """The clock jumps, and the run has ended before its buyer hears of either."""
    late = []
    made.lost = lambda to, message: to == BUYER and (late.append(message) or True)
    work(made, lease, step, jump_ms=JUMP_MS)
    end(made, lease, jump_ms=JUMP_MS)
    made.lost = lambda *_: False
    for message in late:
        made.tell(PROVIDER, BUYER, message)


def stop(made, lease):
    """What the executor says once the run was told to go."""
    if made.engines[PROVIDER].state.runs.live.get(lease) is not None:
        end(made, lease, run.RunStopped)


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_jump_in_a_lease_that_then_ended_costs_that_lease_the_jump_and_others_nothing(tmp_path, seen_before):
    made, (bad, good) = market()
    if seen_before:
        work(made, bad, 1)
        work(made, good, 1)
    began_ms = made.now_ms
    jump_and_end(made, bad, 2)
    lasted_ms = made.now_ms - began_ms + (2 * STEP_MS if seen_before else 0)
    for number in (2, 3, 4):
        work(made, good, number)
    end(made, good)
    made.pass_time(10**7)
    good_ms = sale(made, good).device_ms
    bad_ms = sale(made, bad).device_ms
    assert good_ms == STEP_MS * (6 if seen_before else 4), "all of it"
    assert lasted_ms <= bad_ms <= lasted_ms + 2_001, "what passed here, and the allowance"
    assert paid(made) == good_ms + bad_ms
    assert (sale(made, good).phase, sale(made, bad).phase) == ("settled", "settled")
    assert written_off(made) == sale(made, bad).disputed >= JUMP_MS - 10_000
    assert not made.engines[PROVIDER].state.earning.live
    assert not made.engines[BUYER].state.paying.live
    assert made.engines[BUYER].state.proven == made.engines[PROVIDER].state.proven == {}
    numbers = [said.receipt.document.seq for said in made.heard(messages.ReceiptSent)]
    texts = {(said.receipt.document.seq, said.receipt.document.lines_root) for said in made.heard(messages.ReceiptSent)}
    assert len(texts) == len(set(numbers)), "no number stands on two receipts"
    verified(made, tmp_path)


def test_a_run_that_lives_is_stopped_and_what_it_worked_before_the_jump_is_paid(tmp_path):
    made, (bad, good) = market()
    work(made, bad, 1)
    work(made, bad, 2, jump_ms=JUMP_MS)
    assert made.engines[PROVIDER].state.runs.live[bad].phase == run.STOPPING
    assert made.engines[PROVIDER].state.runs.live[good].phase == run.RUNNING
    stop(made, bad)
    work(made, good, 1)
    end(made, good)
    made.pass_time(10**7)
    assert 2 * STEP_MS <= sale(made, bad).device_ms <= 2 * STEP_MS + 2_001
    assert paid(made) == sale(made, bad).device_ms + sale(made, good).device_ms
    verified(made, tmp_path)


def market_with_a_line_of_no_time():
    """Two leases, of one of which nothing but a step that was reported at once stands in the receipt that is paid."""
    made, (bad, good) = market()
    made.take(PROVIDER, run.RunProgressed(run=good, step=1, metrics=(), at_ms=made.now_ms))
    made.pass_time(1_000)
    work(made, bad, 1)
    ((_, earning),) = made.engines[PROVIDER].state.earning.all()
    assert {line.lease: line.device_ms for line in earning.vouched.lines} == {good: 0, bad: STEP_MS + 1_000}
    return made, bad, good


def test_a_lease_of_which_no_time_is_charged_yet_is_in_nobodys_way():
    made, bad, good = market_with_a_line_of_no_time()
    work(made, bad, 2, jump_ms=JUMP_MS)
    assert made.heard(messages.ReceiptRefused) == []
    assert made.engines[PROVIDER].state.runs.live[good].phase == run.RUNNING
    work(made, good, 2)
    stop(made, bad)
    assert paid(made) == sale(made, bad).device_ms + sale(made, good).device_ms
    assert sale(made, good).disputed == 0


def test_of_a_lease_of_which_none_is_paid_all_time_may_be_disputed_and_its_line_stays():
    made, bad, good = market_with_a_line_of_no_time()
    made.lost = lambda to, _message: to == BUYER
    work(made, good, 2)
    ((key, earning),) = made.engines[PROVIDER].state.earning.all()
    payable = tuple(sorted(earning.vouched.lines, key=lambda line: line.lease))
    word = messages.ReceiptDisputed(
        channel_id=key,
        seq=earning.out.receipt.seq,
        payable=payable,
        reason="",
    )
    made.tell(BUYER, PROVIDER, word)
    assert (sale(made, good).device_ms, sale(made, bad).refused) == (0, "")
    assert sale(made, good).disputed == 2 * STEP_MS + 1_000
    work(made, bad, 2)
    ((_, after),) = made.engines[PROVIDER].state.earning.all()
    assert {line.lease: line.device_ms for line in after.out.lines} == {good: 0, bad: 3 * STEP_MS + 1_000}


def test_the_buyers_word_may_be_lost_and_comes_again():
    made, (bad,) = market(shards=1)
    work(made, bad, 1)
    made.lost = lambda _to, message: isinstance(message, messages.ReceiptDisputed)
    work(made, bad, 2, jump_ms=JUMP_MS)
    end(made, bad, jump_ms=JUMP_MS)
    made.lost = lambda *_: False
    made.now_ms += 2 * JUMP_MS  # by now all of that time has passed
    (receipt,) = made.heard(messages.ReceiptSent)[-1:]
    for _ in range(2):
        made.tell(PROVIDER, BUYER, receipt)
    assert {said.seq for said in made.heard(messages.ReceiptDisputed)} == {2}
    assert len(made.heard(messages.ReceiptDisputed)) >= 2
    assert made.engines[BUYER].state.paying.get(receipt.receipt.document.channel_id).metered == paid(made)
    assert sale(made, bad).phase in ("delivering", "settled")


def test_a_restart_of_either_changes_nothing():
    made, (bad, _) = market()
    work(made, bad, 1)
    made.lost = lambda *_: True
    work(made, bad, 2, jump_ms=JUMP_MS)
    end(made, bad, jump_ms=JUMP_MS)
    made.lost = lambda *_: False
    for account, devices in ((PROVIDER, 2), (BUYER, 0)):
        made.engines[account].write_snapshot_if_due(now=True)
        made.restart(account, devices=devices)
    made.pass_time(10**7)
    assert paid(made) >= 2 * STEP_MS


def test_a_buyer_disputes_a_lease_once_and_a_second_word_is_a_plain_refusal():
    made, (bad, _) = market()
    work(made, bad, 1)
    work(made, bad, 2, jump_ms=JUMP_MS)
    (said,) = made.heard(messages.ReceiptDisputed)
    ((_, earning),) = made.engines[PROVIDER].state.earning.all()
    made.lost = lambda to, _message: to == BUYER
    stop(made, bad)
    assert earning.passed_over == said.seq
    assert set(earning.disputed) == {bad}


def forged(line: MeterLine, **changes):
    return replace(line, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"start_ms": 1},
        {"device_ms": 10**9},
        {"amount": 10**9},
        {"end_ms": 1 << 60},
        {"amount": 1},
        {"shard": 7},
        {"device_ms": 1, "amount": 1},
    ],
)
def test_a_provider_signs_no_line_that_is_more_than_its_own_or_less_than_was_vouched_for(changes):
    made, (lease,) = market(shards=1)
    work(made, lease, 1)
    made.lost = lambda to, _message: to == BUYER
    work(made, lease, 2)
    ((key, earning),) = made.engines[PROVIDER].state.earning.all()
    (line,) = earning.out.lines
    payable = (forged(line, **changes),)
    word = messages.ReceiptDisputed(channel_id=key, seq=earning.out.receipt.seq, payable=payable, reason="clocks")
    made.tell(BUYER, PROVIDER, word)
    ((_, after),) = made.engines[PROVIDER].state.earning.all()
    assert (after.out, after.refused, after.disputed) == (earning.out, "clocks", {}), "it is a refusal"


def test_what_was_disputed_is_remembered_against_the_buyer_here():
    made, (bad, _) = market()
    work(made, bad, 1)
    work(made, bad, 2, jump_ms=JUMP_MS)
    (dealt,) = list(own_dealings(made.engines[PROVIDER].state))
    assert dealt.unpaid >= JUMP_MS - 10_000


def test_a_receipt_that_was_passed_over_is_never_paid_however_much_time_passes():
    made, (bad, _) = market()
    work(made, bad, 1)
    made.lost = lambda _to, message: isinstance(message, messages.ReceiptDisputed)
    work(made, bad, 2, jump_ms=JUMP_MS)
    over = made.heard(messages.ReceiptSent)[-1]
    made.now_ms += 2 * JUMP_MS
    before = len(made.heard(messages.VoucherSent))
    made.tell(PROVIDER, BUYER, over)
    assert len(made.heard(messages.VoucherSent)) == before


def test_a_fault_that_is_not_of_clocks_is_refused_as_before():
    made, (lease, _) = market()
    work(made, lease, 1)
    ((key, paying),) = made.engines[BUYER].state.paying.all()
    ((_, earning),) = made.engines[PROVIDER].state.earning.all()
    (line, proof) = earning.lines[lease], earning.evidence[lease]
    dear = next_statement(
        channel_id=key,
        last=paying.accepted.receipt,
        lines={lease: replace(line, device_ms=line.device_ms + 1_000, amount=10**6, end_ms=line.end_ms + 1_000)},
        evidence={lease: replace(proof, steps=9)},
    )
    assert isinstance(dear, Statement)
    sent = messages.ReceiptSent(receipt=unsigned(dear.receipt), lines=dear.lines, evidence=dear.evidence)
    made.tell(PROVIDER, BUYER, sent)
    assert made.heard(messages.ReceiptDisputed) == []
    assert len(made.heard(messages.ReceiptRefused)) == 1


def test_a_buyer_that_disputes_receipts_without_paying_any_has_only_so_many_signed_for_it():
    made, (lease,) = market(shards=1)
    made.lost = lambda to, _message: to == BUYER
    work(made, lease, 1)
    for _ in range(100):
        ((key, earning),) = made.engines[PROVIDER].state.earning.all()
        assert earning.out is not None
        seq, lines = earning.out.receipt.seq, earning.out.lines
        made.tell(
            BUYER,
            PROVIDER,
            messages.ReceiptDisputed(channel_id=key, seq=seq, payable=lines, reason="clocks"),
        )
    assert len({said.receipt.document.seq for said in made.heard(messages.ReceiptSent)}) <= 12
    ((_, after),) = made.engines[PROVIDER].state.earning.all()
    assert after.refused == "clocks"
