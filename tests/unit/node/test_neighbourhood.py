"""Whose word on which addresses makes a node dial."""

import pytest

from hansa.node.network.neighbourhood import Neighbourhood, group_of, host_of, household_of, place_of

ANYWHERE = Neighbourhood(("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001", "/ip4/45.33.1.2/tcp/4001"))


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("45.33.1.2", "public"),
        ("2a01:4f8::1", "public"),
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("::1", "loopback"),
        ("192.168.1.1", "private"),
        ("10.0.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00::1", "private"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("169.254.169.254", "nowhere"),
        ("0.0.0.0", "nowhere"),
        ("::", "nowhere"),
        ("224.0.0.1", "nowhere"),
        ("255.255.255.255", "nowhere"),
        ("nonsense", "nowhere"),
        ("", "nowhere"),
    ],
)
def test_a_place_is_known_from_the_address(host, place):
    assert place_of(host) == place


def test_one_household_is_one_caller_however_many_addresses_it_has():
    assert household_of("2a00:1:2:3::7") == household_of("2a00:1:2:3:ffff:ffff:ffff:1") != household_of("2a00:1:2:4::7")
    assert household_of("45.33.7.7") != household_of("45.33.7.8")


@pytest.mark.parametrize("host", ["127.0.0.1", "192.168.1.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1"])
def test_a_stranger_from_outside_makes_nobody_knock_at_inner_doors(host):
    family = "ip6" if ":" in host else "ip4"
    for told_from in ("45.33.7.7", None):
        assert not ANYWHERE.may_dial(host, told_from)
        assert ANYWHERE.sift((f"/{family}/{host}/tcp/22",), told_from) == ()
        assert ANYWHERE.sift((f"/{family}/{host}/tcp/22/p2p/16Uiu2/p2p-circuit",), told_from) == ()


def test_public_addresses_may_be_told_by_anybody():
    assert ANYWHERE.sift(("/ip4/45.33.1.9/tcp/4001", "/dns4/x.example/tcp/1"), None) == (
        "/ip4/45.33.1.9/tcp/4001",
        "/dns4/x.example/tcp/1",
    )


def test_neighbours_may_tell_of_their_own_network_and_not_of_our_loopback():
    assert ANYWHERE.may_dial("192.168.1.7", "192.168.1.9")
    assert not ANYWHERE.may_dial("127.0.0.1", "192.168.1.9")
    assert ANYWHERE.may_dial("127.0.0.1", "127.0.0.1")
    assert not ANYWHERE.may_dial("169.254.169.254", "169.254.1.1")


def test_what_the_operator_names_is_dialled_on_anybodys_word():
    loopback = Neighbourhood(("/ip4/127.0.0.1/tcp/0",))
    assert loopback.may_dial("127.0.0.1", None)
    assert not loopback.may_dial("10.0.0.1", None)
    assert Neighbourhood(("/ip4/10.0.0.9/tcp/1/p2p/x",)).may_dial("10.0.0.1", None)


def test_observers_of_one_network_are_one_and_private_ones_are_told_apart():
    assert group_of("45.33.1.2") == group_of("45.33.1.200") != group_of("45.33.2.2")
    assert group_of("2a01:4f8:1::1") == group_of("2a01:4f8:1:ffff::2")
    assert group_of("192.168.1.1") != group_of("192.168.1.2")


@pytest.mark.parametrize("addr", ["", "/", "x", "/ip4", "/ip4/1.2.3.4", "//tcp", "ip4/1.2.3.4/tcp/1"])
def test_what_is_no_address_has_no_host(addr):
    assert host_of(addr) == ("", "")
