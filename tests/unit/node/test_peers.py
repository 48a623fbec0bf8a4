"""What a node thinks of its peers, event by event."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.network.peers import (
    BAR_MS,
    MAX_ADDRS,
    MAX_BAR_MS,
    MET_MS,
    NEVER_MET_MS,
    STRIKE_LIFE_MS,
    STRIKES,
    TABLE,
    AddrsLearnt,
    Barred,
    Connected,
    Disconnected,
    HangUp,
    Peer,
    PeerBook,
    Struck,
    TimePassed,
    advance,
)

PEER = Peer(peer_id="p")


def told(peer: Peer, *events: object) -> tuple[Peer, list[object]]:
    effects: list[object] = []
    for event in events:
        step = advance(peer, event)
        peer = step.state
        effects.extend(step.effects)
    return peer, effects


def struck(count: int, *, every_ms: int = 1, start_ms: int = 0) -> list[Struck]:
    return [Struck(why="lied", now_ms=start_ms + every_ms * n) for n in range(count)]


def test_a_peer_becomes_live_when_it_connects_and_quiet_when_it_leaves():
    peer, _ = told(PEER, Connected(now_ms=1))
    assert peer.phase == "live"
    peer, _ = told(peer, Disconnected(now_ms=2))
    assert (peer.phase, peer.last_ms) == ("quiet", 2)


def test_four_strikes_within_a_minute_are_forgiven_and_the_fifth_bars():
    peer, effects = told(PEER, Connected(now_ms=0), *struck(STRIKES - 1))
    assert (peer.phase, effects) == ("live", [])
    peer, effects = told(peer, Struck(why="lied", now_ms=10))
    assert (peer.phase, effects) == ("barred", [HangUp(peer_id="p", why="lied")])
    assert peer.barred_until_ms == 10 + BAR_MS


def test_strikes_that_are_a_minute_apart_never_bar():
    peer, effects = told(PEER, *struck(50, every_ms=STRIKE_LIFE_MS // (STRIKES - 1)))
    assert (peer.phase, effects) == ("new", [])


def test_each_further_bar_is_twice_as_long_up_to_an_hour():
    peer, lengths = PEER, []
    for _ in range(6):
        peer, _ = told(peer, *struck(STRIKES, start_ms=peer.barred_until_ms))
        lengths.append(peer.barred_until_ms - peer.last_ms)
        peer, _ = told(peer, TimePassed(now_ms=peer.barred_until_ms))
    assert lengths == [BAR_MS, 2 * BAR_MS, 4 * BAR_MS, 8 * BAR_MS, MAX_BAR_MS, MAX_BAR_MS]


def test_a_barred_peer_that_connects_is_hung_up_on_and_one_whose_bar_ended_is_not():
    peer, effects = told(PEER, Barred(why="w", until_ms=100, now_ms=0), Connected(now_ms=50))
    assert (peer.phase, len(effects)) == ("barred", 2)
    peer, effects = told(peer, TimePassed(now_ms=100), Connected(now_ms=101))
    assert (peer.phase, effects) == ("live", [])


def test_a_second_bar_never_shortens_the_first():
    peer, _ = told(PEER, Barred(why="w", until_ms=100, now_ms=0), Barred(why="v", until_ms=50, now_ms=1))
    assert peer.barred_until_ms == 100


def test_the_newest_addresses_come_first_and_few_are_kept():
    peer, _ = told(PEER, AddrsLearnt(addrs=("/a", "/b"), now_ms=0), AddrsLearnt(addrs=("/c", "/a"), now_ms=1))
    assert peer.addrs == ("/c", "/a", "/b")
    peer, _ = told(peer, AddrsLearnt(addrs=(*(f"/{n}" for n in range(100)), "x" * 1000, ""), now_ms=2))
    assert len(peer.addrs) == MAX_ADDRS


def test_the_long_silent_are_forgotten_sooner_if_they_were_never_met():
    assert told(PEER, TimePassed(now_ms=NEVER_MET_MS + 1))[0].phase == "gone"
    met, _ = told(PEER, Connected(now_ms=0), Disconnected(now_ms=0))
    assert told(met, TimePassed(now_ms=NEVER_MET_MS + 1))[0].phase == "quiet"
    assert told(met, TimePassed(now_ms=MET_MS + 1))[0].phase == "gone"


def test_an_event_that_comes_too_late_is_ignored():
    assert advance(PEER, Disconnected(now_ms=0)).ignored == "Disconnected while new"
    assert advance(replace(PEER, phase="gone"), Connected(now_ms=0)).ignored == "Connected while gone"


EVENTS = st.one_of(
    st.builds(Connected, now_ms=st.just(0)),
    st.builds(Disconnected, now_ms=st.just(0)),
    st.builds(Struck, why=st.just("w"), now_ms=st.just(0)),
    st.builds(Barred, why=st.just("w"), until_ms=st.integers(0, 10), now_ms=st.just(0)),
    st.builds(AddrsLearnt, addrs=st.lists(st.text(max_size=3)).map(tuple), now_ms=st.just(0)),
    st.builds(TimePassed, now_ms=st.integers(0, 2 * MET_MS)),
)


@given(st.lists(EVENTS, max_size=40))
def test_no_story_leaves_the_table_or_grows_a_peer(events):
    peer, _ = told(PEER, *events)
    assert peer.phase in {phase for phase, _ in TABLE.allowed} | TABLE.terminal
    assert len(peer.strikes_ms) <= STRIKES
    assert len(peer.addrs) <= MAX_ADDRS


def test_a_full_book_puts_out_the_never_met_first_then_the_longest_quiet_and_never_the_live_or_kept():
    book = PeerBook(4)
    book.apply("live", Connected(now_ms=1), 1)
    book.kept.add("kept")
    book.apply("kept", AddrsLearnt(addrs=("/k",), now_ms=1), 1)
    for name, at in (("old", 2), ("young", 3)):
        book.apply(name, Connected(now_ms=at), at)
        book.apply(name, Disconnected(now_ms=at), at)
    book.apply("new", AddrsLearnt(addrs=("/n",), now_ms=4), 4)
    assert {peer.peer_id for peer in book} == {"live", "kept", "young", "new"}
    book.apply("newer", AddrsLearnt(addrs=("/n",), now_ms=5), 5)
    assert {peer.peer_id for peer in book} == {"live", "kept", "young", "newer"}
    assert book.evicted == 2


@given(st.lists(st.tuples(st.integers(0, 30), EVENTS), max_size=120))
def test_a_book_never_outgrows_its_limit_by_more_than_its_live_peers(story):
    book = PeerBook(5)
    for number, event in story:
        book.apply(str(number), event, 0)
        live = sum(peer.phase == "live" for peer in book)
        assert len(book) <= max(5, live + 1)


def test_the_book_lets_bars_end_with_time():
    book = PeerBook(5)
    book.apply("p", Barred(why="w", until_ms=1000, now_ms=0), 0)
    assert book.is_barred("p", 999)
    assert not book.is_barred("p", 1000)
    book.pass_time(1000)
    peer = book.get("p")
    assert peer is not None
    assert peer.phase == "quiet"


def test_somebody_who_was_forgotten_meanwhile_is_not_remembered_because_the_clock_is_looked_at():
    book = PeerBook(1)
    book.apply("p", AddrsLearnt(addrs=("a",), now_ms=0), 0)
    seen = list(book)
    book.apply("q", AddrsLearnt(addrs=("a",), now_ms=0), 0)
    book.pass_time(10, seen)
    assert [peer.peer_id for peer in book] == ["q"]


@pytest.mark.parametrize("now_ms", [999, 1000])
def test_a_connection_right_at_the_end_of_a_bar_counts_from_the_bars_own_clock(now_ms):
    book = PeerBook(5)
    book.apply("p", Barred(why="w", until_ms=1000, now_ms=0), 0)
    effects = book.apply("p", Connected(now_ms=now_ms), now_ms)
    assert bool(effects) == (now_ms < 1000)
