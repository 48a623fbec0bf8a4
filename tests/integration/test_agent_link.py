"""A daemon's gate and the agents of other machines over real TLS: who gets in, what is merged, and what a loss does."""

import contextlib
import dataclasses
import os
import socket
import ssl
import threading
import time
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from integration.agent_house import ACCOUNT, a_house, a_report

from hansa.node.agents.agent import DIALS_AT_ONCE, WrongDaemon, dialled
from hansa.node.agents.agent_fleet import _lead_out
from hansa.node.agents.agent_gate import MOST_OF_ONE, source_of
from hansa.node.agents.agent_keys import load_identity, write_invitation_key
from hansa.node.agents.agent_messages import (
    NO_TOKEN,
    Enrol,
    EnrolmentAnswer,
    FromDaemon,
    Gone,
    LentGpu,
    TurnedAway,
    Welcome,
)
from hansa.node.isolation.launcher_protocol import (
    MAX_PACKET_BYTES,
    Ended,
    Kill,
    Refused,
    Start,
    Started,
    pack,
    send,
    unpack,
)
from hansa.node.isolation.sandbox import SandboxSpec

pytestmark = pytest.mark.trio
RUN = b"r" * 32
SECRET = bytes(range(32))


async def first_answer(house, identity, purpose="control"):
    """What the daemon says to whoever has this key; None if it says nothing."""
    try:
        async with dialled(identity, house.place(), purpose) as wire:
            return await wire.receive(EnrolmentAnswer, within_s=5)
    except Gone:
        return None


async def test_nobody_gets_a_word_without_an_enrolled_key(tmp_path):
    async with a_house(tmp_path) as house:
        stranger = load_identity(tmp_path / "stranger")
        assert await first_answer(house, stranger) is None, "nobody is enrolled"
        known = house.enrol("a")
        for purpose in ("control", "stream", "enrol", "no such"):
            assert await first_answer(house, stranger, purpose) is None
        raw = await trio.open_tcp_stream("127.0.0.1", house.port)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = trio.SSLStream(raw, context)
        await stream.send_all(b"without a certificate")
        # Whether the end comes as an alert or as silence depends on who is quicker.
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b"", "not a word"
        await trio.aclose_forcefully(raw)
        assert house.gate.refused == 6
        assert isinstance(await first_answer(house, known), Welcome)
        assert await first_answer(house, known, "enrol") is None, "it is enrolled already"


async def test_who_says_nothing_or_garbage_costs_nothing_but_its_own_connection(tmp_path, monkeypatch):
    monkeypatch.setattr("hansa.node.agents.agent_gate.HANDSHAKE_S", 5.0)
    async with a_house(tmp_path) as house:
        known = house.enrol("a")
        since = trio.current_time()
        silent = [await trio.open_tcp_stream("127.0.0.1", house.port) for _ in range(40)]
        await silent[0].send_all(b"GET / HTTP/1.0\r\n\r\n")
        await house.until(lambda: house.gate.refused >= 32)  # at once: so many of one may be unproven, and no more
        assert trio.current_time() - since < 4
        await house.until(lambda: house.gate.refused == 40)
        for stream in silent:
            await stream.aclose()
        assert isinstance(await first_answer(house, known), Welcome)


async def test_hosts_that_prove_nothing_keep_nobody_else_from_knocking(tmp_path, monkeypatch):
    monkeypatch.setattr("hansa.node.agents.agent_gate.HANDSHAKE_S", 30.0)
    async with a_house(tmp_path) as house:
        known = house.enrol("a")
        since, silent = trio.current_time(), []
        for turn in range(40):
            one = trio.socket.socket()
            await one.bind((f"127.0.0.{2 + turn}", 0))  # forty hosts
            await one.connect(("127.0.0.1", house.port))
            silent.append(one)
        await house.until(lambda: house.gate.refused >= 8)
        assert isinstance(await first_answer(house, known), Welcome)
        assert trio.current_time() - since < 25, "before any of them had to give up"
        assert 8 <= house.gate.refused <= 9, "the newcomer cost one of them its place at the most"
        for one in silent:
            one.close()


