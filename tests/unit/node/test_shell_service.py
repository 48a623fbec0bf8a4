"""A shell in a run, from the buyer's line to the program: who gets one, how many, and that nothing is typed twice."""

import errno
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from kit.local_runs import SEEN_INSIDE, LocalRuns
from kit.memory_net import MemoryHub
from kit.memory_party import Party, party

from hansa.node.network.net import Refused, RemoteFault, Unreachable
from hansa.node.runs import shell_line, shell_service
from hansa.node.runs.shell_line import Ask, ShellFault, ShellLine, ask_provider
from hansa.node.runs.shell_service import ShellService
from hansa.proto.codec import encode
from hansa.proto.pipes import GREETING, STDERR, STDIN, STDOUT, PipeReader, pack_piped
from hansa.proto.protocols import SHELL
from hansa.proto.shell_messages import ShellAwaited, ShellTyped, ShellWanted

pytestmark = pytest.mark.trio
LEASE, OTHERS = b"L" * 32, b"O" * 32


@dataclass
class Stage:
    """A provider with two runs, of which one is the buyer's."""

    provider: Party
    buyer: Party
    runs: LocalRuns
    service: ShellService

    @property
    def ask(self) -> Ask:
        return ask_provider(self.buyer.net, self.buyer.directory, self.provider.account.address)

    async def open(self, *argv: str, lease: bytes = LEASE, piped: bool = False, ask: Ask | None = None) -> ShellLine:
        line = ShellLine(ask or self.ask)
        await line.open(lease, argv, piped=piped, columns=80, rows=24)
        return line


@asynccontextmanager
async def a_stage(tmp_path: Path, *, allowed: bool = True) -> AsyncIterator[Stage]:
    hub = MemoryHub()
    with trio.fail_after(30):
        async with party(hub, 1) as provider, party(hub, 2) as buyer, trio.open_nursery() as nursery:
            buyer.knows(provider)
            await buyer.directory.meet(provider.peer_id)
            runs = LocalRuns(LEASE, OTHERS, directory=tmp_path)
            held = {LEASE: buyer.account.address, OTHERS: b"\x07" * 20}
            service = ShellService(provider.net, provider.directory, runs, buyer_of=held.get, allowed=allowed)
            await nursery.start(service.serve)
            yield Stage(provider, buyer, runs, service)
            nursery.cancel_scope.cancel()


async def all_of(line: ShellLine) -> tuple[bytes, int]:
    """Everything that a program writes, and how it ends."""
    data = b""
    while not (said := await line.read()).ended:
        data += said.data
    return data + said.data, said.status


async def until(line: ShellLine, mark: bytes) -> bytes:
    """What a program writes until this has come, and whatever came with it."""
    data = b""
    while mark not in data:
        said = await line.read()
        assert not said.ended, data
        data += said.data
    return data


# What a shell is good for.


async def test_a_command_runs_at_a_terminal_and_its_status_comes_back(tmp_path: Path) -> None:
    async with a_stage(tmp_path) as stage:
        line = await stage.open("sh", "-c", "test -t 0 && test -t 1 && stty size && pwd && exit 7")
        data, status = await all_of(line)
        assert data.split() == [b"24", b"80", os.fsencode(tmp_path)]
        assert status == 7


async def test_without_a_command_it_is_a_shell_that_is_typed_into(tmp_path: Path) -> None:
    async with a_stage(tmp_path) as stage:
        line = await stage.open()
        await line.enter(b"stty -echo; echo he''llo\r", 80, 24)
        await until(line, b"hello")
        await line.enter(b"", 132, 50)
        await line.enter(b"stty size; exit 3\r", 132, 50)
        data, status = await all_of(line)
        assert b"50 132" in data
        assert status == 3


async def test_an_interrupt_that_is_typed_reaches_the_program(tmp_path: Path) -> None:
    async with a_stage(tmp_path) as stage:
        line = await stage.open("sh", "-c", "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done")
        await until(line, b"ready")
        await line.enter(b"\x03", 80, 24)
        data, status = await all_of(line)
        assert b"caught" in data
        assert status == 5


async def test_a_program_that_is_killed_ends_as_a_shell_would_say(tmp_path: Path) -> None:
    async with a_stage(tmp_path) as stage:
        line = await stage.open("sh", "-c", "kill -9 $$")
        assert (await all_of(line))[1] == 128 + signal.SIGKILL


async def test_what_cannot_be_started_says_so(tmp_path: Path) -> None:
    async with a_stage(tmp_path) as stage:
        data, status = await all_of(await stage.open("no-such-program"))
        assert b"No such file" in data
        assert status == 127


async def test_much_output_comes_whole_and_at_a_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_service, "BYTES_PER_S", 400_000)
    async with a_stage(tmp_path) as stage:
        began = trio.current_time()
        line = await stage.open("sh", "-c", "stty raw; head -c 500000 /dev/zero")
        data, status = await all_of(line)
        assert (len(data), status) == (500_000, 0)
        assert trio.current_time() - began > 0.8


