"""What is believed of those who say whether a node can be dialled."""

from hypothesis import given
from hypothesis import strategies as st

from hansa.node.network.reachability import CONFIRMATIONS, MOST_OPINIONS, OPINION_LIFE_S, Opinion, Opinions

HERE = "/ip4/45.33.9.2/tcp/4077"


SEEN = ("45.33.9.2", 4077)


def said(observer: str, network: str, reached_at: str | None, at_s: float = 0.0, seen_at=SEEN) -> Opinion:
    return Opinion(observer=observer, network=network, seen_at=seen_at, reached_at=reached_at, at_s=at_s)


def opinions(*each: Opinion) -> Opinions:
    found = Opinions()
    for one in each:
        found = found.with_new(one)
    return found


def test_one_liar_makes_no_node_public():
    assert opinions(said("a", "n1", HERE)).verdict() == "unknown"
    assert opinions(said("a", "n1", HERE)).confirmed() == ()


def test_many_liars_of_one_network_are_one():
    found = opinions(*(said(f"liar {number}", "n1", HERE) for number in range(MOST_OPINIONS)))
    assert found.verdict() == "unknown"


def test_two_networks_that_agree_are_believed():
    found = opinions(said("a", "n1", HERE), said("b", "n2", HERE))
    assert found.verdict() == "public"
    assert found.confirmed() == (HERE,)


def test_two_networks_that_name_different_addresses_confirm_none():
    found = opinions(said("a", "n1", HERE), said("b", "n2", "/ip4/45.33.9.2/tcp/9"))
    assert found.verdict() == "unknown"


def test_nodes_that_nobody_reaches_are_private_and_a_liar_among_them_changes_nothing():
    found = opinions(said("a", "n1", ""), said("b", "n2", ""), said("liar", "n3", HERE), said("c", "n4", HERE))
    assert found.verdict() != "public"
    assert opinions(said("a", "n1", ""), said("b", "n2", ""), said("liar", "n3", HERE)).verdict() == "private"


def test_two_that_lie_do_not_hide_a_node_that_as_many_reach():
    two = opinions(said("a", "n1", HERE), said("b", "n2", HERE), said("liar", "n3", ""), said("other", "n4", ""))
    assert two.verdict() == "unknown"
    assert two.with_new(said("third", "n5", "")).verdict() == "private"


def test_who_did_not_try_says_nothing():
    assert opinions(said("a", "n1", None), said("b", "n2", None), said("c", "n3", None)).verdict() == "unknown"


def test_an_observers_newest_word_replaces_its_last_and_old_words_are_forgotten():
    found = opinions(said("a", "n1", HERE), said("b", "n2", HERE), said("a", "n1", ""))
    assert found.verdict() == "unknown"
    late = opinions(said("a", "n1", HERE), said("b", "n2", HERE)).at(OPINION_LIFE_S + 1)
    assert late.said == ()


def test_a_router_that_gives_each_connection_a_port_is_noticed():
    same = opinions(said("a", "n1", None), said("b", "n2", None))
    assert not same.hides_ports()
    assert opinions(said("a", "n1", None), said("b", "n2", None, seen_at=("45.33.9.2", 50_001))).hides_ports()


opinion = st.builds(
    Opinion,
    observer=st.sampled_from("abcdefghij"),
    network=st.sampled_from(["n1", "n2", "n3", "n4"]),
    seen_at=st.none() | st.tuples(st.sampled_from(["45.33.9.2", "45.33.9.3"]), st.integers(1, 65535)),
    reached_at=st.sampled_from([None, "", HERE, "/ip4/45.33.9.3/tcp/1"]),
    at_s=st.floats(0, 100),
)


@given(st.lists(opinion, max_size=40))
def test_no_story_makes_a_node_public_on_the_word_of_one_network(story):
    found = opinions(*story)
    assert len(found.said) <= MOST_OPINIONS
    for addr in found.confirmed():
        assert len({each.network for each in story if each.reached_at == addr}) >= CONFIRMATIONS
    if found.verdict() == "public":
        assert found.confirmed()
        assert len({each.network for each in story if each.reached_at}) >= CONFIRMATIONS
