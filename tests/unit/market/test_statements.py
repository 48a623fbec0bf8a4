"""Statements add up to the books: for every way of grouping, whatever happened."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from hansa.market.ledger import (
    NO_CHANNEL,
    Entry,
    closed_by_buyer,
    closed_to_provider,
    fold,
    forfeited,
    netted,
    owed_by,
    owed_to,
    paid_by_buyer,
    paid_to_provider,
    unpaid_by_buyer,
    unreceived_by_provider,
    vouched_by_buyer,
    vouched_to_provider,
    written_back,
    written_off,
)
from hansa.market.statements import DAY_MS, SIDES, WAYS, AccountStatement, LeaseFacts, statement
from hansa.proto.splits import Split

JOBS = [bytes([number]) * 32 for number in range(3)]
PEERS = [bytes([0xA0 + number]) * 20 for number in range(3)]
CHANNELS = [bytes([0xC0 + number]) * 32 for number in range(4)]
DAY = 19_700 * DAY_MS
UNIT = b"u" * 32
SPLITS = (Split(account=b"\x01" * 20, bps=5_000), Split(account=b"\x02" * 20, bps=4_999))


def currency_of(entry: Entry) -> str:
    return "EUR" if entry.channel_id in CHANNELS[2:] else "USD"


def payments(number: int, peer: bytes, amount: int, at_ms: int) -> list[Entry]:
    """What payments outside and debts that cancel out leave in the books."""
    common = {"unit": UNIT, "amount": amount, "at_ms": at_ms}
    return [
        paid_by_buyer(creditor=peer, nonce=number, how="cash", **common),
        paid_to_provider(debtor=peer, nonce=number, how="cash", **common),
        netted(peer=peer, nonce=number, **common),
    ]


class Histories:
    """Entries as a node's life leaves them: vouchers, ends of channels, payments, repeats, on both sides."""

    def __init__(self, orders: list[tuple[int, int, int, int, int]]) -> None:
        self.entries: list[Entry] = []
        at_ms, seqs, sums = DAY, defaultdict(int), defaultdict(int)
        for number, (kind, channel, job, amount, pause) in enumerate(orders):
            at_ms += pause
            channel_id, peer = CHANNELS[channel], PEERS[channel % 3]
            if kind <= 4:
                seqs[channel] += 1
                sums[channel] += amount + 1
                shares = {JOBS[job]: amount, JOBS[(job + 1) % 3]: 1}
                common = {"channel_id": channel_id, "seq": seqs[channel], "shares": shares, "at_ms": at_ms}
                common |= {"before": sums[channel] - amount - 1, "splits": SPLITS if channel else ()}
                made = [vouched_by_buyer(provider=peer, **common), vouched_to_provider(buyer=peer, **common)]
            elif kind == 5:
                common = {"channel_id": channel_id, "cumulative": sums[channel], "at_ms": at_ms}
                common |= {"splits": SPLITS if channel else ()}
                made = [closed_by_buyer(provider=peer, **common), closed_to_provider(buyer=peer, **common)]
                if amount % 2 and not any(each.id == made[0].id for each in self.entries):
                    short = {key: value for key, value in common.items() if key != "cumulative"}
                    short |= {"closed": sums[channel], "paid": min(sums[channel], amount)}
                    made += [unpaid_by_buyer(provider=peer, **short), unreceived_by_provider(buyer=peer, **short)]
            elif kind == 6:
                made = payments(number, peer, amount, at_ms)
            elif kind == 7:
                lost = {"channel_id": channel_id, "amount": amount, "at_ms": at_ms}
                lease = number.to_bytes(32, "big")
                made = [
                    written_off(lease=lease, job=JOBS[job], buyer=peer, **lost),
                    forfeited(provider=peer, **(lost | {"channel_id": lease})),
                ]
            else:
                made = self.entries[-2:]
            self.entries += made


