"""What a machine that was taken over can do to its daemon: end its own connection, and nothing else."""

import contextlib
import errno
import os
import socket
from contextlib import asynccontextmanager
from dataclasses import replace

import msgpack
import pytest
import trio
from integration.agent_house import a_house, a_report

from hansa.node.agents.agent import dialled
from hansa.node.agents.agent_keys import load_identity
from hansa.node.agents.agent_messages import FromDaemon, FromLauncher, Gone, LentGpu, StartThere, ToLauncher, TurnedAway
from hansa.node.agents.agent_switchboard import HERE, Part, Switchboard
from hansa.node.isolation.launcher_protocol import (
    NO_PROCESS,
    Ended,
    Kill,
    Refused,
    Start,
    Started,
    pack,
    receive,
    unpack,
)
from hansa.node.isolation.sandbox import SandboxSpec
from hansa.proto.market_documents import Fact

pytestmark = pytest.mark.trio
RUN = b"r" * 32
STARTED = {"message": "Started", "run": RUN, "pid": 1, "limits": {}}
ENDED = {"message": "Ended", "run": RUN, "status": 0, "memory_kills": 0, "peak_bytes": 1, "words": ""}
REFUSED = {"message": "Refused", "run": RUN, "reason": "no"}
FORGED = {
    "a start without its connection": (STARTED, 0),
    "a start with three": (STARTED, 3),
    "a pid that is a text": ({**STARTED, "pid": "1"}, 1),
    "a pid below zero": ({**STARTED, "pid": -1}, 1),
    "limits that are a list": ({**STARTED, "limits": [1]}, 1),
    "limits that are numbers": ({**STARTED, "limits": {"memory": 1}}, 1),
    "an end with a connection": (ENDED, 1),
    "a status that is a text": ({**ENDED, "status": "0"}, 0),
    "a peak that is a fraction": ({**ENDED, "peak_bytes": 1.5}, 0),
    "a peak beyond all memory": ({**ENDED, "peak_bytes": 1 << 63}, 0),
    "kills that are nothing": ({**ENDED, "memory_kills": None}, 0),
    "words that are bytes": ({**ENDED, "words": b"x"}, 0),
    "a reason that is a number": ({**REFUSED, "reason": 7}, 0),
    "an order to a launcher": ({"message": "Kill", "run": RUN}, 0),
}


@asynccontextmanager
async def a_taken_machine(house, report):
    """The connection of a machine that is here, with nothing behind it that plays by rules."""
    async with dialled(house.enrol("a"), house.place(), "control") as wire:
        await wire.receive(FromDaemon, within_s=5)
        await wire.send(report)
        yield wire


@pytest.mark.parametrize("case", FORGED)
async def test_what_no_launcher_says_ends_the_machines_connection(tmp_path, case):
    said, streams = FORGED[case]
    async with a_house(tmp_path, silence_s=2.0) as house, a_taken_machine(house, a_report(1)) as wire:
        await house.until(lambda: "a" in house.fleet.machines)
        packet = msgpack.packb(said)
        await wire.send(FromLauncher(packet=packet, streams=tuple(os.urandom(32) for _ in range(streams))))
        await house.until(lambda: "a" not in house.fleet.machines)
        assert house.ear.said == []
        assert [machine for machine, _ in house.ear.lost_machines] == ["a"]


async def test_what_a_launcher_says_is_passed_on(tmp_path):
    async with a_house(tmp_path, silence_s=5.0) as house, a_taken_machine(house, a_report(1)) as wire:
        for message in (
            Ended(run=RUN, status=-9, memory_kills=1, peak_bytes=1 << 40, words="w"),
            Refused(run=RUN, reason="no room"),
        ):
            await wire.send(FromLauncher(packet=pack(message), streams=()))
        await house.until(lambda: len(house.ear.said) == 2)
        assert "a" in house.fleet.machines


@pytest.mark.parametrize(
    "changes", [{"device_nodes": ("/dev/sda",)}, {"gpu_minors": (4096,)}, {"cuda_devices": ("x",)}]
)
async def test_nodes_that_no_gpu_has_are_not_taken(tmp_path, changes):
    plain = {"device": b"\x01" * 32, "gpu_minors": (0,), "device_nodes": (), "cuda_devices": (), "rocm_devices": ()}
    bad = a_report(1, gpus=(LentGpu(**{**plain, **changes}),))
    async with a_house(tmp_path) as house:
        async with a_taken_machine(house, bad) as wire:
            assert isinstance(await wire.receive(FromDaemon, within_s=5), TurnedAway)
        assert house.fleet.machines == {}
        async with dialled(house.enrol("b"), house.place("b"), "control") as wire:
            await wire.receive(FromDaemon, within_s=5)
            await wire.send(a_report(1, gpus=(LentGpu(**plain),)))
            await house.until(lambda: "b" in house.fleet.machines)
            await wire.send(bad)
            await house.until(lambda: "b" not in house.fleet.machines)


