"""What is measured of the lines to peers, with a clock that the test moves."""

from hypothesis import given
from hypothesis import strategies as st

from hansa.market.bandwidth import BACK, LEAST_BYTES, THERE
from hansa.node.storage.line_meter import FORGET_S, LONGEST_S, LULL_S, MOST_TOLD, TELL_EVERY_S, LineMeter

ONE_S = LEAST_BYTES


class Scene:
    """A meter, its clock, and what it told."""

    def __init__(self):
        self.now_s = 1_000.0
        self.told = []
        self.meter = LineMeter(lambda *told: self.told.append(told), lambda: self.now_s)

    def move(self, peer, seconds, size_bytes, way=BACK):
        with self.meter.underway(peer, way):
            self.now_s += seconds
            self.meter.moved(peer, way, size_bytes)

    def rest(self, seconds=LULL_S * 2):
        self.now_s += seconds
        self.meter.sweep()


def test_one_transfer_is_told_when_it_is_over():
    scene = Scene()
    scene.move("a", 2, 4 * ONE_S)
    assert scene.told == []
    scene.rest()
    assert scene.told == [("a", BACK, 2 * ONE_S, False)]
    scene.rest()
    assert len(scene.told) == 1


def test_pieces_that_follow_one_another_are_one_transfer_and_what_comes_later_is_another():
    scene = Scene()
    for _ in range(8):
        scene.move("a", 0.5, ONE_S // 2)
    scene.rest(TELL_EVERY_S)
    scene.move("a", 1, 3 * ONE_S)
    scene.rest(TELL_EVERY_S)
    assert [told[2] for told in scene.told] == [ONE_S, 3 * ONE_S]


def test_time_in_which_nothing_was_asked_for_does_not_count():
    scene = Scene()
    scene.move("a", 1, ONE_S)
    scene.rest(3_600)
    assert scene.told == [("a", BACK, ONE_S, False)]


def test_channels_of_one_peer_are_one_line():
    scene = Scene()
    with scene.meter.underway("a", BACK), scene.meter.underway("a", BACK):
        scene.now_s += 1
        scene.meter.moved("a", BACK, ONE_S)
        scene.meter.moved("a", BACK, ONE_S)
    scene.rest()
    assert scene.told == [("a", BACK, 2 * ONE_S, False)]


def test_what_lasts_is_told_in_parts():
    scene = Scene()
    with scene.meter.underway("a", BACK):
        for rate in (ONE_S, ONE_S, 2 * ONE_S):
            for _ in range(int(LONGEST_S)):
                scene.now_s += 1
                scene.meter.moved("a", BACK, rate)
            scene.meter.sweep()
    assert [told[2] for told in scene.told] == [ONE_S, ONE_S, 2 * ONE_S]


def test_who_bursts_and_stalls_is_as_slow_as_all_the_time_that_it_took():
    scene = Scene()
    with scene.meter.underway("a", BACK):
        scene.now_s += 0.1
        scene.meter.moved("a", BACK, 20 * ONE_S)
        scene.rest(LONGEST_S + 1)
        # What follows is nothing at all, and then a trickle.
        scene.rest(LONGEST_S + 1)
        scene.meter.moved("a", BACK, 1_000)
        scene.rest(LONGEST_S + 1)
    assert [told[2:] for told in scene.told] == [(int(20 * ONE_S * 1_000 / 11_100), False), (1, False), (90, False)]


def test_many_small_pieces_say_nothing_of_a_line():
    scene = Scene()
    for _ in range(100):
        with scene.meter.underway("a", BACK):
            scene.now_s += 0.2
            scene.meter.moved("a", BACK, 100)
            scene.meter.sweep()
    scene.rest()
    assert scene.told == []


def test_a_stall_of_all_at_once_may_be_our_own_line_and_says_nothing_but_beside_one_that_moves_it_does():
    scene = Scene()
    with scene.meter.underway("a", BACK), scene.meter.underway("b", BACK):
        scene.rest(LONGEST_S)
        assert scene.told == []
        scene.meter.moved("b", BACK, 10 * ONE_S)
        scene.rest(LONGEST_S)
        assert sorted(scene.told) == [("a", BACK, 1, False), ("b", BACK, ONE_S, False)]


def test_who_gets_an_even_share_may_be_held_up_by_our_own_line_and_who_gets_less_is_slow_itself():
    scene = Scene()
    with scene.meter.underway("a", BACK), scene.meter.underway("b", BACK), scene.meter.underway("slow", BACK):
        scene.now_s += 2
        scene.meter.moved("a", BACK, 8 * ONE_S)
        scene.meter.moved("b", BACK, 9 * ONE_S)
        scene.meter.moved("slow", BACK, 2 * ONE_S)
    scene.rest()
    assert sorted(scene.told) == [
        ("a", BACK, 4 * ONE_S, True),
        ("b", BACK, 9 * ONE_S // 2, True),
        ("slow", BACK, ONE_S, False),
    ]


def test_what_moves_the_other_way_shares_nothing():
    scene = Scene()
    with scene.meter.underway("a", BACK), scene.meter.underway("b", THERE), scene.meter.underway("slow", BACK):
        scene.now_s += 1
        scene.meter.moved("a", BACK, 3 * ONE_S)
        scene.meter.moved("b", THERE, 3 * ONE_S)
        scene.meter.moved("slow", BACK, 2 * ONE_S)
    scene.rest()
    assert [told[3] for told in sorted(scene.told)] == [True, False, False]


def together(scene, **moved):
    with scene.meter.underway("a", BACK), scene.meter.underway("b", BACK):
        scene.now_s += 1
        for peer, size_bytes in moved.items():
            scene.meter.moved(peer, BACK, size_bytes)
    scene.rest(TELL_EVERY_S)


def test_several_that_are_slow_alike_do_not_pass_for_a_full_line_of_ours():
    scene = Scene()
    scene.move("fast", 1, 20 * ONE_S)
    scene.rest(TELL_EVERY_S)
    together(scene, a=ONE_S, b=ONE_S)
    together(scene, a=8 * ONE_S, b=8 * ONE_S)
    # What our line could carry once says less and less of what it can now.
    scene.rest(6 * FORGET_S)
    together(scene, a=ONE_S, b=ONE_S)
    assert [told[3] for told in scene.told] == [False, False, False, True, True, True, True]


def test_who_comes_back_within_a_moment_shares_with_who_came_meanwhile():
    scene = Scene()
    scene.move("a", 1, ONE_S)
    with scene.meter.underway("b", BACK):
        scene.meter.moved("b", BACK, ONE_S)
        scene.move("a", 1, ONE_S)
    scene.rest()
    assert [told[3] for told in scene.told] == [True, True]


def test_a_trifle_beside_it_makes_no_transfer_doubtful_nor_does_the_other_way():
    scene = Scene()
    with scene.meter.underway("a", BACK), scene.meter.underway("b", BACK), scene.meter.underway("c", THERE):
        scene.now_s += 1
        scene.meter.moved("b", BACK, ONE_S // 8)
        scene.meter.moved("c", THERE, 9 * ONE_S)
        scene.meter.moved("a", BACK, ONE_S)
    scene.rest()
    assert sorted(scene.told) == [("a", BACK, ONE_S, False), ("c", THERE, 9 * ONE_S, False)]


def test_a_peer_is_told_of_no_more_often_than_the_journal_should_be_written_to():
    scene = Scene()
    for _ in range(20):
        scene.move("a", 0.5, ONE_S)
        scene.rest(0.5)
    assert len(scene.told) <= 1 + 20 / TELL_EVERY_S


def test_strangers_without_end_are_remembered_within_bounds():
    scene = Scene()
    for number in range(MOST_TOLD + 50):
        scene.move(str(number), 1, ONE_S)
        scene.rest()
    assert len(scene.told) == MOST_TOLD + 50
    assert len(scene.meter._told_s) == MOST_TOLD
    assert not scene.meter._windows


steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from((THERE, BACK)), st.floats(0, 20), st.integers(0, 1 << 30)),
    max_size=30,
)


@given(steps)
def test_nothing_is_told_that_did_not_move(drawn):
    scene = Scene()
    moved: dict[tuple[str, str], int] = {}
    for peer, way, seconds, size_bytes in drawn:
        scene.move(peer, seconds, size_bytes, way)
        moved[peer, way] = moved.get((peer, way), 0) + size_bytes
        scene.rest(0.1)
    scene.rest(60)
    assert not scene.meter._windows
    for peer, way, bytes_per_s, _ in scene.told:
        # Who moved nothing, though it was waited for, counts as the slowest there is.
        assert 0 < bytes_per_s <= max(1, moved[peer, way] * 1_000)
