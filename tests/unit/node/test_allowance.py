"""How often somebody may do something."""

from hansa.node.network.allowance import Allowances


def test_each_key_has_its_own_and_it_grows_back():
    now = [0.0]
    allowed = Allowances(0.5, 2, lambda: now[0])
    assert [allowed.take("a") for _ in range(3)] == [True, True, False]
    assert allowed.take("b")
    now[0] = 2.0
    assert [allowed.take("a") for _ in range(2)] == [True, False]
    now[0] = 1_000.0
    assert [allowed.take("a") for _ in range(3)] == [True, True, False]


def test_keys_beyond_the_limit_are_forgotten_and_cost_no_memory():
    allowed = Allowances(0.5, 1, lambda: 0.0, most_keys=10)
    for number in range(1_000):
        assert allowed.take(number)
    assert len(allowed._left) == 10
    assert not allowed.take(999)
