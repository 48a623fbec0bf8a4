"""A daemon's gate and the agents of other machines over real TLS: who gets in, what is merged, and what a loss does."""

import dataclasses
import os
import socket
import ssl
import time
from contextlib import asynccontextmanager

import pytest
import trio

from hansa.node.agent import Agent, AgentSettings, WrongDaemon, dialled
from hansa.node.agent_config import DaemonPlace
from hansa.node.agent_fleet import Fleet, FleetSettings
from hansa.node.agent_gate import Gate
from hansa.node.agent_keys import Enrolled, Register, load_identity, write_invitation_key
from hansa.node.agent_messages import NO_TOKEN, Enrol, EnrolmentAnswer, Gone, LentGpu, Report, TurnedAway, Welcome
from hansa.node.agent_trees import TreeStore
from hansa.node.launcher_protocol import MAX_PACKET_BYTES, Ended, Kill, Refused, Start, Started, pack, send, unpack
from hansa.node.sandbox import SandboxSpec
from hansa.proto.market_documents import Device

pytestmark = pytest.mark.trio
ACCOUNT = b"a" * 20
RUN = b"r" * 32
SECRET = bytes(range(32))


def a_report(*numbers, **changes):
    devices = tuple(
        Device(id=bytes([number]) * 32, kind="cpu", model="m", memory_bytes=1 << 30, cores_milli=1000)
        for number in numbers
    )
    facts = {"devices": devices, "gpus": (), "tier": "sandbox", "features": (), "overlay": False}
    return Report(**{**facts, "note": f"lends {len(numbers)}", "reason": "", **changes})


class Ear:
    """Hears what the launchers of other machines say."""

    def __init__(self):
        self.said, self.lost_machines = [], []

    async def heard(self, machine, message, descriptors, packets):
        self.said.append((machine, message, descriptors, packets))

    async def lost(self, machine, why):
        self.lost_machines.append((machine, why))


class House:
    """A daemon's side of it, listening on loopback."""

    def __init__(self, tmp_path, **settings):
        self.identity = load_identity(tmp_path / "cluster")
        self.register = Register(tmp_path / "cluster")
        self.log, self.ear, self.changes = [], Ear(), 0
        self.fleet = Fleet(
            register=self.register,
            account=ACCOUNT,
            objection=lambda report: None if report.tier == "sandbox" else "its sandbox is too weak",
            changed=self.count,
            log=self.log.append,
            settings=FleetSettings(**settings),
        )
        self.fleet.ear = self.ear
        self.gate = Gate(
            register=self.register,
            identity=self.identity,
            now_ms=lambda: time.time_ns() // 1_000_000,
            serve_control=self.fleet.serve_control,
            serve_stream=self.fleet.serve_stream,
        )
        self.tmp_path = tmp_path

    def count(self):
        self.changes += 1

    def place(self, name="a"):
        return DaemonPlace(name=name, host="127.0.0.1", port=self.port, pin=self.identity.pin)

    def enrol(self, name):
        """As if it had joined already; gives the machine's key."""
        identity = load_identity(self.tmp_path / name)
        self.register.invite(os.urandom(32), time.time_ns() // 1_000_000 + 60_000)
        (pin,) = self.register.invitations(0)
        assert self.register.enrol(pin, Enrolled(name=name, certificate=identity.certificate, since_ms=1)) is None
        return identity

    def agent(self, name, identity, report, launches=None, **settings):
        """An agent whose launcher the test plays; its sockets are put into ``launches``."""

        def launch():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            (launches if launches is not None else self.spare).append(trio.socket.from_stdlib_socket(ours))
            return None, theirs

        return Agent(
            identity=identity,
            daemon=self.place(name),
            trees=TreeStore(self.tmp_path / f"trees-{name}", quota_bytes=1 << 30),
            launch=launch,
            report=lambda _account: report,
            log=self.log.append,
            settings=AgentSettings(**settings),
        )

    async def until(self, true):
        with trio.fail_after(20):
            while not true():  # noqa: ASYNC110 - nothing tells it
                await trio.sleep(0.01)


@asynccontextmanager
async def a_house(tmp_path, **settings):
    house = House(tmp_path, **settings)
    house.spare = []
    async with trio.open_nursery() as nursery:
        await nursery.start(house.fleet.serve)
        house.port = await nursery.start(house.gate.serve, "127.0.0.1", 0)
        house.nursery = nursery
        try:
            yield house
        finally:
            nursery.cancel_scope.cancel()
    for control in house.spare:
        control.close()


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
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await trio.aclose_forcefully(raw)
        assert house.gate.refused == 6
        assert isinstance(await first_answer(house, known), Welcome)
        assert await first_answer(house, known, "enrol") is None, "it is enrolled already"


async def test_who_says_nothing_or_garbage_costs_nothing_but_its_own_connection(tmp_path, monkeypatch):
    monkeypatch.setattr("hansa.node.agent_gate.HANDSHAKE_S", 0.3)
    async with a_house(tmp_path) as house:
        known = house.enrol("a")
        silent = [await trio.open_tcp_stream("127.0.0.1", house.port) for _ in range(40)]
        await silent[0].send_all(b"GET / HTTP/1.0\r\n\r\n")
        await house.until(lambda: house.gate.refused == 40)
        for stream in silent:
            await stream.aclose()
        assert isinstance(await first_answer(house, known), Welcome)


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


async def test_what_machines_have_is_one_inventory_until_they_are_lost(tmp_path):
    async with a_house(tmp_path) as house, trio.open_nursery() as nursery:
        gpu = LentGpu(device=b"\x02" * 32, minor=3, uuid="GPU-1")
        scopes = {}
        for name, report in (("a", a_report(1)), ("b", a_report(2, 3, gpus=(gpu,)))):
            scopes[name] = trio.CancelScope()

            async def serve(name=name, report=report):
                with scopes[name]:
                    await house.agent(name, house.enrol(name), report).serve()

            nursery.start_soon(serve)
            await house.until(lambda name=name: name in house.fleet.machines)
        assert house.fleet.machine_of() == {b"\x01" * 32: "a", b"\x02" * 32: "b", b"\x03" * 32: "b"}
        assert house.fleet.minors("b") == {b"\x02" * 32: 3}
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
        assert await first_answer(house, known) is None
        nursery.cancel_scope.cancel()


async def test_silence_is_a_loss_on_both_sides(tmp_path):
    """The cable is cut: no end of any connection is ever seen, nothing more arrives."""
    async with a_house(tmp_path, silence_s=0.8, beat_s=0.2) as house, trio.open_nursery() as nursery:
        launches, cut = [], trio.Event()
        port, house.port = house.port, await nursery.start(relay_until, house.port, cut)
        agent = house.agent("a", house.enrol("a"), a_report(1), launches, beat_s=0.2)
        house.port = port
        nursery.start_soon(agent.serve)
        await house.until(lambda: "a" in house.fleet.machines)
        await trio.sleep(1.5)
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


async def test_a_machine_that_never_makes_its_connection_is_told_to_end_the_run(tmp_path):
    async with a_house(tmp_path, silence_s=0.5) as house:
        known = house.enrol("a")
        async with dialled(known, house.place(), "control") as wire:
            from hansa.node.agent_messages import FromDaemon, FromLauncher, ToLauncher

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
