"""Channels that a chain ended without both sides' word: what stands behind their entries, and what does not."""

from dataclasses import replace

import pytest
from kit.filed_ledger import ledger_file, records
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, OTHER_KEY, PROVIDER, PROVIDER_KEY, THIRD, spec

from hansa.market.funding import ChannelSettled, FundsKnown
from hansa.market.ledger import Entry, parts_of, written_back, written_off
from hansa.market.ledger_check import check_ledger
from hansa.market.ledger_records import FiledChannel, FiledClose, FiledEnd
from hansa.market.statements import statement
from hansa.node.api.http_ledger import chain_debts_view
from hansa.node.api.statements import Known, known_of, statement_view
from hansa.node.api.views import balance_view, chain_balance
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.documents import CooperativeClose
from hansa.proto.signing import checksum_address, sign
from hansa.proto.splits import Split
from hansa.proto.units import format_amount
from hansa.scheduler import run

CHAIN = escrow_currency(31_337, b"\xee" * 20, b"\x70" * 20)
MOST, PREPAID, AGREED = 600_001, 2_000, 2_100
SPLITS = (Split(account=b"r" * 20, bps=250),)


def ended(*, paid, splits=(), agreed=False):
    """A run of two seconds, paid ahead by two more, on a channel that the chain ends. Answers the market.

    Without ``paid`` the chain has not ended it yet.

    With ``agreed`` nothing is paid ahead, and both have closed the channel before.
    """
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1, currency=CHAIN, prepay_ms=0 if agreed else PREPAID)
    made.submit(BUYER, of=spec(shards=1, currency=CHAIN, max_prepay_ms=60_000, splits=splits))
    made.tender(BUYER, (PROVIDER,), shards=(0,), currency=CHAIN, splits=splits)
    (key,) = made.engines[BUYER].state.paying.live
    for account in (BUYER, PROVIDER):
        made.take(account, FundsKnown(channel_id=key, most=MOST, at_ms=made.now_ms))
    (lease,) = made.engines[PROVIDER].state.sale_of
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    made.now_ms += 2_000
    made.take(PROVIDER, run.RunProgressed(run=lease, step=1, metrics=(), at_ms=made.now_ms))
    earning = made.engines[PROVIDER].state.earning.live[key]
    if agreed:
        made.now_ms += 100
        made.take(PROVIDER, run.RunFinished(run=lease, at_ms=made.now_ms))
        earning = made.engines[PROVIDER].state.earning.get(key)
        assert (earning.phase, made.engines[BUYER].state.paying.get(key).phase) == ("closed", "closed")
        assert earning.earned == AGREED
    else:
        assert (earning.earned, earning.cumulative) == (2_000, 2_000 + PREPAID)
    for account in (BUYER, PROVIDER) if paid is not None else ():
        made.take(account, ChannelSettled(channel_id=key, paid=paid, at_ms=made.now_ms))
    return made


def in_ledger(made, key):
    """What it holds: each record once."""
    found = dict[bytes, object]()
    for each in records(made, key):
        found.setdefault(each.id, each)
    return list(found.values())


def report(path, key, of):
    file = ledger_file(path / f"{key.address.hex()}-{len(list(path.iterdir()))}.sqlite", key, of)
    store = LedgerStore(file, read_only=True)
    found = check_ledger(store.rows(), heads=store.heads(), nodes=store.nodes())
    store.close()
    return found


