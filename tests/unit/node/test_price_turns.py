"""Whose tender is priced next: nobody who floods keeps another buyer waiting beyond a bound."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.node.pricing.price_turns import (
    AT_ONCE_EACH,
    CROWDED,
    EVERY_MS_EACH,
    KNOWN_IN_A_ROW,
    PLACES_EACH,
    PLACES_IN_ALL,
    SENT_AWAY,
    TOO_OFTEN,
    Place,
    PriceTurns,
)

HONEST = b"honest"


def place(buyer: bytes, *, is_known: bool = False) -> Place:
    return Place(buyer=buyer, is_known=is_known)


def name(number: int) -> bytes:
    return f"flood {number}".encode()


def test_buyers_take_turns_whoever_has_sent_more() -> None:
    turns = PriceTurns()
    for buyer in (b"a", b"a", b"a", b"b", b"c", b"b"):
        assert turns.join(place(buyer), 0) is None
    order = [found.buyer for _ in range(6) if (found := turns.next())]
    assert order == [b"a", b"b", b"c", b"a", b"b", b"a"]
    assert turns.next() is None
    assert len(turns) == 0


def test_who_has_paid_here_goes_first_within_a_bounded_part() -> None:
    turns = PriceTurns()
    for _ in range(PLACES_EACH):
        turns.join(place(b"known", is_known=True), 0)
        turns.join(place(b"stranger"), 0)
    first = [found.is_known for _ in range(KNOWN_IN_A_ROW + 1) if (found := turns.next())]
    assert first == [True] * KNOWN_IN_A_ROW + [False]


def test_one_buyer_has_so_many_places_and_no_more() -> None:
    turns = PriceTurns()
    for _ in range(PLACES_EACH):
        assert turns.join(place(b"a"), 0) is None
    more = place(b"a")
    assert turns.join(more, 0) is more
    assert more.refused == CROWDED


def test_a_full_row_makes_room_for_a_newcomer_and_not_for_who_has_as_many() -> None:
    turns = PriceTurns()
    for buyer in range(PLACES_IN_ALL // PLACES_EACH):
        for _ in range(PLACES_EACH):
            turns.join(place(name(buyer)), 0)
    gone = turns.join(place(HONEST), 0)
    assert gone is not None
    assert gone.refused == SENT_AWAY
    assert gone.buyer != HONEST
    assert len(turns) == PLACES_IN_ALL


def test_each_buyer_has_a_rate_of_its_own() -> None:
    turns = PriceTurns()
    for _ in range(AT_ONCE_EACH):
        assert turns.join(place(b"a"), 0) is None
        turns.next()
    late = place(b"a")
    assert turns.join(late, 0) is late
    assert late.refused == TOO_OFTEN
    assert turns.join(place(b"b"), 0) is None
    assert turns.join(place(b"a"), EVERY_MS_EACH) is None


@given(
    floods=st.integers(1, PLACES_IN_ALL - 1),
    known=st.integers(0, 4),
    before=st.integers(0, 120),
    between=st.lists(st.lists(st.integers(0, 60), max_size=6), max_size=80),
    is_honest_known=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_strangers_who_flood_keep_an_honest_tender_waiting_for_no_more_than_one_turn_each(
    floods: int, known: int, before: int, between: list[list[int]], *, is_honest_known: bool
) -> None:
    """However fast they send. Rates are out of the way here: time passes between any two tenders."""
    turns, now_ms = PriceTurns(), 0

    def flood(number: int) -> None:
        nonlocal now_ms
        now_ms += EVERY_MS_EACH
        flooder = number % (floods + known)
        turns.join(Place(buyer=name(flooder), is_known=flooder >= floods), now_ms)

    for number in range(before):
        flood(number)
    honest = Place(buyer=HONEST, is_known=is_honest_known)
    now_ms += EVERY_MS_EACH
    assert turns.join(honest, now_ms) is not honest
    # In its row everybody else has one turn before it; of the other row so many go as that row's part allows.
    rivals = known if is_honest_known else floods
    others = -(-(rivals + 1) // KNOWN_IN_A_ROW) if is_honest_known else KNOWN_IN_A_ROW * (rivals + 1)
    served: Counter[bytes] = Counter()
    starts = 0
    for numbers in between + [[]] * (rivals + others + 1):
        for number in numbers:
            flood(number)
        found = turns.next()
        assert found is not None, "the honest one waits"
        if found is honest:
            break
        starts += 1
        served[found.buyer] += found.is_known == is_honest_known
    assert not honest.refused
    assert found is honest
    assert starts <= rivals + others
    assert all(count <= 1 for count in served.values())


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), max_size=200))
@settings(max_examples=200, deadline=None)
def test_the_rows_stay_within_their_bounds_and_nobody_is_lost(steps: list[tuple[int, bool, bool]]) -> None:
    turns = PriceTurns()
    waiting: list[Place] = []
    for now_ms, (number, is_known, is_turn) in enumerate(steps):
        if is_turn:
            found = turns.next()
            assert (found is None) == (not waiting)
            if found is not None:
                waiting.remove(found)
        else:
            one = Place(buyer=name(number) + bytes([is_known]), is_known=is_known)
            waiting.append(one)
            gone = turns.join(one, now_ms * EVERY_MS_EACH)
            if gone is not None:
                assert gone.refused
                waiting.remove(gone)
        assert len(turns) == len(waiting) <= 2 * PLACES_IN_ALL
    for one in waiting:
        turns.leave(one)
        turns.leave(one)
    assert len(turns) == 0