async def test_a_program_that_does_not_read_holds_up_who_types_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_service, "HOLD_S", 0.05)
    async with a_stage(tmp_path) as stage:
        line = await stage.open("sh", "-c", "stty raw -echo; echo ready; exec sleep 60")
        await until(line, b"ready")
        typed = 0
        with trio.move_on_after(1.5):
            while True:
                await line.enter(b"x" * 16_384, 80, 24)
                typed += 1
        assert typed < 20
        other = await stage.open("echo", "here")
        assert b"here" in (await all_of(other))[0]


# Pipes.


async def piped(stage: Stage, *argv: str, typed: bytes = b"") -> tuple[bytes, bytes, int]:
    line = await stage.open(*argv, piped=True)
    before = await until(line, GREETING)
    rest = before.partition(GREETING)[2]
    async with trio.open_nursery() as nursery:

        async def enter() -> None:
            for at in range(0, len(typed), 8192):
                await line.enter(pack_piped(STDIN, typed[at : at + 8192]), 80, 24)
            await line.enter(pack_piped(STDIN, b""), 80, 24)

        nursery.start_soon(enter)
        data, status = await all_of(line)
    written = {STDOUT: b"", STDERR: b""}
    for kind, piece in PipeReader((STDOUT, STDERR)).feed(rest + data):
        written[kind] += piece
    return written[STDOUT], written[STDERR], status


async def test_bytes_pass_through_pipes_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", SEEN_INSIDE)
    every = bytes(range(256)) * 400
    async with a_stage(tmp_path) as stage:
        assert await piped(stage, "cat", typed=every) == (every, b"", 0)
        assert await piped(stage, "sh", "-c", "echo out; echo err >&2; exit 9") == (b"out\n", b"err\n", 9)
        assert await piped(stage, "sh", "-c", "kill -15 $$") == (b"", b"", 143)
        assert await piped(stage, typed=b"echo $((6 * 7))\n") == (b"42\n", b"", 0)
        assert await piped(stage, "true", typed=every) == (b"", b"", 0)
        assert (await piped(stage, "no-such-program"))[2] == 127


# Who gets one.


async def test_a_shell_is_for_who_bought_the_lease(tmp_path: Path) -> None:
    async with a_stage(tmp_path) as stage:
        with pytest.raises(ShellFault, match="you have no such lease here"):
            await stage.open("true", lease=OTHERS)
        with pytest.raises(ShellFault, match="you have no such lease here"):
            await stage.open("true", lease=b"?" * 32)
        assert stage.runs.opened == 0


async def test_a_shell_is_nobody_elses_to_read_or_type_into(tmp_path: Path) -> None:
    async with a_stage(tmp_path) as stage:
        wanted = ShellWanted(shell=b"s" * 16, lease=LEASE, argv=("cat",), piped=False, columns=80, rows=24)
        await stage.service.answer(stage.buyer.account.address, encode(wanted))
        for request in (
            ShellAwaited(shell=b"s" * 16, sequence=1),
            ShellTyped(shell=b"s" * 16, sequence=1, data=b"x", columns=80, rows=24),
        ):
            with pytest.raises(Refused, match="no such shell"):
                await stage.service.answer(b"\x07" * 20, encode(request))


async def test_an_owner_may_allow_none(tmp_path: Path) -> None:
    async with a_stage(tmp_path, allowed=False) as stage:
        with pytest.raises(ShellFault, match="allows no shells"):
            await stage.open("true")


async def test_a_run_that_has_ended_has_no_shells(tmp_path: Path) -> None:
    async with a_stage(tmp_path) as stage:
        line = await stage.open("cat")
        stage.runs.end(LEASE)
        assert (await all_of(line))[1] == -1
        with pytest.raises(ShellFault, match="the run is not there, or has ended"):
            await stage.open("true")


async def test_a_lease_has_two_shells_and_a_provider_sixteen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_stage(tmp_path) as stage:
        first = await stage.open("cat")
        await stage.open("cat")
        with pytest.raises(ShellFault, match="2 shells are open in this run"):
            await stage.open("cat")
        await first.close()
        await stage.open("cat")
        monkeypatch.setattr(shell_service, "SHELLS", 2)
        monkeypatch.setattr(shell_service, "SHELLS_PER_LEASE", 9)
        with pytest.raises(ShellFault, match="too many shells"):
            await stage.open("cat")


async def test_shells_that_ended_do_not_count_and_are_not_kept_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_service, "KNOWN", 3)
    async with a_stage(tmp_path) as stage:
        for _ in range(6):
            assert (await all_of(await stage.open("true")))[1] == 0
        assert stage.service.open_shells == 0


