"""Asking a router for a port: what it says is judged, and whatever goes wrong is only no forwarding."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from kit.router_stand_in import router_on_loopback

from hansa.node.network import libp2p_reach, upnp
from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig
from hansa.node.network.upnp import LARGEST_ANSWER_BYTES, Forwarding, forward, judge, withdraw
from hansa.node.network.upnp_process import MEMORY_BYTES


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


@pytest.mark.trio
async def test_where_no_process_can_be_started_nothing_is_forwarded_nor_withdrawn(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    assert await forward(4001, "127.0.0.1") == Forwarding(says="the process that asks routers cannot be started")
    assert not await withdraw(4001, 4001, "127.0.0.1")
    with trio.move_on_after(0) as scope:
        await forward(4001, "127.0.0.1")
    assert scope.cancelled_caught, "and who is cancelled meanwhile is"


def routed(outside, taken=frozenset()):
    try:
        return router_on_loopback(outside, taken)
    except OSError as fault:
        pytest.skip(f"no multicast on loopback here: {fault}")


@pytest.mark.trio
async def test_a_module_in_the_directory_where_the_daemon_was_started_is_not_run(monkeypatch, tmp_path):
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    with routed("45.33.9.9"):
        assert (await forward(4001, "127.0.0.1")).port == 4001
    assert not (tmp_path / "ran").exists()


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


def peak_bytes(pid: int) -> int:
    """The most that a process held since its program began. The kernel's word at its end counts who forked it, too."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
    return 0


def test_a_router_whose_description_never_ends_costs_little_memory_and_is_none():
    with routed("45.33.9.9") as router:
        router.never_ends = True
        command = [sys.executable, "-m", "hansa.node.network.upnp_process", "forward", "4001", "127.0.0.1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            ender = threading.Timer(30, process.kill)
            ender.start()
            peaks = [0]
            while process.poll() is None:
                peaks.append(peak_bytes(process.pid))
                time.sleep(0.01)
            ender.cancel()
            assert process.stdout is not None
            said = process.stdout.read()
        assert process.returncode == 0, "it did not go on taking what came"
        assert 0 < max(peaks) < 2 * MEMORY_BYTES
        assert judge(said).port == 0
        assert router.forwarded == {}


@pytest.mark.trio
async def test_a_process_that_says_more_than_it_has_to_say_is_ended(monkeypatch, tmp_path):
    endless = tmp_path / "endless"
    endless.write_text("#!/bin/sh\nexec yes\n")
    endless.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(endless))
    with trio.fail_after(15):
        assert await forward(4001, "127.0.0.1") == Forwarding(says="no router that can be asked was found")


@pytest.mark.trio
async def test_a_router_forwards_no_longer_what_was_withdrawn():
    with routed("45.33.9.9") as router:
        found = await forward(4001, "127.0.0.1")
        assert await withdraw(found.port, 4001, "127.0.0.1")
        assert router.forwarded == {}
        assert not await withdraw(found.port, 4001, "127.0.0.1")


@pytest.mark.trio
async def test_what_is_forwarded_to_another_meanwhile_is_left_to_it():
    with routed("45.33.9.9") as router:
        router.forwarded[4001] = ("192.168.1.77", 4001, 3600)
        assert not await withdraw(4001, 4001, "127.0.0.1")
        assert router.forwarded[4001][0] == "192.168.1.77"


@pytest.mark.trio
async def test_a_router_that_is_gone_or_hangs_holds_up_no_stopping(monkeypatch, tmp_path):
    with trio.fail_after(20):
        assert not await withdraw(4001, 4001, "127.0.0.1")
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 25\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(upnp.sys, "executable", str(hangs))
    monkeypatch.setattr(upnp, "WITHDRAW_S", 0.1)
    with trio.fail_after(20):
        assert not await withdraw(4001, 4001, "127.0.0.1")
        await trio.lowlevel.checkpoint()


@pytest.mark.trio
async def test_a_node_that_stops_gives_its_port_back(monkeypatch):
    monkeypatch.setattr(libp2p_reach, "forward", partial(forward, interface="127.0.0.1"))
    monkeypatch.setattr(libp2p_reach, "withdraw", partial(withdraw, interface="127.0.0.1"))
    with routed("45.33.9.9") as router:
        with trio.CancelScope() as life:
            async with open_net(NetConfig(listen=("/ip4/0.0.0.0/tcp/0",), upnp=True), os.urandom(32)) as net:
                with trio.fail_after(30):
                    while net._reachability._forwarded is None:  # noqa: ASYNC110
                        await trio.sleep(0.05)
                assert len(router.forwarded) == 1
                life.cancel()
                await trio.lowlevel.checkpoint()
        assert router.forwarded == {}