async def test_an_ipv6_network_is_one_source():
    class Stream:
        def __init__(self, address):
            self.socket, self.address = self, address

        def getpeername(self):
            return (self.address, 1, 0, 0)

    sources = [source_of(Stream(one)) for one in ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1", "fe80::1%eth0")]
    assert sources == ["2001:db8::/64", "2001:db8::/64", "2001:db8:0:1::/64", "fe80::/64"]
    assert source_of(Stream("::ffff:10.0.0.1")) == source_of(Stream("10.0.0.1")) == "10.0.0.1"
    assert source_of(Stream("x")) == ""


async def test_an_agent_speaks_only_to_its_own_daemon(tmp_path):
    async with a_house(tmp_path) as house:
        known = house.enrol("a")
        place = dataclasses.replace(house.place(), pin=bytes(32))
        with pytest.raises(WrongDaemon):
            async with dialled(known, place, "control"):
                pass


async def test_an_invitation_lets_one_machine_in_and_then_nobody(tmp_path):
    async with a_house(tmp_path) as house:
        house.register.invite(SECRET, time.time_ns() // 1_000_000 + 60_000)
        guest = write_invitation_key(SECRET, tmp_path / "invitation.pem")
        machine = load_identity(tmp_path / "m")
        assert await first_answer(house, guest) is None, "an invitation is good for enrolling and nothing else"
        async with dialled(guest, house.place(), "enrol") as wire:
            await wire.send(Enrol(name="../m", certificate=machine.certificate))
            assert isinstance(await wire.receive(EnrolmentAnswer, within_s=5), TurnedAway)
        async with dialled(guest, house.place(), "enrol") as wire:
            await wire.send(Enrol(name="m", certificate=machine.certificate))
            assert (await wire.receive(EnrolmentAnswer, within_s=5)).name == "m"
        assert await first_answer(house, guest, "enrol") is None
        assert (await first_answer(house, machine)).account == ACCOUNT


async def until_the_end(wire):
    """Hear everything that the daemon says on a connection."""
    while True:
        await wire.receive(FromDaemon, within_s=10)


async def test_of_two_connections_of_one_machine_the_newer_counts_and_there_is_never_a_second(tmp_path):
    async with a_house(tmp_path) as house:
        known = house.enrol("a")
        async with dialled(known, house.place(), "control") as first, AsyncExitStack() as stack:
            assert isinstance(await first.receive(EnrolmentAnswer, within_s=5), Welcome)
            second = await stack.enter_async_context(dialled(known, house.place(), "control"))
            assert isinstance(await second.receive(EnrolmentAnswer, within_s=5), Welcome)
            await second.send(a_report(2))
            await house.until(lambda: "a" in house.fleet.machines)
            await first.send(a_report(1))
            with pytest.raises(Gone):
                await until_the_end(first)
            assert [device.id[0] for device in house.fleet.devices()] == [2]
            assert house.ear.lost_machines == [], "nothing was lost"
        await house.until(lambda: not house.fleet.machines)
        assert len(house.ear.lost_machines) == 1


async def test_what_machines_have_is_one_inventory_until_they_are_lost(tmp_path):
    async with a_house(tmp_path) as house, trio.open_nursery() as nursery:
        gpu = LentGpu(
            device=b"\x02" * 32, gpu_minors=(3,), device_nodes=("/dev/kfd",), cuda_devices=("GPU-1",), rocm_devices=()
        )
        scopes = {}
        for name, report in (("a", a_report(1)), ("b", a_report(2, 3, gpus=(gpu,)))):
            scopes[name] = trio.CancelScope()

            async def serve(name=name, report=report):
                with scopes[name]:
                    await house.agent(name, house.enrol(name), report).serve()

            nursery.start_soon(serve)
            await house.until(lambda name=name: name in house.fleet.machines)
        assert house.fleet.machine_of() == {b"\x01" * 32: "a", b"\x02" * 32: "b", b"\x03" * 32: "b"}
        nodes = {"gpu_minors": (3,), "device_nodes": ("/dev/kfd",), "cuda_devices": ("GPU-1",), "rocm_devices": ()}
        assert house.fleet.nodes("b", {b"\x02" * 32}) == nodes
        assert house.fleet.nodes("b", {b"\x03" * 32}) == dict.fromkeys(nodes, ())
        changes = house.changes
        scopes["b"].cancel()
        await house.until(lambda: "b" not in house.fleet.machines)
        assert [device.id for device in house.fleet.devices()] == [b"\x01" * 32]
        assert house.changes > changes
        assert house.ear.lost_machines[0][0] == "b"
        assert "machine b was lost" in house.ear.lost_machines[0][1]
        nursery.cancel_scope.cancel()


async def test_a_machine_is_turned_away_in_words(tmp_path):
    async with a_house(tmp_path) as house, trio.open_nursery() as nursery:
        first, second, third = (house.enrol(name) for name in "abc")
        nursery.start_soon(house.agent("a", first, a_report(1)).serve)
        await house.until(lambda: "a" in house.fleet.machines)
        nursery.start_soon(house.agent("b", second, a_report(2, tier="none")).serve)
        nursery.start_soon(house.agent("c", third, a_report(1)).serve)
        await house.until(lambda: len(house.fleet.turned_away) == 2)
        assert house.fleet.turned_away["b"] == "its sandbox is too weak"
        assert house.fleet.turned_away["c"] == "it reports a device that is reported already"
        await house.until(lambda: "not connected: the daemon says: its sandbox is too weak" in house.log)
        assert set(house.fleet.machines) == {"a"}
        nursery.cancel_scope.cancel()


async def test_a_machine_that_is_removed_is_let_go_and_does_not_get_in_again(tmp_path):
    async with a_house(tmp_path) as house, trio.open_nursery() as nursery:
        known = house.enrol("a")
        house.enrol("b")
        nursery.start_soon(house.agent("a", known, a_report(1)).serve)
        await house.until(lambda: "a" in house.fleet.machines)
        house.register.remove("a")
        await house.until(lambda: "a" not in house.fleet.machines)
        assert "its owner removed it" in house.ear.lost_machines[0][1]
        await house.until(lambda: "not connected: the daemon says: its owner removed it" in house.log)
        assert await first_answer(house, known) is None
        nursery.cancel_scope.cancel()


async def test_silence_is_a_loss_on_both_sides(tmp_path):
    """The cable is cut: no end of any connection is ever seen, nothing more arrives."""
    async with a_house(tmp_path, silence_s=3.0, beat_s=0.3) as house, trio.open_nursery() as nursery:
        launches, cut = [], trio.Event()
        port, house.port = house.port, await nursery.start(relay_until, house.port, cut)
        agent = house.agent("a", house.enrol("a"), a_report(1), launches, beat_s=0.3)
        house.port = port
        nursery.start_soon(agent.serve)
        await house.until(lambda: "a" in house.fleet.machines)
        await trio.sleep(4)
        assert "a" in house.fleet.machines, "signs of life keep it"
        cut.set()
        await house.until(lambda: "a" not in house.fleet.machines)
        assert "nothing was heard" in house.ear.lost_machines[0][1]
        with trio.fail_after(5):
            assert await launches[0].recv(MAX_PACKET_BYTES) == b"", "its launcher is told to end everything"
        nursery.cancel_scope.cancel()
    launches[0].close()


async def relay_until(port, cut, task_status=trio.TASK_STATUS_IGNORED):
    async def pump(source, sink):
        while data := await source.receive_some():
            if cut.is_set():
                await trio.sleep_forever()
            await sink.send_all(data)

    async def serve(near):
        if cut.is_set():
            await trio.sleep_forever()
        async with await trio.open_tcp_stream("127.0.0.1", port) as far, trio.open_nursery() as nursery:
            nursery.start_soon(pump, near, far)
            nursery.start_soon(pump, far, near)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(serve, listeners)


def a_start(directory):
    code = directory / "code"
    code.mkdir()
    (code / "job.py").write_text("print('hello')")
    spec = SandboxSpec(
        program="hansa.worker.runner", code=str(code), inputs=None, memory_bytes=1 << 30, cpu_millis=1000,
        processes=64, scratch_bytes=1 << 20, output_bytes=1 << 20, gpu_minors=(),
    )  # fmt: skip
    return Start(run=RUN, spec=spec)


async def test_a_run_is_started_there_with_its_files_and_its_bytes_come_here(tmp_path):
    async with a_house(tmp_path) as house, trio.open_nursery() as nursery:
        launches = []
        nursery.start_soon(house.agent("a", house.enrol("a"), a_report(1), launches).serve)
        await house.until(lambda: "a" in house.fleet.machines)
        start = a_start(tmp_path)
        await house.fleet.start("a", start)
        order = unpack(await launches[0].recv(MAX_PACKET_BYTES))
        assert order.spec.code.startswith(str(tmp_path / "trees-a"))
        assert dataclasses.replace(order.spec, code=start.spec.code) == start.spec
        assert (await trio.Path(order.spec.code, "job.py").read_text()) == "print('hello')"
        ours, theirs = socket.socketpair()
        with theirs:
            send(launches[0]._sock, Started(run=RUN, pid=1, limits={}), (theirs.fileno(),))
        await house.until(lambda: house.ear.said)
        machine, message, (descriptor,), packets = house.ear.said.pop()
        assert (machine, type(message), packets) == ("a", Started, None)
        line = socket.socket(fileno=descriptor)
        data = os.urandom(3 << 20)
        sent = trio.Event()

        async def say():
            ours.setblocking(False)
            await trio.SocketStream(trio.socket.from_stdlib_socket(ours)).send_all(data)
            ours.close()
            sent.set()

        nursery.start_soon(say)
        got = bytearray()
        line.setblocking(False)
        near = trio.SocketStream(trio.socket.from_stdlib_socket(line))
        while piece := await near.receive_some():
            got += piece
        assert bytes(got) == data
        near.socket.close()
        await house.fleet.tell("a", Kill(run=RUN))
        assert unpack(await launches[0].recv(MAX_PACKET_BYTES)) == Kill(run=RUN)
        await launches[0].send(pack(Ended(run=RUN, status=0, memory_kills=0, peak_bytes=5, words="")))
        await house.until(lambda: house.ear.said)
        assert house.ear.said[0][1].peak_bytes == 5
        nursery.cancel_scope.cancel()
    launches[0].close()


async def test_a_runs_way_out_leads_to_the_daemons_machine(tmp_path):
    async with a_house(tmp_path, silence_s=1.5, beat_s=0.2) as house, trio.open_nursery() as nursery:
        launches = []
        nursery.start_soon(house.agent("a", house.enrol("a"), a_report(1), launches, beat_s=0.2).serve)
        await house.until(lambda: "a" in house.fleet.machines)
        start = a_start(tmp_path)
        proxy = socket.socket(socket.AF_UNIX)
        proxy.bind(str(tmp_path / "proxy"))
        proxy.listen()
        await house.fleet.start(
            "a", Start(run=RUN, spec=dataclasses.replace(start.spec, egress=str(tmp_path / "proxy")))
        )
        order = unpack(await launches[0].recv(MAX_PACKET_BYTES))
        assert order.spec.egress.startswith(str(tmp_path / "sockets-a"))
        assert (tmp_path / "sockets-a").stat().st_mode & 0o077 == 0, "nobody else on that machine uses a run's way out"
        for _ in range(2):
            job = await trio.open_unix_socket(order.spec.egress)
            await job.send_all(b"CONNECT")
            there, _ = await trio.to_thread.run_sync(proxy.accept)
            assert await trio.to_thread.run_sync(there.recv, 100) == b"CONNECT"
            there.sendall(b"200")
            there.close()
            assert await job.receive_some() == b"200"
            assert await job.receive_some() == b""
            await job.aclose()
        proxy.close()
        house.fleet.forget(RUN)
        job = await trio.open_unix_socket(order.spec.egress)
        assert await job.receive_some() == b"", "the run is over here"
        await job.aclose()
        await launches[0].send(pack(Ended(run=RUN, status=0, memory_kills=0, peak_bytes=5, words="")))
        await house.until(lambda: house.ear.said)
        await house.until(lambda: not (tmp_path / "sockets-a" / RUN.hex()[:32]).exists())
        nursery.cancel_scope.cancel()
    launches[0].close()


async def test_a_way_out_at_which_too_many_wait_is_waited_for_by_nobody(tmp_path):
    """The daemon itself listens there, so one that waited would stand still for good."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(str(tmp_path / "proxy"))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(str(tmp_path / "proxy"))
        near, _far = trio.testing.memory_stream_pair()
        act = threading.Thread(target=trio.run, args=(_lead_out, str(tmp_path / "proxy"), near), daemon=True)
        act.start()
        await trio.to_thread.run_sync(act.join, 10)
        assert not act.is_alive()


async def test_a_job_that_connects_to_everything_at_once_puts_out_no_connection_of_its_machine(tmp_path):
    """Of those that have not proved themselves the daemon keeps few of one address: one more puts out the oldest."""
    assert 2 * DIALS_AT_ONCE <= MOST_OF_ONE, "those that are proved here and not there yet, and as many new ones"
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = silent[0].socket.getsockname()[1]
    knocked, trials = [], 3 * DIALS_AT_ONCE

    async def take_and_say_nothing(stream):
        knocked.append(stream)
        await stream.receive_some()  # the hello of its handshake
        await trio.sleep_forever()

    async with a_house(tmp_path) as house, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, take_and_say_nothing, silent)
        agent = house.agent("a", house.enrol("a"), a_report(1))
        agent._daemon = dataclasses.replace(house.place(), port=port)

        async def dial():
            async with agent.dial("stream", bytes(32)):
                pass

        for _ in range(trials):
            nursery.start_soon(dial)
        await house.until(lambda: len(knocked) >= DIALS_AT_ONCE)
        await trio.sleep(0.5)
        assert len(knocked) == DIALS_AT_ONCE
        nursery.cancel_scope.cancel()


async def test_a_connection_that_stands_keeps_no_other_from_being_made(tmp_path):
    async with a_house(tmp_path, silence_s=15) as house, AsyncExitStack() as held:
        agent = house.agent("a", house.enrol("a"), a_report(1))
        control = await held.enter_async_context(agent.dial("control"))
        await control.receive(FromDaemon, within_s=5)
        await control.send(a_report(1))
        await house.until(lambda: "a" in house.fleet.machines)
        with trio.fail_after(20):
            for number in range(3 * DIALS_AT_ONCE):
                await held.enter_async_context(agent.dial("stream", number.to_bytes(32, "big")))


async def test_a_machine_that_never_makes_its_connection_is_told_to_end_the_run(tmp_path):
    async with a_house(tmp_path, silence_s=0.5) as house:
        known = house.enrol("a")
        async with dialled(known, house.place(), "control") as wire:
            from hansa.node.agents.agent_messages import FromDaemon, FromLauncher, ToLauncher

            await wire.receive(FromDaemon, within_s=5)
            await wire.send(a_report(1))
            await house.until(lambda: "a" in house.fleet.machines)
            packet = pack(Started(run=RUN, pid=1, limits={}))
            await wire.send(FromLauncher(packet=packet, streams=(os.urandom(32),)))
            message = await wire.receive(FromDaemon, within_s=5)
            assert isinstance(message, ToLauncher)
            assert unpack(message.packet) == Kill(run=RUN)
        assert isinstance(house.ear.said[0][1], Refused)
        assert NO_TOKEN not in house.fleet.machines