async def test_a_shell_that_nobody_uses_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_service, "LOOK_S", 0.05)
    monkeypatch.setattr(shell_service, "IDLE_S", 0.5)
    async with a_stage(tmp_path) as stage:
        line = await stage.open("cat")
        with pytest.raises(ShellFault, match="nothing passed through the shell"):
            await all_of(line)
        monkeypatch.setattr(shell_service, "GONE_S", 0.2)
        left = await stage.open("cat")
        await trio.sleep(0.4)
        with pytest.raises(ShellFault, match="nobody asked for the shell"):
            await left.enter(b"x", 80, 24)
        assert stage.service.open_shells == 0


def lives(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


async def test_hanging_up_ends_the_program(tmp_path: Path) -> None:
    async with a_stage(tmp_path) as stage:
        line = await stage.open("sh", "-c", "echo $$; trap '' HUP; sleep 60; sleep 60")
        pid = int((await until(line, b"\n")).split()[0])
        await line.close()
        for _ in range(100):
            if not lives(pid):
                return
            await trio.sleep(0.05)
        raise AssertionError("it lives on")


# Answers that are lost.


def losing(ask: Ask, how: Callable[[int], bool]) -> Ask:
    """Like ``ask``, but some answers never come: the provider has acted and the buyer does not know."""
    count = 0

    async def ask_and_lose(data: bytes) -> bytes:
        nonlocal count
        count += 1
        answer = await ask(data)
        if how(count):
            raise RemoteFault("", "the stream broke")
        return answer

    return ask_and_lose


async def test_nothing_is_typed_twice_and_nothing_is_lost_when_answers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_line, "RETRY_S", 0.01)
    async with a_stage(tmp_path) as stage:
        line = await stage.open(
            "sh", "-c", "stty raw -echo; echo ready; head -c 300", ask=losing(stage.ask, lambda n: n % 2 == 1)
        )
        assert stage.runs.opened == 1
        await until(line, b"ready\n")
        for number in range(100):
            await line.enter(b"%03d" % number, 80, 24)
        data, status = await all_of(line)
        assert data == b"".join(b"%03d" % number for number in range(100))
        assert status == 0


async def test_a_provider_that_cannot_be_reached_is_given_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_line, "RETRY_S", 0.01)
    monkeypatch.setattr(shell_line, "PATIENCE_S", 0.2)
    async with a_stage(tmp_path) as stage:
        line = await stage.open("cat")

        async def gone(_: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            raise Unreachable("", "no address answers")

        lost = ShellLine(gone)
        with pytest.raises(ShellFault, match="cannot be reached"):
            await lost.open(LEASE, (), piped=False, columns=80, rows=24)
        await lost.close()
        await line.close()


@pytest.mark.parametrize("sequence", [0, 2, 3, 1 << 31])
async def test_requests_out_of_turn_are_refused(tmp_path: Path, sequence: int) -> None:
    async with a_stage(tmp_path) as stage:
        account = stage.buyer.account.address
        wanted = ShellWanted(shell=b"s" * 16, lease=LEASE, argv=("cat",), piped=False, columns=80, rows=24)
        await stage.service.answer(account, encode(wanted))
        with pytest.raises(Refused):
            await stage.service.answer(account, encode(ShellAwaited(shell=b"s" * 16, sequence=sequence)))
        typed = ShellTyped(shell=b"s" * 16, sequence=sequence, data=b"x", columns=80, rows=24)
        if sequence:
            with pytest.raises(Refused):
                await stage.service.answer(account, encode(typed))


@pytest.mark.parametrize("side", [0, 1001, 65_535])
async def test_a_terminal_of_an_impossible_size_is_refused_and_other_shells_go_on(tmp_path: Path, side: int) -> None:
    async with a_stage(tmp_path) as stage:
        other, bad = await stage.open(), await stage.open("cat")
        for columns, rows in ((side, 24), (80, side)):
            with pytest.raises(ShellFault, match="from 1 to 1000"):
                await bad.enter(b"x", columns, rows)
        assert stage.service.open_shells == 2
        await other.enter(b"exit 3\r", 1000, 1000)
        assert (await all_of(other))[1] == 3


async def test_what_goes_wrong_with_one_shell_closes_that_shell_only(tmp_path: Path) -> None:
    async def broken(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EMFILE, "too many files")

    async with a_stage(tmp_path) as stage:
        other, bad = await stage.open(), await stage.open("cat")
        stage.runs.runs[LEASE]._open[1].resize = broken  # type: ignore[method-assign]
        await bad.enter(b"x", 100, 24)
        with pytest.raises(ShellFault, match="the shell failed at its provider"):
            await all_of(bad)
        await other.enter(b"exit 3\r", 80, 24)
        assert (await all_of(other))[1] == 3
        assert stage.service.open_shells == 0


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80" * 100, b"x" * 50_000])
async def test_what_is_no_request_is_a_strike_and_no_more(tmp_path: Path, data: bytes) -> None:
    async with a_stage(tmp_path) as stage:
        with pytest.raises((RemoteFault, Exception)):
            await stage.buyer.net.request(stage.provider.net.peer_id, SHELL, data)
        assert (await all_of(await stage.open("true")))[1] == 0