@pytest.mark.parametrize("paid", [1_500, 2_000, 3_000, 2_000 + PREPAID])
@pytest.mark.parametrize("splits", [(), SPLITS])
def test_what_a_chain_paid_has_a_document_in_both_ledgers_and_they_hold(tmp_path, paid, splits):
    made = ended(paid=paid, splits=splits)
    for key in (BUYER_KEY, PROVIDER_KEY):
        found = report(tmp_path, key, records(made, key))
        assert found.holds, found.first_fault
        (books,) = (finding for finding in found.findings if finding.name == "books")
        assert books.words.endswith("of 1 ends of channels there is this node's own word: ask their chain")
    lost = made.engines[BUYER].state.ledger.total("forfeited:")
    kept = made.engines[PROVIDER].state.ledger.total("kept:")
    assert lost == max(0, paid - 2_000)
    assert kept == lost - (25 * lost // 1_000 if splits else 0), "the provider's own part of it"


@pytest.mark.parametrize("paid", [0, 1, 500, AGREED - 1, AGREED])
@pytest.mark.parametrize("splits", [(), SPLITS])
def test_what_a_chain_did_not_pay_of_an_agreed_sum_is_due_again_in_both_ledgers(tmp_path, paid, splits):
    made = ended(paid=paid, splits=splits, agreed=True)
    buyer, provider = (made.engines[account].state.ledger for account in (BUYER, PROVIDER))
    parts = parts_of(paid, splits, PROVIDER)
    assert provider.total("settled:") == parts[PROVIDER]
    assert provider.total("due:") == parts_of(AGREED, splits, PROVIDER)[PROVIDER] - parts[PROVIDER]
    assert (-buyer.total("paid:"), -buyer.total("owed:")) == (paid, AGREED - paid)
    assert {who: -buyer.balance(f"paid:{who.hex()}") for who in parts} == parts
    for key, books in ((BUYER_KEY, buyer), (PROVIDER_KEY, provider)):
        of = in_ledger(made, key)
        found = report(tmp_path, key, records(made, key))
        assert found.holds, found.first_fault
        entries = [each for each in of if isinstance(each, Entry)]
        side = "spend" if key is BUYER_KEY else "earnings"
        (row,) = statement(
            entries, side=side, by="job", currency_of=lambda _: CHAIN, is_paid_by_close=lambda _: True
        ).rows
        assert row.paid == row.closed == abs(books.total("paid:" if side == "spend" else "settled:"))
        assert row.open == abs(books.total("owed:" if side == "spend" else "due:"))
        if paid < AGREED:
            hidden = [each for each in of if not (isinstance(each, Entry) and "paid less" in each.memo)]
            assert len(hidden) == len(of) - 1
            assert not report(tmp_path, key, hidden).holds, "books that keep quiet about it do not hold"
            unsaid = [each for each in hidden if not isinstance(each, FiledEnd)]
            assert len(unsaid) == len(hidden) - 1, "that nothing was paid has a document as well"


@pytest.mark.parametrize("by", ["job", "peer", "day"])
@pytest.mark.parametrize(("paid", "shown"), [(None, 0), (0, 0), (500, 500), (AGREED, AGREED)])
def test_what_both_agreed_on_is_paid_only_when_and_as_far_as_its_chain_has_paid_it(paid, shown, by):
    made = ended(paid=paid, agreed=True)
    for key, account, side in ((BUYER_KEY, BUYER, "spend"), (PROVIDER_KEY, PROVIDER, "earnings")):
        known = known_of(made.engines[account].state, CHAIN, side)
        (total,) = statement_view(in_ledger(made, key), known, side=side, by=by)["totals"]
        assert (total["paid"], total["open"]) == (format_amount(shown), format_amount(AGREED - shown))


@pytest.mark.parametrize(("paid", "shown"), [(None, 0), (AGREED - 1, 0), (AGREED, AGREED)])
def test_what_a_chain_paid_in_full_is_not_open_though_the_ledger_is_older_than_the_ends_that_are_filed_there(
    paid, shown
):
    made = ended(paid=paid, agreed=True)
    for key, account, side in ((BUYER_KEY, BUYER, "spend"), (PROVIDER_KEY, PROVIDER, "earnings")):
        known = known_of(made.engines[account].state, CHAIN, side)
        old = [each for each in in_ledger(made, key) if not isinstance(each, FiledEnd)]
        old = [each for each in old if not (isinstance(each, Entry) and "paid less" in each.memo)]
        (total,) = statement_view(old, known, side=side, by="job")["totals"]
        assert (total["paid"], total["open"]) == (format_amount(shown), format_amount(AGREED - shown))


@pytest.mark.parametrize(("paid", "shown"), [(None, 0), (500, 500), (AGREED, AGREED)])
def test_what_a_chain_has_paid_is_no_debt_any_more(paid, shown):
    made = ended(paid=paid, agreed=True)
    for key, account, other, (owes, was_paid) in (
        (BUYER_KEY, BUYER, PROVIDER, ("we_owe", "paid_by_us")),
        (PROVIDER_KEY, PROVIDER, BUYER, ("owes_us", "paid_to_us")),
    ):
        state = made.engines[account].state
        sides = [
            statement_view(in_ledger(made, key), known_of(state, CHAIN, side), side=side, by="peer")
            for side in ("earnings", "spend")
        ]
        (view,) = chain_debts_view(state, *sides)
        assert (view["account"], view["currency"]) == (checksum_address(other), CHAIN)
        assert (view[owes], view[was_paid]) == (format_amount(AGREED - shown), format_amount(shown))
        assert {view[name] for name in ("owes_us", "we_owe") if name != owes} == {"0.000000"}
        assert view["may_owe_us"] is view["we_may_owe"] is None, "a contract lends nothing"


def test_what_one_channel_paid_ahead_and_lost_pays_for_no_other():
    first, other = ended(paid=2_000 + PREPAID), ended(paid=None, agreed=True)
    books = first.engines[BUYER].state.ledger
    for entry in in_ledger(other, BUYER_KEY):
        if isinstance(entry, Entry):
            books = books.post(replace(entry, id=entry.id[::-1]))
    view = chain_balance(books, 0, 2_000 + PREPAID)
    assert (view["paid_out"], view["open_out"]) == (format_amount(AGREED), format_amount(AGREED))
    assert view["chain_out"] == format_amount(2_000 + PREPAID)


def test_an_entry_of_such_an_end_that_says_something_else_than_its_document_is_named(tmp_path):
    made, short = ended(paid=3_000), ended(paid=500, agreed=True)
    for market, key, words in (
        (made, BUYER_KEY, "paid more than was received"),
        (made, PROVIDER_KEY, "paid more than was delivered"),
        (made, BUYER_KEY, " closed"),
        (made, PROVIDER_KEY, " closed"),
        (short, BUYER_KEY, "paid less than it closed at"),
        (short, PROVIDER_KEY, "paid less than it closed at"),
    ):
        of = in_ledger(market, key)
        at = next(at for at, each in enumerate(of) if isinstance(each, Entry) and each.memo.endswith(words))
        legs = tuple(replace(leg, amount=2 * leg.amount) for leg in of[at].legs)
        back = tuple(replace(leg, amount=-leg.amount) for leg in of[at].legs)
        # Another entry makes the sums right again: what is wrong with this one is seen all the same.
        invented = replace(of[at], id=b"i" * 32, legs=back)
        of[at] = replace(of[at], legs=legs)
        assert report(tmp_path, key, [*of, invented]).first_fault.position == at + 1


@pytest.mark.parametrize("key", [BUYER_KEY, PROVIDER_KEY])
def test_a_sum_that_both_sign_after_their_chain_has_ended_it_moves_nothing(tmp_path, key):
    of = in_ledger(ended(paid=1_500), key)
    end = next(each for each in of if isinstance(each, FiledEnd)).end.document
    close = CooperativeClose(channel_id=end.channel_id, cumulative=2_000)
    domain = currency_of(CHAIN).domain
    by_payer, by_payee = (sign(domain, close, signer) for signer in (BUYER_KEY, PROVIDER_KEY))
    late = FiledClose(currency=CHAIN, by_payer=by_payer, by_payee=by_payee, how="")
    found = report(tmp_path, key, [*of, late])
    assert found.holds, found.first_fault


@pytest.mark.parametrize("key", [BUYER_KEY, PROVIDER_KEY])
def test_an_end_without_its_document_by_a_stranger_or_on_no_chain_does_not_hold(tmp_path, key):
    of = in_ledger(ended(paid=3_000), key)
    at = next(at for at, each in enumerate(of) if isinstance(each, FiledEnd))
    assert not report(tmp_path, key, of[:at] + of[at + 1 :]).holds
    domain = currency_of(CHAIN).domain
    forged = replace(of[at], end=sign(domain, of[at].end.document, OTHER_KEY))
    assert report(tmp_path, key, [*of[:at], forged, *of[at + 1 :]]).first_fault.position == at + 1
    other = replace(of[at], currency="USD", end=sign(currency_of("USD").domain, of[at].end.document, key))
    assert report(tmp_path, key, [*of[:at], other, *of[at + 1 :]]).first_fault.position == at + 1
    unknown = [each for each in of if not isinstance(each, FiledChannel)]
    assert not report(tmp_path, key, unknown).holds


def test_a_providers_statement_is_its_own_part_in_every_column():
    """A tenth is another's: of what is vouched for, of what is not yet, of what is paid ahead, and of what is lost."""
    tenth = (Split(account=b"r" * 20, bps=1_000),)
    made = ended(paid=None, splits=tenth)
    sold = made.engines[PROVIDER].state
    (channel,) = balance_view(sold, CHAIN, 0)["channels"]
    assert (channel["vouched"], channel["prepaid"]) == ("0.001800", "0.001800")
    made.lost = lambda to, _message: to == BUYER
    made.now_ms += 4_000
    (lease,) = sold.sale_of
    made.take(PROVIDER, run.RunProgressed(run=lease, step=2, metrics=(), at_ms=made.now_ms))
    sale = sold.sale_on(lease)
    assert (sale.accrued, sale.vouched) == (6_000, 2_000)

    def row(*more, known=None):
        of = [*in_ledger(made, PROVIDER_KEY), *more]
        known = known or known_of(sold, CHAIN, "earnings")
        (found,) = statement_view(of, known, side="earnings", by="peer")["rows"]
        return found["vouched"], found["unvouched"], found["written_off"]

    assert row() == ("0.001800", "0.003600", "0.000000")
    # Filed under the account that trades, whoever pays; twice in one file's tail, and a part of it paid after all.
    common = {"channel_id": sale.channel_id, "lease": lease, "job": JOB, "buyer": THIRD, "at_ms": made.now_ms}
    off, back = written_off(**common, amount=4_000), written_back(**common, amount=1_000, vouched=3_000)
    for known in (
        None,
        Known(currency=CHAIN, currencies={}, names={}, leases=known_of(sold, CHAIN, "earnings").leases),
    ):
        assert row(off, off, known=known) == ("0.001800", "0.003600", "0.003600")
        assert row(off, back, known=known) == ("0.001800", "0.003600", "0.002700")