orders = st.lists(
    st.tuples(
        st.integers(0, 8), st.integers(0, 3), st.integers(0, 2), st.integers(0, 10**12), st.integers(0, DAY_MS // 2)
    ),
    max_size=40,
)


def made(entries, side, by, leases=()) -> AccountStatement:
    return statement(
        entries,
        side=side,
        by=by,
        currency_of=currency_of,
        is_paid_by_close=lambda entry: currency_of(entry) == "EUR",
        leases=leases,
    )


@given(orders)
def test_a_statements_totals_are_those_of_the_books(drawn):
    entries = Histories(drawn).entries
    books = fold(entries)
    sums = {
        "spend": {"vouched": books.total("spend:"), "closed": -books.total("paid:"), "lost": books.total("forfeited:")},
        "earnings": {
            "vouched": -books.total("earned:"),
            "closed": books.total("settled:"),
            "lost": books.total("unpaid:"),
        },
    }
    outside = {"spend": books.total("acquitted:"), "earnings": -books.total("acknowledged:")}
    for side in SIDES:
        for by in WAYS:
            totals = made(entries, side, by).totals
            assert sum(total.vouched for total in totals) == sums[side]["vouched"]
            assert sum(total.closed for total in totals) == sums[side]["closed"]
            assert sum(total.written_off for total in totals) == sums[side]["lost"]
            on_chain = sum(total.closed for total in totals if total.currency == "EUR")
            assert sum(total.paid for total in totals) == outside[side] + on_chain
            assert sum(total.open for total in totals) == sums[side]["vouched"] - outside[side] - on_chain


@given(orders)
def test_rows_add_up_to_their_totals_and_every_grouping_has_the_same(drawn):
    entries = Histories(drawn).entries
    for side in SIDES:
        found = {by: made(entries, side, by) for by in WAYS}
        assert len({each.totals for each in found.values()}) == 1
        for each in found.values():
            for total in each.totals:
                rows = [row for row in each.rows if row.currency == total.currency]
                for column in ("vouched", "closed", "paid", "written_off"):
                    assert sum(getattr(row, column) for row in rows) == getattr(total, column)


@given(orders)
def test_what_is_open_with_each_peer_is_what_the_books_say(drawn):
    """On the ledger alone: there a debt is open until it is paid."""
    entries = [entry for entry in Histories(drawn).entries if currency_of(entry) == "USD"]
    books = fold(entries)
    for side, owed in (("spend", owed_to), ("earnings", owed_by)):
        rows = {row.key: row.open for row in made(entries, side, "peer").rows}
        for account in (*PEERS, *(split.account for split in SPLITS)):
            assert rows.get(account.hex(), 0) == owed(books, account)


@given(orders)
def test_what_each_job_cost_is_what_the_books_say(drawn):
    entries = Histories(drawn).entries
    books = fold(entries)
    for side, account, sign in (("spend", "spend", 1), ("earnings", "earned", -1)):
        rows = made(entries, side, "job").rows
        for job in JOBS:
            vouched = sum(row.vouched for row in rows if row.key == job.hex())
            assert vouched == sign * books.balance(f"{account}:{job.hex()}")


def test_two_currencies_are_never_added():
    entries = [
        vouched_by_buyer(channel_id=CHANNELS[0], seq=1, provider=PEERS[0], shares={JOBS[0]: 5}, at_ms=DAY),
        vouched_by_buyer(channel_id=CHANNELS[3], seq=1, provider=PEERS[0], shares={JOBS[0]: 7}, at_ms=DAY),
    ]
    found = made(entries, "spend", "job")
    assert [(row.currency, row.vouched) for row in found.rows] == [("EUR", 7), ("USD", 5)]
    assert [(total.currency, total.vouched) for total in found.totals] == [("EUR", 7), ("USD", 5)]


def test_a_day_begins_at_midnight_in_utc():
    entries = [
        vouched_by_buyer(channel_id=CHANNELS[0], seq=seq, provider=PEERS[0], shares={JOBS[0]: 1}, at_ms=at_ms)
        for seq, at_ms in enumerate((DAY, DAY + DAY_MS - 1, DAY + DAY_MS), start=1)
    ]
    assert [(row.key, row.vouched) for row in made(entries, "spend", "day").rows] == [
        (str(DAY), 2),
        (str(DAY + DAY_MS), 1),
    ]


def test_a_payment_is_for_no_job():
    entries = [
        vouched_to_provider(channel_id=CHANNELS[0], seq=1, buyer=PEERS[0], shares={JOBS[0]: 9}, at_ms=DAY),
        paid_to_provider(debtor=PEERS[0], unit=UNIT, nonce=1, amount=4, how="cash", at_ms=DAY),
    ]
    assert entries[1].channel_id == NO_CHANNEL
    rows = {row.key: row for row in made(entries, "earnings", "job").rows}
    assert (rows[JOBS[0].hex()].open, rows[""].paid, rows[""].open) == (9, 4, -4)
    (peer,) = made(entries, "earnings", "peer").rows
    assert (peer.vouched, peer.paid, peer.open) == (9, 4, 5)


def test_a_close_pays_on_a_chain_and_not_on_the_ledger():
    for channel, paid in ((CHANNELS[0], 0), (CHANNELS[3], 9)):
        entries = [
            vouched_to_provider(channel_id=channel, seq=1, buyer=PEERS[0], shares={JOBS[0]: 9}, at_ms=DAY),
            closed_to_provider(channel_id=channel, buyer=PEERS[0], cumulative=9, at_ms=DAY),
        ]
        (row,) = made(entries, "earnings", "job").rows
        assert (row.key, row.closed, row.paid, row.open) == (JOBS[0].hex(), 9, paid, 9 - paid)


def test_what_a_chain_did_not_pay_is_open_again_for_the_jobs_that_it_was_closed_for():
    channel, common = CHANNELS[3], {"buyer": PEERS[0], "at_ms": DAY}
    entries = [
        vouched_to_provider(channel_id=channel, seq=1, shares={JOBS[0]: 9, JOBS[1]: 5}, **common),
        closed_to_provider(channel_id=channel, cumulative=14, **common),
        unreceived_by_provider(channel_id=channel, closed=14, paid=3, **common),
    ]
    rows = {row.key: row for row in made(entries, "earnings", "job").rows}
    assert {key: (row.paid, row.open) for key, row in rows.items()} == {
        JOBS[0].hex(): (0, 9),
        JOBS[1].hex(): (3, 2),
    }


def test_work_that_is_paid_for_after_all_is_no_loss():
    lost = {"channel_id": CHANNELS[0], "lease": b"l" * 32, "job": JOBS[1], "buyer": PEERS[1], "amount": 5}
    entries = [written_off(at_ms=DAY, **lost), written_back(at_ms=DAY + 1, vouched=7, **lost)]
    assert [row.written_off for row in made(entries[:1], "earnings", "job").rows] == [5]
    (row,) = made(entries, "earnings", "job").rows
    assert (row.key, row.written_off) == (JOBS[1].hex(), 0)


def test_what_the_books_do_not_know_stands_beside_them_and_changes_no_debt():
    lease = LeaseFacts(
        job=JOBS[0].hex(), peer=PEERS[0].hex(), currency="USD", at_ms=DAY, unvouched=3, is_retry=True, lost_cost=2
    )
    (row,) = made([], "spend", "job", [lease, lease]).rows
    assert (row.vouched, row.open, row.unvouched, row.retries, row.lost_cost) == (0, 0, 6, 2, 4)
    idle = LeaseFacts(job="", peer="", currency="USD", at_ms=DAY)
    assert made([], "spend", "job", [idle]).rows == ()