SLOT = a_report(1).devices[0]
NO_DEVICES = {
    "of another kind": {"kind": "tpu"},
    "with a name that steers a terminal": {"model": "\x1b[2J"},
    "with more memory than any machine has": {"memory_bytes": 1 << 63},
    "with facts out of order": {"facts": (Fact(name="cuda", value="12.4"), Fact(name="arch", value="x86_64"))},
    "with a fact twice": {"facts": (Fact(name="cuda", value="12.4"), Fact(name="cuda", value="12.5"))},
    "with a fact that is no word": {"facts": (Fact(name="speed", value="9"),)},
    "with a fact that cannot be read": {"facts": (Fact(name="cuda", value="new"),)},
    "that is lent in parts": {"facts": (Fact(name="share", value="0.5"),)},
}


@pytest.mark.parametrize("case", NO_DEVICES)
async def test_devices_that_nobody_has_do_not_come_into_the_providers_adverts(tmp_path, case):
    bad = a_report(devices=(SLOT, replace(SLOT, id=b"\x02" * 32, **NO_DEVICES[case])))
    async with a_house(tmp_path) as house:
        async with a_taken_machine(house, bad) as wire:
            assert isinstance(await wire.receive(FromDaemon, within_s=5), TurnedAway)
        assert house.fleet.machines == {}
    plain = a_report(devices=(replace(SLOT, facts=(Fact(name="arch", value="x86_64"),)),))
    async with a_house(tmp_path) as house, a_taken_machine(house, plain) as wire:
        await house.until(lambda: "a" in house.fleet.machines)
        await wire.send(bad)
        await house.until(lambda: "a" not in house.fleet.machines)


async def test_machines_together_lend_no_more_than_can_be_written_down(tmp_path):
    def many(first, count):
        ids = (number.to_bytes(32, "big") for number in range(first, first + count))
        return a_report(devices=tuple(replace(SLOT, id=one) for one in ids))

    async with a_house(tmp_path) as house, dialled(house.enrol("a"), house.place("a"), "control") as one:
        other = house.enrol("b")
        await one.receive(FromDaemon, within_s=5)
        await one.send(many(0, 1024))
        await house.until(lambda: "a" in house.fleet.machines)
        async with dialled(other, house.place("b"), "control") as wire:
            await wire.receive(FromDaemon, within_s=5)
            await wire.send(many(5_000, 1024))
            await house.until(lambda: "b" in house.fleet.machines)
            third = house.enrol("c")
            async with dialled(third, house.place("c"), "control") as late:
                await late.receive(FromDaemon, within_s=5)
                await late.send(many(9_000, 1))
                said = await late.receive(FromDaemon, within_s=5)
                assert isinstance(said, TurnedAway)
                assert "more than 2048 devices" in said.reason


async def test_a_machine_that_is_another_one_every_moment_is_let_go(tmp_path):
    async with a_house(tmp_path) as house, a_taken_machine(house, a_report(1)) as wire:
        await house.until(lambda: "a" in house.fleet.machines)
        with contextlib.suppress(Gone):
            for number in range(2000):
                await wire.send(a_report(1 + number % 2))
        await house.until(lambda: "a" not in house.fleet.machines)
        assert house.changes < 50


async def test_a_run_starts_once_and_names_no_process_of_the_daemons_machine(tmp_path):
    async with a_house(tmp_path) as house, a_taken_machine(house, a_report(1)) as wire:
        await house.until(lambda: "a" in house.fleet.machines)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        board = Switchboard(lambda: (None, theirs), house.fleet)
        await house.nursery.start(board.serve)
        _, executor = board.launch()
        executor.settimeout(5)
        (tmp_path / "code").mkdir()
        spec = SandboxSpec(
            program="hansa.worker.runner", code=str(tmp_path / "code"), inputs=None, memory_bytes=1 << 30,
            cpu_millis=1000, processes=64, scratch_bytes=1 << 20, output_bytes=1 << 20, gpu_minors=(),
        )  # fmt: skip
        board.place(RUN, [Part(machine="a", cpu_millis=1000, memory_bytes=1 << 30, workers=1)])
        executor.send(pack(Start(run=RUN, spec=spec)))
        while not isinstance(await wire.receive(FromDaemon, within_s=5), StartThere):
            pass
        assert len(house.fleet.machines["a"].trees) == 1, "its code may be fetched"
        identity = load_identity(tmp_path / "a")
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                token = os.urandom(32)
                nursery.start_soon(_stream, identity, house.place(), token)
                await wire.send(FromLauncher(packet=pack(Started(run=RUN, pid=1, limits={})), streams=(token,)))
            message, descriptors = await trio.to_thread.run_sync(receive, executor)
            assert message == Started(run=RUN, pid=NO_PROCESS, limits={})
            assert len(descriptors) == 1
            while not isinstance(order := await wire.receive(FromDaemon, within_s=5), ToLauncher):
                pass
            assert unpack(order.packet) == Kill(run=RUN), "who says it twice is told to end it"
            await wire.send(
                FromLauncher(packet=pack(Ended(run=RUN, status=-9, memory_kills=0, peak_bytes=0, words="")), streams=())
            )
            message, _ = await trio.to_thread.run_sync(receive, executor)
            assert isinstance(message, Ended), "and the executor hears of one start and one end"
            nursery.cancel_scope.cancel()
        assert house.fleet.machines["a"].trees == {}, "nothing of the run is fetched after its end"
        os.close(descriptors[0])
        ours.close()
        executor.close()


