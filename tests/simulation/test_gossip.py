"""In a network of some size everybody knows everybody soon, newcomers at once, and a cut that heals leaves no mark."""

import pytest
from simulation.gossip import GossipWorld
from simulation.simulate_network import KNOWN, cut_and_heal, grow, live, traffic


@pytest.fixture(scope="module")
def world() -> GossipWorld:
    made = GossipWorld(7)
    grow(made, 40, 40)
    return made


def test_everybody_knows_everybody_and_a_newcomer_does_within_seconds(world: GossipWorld) -> None:
    assert max(world.until_known(list(world.nodes.values()), KNOWN, 60)) < 30
    late = world.join(provides=False)
    assert world.until_known([late], KNOWN, 60, 0.1)[0] < 5


def test_comparing_equal_books_costs_little_beside_gossip(world: GossipWorld) -> None:
    gossip, sync = traffic(world, 30)
    assert sync < gossip / 10
    assert gossip < 6_000, "kilobytes a minute"


def test_neighbours_that_withhold_do_not_keep_the_book_from_a_newcomer(world: GossipWorld) -> None:
    honest = list(world.nodes.values())[:4]
    liars = [node for node in world.nodes.values() if node not in honest]
    for node in liars:
        node.withholds = True
    knows = [honest[0].number, *(node.number for node in liars[:9])]
    late = world.join(provides=False, knows=knows)
    late.mesh.clear()
    for node in world.nodes.values():
        node.mesh.discard(late.number)
    assert world.until_known([late], KNOWN, 600, 1.0)[0] < 600
    for node in liars:
        node.withholds = False


def test_both_halves_of_a_network_that_was_cut_agree_within_a_minute(world: GossipWorld) -> None:
    assert max(cut_and_heal(world, 20)) < 60


def test_the_same_seed_is_the_same_world() -> None:
    def play() -> tuple[dict[str, int], list[int]]:
        made = GossipWorld(3)
        grow(made, 12, 12)
        made.run(60)
        return made.sizes(), [node.gossip_bytes + node.sync_bytes for node in made.nodes.values()]

    assert play() == play()


@pytest.mark.long
def test_nodes_that_come_and_go_leak_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert live(8, 4, 5)
    assert "flat: True" in capsys.readouterr().out
