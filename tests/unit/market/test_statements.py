"""Statements add up to the books: for every way of grouping, whatever happened."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from hansa.market.ledger import (
    NO_CHANNEL,
    Entry,
    Leg,
    closed_by_buyer,
    closed_to_provider,
    fold,
    vouched_by_buyer,
    vouched_to_provider,
)
from hansa.market.statements import DAY_MS, SIDES, WAYS, LeaseFacts, Statement, statement

JOBS = [bytes([number]) * 32 for number in range(3)]
PEERS = [bytes([0xA0 + number]) * 20 for number in range(3)]
CHANNELS = [bytes([0xC0 + number]) * 32 for number in range(4)]
DAY = 19_700 * DAY_MS


def currency_of_channel(channel_id: bytes) -> str:
    return "EUR" if channel_id in CHANNELS[2:] else "USD"


def payment(number: int, peer: bytes, amount: int, at_ms: int, account: str) -> Entry:
    """What a payment outside, or debts that cancel out, leave in the books."""
    sign = 1 if account == "owed" else -1
    legs = (
        Leg(account=f"{account}:{peer.hex()}", amount=sign * amount),
        Leg(account=f"outside:{peer.hex()}", amount=-sign * amount),
    )
    return Entry(id=b"payment" + number.to_bytes(25, "big"), at_ms=at_ms, memo="paid outside", legs=legs)


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
                made = [vouched_by_buyer(provider=peer, **common), vouched_to_provider(buyer=peer, **common)]
            elif kind == 5:
                common = {"channel_id": channel_id, "cumulative": sums[channel], "at_ms": at_ms}
                made = [closed_by_buyer(provider=peer, **common), closed_to_provider(buyer=peer, **common)]
            elif kind == 6:
                made = [payment(number, peer, amount, at_ms, "owed"), payment(number + 500, peer, amount, at_ms, "due")]
            else:
                made = self.entries[-2:]
            self.entries += made


orders = st.lists(
    st.tuples(
        st.integers(0, 7), st.integers(0, 3), st.integers(0, 2), st.integers(0, 10**12), st.integers(0, DAY_MS // 2)
    ),
    max_size=40,
)


def made(entries, side, by, leases=()) -> Statement:
    return statement(entries, side=side, by=by, currency_of_channel=currency_of_channel, leases=leases)


@given(orders)
def test_a_statements_totals_are_those_of_the_books(drawn):
    entries = Histories(drawn).entries
    books = fold(entries)
    vouched = {"spend": books.total("spend:"), "earnings": -books.total("earned:")}
    still_open = {"spend": -books.total("owed:"), "earnings": books.total("due:")}
    for side in SIDES:
        for by in WAYS:
            totals = made(entries, side, by).totals
            assert sum(total.vouched for total in totals) == vouched[side]
            assert sum(total.open for total in totals) == still_open[side]


@given(orders)
def test_rows_add_up_to_their_totals_and_every_grouping_has_the_same(drawn):
    entries = Histories(drawn).entries
    for side in SIDES:
        found = {by: made(entries, side, by) for by in WAYS}
        assert len({each.totals for each in found.values()}) == 1
        for each in found.values():
            for total in each.totals:
                rows = [row for row in each.rows if row.currency == total.currency]
                assert sum(row.vouched for row in rows) == total.vouched
                assert sum(row.settled for row in rows) == total.settled


@given(orders)
def test_what_is_open_with_each_peer_is_what_the_books_say(drawn):
    entries = Histories(drawn).entries
    books = fold(entries)
    for side, account, sign in (("spend", "owed", -1), ("earnings", "due", 1)):
        rows = made(entries, side, "peer").rows
        for peer in {row.key for row in rows}:
            assert sum(row.open for row in rows if row.key == peer) == sign * books.balance(f"{account}:{peer}")


@given(orders)
def test_no_job_is_settled_for_more_than_was_vouched_for_on_it(drawn):
    for side in SIDES:
        for row in made(Histories(drawn).entries, side, "job").rows:
            assert not row.key or 0 <= row.settled <= row.vouched


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


def test_what_was_settled_without_a_channel_is_put_to_no_job():
    entries = [
        vouched_to_provider(channel_id=CHANNELS[0], seq=1, buyer=PEERS[0], shares={JOBS[0]: 9}, at_ms=DAY),
        payment(1, PEERS[0], 4, DAY, "due"),
    ]
    assert entries[1].channel_id == NO_CHANNEL
    rows = {row.key: row for row in made(entries, "earnings", "job").rows}
    assert (rows[JOBS[0].hex()].open, rows[""].settled, rows[""].open) == (9, 4, -4)
    (peer,) = made(entries, "earnings", "peer").rows
    assert peer.open == 5


def test_what_the_books_do_not_know_stands_beside_them_and_changes_no_debt():
    lease = LeaseFacts(
        job=JOBS[0].hex(), peer=PEERS[0].hex(), currency="USD", at_ms=DAY, written_off=3, is_retry=True, lost_cost=2
    )
    (row,) = made([], "spend", "job", [lease, lease]).rows
    assert (row.vouched, row.open, row.written_off, row.retries, row.lost_cost) == (0, 0, 6, 2, 4)
    idle = LeaseFacts(job="", peer="", currency="USD", at_ms=DAY)
    assert made([], "spend", "job", [idle]).rows == ()
