"""What a node's owner is told of how others reach it."""

from hansa.node.network.net import Reach, RelayStat
from hansa.node.network.reach_advice import advise, means_of

PLACE = RelayStat(peer_id="16Uiu2relay", left_s=3_000)


def test_the_means_are_named_by_what_holds():
    assert means_of(Reach(verdict="public"), announced=False) == "directly"
    assert means_of(Reach(verdict="private", relays=(PLACE,)), announced=False) == "by relay"
    assert means_of(Reach(verdict="private"), announced=False) == "only outgoing"
    assert means_of(Reach(), announced=False) == "not known"
    assert means_of(Reach(verdict="private"), announced=True) == "announced"


def test_a_node_that_all_is_well_with_is_told_nothing():
    assert list(advise(Reach(verdict="public"), announced=False, peers=3)) == []


def test_every_other_standing_says_what_to_do():
    for reach, words in (
        (Reach(verdict="private"), "forward its port"),
        (Reach(verdict="private", relays=(PLACE,)), "forwarding the port"),
        (Reach(verdict="private", relays=(PLACE,), hides_ports=True), "symmetric"),
        (Reach(), "two from different networks"),
        (Reach(verdict="private", relays=(PLACE,), serves_as_relay=True), "relay off"),
        (Reach(verdict="public", restarts=2), "fell 2 times"),
    ):
        assert words in " ".join(advise(reach, announced=False, peers=1))
    assert "bootstrap" in " ".join(advise(Reach(), announced=False, peers=0))
    assert "forwarded?" in " ".join(advise(Reach(verdict="private"), announced=True, peers=1))