SPEC = SandboxSpec(
    program="hansa.worker.runner", code="/", inputs=None, memory_bytes=1 << 30, cpu_millis=1000, processes=64,
    scratch_bytes=1 << 20, output_bytes=1 << 20, gpu_minors=(),
)  # fmt: skip


async def test_a_machine_that_hangs_up_while_it_fetches_code_ends_nothing_but_its_connection(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "large").write_bytes(bytes(32 << 20))
    async with a_house(tmp_path) as house, a_taken_machine(house, a_report(1)) as wire:
        await house.until(lambda: "a" in house.fleet.machines)
        await house.fleet.start("a", Start(run=RUN, spec=replace(SPEC, code=str(code))))
        while not isinstance(order := await wire.receive(FromDaemon, within_s=5), StartThere):
            pass
        async with dialled(load_identity(tmp_path / "a"), house.place(), "stream", order.trees[0].token) as stream:
            await stream.stream.receive_some()
            stream.stream.transport_stream.socket.close()
        await house.until(lambda: not house.fleet.machines["a"].trees)
        await trio.sleep(0.2)
        await wire.send(a_report(1, 2))
        await house.until(lambda: len(house.fleet.machines["a"].report.devices) == 2)


async def test_where_too_many_descriptors_are_open_the_machine_goes_and_the_others_stay(tmp_path, monkeypatch):
    async with a_house(tmp_path) as house, a_taken_machine(house, a_report(1)) as wire:
        await house.until(lambda: "a" in house.fleet.machines)
        token = os.urandom(32)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stream, load_identity(tmp_path / "a"), house.place(), token)
            await house.until(lambda: token in house.fleet.machines["a"].arrivals)
            monkeypatch.setattr("hansa.node.agents.agent_fleet.socket.socketpair", too_many)
            await wire.send(FromLauncher(packet=pack(Started(run=RUN, pid=1, limits={})), streams=(token,)))
            await house.until(lambda: "a" not in house.fleet.machines)
            nursery.cancel_scope.cancel()
        assert any("Too many open files" in why for _machine, why in house.ear.lost_machines)
        monkeypatch.undo()
        async with dialled(house.enrol("b"), house.place("b"), "control") as other:
            await other.receive(FromDaemon, within_s=5)
            await other.send(a_report(1))
            await house.until(lambda: "b" in house.fleet.machines)


def too_many(*_arguments):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_a_sandbox_whose_line_the_kernel_dropped_is_ended_and_said_so(tmp_path):
    async with a_house(tmp_path) as house:
        launcher, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        board = Switchboard(lambda: (None, theirs), house.fleet)
        await house.nursery.start(board.serve)
        _, executor = board.launch()
        for end in (launcher, executor):
            end.settimeout(5)
        board.place(RUN, [Part(machine=HERE, cpu_millis=1000, memory_bytes=1 << 30, workers=1)])
        executor.send(pack(Start(run=RUN, spec=SPEC)))
        assert isinstance((await trio.to_thread.run_sync(receive, launcher))[0], Start)
        launcher.send(pack(Started(run=RUN, pid=1, limits={})))
        assert (await trio.to_thread.run_sync(receive, launcher))[0] == Kill(run=RUN)
        launcher.send(pack(Ended(run=RUN, status=-9, memory_kills=0, peak_bytes=0, words="")))
        refused, _ = await trio.to_thread.run_sync(receive, executor)
        assert isinstance(refused, Refused)
        assert "too many descriptors" in refused.reason
        executor.close()
        await house.until(lambda: board._up is None)
        launcher.close()


async def _stream(identity, place, token):
    with contextlib.suppress(Gone):
        async with dialled(identity, place, "stream", token) as wire:
            while await wire.stream.receive_some():
                pass
