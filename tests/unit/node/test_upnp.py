"""Asking a router for a port: what it says is judged, and whatever goes wrong is only no forwarding."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from kit.router_stand_in import router_on_loopback

from hansa.node import upnp
from hansa.node.upnp import LARGEST_ANSWER_BYTES, Forwarding, forward, judge


@given(st.binary(max_size=LARGEST_ANSWER_BYTES))
def test_any_bytes_are_an_answer(said):
    assert judge(said).says


@given(st.text(), st.integers(), st.text())
def test_no_answer_makes_a_port_that_is_none_or_an_outside_that_is_not_public(host, port, why):
    import ipaddress
    import json

    found = judge(json.dumps({"host": host, "port": port, "why": why}).encode())
    if found.port:
        assert 0 < found.port < 65536
        assert ipaddress.ip_address(found.host).is_global


def test_a_router_behind_another_one_forwards_nothing_that_others_could_use():
    found = judge(b'{"host": "100.64.0.9", "port": 4001, "why": "forwarded"}')
    assert found.port == 0
    assert "behind another one" in found.says


@pytest.mark.trio
async def test_where_there_is_no_router_nothing_is_forwarded_and_nothing_printed(capfd):
    # A port is asked for on loopback, where nobody answers.
    found = await forward(4001, "127.0.0.1")
    assert found.port == 0
    assert "router" in found.says
    assert capfd.readouterr() == ("", "")


@pytest.mark.trio
async def test_a_router_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(upnp, "PATIENCE_S", 0.05)
    with trio.fail_after(20):
        assert await forward(4001, "127.0.0.1") == Forwarding(says="the router did not answer in time")


def routed(outside, taken=frozenset()):
    try:
        return router_on_loopback(outside, taken)
    except OSError as fault:
        pytest.skip(f"no multicast on loopback here: {fault}")


@pytest.mark.trio
async def test_a_router_forwards_the_port_for_an_hour():
    with routed("45.33.9.9") as router:
        found = await forward(4001, "127.0.0.1")
        assert found == Forwarding(host="45.33.9.9", port=4001, says="the router forwards 45.33.9.9 port 4001")
        inside, port, lease_s = router.forwarded[4001]
        assert (port, lease_s) == (4001, 3600)
        assert inside


@pytest.mark.trio
async def test_a_port_that_another_machine_has_is_replaced_by_one_that_is_free():
    with routed("45.33.9.9", frozenset({4001})) as router:
        found = await forward(4001, "127.0.0.1")
        assert found.port not in (0, 4001)
        assert router.forwarded[found.port][1] == 4001
